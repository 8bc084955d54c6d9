"""Holds prose to the list in words.toml: strings, docstrings and names of src/mcpmeter, README.md and docs/*.md.

Prints `file:line: 'word'; write …` for each hit and exits with 1. Comments, code blocks and inline code are not read.
"""

from __future__ import annotations

import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
# Python 3.12 splits an f-string into tokens; before that it is one string.
STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
BLANK_IN_PROSE = re.compile(r"```.*?```|<!--.*?-->|`[^`\n]*`", re.DOTALL)


class Rule(NamedTuple):
    """One entry of `[[word]]`: a pattern, the advice, and whether it is about prose or about names."""

    pattern: re.Pattern[str]
    instead: str
    in_names: bool


class Hit(NamedTuple):
    """One place to rewrite."""

    file: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: '{self.word}'; write {self.instead}"


class WordList:
    """words.toml. Raises ValueError for an allowed word without a reason."""

    def __init__(self, path: Path) -> None:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        self.not_yet: list[str] = data["not_yet"]
        self.rules = [
            Rule(_pattern(entry["word"]), entry["instead"], entry.get("in_names", False)) for entry in data["word"]
        ]
        self._allowed = set()
        for entry in data.get("allow", []):
            if not entry["reason"]:
                raise ValueError(f"{entry['word']} in {entry['file']} is allowed without a reason")
            self._allowed.add((entry["word"], entry["file"]))

    def is_read(self, file: str) -> bool:
        """Whether the file is in none of the paths of `not_yet`."""
        return not any(file == path or file.startswith(f"{path}/") for path in self.not_yet)

    def hits(self, file: str, line: int, text: str, *, in_names: bool = False) -> Iterator[Hit]:
        """The listed words in a text that begins in this line of the file."""
        for rule in self.rules:
            if rule.in_names != in_names:
                continue
            for found in rule.pattern.finditer(text):
                word = " ".join(found[0].split())
                if (word.lower(), file) not in self._allowed:
                    yield Hit(file, line + text.count("\n", 0, found.start()), word, rule.instead)


def _pattern(word: str) -> re.Pattern[str]:
    words = word.replace(" ", r"\s+")  # a line may break between two words
    return re.compile(rf"\b(?:{words})\b", re.IGNORECASE)


def check_python(words: WordList, path: Path, file: str) -> Iterator[Hit]:
    """Strings of more than one word, and names."""
    with path.open("rb") as source:
        for token in tokenize.tokenize(source.readline):
            if token.type in STRINGS and " " in token.string:
                yield from words.hits(file, token.start[0], token.string)
            elif token.type == tokenize.NAME:
                yield from words.hits(file, token.start[0], token.string, in_names=True)


def check_markdown(words: WordList, path: Path, file: str) -> Iterator[Hit]:
    """Everything but code and HTML comments, which are blanked so that lines keep their numbers."""
    prose = BLANK_IN_PROSE.sub(lambda code: "\n" * code[0].count("\n"), path.read_text(encoding="utf-8"))
    yield from words.hits(file, 1, prose)


def check(root: Path, words: WordList) -> list[Hit]:
    """All hits under `root`, by file and line."""
    hits: list[Hit] = []
    for path in (root / "README.md", *root.glob("docs/*.md"), *root.glob("src/mcpmeter/**/*.py")):
        file = path.relative_to(root).as_posix()
        if words.is_read(file):
            hits += (check_python if path.suffix == ".py" else check_markdown)(words, path, file)
    return sorted(hits)


def main(arguments: Sequence[str]) -> int:
    """Check the repository, or the root and the list that are given."""
    root, listed = map(Path, arguments) if arguments else (HERE.parent, HERE / "words.toml")
    hits = check(root, WordList(listed))
    for hit in hits:
        sys.stderr.write(f"{hit}\n")
    return 1 if hits else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
