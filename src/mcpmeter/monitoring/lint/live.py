"""Series of a running service (`--scrape`) or Prometheus (`--prometheus`)."""

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
from mcpmeter.monitoring.lint.expressions import Expression, LintIssue, read
from mcpmeter.monitoring.lint.known import Known

TIMEOUT_SECONDS: Final = 10.0
MAX_BYTES: Final = 64 * 1024 * 1024


def known_of(scrape: str | None) -> Known:
    """Series of the catalog, or of a URL or file. Raises SetupError if it contains no metrics."""
    if scrape is None:
        return Known.from_catalog()
    is_url = scrape.startswith(("http://", "https://"))
    text = _get(scrape) if is_url else _content(Path(scrape))
    try:
        known = Known.from_scrape(text, scrape)
    except ValueError:
        known = Known()
    if not known.series:
        raise SetupError(
            f"{scrape} contains no metrics.", hint="Pass the URL of a /metrics page, or a file that contains one."
        )
    return known


def unmatched(files: Mapping[str, str], prometheus: str) -> list[LintIssue]:
    """Selectors that match no series in this Prometheus now."""
    expressions = [expression for name, content in files.items() for expression in read(name, content)[0]]
    return list(_unmatched(expressions, prometheus.rstrip("/")))


def _unmatched(expressions: list[Expression], prometheus: str) -> Iterator[LintIssue]:
    matches: dict[str, bool] = {}
    for expression in expressions:
        for selector in selectors(expression.expr):
            if selector not in matches:
                matches[selector] = _matches(prometheus, selector)
            if not matches[selector]:
                yield LintIssue(
                    file=expression.file,
                    place=expression.place,
                    level="error",
                    kind="no-series-now",
                    message=f"{selector} matches no series in {prometheus} now",
                    hint="Check that the target is scraped and that the recording rules are loaded.",
                )


def selectors(expr: str) -> list[str]:
    """The distinct selectors of an expression, except those with a dashboard's variable."""
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
    body = _get(f"{prometheus}/api/v1/query?{urlencode({'query': f'count({selector})'})}")
    try:
        return bool(json.loads(body)["data"]["result"])
    except (ValueError, KeyError, TypeError):
        raise SetupError(
            f"{prometheus} is not a Prometheus server.", hint="Example of a URL: http://127.0.0.1:9090."
        ) from None


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError as fault:
        raise SetupError(f"{path} cannot be read: {fault.strerror}.", hint="Pass a URL or a file.") from None


def _get(url: str) -> str:
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
        try:
            path = parts.path or "/"
            connection.request("GET", f"{path}?{parts.query}" if parts.query else path)
            response = connection.getresponse()
            body = response.read(MAX_BYTES)
        finally:
            connection.close()
    except (OSError, HTTPException, ValueError) as fault:
        why = getattr(fault, "strerror", None) or type(fault).__name__
        raise SetupError(f"{parts.netloc or url} is unreachable ({why}).", hint="Check the address.") from None
    if response.status != 200:
        raise SetupError(f"{parts.netloc} returned HTTP {response.status}.", hint="Check the address.")
    return body.decode(errors="replace")
