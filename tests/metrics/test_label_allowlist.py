from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.metrics.label_allowlist import LabelAllowlist, printable


class TestVocabulary:
    def test_nothing_is_announced_at_first(self) -> None:
        assert set(LabelAllowlist().of("model")) == set()

    def test_what_was_announced_stays_when_more_is_announced(self) -> None:
        vocabulary = LabelAllowlist()
        vocabulary.register("model", ["gpt-4.1"])
        vocabulary.register("model", ["deepseek-v3.2"])
        vocabulary.register("model", [])
        assert set(vocabulary.of("model")) == {"gpt-4.1", "deepseek-v3.2"}

    def test_sets_do_not_mix(self) -> None:
        vocabulary = LabelAllowlist()
        vocabulary.register("model", ["same"])
        assert "same" not in vocabulary.of("team")

    def test_two_vocabularies_share_nothing(self) -> None:
        one, other = LabelAllowlist(), LabelAllowlist()
        one.register("model", ["gpt-4.1"])
        assert set(other.of("model")) == set()


class TestPrintable:
    @given(st.text(st.characters(categories=["Cs", "Cc", "L", "P", "Zl"])))
    def test_what_it_returns_can_be_written_on_one_line_and_is_as_long(self, text: str) -> None:
        cleaned = printable(text)
        cleaned.encode()
        assert len(cleaned) == len(text)
        assert not any(ch < " " or ch == "\x7f" for ch in cleaned)
        assert printable(cleaned) == cleaned

    def test_a_sound_name_is_left_alone(self) -> None:
        assert printable("Größe/模型-4.1") == "Größe/模型-4.1"
