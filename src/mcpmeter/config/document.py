"""Reads YAML into plain values and the line of each. Built on PyYAML's nodes, so that every fault can name its line.

Accepts only the unambiguous part of YAML 1.1: no tags, no merge keys, numbers in plain decimal. Size, depth and number
of values are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import yaml

from mcpmeter.config.faults import Fault, Where, dotted, inside, shown

MAX_BYTES: Final = 262_144
MAX_DEPTH: Final = 16
MAX_VALUES: Final = 20_000
"""Limit on the values after aliases are expanded, against a billion laughs."""

INVALID_KEY: Final = "?"
"""Replaces a key that is not text, so that its fault does not hide those of its neighbours."""
TAG: Final = "tag:yaml.org,2002:"
WHOLE_NUMBER: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
DECIMAL_NUMBER: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})?\.[0-9]{1,30}")
REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
VARIABLE: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)

Value = None | bool | int | Decimal | str | list["Value"] | dict[str, "Value"]


@dataclass(slots=True)
class Document:
    """The content of a text: values with every `${VARIABLE}` replaced, the line of each, and the faults found."""

    data: Value = None
    lines: dict[Where, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def read_document(content: bytes, environ: Mapping[str, str]) -> Document:
    """Reads one YAML document. Never raises for any content: faults are in the result."""
    try:
        node = _compose(content)
    except _Unreadable as unreadable:
        return Document(faults=[unreadable.fault])
    if node is None:
        return Document(faults=[_fault(1, "the file is empty; give it at least one section, or run without a file")])
    reader = _Reader(environ)
    try:
        reader.document.data = reader.value(node, ())
    except _Unreadable as unreadable:
        reader.document.faults.append(unreadable.fault)
    return reader.document


class _Unreadable(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.sentence)
        self.fault = fault


def _fault(line: int, sentence: str) -> Fault:
    return Fault((), sentence, line)


class _BoundedLoader(yaml.SafeLoader):
    """Limits the depth of nodes to `MAX_DEPTH`, because PyYAML recurses."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Unreadable(_fault(self.get_mark().line + 1, f"nested more than {MAX_DEPTH} deep; flatten it"))
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(content: bytes) -> yaml.Node | None:
    text = _decode(content)
    try:
        return yaml.compose(text, Loader=_BoundedLoader)
    except yaml.MarkedYAMLError as error:
        raise _Unreadable(_syntax_fault(error)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _Unreadable(_fault(line, "a control character is not allowed here; remove it")) from None
    except (ValueError, OverflowError):
        # An escape such as "\UFFFFFFFF" names no character, and PyYAML lets chr() raise.
        raise _Unreadable(_fault(1, "an escape or directive in this file has no meaning; write plain text")) from None


def _decode(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise _Unreadable(_fault(1, f"the file is larger than {MAX_BYTES} bytes; is it a configuration?"))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _Unreadable(_fault(line, "not UTF-8; save the file as UTF-8")) from None


def _syntax_fault(error: yaml.MarkedYAMLError) -> Fault:
    mark = error.problem_mark or error.context_mark
    problem = " ".join(filter(None, (error.context, error.problem))) or "not understood"
    if "'\\t'" in problem:
        problem = "a tab cannot indent; use spaces"
    elif re.search("alias|anchor|tag", problem):
        # PyYAML's own message repeats the text after the mark, and a password may begin with '*', '&' or '!'.
        problem = "'*', '&' and '!' begin an alias, an anchor or a tag; put the text in quotes if none is meant"
    elif "expected a single document" in problem:
        problem = "a second document begins ('---'); keep one in a file"
    else:
        problem = f"not YAML: {problem}"
    return _fault(mark.line + 1 if mark else 1, problem)


class _Reader:
    """Converts nodes to values and replaces references to environment variables."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.document = Document()
        self._environ = environ
        self._resolver = yaml.SafeLoader("")
        self._open_nodes: set[int] = set()
        self._values = 0

    def value(self, node: yaml.Node, where: Where) -> Value:
        line = node.start_mark.line + 1
        self.document.lines.setdefault(where, line)
        self._values += 1
        if self._values > MAX_VALUES:
            raise _Unreadable(_fault(line, f"more than {MAX_VALUES} values after aliases are expanded; write less"))
        if id(node) in self._open_nodes:
            raise _Unreadable(_fault(line, "an alias refers to a value that contains it; write the value out"))
        if len(where) > MAX_DEPTH:
            raise _Unreadable(_fault(line, f"nested more than {MAX_DEPTH} deep; flatten it"))
        self._open_nodes.add(id(node))
        value = self._convert(node, where)
        self._open_nodes.discard(id(node))
        return value

    def _convert(self, node: yaml.Node, where: Where) -> Value:
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return {key: self.value(child, (*where, key)) for key, child in self._items(node, where)}
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return [self.value(child, (*where, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag == self._implicit_tag(node):
            return self._scalar(node, where)
        self._note(where, f"{_named(where)} has a tag ('!…'); put the text in quotes if none is meant", node)
        return None

    def _items(self, node: yaml.MappingNode, where: Where) -> Iterator[tuple[str, yaml.Node]]:
        seen: dict[str, int] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != TAG + "str":
                advice = "write the keys out" if key_node.tag == TAG + "merge" else "put it in quotes"
                self._note((*where, INVALID_KEY), f"a key {inside(where)} is not plain text; {advice}", key_node)
                continue
            key: str = key_node.value
            if key in seen:
                twice = f"key '{shown(key)}' is given twice {inside(where)}, first in line {seen[key]}; keep one"
                self._note((*where, key), twice, key_node)
                continue
            seen[key] = self.document.lines[(*where, key)] = line
            yield key, child

    def _implicit_tag(self, node: yaml.ScalarNode) -> str:
        plain = node.style is None
        tag: str = self._resolver.resolve(yaml.ScalarNode, node.value, (plain, not plain))  # type: ignore[no-untyped-call]
        return tag

    def _scalar(self, node: yaml.ScalarNode, where: Where) -> Value:
        text: str = node.value
        kind = node.tag.removeprefix(TAG)
        if kind == "null":
            return None
        if kind == "bool":
            return bool(yaml.SafeLoader.bool_values[text.lower()])
        if kind in ("int", "float"):
            return self._number(text, node, where)
        return self._expanded(text, node, where)

    def _number(self, text: str, node: yaml.ScalarNode, where: Where) -> Value:
        if WHOLE_NUMBER.fullmatch(text):
            return int(text)
        if DECIMAL_NUMBER.fullmatch(text):
            return Decimal(text)
        self._note(where, f"{_named(where)}: write the number in plain decimal, or quote it if it is text", node)
        return None

    def _expanded(self, text: str, node: yaml.ScalarNode, where: Where) -> Value:
        faults: list[str] = []
        expanded = REFERENCE.sub(lambda found: self._reference(found, faults), text)
        for fault in faults:
            self._note(where, f"{_named(where)} {fault}", node)
        return None if faults else expanded

    def _reference(self, found: re.Match[str], faults: list[str]) -> str:
        if found[0] == "$${":
            return "${"
        variable = VARIABLE.fullmatch(found[1])
        if not found[2] or variable is None:
            faults.append(
                "has a '${' that names no variable; write ${NAME}, ${NAME:-default}, or $${ for the text itself"
            )
            return ""
        name, default = variable[1], variable[2]
        if default is not None:
            return self._environ.get(name) or default
        if name not in self._environ:
            faults.append(f"needs the environment variable '{shown(name)}', which is not set; export it")
        return self._environ.get(name, "")

    def _note(self, where: Where, sentence: str, node: yaml.Node) -> None:
        """Records the fault. The value becomes None, and `loading` drops further faults about it."""
        self.document.faults.append(Fault(where, sentence, node.start_mark.line + 1))


def _named(where: Where) -> str:
    return f"'{dotted(where)}'" if where else "the file"
