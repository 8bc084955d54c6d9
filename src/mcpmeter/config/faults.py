"""Faults of a configuration: each is one line with the place, what is wrong and what to do, and repeats no value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mcpmeter.errors import ConfigInvalid

Where = tuple[str | int, ...]
"""The path from the root to a value: ("providers", 0, "base_url")."""

SENTENCES: Final[Mapping[str, str]] = {
    "string_type": "must be text; put it in quotes",
    "path_type": "must be text; put it in quotes",
    "model_type": "must be a mapping of keys, one 'key: value' a line below it",
    "model_attributes_type": "must be a mapping of keys, one 'key: value' a line below it",
    "tuple_type": "must be a list, one '- item' a line below it",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
    "dict_type": "must be a mapping of keys, one 'key: value' a line below it",
    "mapping_type": "must be a mapping of keys, one 'key: value' a line below it",
    "too_long": "has too many items: at most {max_length}",
}
SHOWN_CHARACTERS: Final = 60


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `line` is found from `where` unless it is given."""

    where: Where
    sentence: str
    line: int | None = None


def dotted(where: Where) -> str:
    """`providers[0].base_url`; "" for the root."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{shown(step)}" for step in where).lstrip(".")


def inside(where: Where) -> str:
    """`in 'providers[0]'`, or `at the top level`."""
    return f"in '{dotted(where)}'" if where else "at the top level"


def shown(text: str) -> str:
    """A key's name for a message: one line, printable, short."""
    cut = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    return cut if cut.isprintable() else cut.encode("unicode_escape").decode("ascii")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'port'?`, or the list of known names."""
    choices = list(known)
    longer = [choice for choice in choices if name and choice.startswith(name)]
    near = longer or get_close_matches(name[:SHOWN_CHARACTERS], choices, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known are: {', '.join(choices)}"


def from_validation(error: ValidationError, root: type[BaseModel]) -> list[Fault]:
    """The faults that pydantic found, with our sentences."""
    details = error.errors(include_url=False, include_context=True, include_input=True)
    return [Fault(detail["loc"], _sentence(detail, root)) for detail in details]


def raise_for(faults: Sequence[Fault], source: str, lines: Mapping[Where, int]) -> None:
    """Raises ConfigInvalid with one line per fault, in the order of the file; returns if there are none."""
    if not faults:
        return
    located = sorted({(fault.line or _line(fault.where, lines), fault.sentence) for fault in faults})
    raise ConfigInvalid("\n".join(f"{source}:{line}: {sentence}" for line, sentence in located))


def _line(where: Where, lines: Mapping[Where, int]) -> int:
    while where and where not in lines:
        where = where[:-1]
    return lines.get(where, 1)


def _sentence(detail: ErrorDetails, root: type[BaseModel]) -> str:
    where, kind = detail["loc"], detail["type"]
    if kind == "extra_forbidden":
        return _unknown_key(where, root)
    if kind == "missing":
        return f"'{where[-1]}' is missing in '{dotted(where[:-1])}'; add it"
    name = f"'{dotted(where)}'" if where else "the file"
    if detail["input"] is None:
        return f"{name} has no value; give it one or remove the line"
    known = SENTENCES.get(kind)
    sentence = known.format(**detail.get("ctx", {})) if known else detail["msg"].replace("Input should", "must")
    return f"{name} {sentence}"


def _unknown_key(where: Where, root: type[BaseModel]) -> str:
    key, parent = str(where[-1]), where[:-1]
    model = _model_at(root, parent)
    known = list(model.model_fields) if model else []
    elsewhere = [f"{name}.{key}" for name, section in _sections(root) if key in section.model_fields]
    advice = f"; did you mean '{elsewhere[0]}'?" if not parent and elsewhere else nearest(key, known)
    return f"unknown key '{shown(key)}' {inside(parent)}{advice}"


def _sections(root: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    return [
        (name, info.annotation)
        for name, info in root.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    ]


def _model_at(root: type[BaseModel], where: Where) -> type[BaseModel] | None:
    model: type[BaseModel] | None = root
    for step in where:
        if isinstance(step, str):
            model = model_in(model.model_fields[step].annotation) if model and step in model.model_fields else None
    return model


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings model inside `tuple[Model, ...]`, `Model | None` or `Model`; None if there is none."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    return next((model for inner in get_args(annotation) if (model := model_in(inner)) is not None), None)
