"""YAML that a person may read and a diff may show: keys in their order, long texts as blocks."""

from __future__ import annotations

from typing import Final

import yaml

MADE: Final = "# Made by `mcpmeter monitoring write`; change `monitoring:` in mcpmeter.yaml, not this file.\n"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(document: object, note: str = "") -> str:
    """One document, with a head that says where it comes from."""
    return MADE + "".join(f"# {line}\n" for line in note.splitlines()) + plain_yaml(document)


def plain_yaml(document: object) -> str:
    """The same without the head, for documents that stand in a row."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
