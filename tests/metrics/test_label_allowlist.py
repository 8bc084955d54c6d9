from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.metrics.label_allowlist import LabelAllowlist, printable


def test_registered_values_stay_in_their_set() -> None:
    allowlist = LabelAllowlist()
    allowlist.register("model", ["gpt-4.1"])
    allowlist.register("model", ["deepseek-v3.2"])
    allowlist.register("model", [])
    assert set(allowlist.of("model")) == {"gpt-4.1", "deepseek-v3.2"}
    assert set(allowlist.of("team")) == set()


@given(st.text(st.characters(categories=["Cs", "Cc", "L", "P", "Zl"])))
def test_printable_text_is_valid_utf8_on_one_line(text: str) -> None:
    cleaned = printable(text)
    cleaned.encode()
    assert len(cleaned) == len(text)
    assert not any(ch < " " or ch == "\x7f" for ch in cleaned)
    assert printable(cleaned) == cleaned


def test_printable_keeps_a_valid_name() -> None:
    assert printable("Größe/模型-4.1") == "Größe/模型-4.1"
