"""The result of a check, and the settings, addresses and HTTP client that all checks share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
import msgspec

from mcpmeter.config import Settings

State = Literal["ok", "failed", "not checked"]


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the checklist."""

    check: str
    state: State
    says: str
    todo: str = ""
    """What to do after a failure."""


def ok(check: str, says: str) -> CheckResult:
    """The check passed."""
    return CheckResult(check=check, state="ok", says=says)


def failed(check: str, says: str, todo: str) -> CheckResult:
    """The check failed."""
    return CheckResult(check=check, state="failed", says=says, todo=todo)


def not_checked(check: str, says: str) -> CheckResult:
    """There is nothing to check, or its address is not set."""
    return CheckResult(check=check, state="not checked", says=says)


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Base URLs of the running parts without a trailing slash; empty for parts that are not checked."""

    service: str
    metrics: str
    prometheus: str = ""
    alertmanager: str = ""
    grafana: str = ""
    grafana_token: str = ""


@dataclass(frozen=True, slots=True)
class Live:
    """The parameters of every check."""

    settings: Settings
    addresses: Addresses
    http: httpx2.AsyncClient

    async def get(self, url: str, *, token: str = "") -> tuple[int, bytes, str]:
        """(status, body, Date header). Raises Unreachable."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return await self._request("GET", url, headers=headers)

    async def get_json(self, url: str, *, token: str = "") -> Any:
        """The JSON of a response. Raises Unreachable, also for a status other than 200."""
        status, body, _ = await self.get(url, token=token)
        if status != 200:
            raise Unreachable(f"responds with status {status}")
        return _decoded(body)

    async def post_json(self, url: str, value: object) -> tuple[int, Any]:
        """(status, JSON of the response). Raises Unreachable."""
        status, body, _ = await self._request(
            "POST", url, content=msgspec.json.encode(value), headers={"content-type": "application/json"}
        )
        return status, _decoded(body) if body.strip() else None

    async def status_of(self, url: str, headers: Mapping[str, str]) -> int:
        """The status of a GET with these headers. Raises Unreachable."""
        status, _, _ = await self._request("GET", url, headers=dict(headers))
        return status

    async def _request(self, method: str, url: str, **more: Any) -> tuple[int, bytes, str]:
        try:
            response = await self.http.request(method, url, **more)
        except httpx2.ConnectError as fault:
            raise Unreachable(f"cannot be reached ({_reason(fault)})") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as fault:
            raise Unreachable(f"does not respond ({type(fault).__name__})") from None
        return response.status_code, response.content, response.headers.get("date", "")


class Unreachable(Exception):
    """A part did not respond as expected; the text is the predicate of a sentence about it."""


def _reason(fault: BaseException) -> str:
    """The operating system's message of the error that httpx wraps; the first one if several addresses failed."""
    while (cause := fault.__cause__ or fault.__context__) is not None:
        fault = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    number = fault.errno if isinstance(fault, OSError) else None
    return os.strerror(number) if number and number > 0 else str(fault) or type(fault).__name__


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        raise Unreachable("responds with something that is not JSON") from None
