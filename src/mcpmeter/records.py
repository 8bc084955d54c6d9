"""What flows: one call is opened once and settled once, and every view is fed from these records.

All of them are frozen and hold no behaviour. Durations are monotonic nanoseconds, instants are Unix nanoseconds (UTC),
money is integer nano-dollars (1e-9 USD).
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

TokenSource = Literal["reported", "estimated", "partial", "missing"]
"""Where token counts came from: the provider's own usage; our estimate of a whole answer; our estimate of what was
delivered before the answer broke off; or nobody knows."""

CostSource = Literal["reported", "listed", "unpriced"]
"""Where a cost came from: the provider said it; a dated price list; or there is no price and the call is counted so."""

UnpricedReason = Literal["", "unknown_model", "usage_missing", "not_determined"]
"""Why a call has no cost: no list names the model, nobody counted its tokens, or its price does not cover them."""

Outcome = Literal["ok", "error", "partial", "recovered"]
"""`partial`: the client left or the service stopped in the middle, what was delivered is charged.
`recovered`: found open after a crash."""

Unit = Literal["nanousd", "requests", "tokens"]
"""What a limit counts."""

Role = Literal["caller", "admin"]
"""An admin may also use the management API."""

Transport = Literal["tcp", "pipe", "inproc"]
"""OpenTelemetry's `network.transport`: HTTP is tcp, stdio is pipe, a client in the same process is inproc."""


class Usage(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Tokens of one call. The four details are parts of the totals, never added to them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    source: TokenSource = "missing"


class Charge(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Cost of one call. `nanousd` is 0 when `source` is `unpriced`, and such a call is counted, never shown as free."""

    nanousd: int = 0
    source: CostSource = "unpriced"
    price_list: str = ""
    """Which list the price is from and its date, for example `holysheep 2026-11-01`."""
    reported_nanousd: int | None = None
    """What the provider said it cost, beside what we computed."""
    listed_nanousd: int | None = None
    """What the price list says it costs, beside what the provider reported."""
    unpriced_reason: UnpricedReason = ""
    fallback_nanousd: int = 0
    """What the configured fallback price makes of an unpriced call. Budgets count it, so that such a call neither slips
    through nor blocks anybody; it is no cost, and no report adds it to one."""


class Scope(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Which calls a limit is about; an empty part stands for all of them."""

    team: str = ""
    project: str = ""
    key_id: str = ""
    model: str = ""


class Reservation(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a call reserves of one limit before it is sent; its settlement makes the true amount of it."""

    balance: str
    """Id of the limit's balance, which stays the same while limit and name change."""
    unit: Unit = "nanousd"
    period_start_ns: int
    """Unix nanoseconds; 0 for a limit that has no beginning."""
    period_end_ns: int = 0
    """0: the limit never starts anew."""
    amount: int
    """The most that the call can take, in `unit`."""
    limit: int = 0
    refuses: bool = True
    """False: the balance may go beyond its limit, which is only told."""
    scope: Scope = Scope()
    """Calls that were settled before the balance was kept are counted into it by this."""


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a limit is taken in one of its periods, as the ledger keeps it; all amounts in `unit`."""

    balance: str
    unit: Unit
    period_start_ns: int
    period_end_ns: int
    spent: int
    """By settled calls; what they took before the balance was kept (`carried`) is in it."""
    reserved: int
    """By calls that are open."""
    credit: int
    """Topped up; it goes on top of the limit."""
    carried: int


class TopUp(msgspec.Struct, frozen=True, kw_only=True):
    """An amount that was added to a prepaid credit."""

    id: str
    balance: str
    amount_nanousd: int
    """Negative to take back."""
    at_ns: int
    note: str = ""


class PathParams(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Model and stream as the request's path names them, in dialects that put them there (Gemini)."""

    model: str = ""
    stream: bool = False


NO_PATH_PARAMS: Final = PathParams()
"""For dialects whose paths name neither."""


class LlmTarget(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The model call that a call makes."""

    provider: str
    model: str
    """As the client named it (cleaned of surrogates and NUL); becomes a label only if announced."""
    operation: str = "chat"
    """OpenTelemetry's `gen_ai.operation.name`: chat, embeddings, …"""
    stream: bool = False
    prompt_tokens_estimate: int = 0
    otel_provider: str = ""
    """OpenTelemetry's well-known name of the provider (`gcp.gemini`) where it differs from ours."""


class McpTarget(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The MCP message that a call carries."""

    method: str
    tool: str = ""
    transport: Transport = "tcp"
    protocol_version: str = ""
    server: str = ""
    role: Literal["server", "client"] = "server"


class Call(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What is known when a call is opened."""

    id: str
    started_at_ns: int
    """Unix time in nanoseconds, UTC."""
    endpoint: str
    """The route's template (`/v1/chat/completions`), never the raw path."""
    method: str
    """The HTTP verb, or the JSON-RPC method of an MCP message."""
    team: str = ""
    project: str = ""
    key_id: str = ""
    reservations: tuple[Reservation, ...] = ()
    """What it reserves of each limit that it is under."""
    reserved_nanousd: int = 0
    """The most that it can cost, as far as that is known when it is opened."""
    parent_id: str = ""
    """Id of the MCP message in which this model call is made; such a call is not a request of its own."""
    trace_id: str = ""
    """From `traceparent` (W3C Trace Context), 32 hex digits, or empty."""
    llm: LlmTarget | None = None
    mcp: McpTarget | None = None


class Settlement(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How a call ended. Made exactly once for each `Call`; the ledger, the counters and every page are fed from it."""

    call: Call
    ended_at_ns: int
    duration_ns: int
    status: str
    """The HTTP status code as text, or for an MCP message `ok` or its outcome."""
    outcome: Outcome = "ok"
    error_type: str = ""
    """One of `errors.ERROR_TYPES`, or empty on success."""
    error_side: str = ""
    error_id: str = ""
    otel_error_type: str = ""
    """`error_type` as the standards' family names it: empty, `tool_error`, a JSON-RPC code, `timeout`, …"""
    usage: Usage | None = None
    """None for calls that reach no model."""
    charge: Charge | None = None
    response_model: str = ""
    finish_reason: str = ""
    is_refusal: bool = False
    is_empty: bool = False
    upstream_status: int = 0
    upstream_request_id: str = ""
    time_to_first_chunk_ns: int = 0
    chunks: int = 0
    """Output chunks delivered by a stream."""
    missing_reason: str = ""
    """Why usage was not reported, where it was not: `no_usage`, `client_gone`, `upstream_broke`, `crash`, …"""


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's key as it is kept: never the key itself."""

    id: str
    """Public name, `key_` and 12 hex digits; in logs and the ledger."""
    name: str
    team: str
    prefix: str
    """The first characters, to recognise it by."""
    sha256: str
    """Hex SHA-256 of the whole key (at least 256 random bits, so a plain hash is enough)."""
    created_at_ns: int
    revoked_at_ns: int | None = None
    expires_at_ns: int | None = None
    project: str = ""
    role: Role = "caller"
    models: tuple[str, ...] = ()
    """Names or globs of the models it may call; empty: all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    previous_sha256: str = ""
    """After a rotation: the hash of the key before, which is good until `previous_until_ns`."""
    previous_until_ns: int | None = None


class LedgerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the ledger, as reports and `recover` read it."""

    id: str
    state: Literal["open", "settled"]
    started_at_ns: int
    ended_at_ns: int | None
    endpoint: str
    method: str
    team: str
    key_id: str
    parent_id: str
    trace_id: str
    provider: str
    model: str
    response_model: str
    operation: str
    stream: bool
    prompt_tokens_estimate: int
    status: str
    outcome: str
    error_type: str
    error_id: str
    prompt_tokens: int
    completion_tokens: int
    cached_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    audio_tokens: int
    token_source: str
    cost_nanousd: int
    cost_source: str
    price_list: str
    reported_cost_nanousd: int | None
    duration_ns: int
    time_to_first_chunk_ns: int
    chunks: int
    finish_reason: str
    upstream_status: int
    upstream_request_id: str
    project: str = ""
    fallback_cost_nanousd: int = 0
    reserved_nanousd: int = 0
    claims: str = ""
    """What it claims: a JSON array of [balance, period's start, unit, amount], or empty."""
