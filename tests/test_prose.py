"""scripts/prose.py on a small repository with a list of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "prose.py"
WORDS = """
not_yet = ["src/mcpmeter/later"]
[[word]]
word = "nobody|who pays"
instead = "the subject"
[[word]]
word = "most_\\\\w+"
in_names = true
instead = "max_"
[[allow]]
word = "nobody"
file = "docs/quoted.md"
reason = "a quotation"
"""


@pytest.fixture
def check(tmp_path: Path):
    """Writes one file, checks the repository, and returns what is printed about it."""
    (tmp_path / "README.md").touch()
    (tmp_path / "words.toml").write_text(WORDS)

    def run(file: str, text: str) -> list[str]:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        done = subprocess.run(
            [sys.executable, SCRIPT, tmp_path, tmp_path / "words.toml"], capture_output=True, text=True, check=False
        )
        assert done.returncode == (1 if done.stderr else 0)
        return done.stderr.splitlines()

    return run


def test_a_hit_names_file_line_word_and_what_to_write(check) -> None:
    assert check("docs/a.md", "One.\nIt says Who\npays.\n") == ["docs/a.md:2: 'Who pays'; write the subject"]


def test_docstrings_and_messages_are_read(check) -> None:
    text = '"""Module.\n\nNobody reads it.\n"""\n\nraise ValueError(f"nobody has {1}")\n'
    assert [hit.partition(" ")[0] for hit in check("src/mcpmeter/a.py", text)] == [
        "src/mcpmeter/a.py:3:",
        "src/mcpmeter/a.py:6:",
    ]


def test_names_have_rules_of_their_own(check) -> None:
    assert check("src/mcpmeter/a.py", "most_bytes = nobody = 1\n") == ["src/mcpmeter/a.py:1: 'most_bytes'; write max_"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("docs/a.md", "```\nnobody\n```\n`nobody` <!-- nobody\n -->\n"),
        ("src/mcpmeter/a.py", "# nobody\nuser = 'nobody'\n"),
        ("src/mcpmeter/later/a.py", '"""Nobody here."""\n'),
        ("docs/quoted.md", "Nobody's perfect.\n"),
    ],
    ids=["code in Markdown", "comments and single words", "a path of not_yet", "an allowed word"],
)
def test_is_not_reported(check, file: str, text: str) -> None:
    assert check(file, text) == []
