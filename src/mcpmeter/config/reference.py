"""docs/configuration.md, made from the settings tree: `python -m mcpmeter.config.reference > docs/configuration.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mcpmeter.config.faults import model_in
from mcpmeter.config.settings import Settings
from mcpmeter.providers import Provider, load_providers

KINDS: Final = {
    int: "whole number",
    float: "seconds",
    str: "text",
    SecretStr: "secret",
    Path: "path",
    Decimal: "number",
    bool: "true or false",
    datetime: "instant",
}

HEAD: Final = """\
# Configuration

<!-- Made by `python -m mcpmeter.config.reference`; a test holds it equal to the settings tree. -->

`mcpmeter serve` reads one YAML file: `--config FILE`, else `$MCPMETER_CONFIG`, else `./mcpmeter.yaml` where there is
one. Without a file it switches on every provider whose key is in the environment. `mcpmeter check` validates a file and
prints what would run.

- An unknown key is an error that names the file, the line and the nearest valid key. All faults of a file are told at
  once.
- `${NAME}` is filled in from the environment, `${NAME:-default}` where it may be missing or empty; `$${` stands for
  `${`. Inside `{…}` or `[…]` such text needs quotes.
- Numbers are plain decimal. Tags (`!…`), merge keys (`<<`) and a second document are refused; anchors work.
- A relative path is taken from the file's folder.
- A key given by an environment variable alone is sent to its provider's own address only: with another `base_url`, say
  `api_key`.
"""


def reference() -> str:
    """The whole page, in Markdown."""
    sections = [line for name, info in Settings.model_fields.items() for line in _section(name, info)]
    return "\n".join([HEAD, *sections, *_providers()]) + "\n"


def _section(where: str, info: FieldInfo) -> Iterator[str]:
    if get_origin(info.annotation) is Mapping:
        yield from (f"## `{where}`\n", f"{info.description} A mapping: `{_flow((info.examples or [''])[0])}`.\n")
        return
    model = _model(info)
    yield f"## `{where}`\n"
    yield f"{_first_line(model)}{_list_note(info)}\n"
    yield "| key | what | kind | default | example |"
    yield "| --- | --- | --- | --- | --- |"
    nested = [(f"{where}.{name}", field) for name, field in model.model_fields.items() if model_in(field.annotation)]
    for name, field in model.model_fields.items():
        if not model_in(field.annotation):
            kind, default = _kind(field.annotation), _default(field)
            yield f"| `{name}` | {field.description} | {kind} | {default} | {_example(field)} |"
    for name, field in nested:
        yield f"| `{name.rpartition('.')[2]}` | {field.description} | section, see below | | {_example(field)} |"
    yield ""
    for name, field in nested:
        yield from _section(name, field)


def _model(info: FieldInfo) -> type[BaseModel]:
    model = model_in(info.annotation)
    if model is None:
        raise TypeError("a top-level setting must be a section")
    return model


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip()


def _list_note(info: FieldInfo) -> str:
    return f" A list: `{_flow(info.examples[0])}`." if info.examples and get_origin(info.annotation) is tuple else ""


def _kind(annotation: Any) -> str:
    inner = [kind for kind in get_args(annotation) if kind not in (type(None), Ellipsis)]
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if get_origin(annotation) is tuple:
        return f"list of {_kind(inner[0])}"
    if get_origin(annotation) is Mapping:
        return "mapping"
    if annotation in KINDS:
        return KINDS[annotation]
    return _kind(inner[0])


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "needed"
    return "none" if field.default is None else f"`{_flow(field.default)}`"


def _example(field: FieldInfo) -> str:
    return f"`{_flow((field.examples or [''])[0])}`"


def _flow(value: object) -> str:
    plain = _plain(value)
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000, sort_keys=False, allow_unicode=True)
    return str(text).removesuffix("...\n").strip()


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return float(value) if isinstance(value, Decimal) else value


def _providers() -> Iterator[str]:
    yield "## Built-in providers\n"
    yield "One file each in `src/mcpmeter/relay/providers/`; the order is that of the environment's keys.\n"
    yield "| name | address | key | models |"
    yield "| --- | --- | --- | --- |"
    for provider in load_providers().values():
        yield f"| `{provider.name}` | {provider.base_url or 'yours'} | {_key(provider)} | {_models(provider)} |"


def _key(provider: Provider) -> str:
    return f"`{provider.key_env}`" if provider.key_env else "yours, or none"


def _models(provider: Provider) -> str:
    return ", ".join(f"`{name}`" for name in provider.models) or "yours"


if __name__ == "__main__":
    sys.stdout.write(reference())
