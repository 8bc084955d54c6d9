"""The bodies in this folder: one YAML file per provider and API, one entry of `bodies` per situation.

A file names the provider and its envelope: `response`, the JSON of a whole response, and `events`, those of a stream,
in which USAGE, MODEL and FIELDS stand for what a body fills in. A body gives

- `usage`, the text of the usage object, and `fields`, further fields of the envelope as JSON text; or `response` or
  `events` of its own;
- `stream`, `request` (further fields of the request), `headers` and `content_type` of the response, `at` (the instant);
- `cost` in US dollars, worked out by hand in the comment above it; `source` of the cost; `tokens` by count of the row;
  `items`, what the lines of the charge bill; `unpriced`, the lines without a price.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

FOLDER: Final = Path(__file__).parent
NOW: Final = datetime(2026, 12, 1, 12, tzinfo=UTC)
"""A Tuesday, which all prices are those of unless a body names another instant."""


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One response, and what it costs."""

    id: str
    model: str = ""
    path: str = ""
    request: dict[str, Any] = {}
    usage: str = "null"
    fields: str = ""
    response: str = ""
    events: list[str] = []
    stream: bool = False
    done: bool = True
    headers: dict[str, str] = {}
    content_type: str | None = None
    at: datetime = NOW
    cost: str
    source: str = "listed"
    price_list: str = ""
    tokens: dict[str, int] = {}
    items: dict[str, int] | None = None
    unpriced: dict[str, int] = {}

    @property
    def nanousd(self) -> int:
        """The cost as the ledger has it."""
        exact = Decimal(self.cost) * 10**9
        assert exact == int(exact)
        return int(exact)


class World(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file."""

    name: str = ""
    provider: str
    type: str = ""
    price_list: str = ""
    base: str = "/v1"
    path: str
    stream_path: str = ""
    model: str
    request: dict[str, Any] = {}
    response: str = ""
    events: list[str] = []
    end: str = "[DONE]"
    bodies: list[Body]

    def request_to(self, body: Body) -> tuple[str, dict[str, Any]]:
        """The path and the body of a request."""
        path = body.path or (self.stream_path if body.stream else "") or self.path
        model = body.model or self.model
        if "{model}" in path:
            return path.replace("{model}", model), {**self.request, **body.request}
        return path, {"model": model, **self.request, **({"stream": True} if body.stream else {}), **body.request}

    def answer_to(self, body: Body) -> bytes:
        """The whole HTTP response of the provider."""
        if body.stream:
            content, kind = "".join(self._stream(body)), "text/event-stream"
        else:
            content, kind = self._filled(body, body.response or self.response), "application/json"
        kind = kind if body.content_type is None else body.content_type
        head = [
            "HTTP/1.1 200 OK",
            *([f"Content-Type: {kind}"] if kind else []),
            f"Content-Length: {len(content.encode())}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in body.headers.items()),
        ]
        return ("\r\n".join(head) + "\r\n\r\n" + content).encode()

    def _stream(self, body: Body) -> Iterator[str]:
        for text in body.events or self.events:
            data = self._filled(body, text)
            name = json.loads(data).get("type") if self.end == "" else None
            yield (f"event: {name}\n" if name else "") + f"data: {data}\n\n"
        if self.end and body.done:
            yield f"data: {self.end}\n\n"

    def _filled(self, body: Body, text: str) -> str:
        one_line = " ".join(text.split())
        values = {"USAGE": " ".join(body.usage.split()), "MODEL": body.model or self.model}
        fields = " ".join(body.fields.split())
        for name, value in values.items():
            one_line = one_line.replace(name, value)
        return one_line.replace('"FIELDS": 0', fields or '"object_version": null')


def worlds() -> Mapping[str, World]:
    """All files, by name."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        world = msgspec.convert({"name": path.stem, **yaml.safe_load(path.read_text())}, World)
        ids = [body.id for body in world.bodies]
        assert len(set(ids)) == len(ids), path.name
        found[path.stem] = world
    return found
