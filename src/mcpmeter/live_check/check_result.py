"""What a check finds, and what checks share: the settings, the addresses, one HTTP client."""

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
    """What to do, where it failed."""


def ok(check: str, says: str) -> CheckResult:
    """The check passed."""
    return CheckResult(check=check, state="ok", says=says)


def failed(check: str, says: str, todo: str) -> CheckResult:
    """The check failed."""
    return CheckResult(check=check, state="failed", says=says, todo=todo)


def not_checked(check: str, says: str) -> CheckResult:
    """There was nothing to check, or nobody said where."""
    return CheckResult(check=check, state="not checked", says=says)


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the running parts are; base URLs without a slash at the end, empty for those that are not to be checked."""

    service: str
    metrics: str
    prometheus: str = ""
    alertmanager: str = ""
    grafana: str = ""
    grafana_token: str = ""


@dataclass(frozen=True, slots=True)
class Live:
    """What every check is given."""

    settings: Settings
    addresses: Addresses
    http: httpx2.AsyncClient

    async def get(self, url: str, *, token: str = "") -> tuple[int, bytes, str]:
        """(status, body, Date header). Raises Unreachable."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return await self._answer("GET", url, headers=headers)

    async def get_json(self, url: str, *, token: str = "") -> Any:
        """What a JSON API answers. Raises Unreachable, also for a status other than 200."""
        status, body, _ = await self.get(url, token=token)
        if status != 200:
            raise Unreachable(f"it answers {status}")
        return _decoded(body)

    async def post_json(self, url: str, value: object) -> tuple[int, Any]:
        """(status, answer). Raises Unreachable."""
        status, body, _ = await self._answer(
            "POST", url, content=msgspec.json.encode(value), headers={"content-type": "application/json"}
        )
        return status, _decoded(body) if body.strip() else None

    async def head_of(self, url: str, headers: Mapping[str, str]) -> int:
        """The status of a GET with these headers. Raises Unreachable."""
        status, _, _ = await self._answer("GET", url, headers=dict(headers))
        return status

    async def _answer(self, method: str, url: str, **more: Any) -> tuple[int, bytes, str]:
        try:
            response = await self.http.request(method, url, **more)
        except httpx2.ConnectError as fault:
            raise Unreachable(f"cannot be reached ({_reason(fault)})") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as fault:
            raise Unreachable(f"does not answer ({type(fault).__name__})") from None
        return response.status_code, response.content, response.headers.get("date", "")


class Unreachable(Exception):
    """Somebody did not answer as he should; the text is the end of a sentence."""


def _reason(fault: BaseException) -> str:
    """The operating system's words for the error that httpx wraps; one of them if several addresses failed."""
    while (cause := fault.__cause__ or fault.__context__) is not None:
        fault = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    number = fault.errno if isinstance(fault, OSError) else None
    return os.strerror(number) if number and number > 0 else str(fault) or type(fault).__name__


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        raise Unreachable("answers something that is no JSON") from None
