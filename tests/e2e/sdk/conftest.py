"""The official SDKs get the same results through the relay as directly from the provider.

Two simulators have the same seed: one behind the relay, and one that the same scenario calls directly. A simulator's
response depends on the request and its repetition only, so both results are equal.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anthropic
import httpx
import msgspec
import openai
import pydantic
import pytest
import uvloop
from google import genai
from google.genai import errors as gemini_errors
from google.genai import types

from mcpmeter.config import KeySettings, LedgerSettings, ProviderSettings, ServerSettings, Settings
from mcpmeter.ledger.rows import ROW_COLUMNS, SELECT_ROWS_SQL
from mcpmeter.ledger.sqlite.connection import open_for_reading
from mcpmeter.records import LedgerRow
from mcpmeter.service import Service, bind, running
from mcpmeter.simulator import CallRecord, SimulatorThread, run_in_thread

SEED = 11
UPSTREAM_KEY = "sk-upstream-credential-0123456789"
CALLER_KEY = f"mk_{secrets.token_urlsafe(36)}"
SDK_ERRORS = (openai.OpenAIError, anthropic.AnthropicError, gemini_errors.APIError)
DIALECTS = {
    "/v1/chat/completions": "openai_chat",
    "/v1/responses": "openai_responses",
    "/v1/embeddings": "openai_embeddings",
    "/v1/messages": "anthropic_messages",
    "/v1/messages/count_tokens": "anthropic_count_tokens",
    **{
        f"/{version}/models/{{model}}:{action}": dialect
        for version in ("v1", "v1beta")
        for action, dialect in (
            ("generateContent", "gemini_generate"),
            ("streamGenerateContent", "gemini_generate"),
            ("countTokens", "gemini_count_tokens"),
            ("embedContent", "gemini_embeddings"),
            ("batchEmbedContents", "gemini_embeddings"),
        )
    },
}
"""The relay's routes and their names in the simulator's billing log."""

_REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")
_OF_THE_CONNECTION = ("sdk_http_response",)
"""Fields that an SDK adds to a result from the HTTP response: a date, the relay's own headers."""


class Target:
    """A server of every dialect, and SDK clients that differ from a user's only in the base URL."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        self.anthropic = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)
        self.gemini = self.gemini_as()

    def gemini_as(self, *, key: str | None = None, **options: Any) -> genai.Client:
        """A client with other HTTP options or another key."""
        return genai.Client(api_key=key or self.key, http_options=types.HttpOptions(base_url=self.url, **options))

    def async_openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0)

    def async_anthropic(self) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(base_url=self.url, api_key=self.key, max_retries=0)

    def close(self) -> None:
        self.openai.close()
        self.anthropic.close()
        self.gemini.close()


class ServiceThread:
    """The service in its own thread, on its own event loop."""

    def __init__(self, settings: Settings) -> None:
        self.service = Service(lambda: settings)
        self.url = ""
        self._loop = uvloop.new_event_loop()
        self._stop = asyncio.Event()
        self._has_started = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mcpmeter-service", daemon=True)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as fault:
            self._fault = fault
        finally:
            self._loop.close()
            self._has_started.set()

    async def _serve(self) -> None:
        async with running(self.service, bind("127.0.0.1", 0)) as self.url:
            self._has_started.set()
            await self._stop.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        self._has_started.wait()
        self._raise_fault()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fault is None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._raise_fault()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault


class Relay:
    """Runs scenarios through the relay and directly, and compares the results and both sides' records."""

    def __init__(self, target: Target, direct: Target, service: Service, upstream: SimulatorThread) -> None:
        self.target = target
        self.direct = direct
        self.service = service
        self.upstream = upstream

    def run(self, scenario: Callable[[Target], Any]) -> Any:
        """The scenario's result or SDK error through the relay. Asserts that it equals the direct one."""
        result = _caught(scenario, self.target)
        assert plain(result) == plain(_caught(scenario, self.direct))
        self.assert_ledger_equals_billing_log()
        return result

    async def run_async(self, scenario: Callable[[Target], Awaitable[Any]]) -> Any:
        """As `run`."""
        result = await _caught_async(scenario, self.target)
        assert plain(result) == plain(await _caught_async(scenario, self.direct))
        self.assert_ledger_equals_billing_log()
        return result

    def scrape(self) -> str:
        """The relay's metrics as text."""
        response = httpx.get(f"{self.target.url}/metrics")
        assert response.status_code == 200
        return response.text

    def row_of(self, model: str) -> LedgerRow:
        """The only row with this model."""
        self.until_idle()
        (row,) = [row for row in self.rows() if row.model == model]
        return row

    @property
    def active_requests(self) -> float:
        return self.service.recorder.families["mcp_active_requests"].cells[()].value

    def until_idle(self, *, seconds: float = 120.0) -> None:
        """Wait until no request is active, at the relay or upstream, and no row is open."""
        self.upstream.wait_until(lambda log: log.open_calls == 0, timeout_seconds=seconds)
        deadline = time.monotonic() + seconds
        while self.active_requests or self.service._store.open_rows:
            assert time.monotonic() < deadline, "a call is still in progress"
            time.sleep(0.002)

    def rows(self) -> list[LedgerRow]:
        """All rows, oldest first, read like from another process."""
        db = open_for_reading(self.service.ledger_path)
        try:
            found = db.execute(f"{SELECT_ROWS_SQL} ORDER BY started_at_ns, id").fetchall()
        finally:
            db.close()
        return [msgspec.convert(dict(zip(ROW_COLUMNS, row, strict=True)), LedgerRow, strict=False) for row in found]

    def assert_ledger_equals_billing_log(self) -> None:
        """Assert equality for each call with a request id, and of sums by model and dialect."""
        self.until_idle()
        rows, calls = self.rows(), list(self.upstream.billing_log.calls())
        assert {row.state for row in rows} <= {"settled"}
        sent = [row for row in rows if row.upstream_request_id]
        by_id = {call.request_id: call for call in calls}
        for row in sent:
            _assert_row_is_call(row, by_id.pop(row.upstream_request_id))
        # Calls without a request id in the ledger were cancelled before the response headers.
        assert {call.outcome for call in by_id.values()} <= {"cancelled"}
        assert sum(call.prompt_tokens + call.completion_tokens for call in by_id.values()) == 0
        incomplete = {row.upstream_request_id for row in rows if row.token_source == "partial"} | by_id.keys()
        whole = [call for call in calls if call.request_id not in incomplete]
        assert _sums_of_rows(rows) == _sums_of_calls(whole)


def _assert_row_is_call(row: LedgerRow, call: CallRecord) -> None:
    assert (row.model, DIALECTS[row.endpoint], row.stream) == (call.model, call.dialect, call.stream)
    assert row.completion_tokens == call.completion_tokens
    if row.token_source != "partial":
        assert row.prompt_tokens == call.prompt_tokens
        assert row.token_source == ("reported" if call.prompt_tokens else row.token_source)


Sums = Mapping[tuple[str, str], Mapping[str, int]]


def _sums_of_rows(rows: list[LedgerRow]) -> Sums:
    sums: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        if row.upstream_request_id and row.token_source != "partial":
            key = (row.model, DIALECTS[row.endpoint])
            sums.setdefault(key, Counter()).update(
                calls=1, prompt=row.prompt_tokens, completion=row.completion_tokens, cached=row.cached_read_tokens
            )
    return sums


def _sums_of_calls(calls: list[CallRecord]) -> Sums:
    sums: dict[tuple[str, str], Counter[str]] = {}
    for call in calls:
        sums.setdefault((call.model, call.dialect), Counter()).update(
            calls=1, prompt=call.prompt_tokens, completion=call.completion_tokens, cached=call.cached_tokens
        )
    return sums


def _caught(scenario: Callable[[Target], Any], target: Target) -> Any:
    try:
        return scenario(target)
    except SDK_ERRORS as error:
        return error


async def _caught_async(scenario: Callable[[Target], Awaitable[Any]], target: Target) -> Any:
    try:
        return await scenario(target)
    except SDK_ERRORS as error:
        return error


def plain(value: Any) -> Any:
    """A result as comparable data, without fields of the connection and with equal request ids."""
    match value:
        case pydantic.BaseModel():
            # Only fields that were set: a missing field differs from null.
            dumped = value.model_dump(mode="python", exclude_unset=True, warnings=False)
            return {"is": type(value).__name__, **plain(dumped)}
        case str():
            return _REQUEST_ID.sub("req_", value)
        case Mapping():
            return {name: plain(item) for name, item in value.items() if name not in _OF_THE_CONNECTION}
        case list() | tuple():
            return [plain(item) for item in value]
        case Exception():
            return _plain_error(value)
        case _:
            return value


def _plain_error(error: Exception) -> Any:
    fields = {"is": type(error).__qualname__, "says": plain(str(error))}
    for name in ("status_code", "code", "status", "type", "param", "message", "body", "details"):
        fields[name] = plain(getattr(error, name, None))
    response = getattr(error, "response", None)
    if response is not None:
        fields["headers"] = {name: response.headers.get(name) for name in ("content-type", "retry-after")}
    return fields


@pytest.fixture(scope="session")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """The relay in front of one simulator, and another simulator to compare with."""
    with ExitStack() as stack:
        upstream, direct = (stack.enter_context(run_in_thread(seed=SEED, key=UPSTREAM_KEY)) for _ in range(2))
        settings = _settings(tmp_path_factory.mktemp("sdk") / "ledger.db", upstream.url)
        thread = stack.enter_context(ServiceThread(settings))
        targets = Target(thread.url, CALLER_KEY), Target(direct.url, UPSTREAM_KEY)
        for target in targets:
            stack.callback(target.close)
        yield Relay(*targets, thread.service, upstream)


def _settings(ledger: Path, upstream: str) -> Settings:
    """Three built-in providers at the simulator's address; calls need a key of the relay."""
    bases = {"openai": "/v1", "anthropic": "/v1", "gemini": "/v1beta"}
    return Settings(
        server=ServerSettings(drain_seconds=5.0),
        ledger=LedgerSettings(path=ledger),
        providers=tuple(
            ProviderSettings(name=name, base_url=upstream + base, api_key=UPSTREAM_KEY) for name, base in bases.items()
        ),
        keys=(KeySettings(name="sdk", team="sdk", secret=CALLER_KEY),),
    )
