"""What a running service or Prometheus knows: `--scrape` and `--prometheus`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import promql_parser as promql

from mcpmeter.errors import SetupError
from mcpmeter.monitoring.lint.checks import walk
from mcpmeter.monitoring.lint.finding import LintIssue
from mcpmeter.monitoring.lint.known import Known
from mcpmeter.monitoring.lint.reading import Asked, read

SECONDS_TO_ANSWER: Final = 10.0
MAX_BYTES: Final = 64 * 1024 * 1024


def known_of(scrape: str | None) -> Known:
    """The catalog, or what a URL or file shows. Raises SetupError: it shows no metrics."""
    if scrape is None:
        return Known.from_catalog()
    is_url = scrape.startswith(("http://", "https://"))
    text = _get(scrape) if is_url else _content(Path(scrape))
    try:
        known = Known.from_scrape(text, scrape)
    except ValueError:
        known = Known()
    if not known.series:
        raise SetupError(f"{scrape} shows no metrics.", hint="Name a /metrics page, or a file that has one in it.")
    return known


def unmatched(files: Mapping[str, str], prometheus: str) -> list[LintIssue]:
    """Selectors without one series in this Prometheus at this moment."""
    asked = [found for name, content in files.items() for found in read(name, content)[0]]
    answers: dict[str, bool] = {}
    return list(_unmatched(asked, prometheus.rstrip("/"), answers))


def _unmatched(asked: list[Asked], prometheus: str, answers: dict[str, bool]) -> Iterator[LintIssue]:
    for one in asked:
        for selector in selectors(one.expr):
            if selector not in answers:
                answers[selector] = _matches(prometheus, selector)
            if not answers[selector]:
                yield LintIssue(
                    file=one.file,
                    place=one.place,
                    level="error",
                    kind="no-series-now",
                    message=f"{selector} matches no series in {prometheus} now",
                    hint="Is the target scraped, and are the recording rules loaded?",
                )


def selectors(expr: str) -> list[str]:
    """Every selector of an expression, once; those with a dashboard's variable are left out."""
    try:
        nodes = [node for node, _ in walk(promql.parse(expr), ()) if isinstance(node, promql.VectorSelector)]
    except ValueError:
        return []
    texts = [_plain(node) for node in nodes]
    return [text for text in dict.fromkeys(texts) if "$" not in text]


def _plain(node: Any) -> str:
    """Without offset and `@`."""
    return str(node.prettify()).partition(" offset ")[0].partition(" @ ")[0].strip()


def _matches(prometheus: str, selector: str) -> bool:
    answer = _get(f"{prometheus}/api/v1/query?{urlencode({'query': f'count({selector})'})}")
    try:
        told = json.loads(answer)
        return bool(told["data"]["result"])
    except (ValueError, KeyError, TypeError):
        raise SetupError(f"{prometheus} is no Prometheus.", hint="Write it as http://127.0.0.1:9090.") from None


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError as fault:
        raise SetupError(f"{path} cannot be read: {fault.strerror}.", hint="Name a URL or a file.") from None


def _get(url: str) -> str:
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=SECONDS_TO_ANSWER)
        try:
            path = parts.path or "/"
            connection.request("GET", f"{path}?{parts.query}" if parts.query else path)
            answer = connection.getresponse()
            body = answer.read(MAX_BYTES)
        finally:
            connection.close()
    except (OSError, HTTPException, ValueError) as fault:
        why = getattr(fault, "strerror", None) or type(fault).__name__
        raise SetupError(f"{parts.netloc or url} does not answer ({why}).", hint="Is the address right?") from None
    if answer.status != 200:
        raise SetupError(f"{parts.netloc} answers with status {answer.status}.", hint="Is the address right?")
    return body.decode(errors="replace")
