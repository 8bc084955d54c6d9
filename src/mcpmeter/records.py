"""The records of a call: it is opened once and settled once, and every view is fed from these.

All of them are frozen and without behaviour. Durations are monotonic nanoseconds, instants are Unix nanoseconds (UTC),
money is integer nano-dollars (1e-9 USD).
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from mcpmeter.items import ITEMS

TokenSource = Literal["reported", "estimated", "partial", "missing"]
"""Origin of token counts: the provider's own usage; our estimate of a complete response; our estimate of what was
delivered before the response broke off; unknown."""

CostSource = Literal["reported", "listed", "unpriced"]
"""Origin of a cost: reported by the provider; a dated price list; none, and the call is counted as unpriced."""

UnpricedReason = Literal["", "unknown_model", "usage_missing", "not_determined"]
"""Why a call has no cost: no list names its model, its tokens are unknown, or its price does not cover them."""

Outcome = Literal["ok", "error", "partial", "recovered"]
"""`partial`: the client disconnected or the service stopped in the middle; what was delivered is charged.
`recovered`: the call was found open after a crash."""

Unit = Literal["nanousd", "requests", "tokens"]
"""The unit a limit is in."""

Role = Literal["caller", "admin"]
"""An admin may also use the management API."""

AuditAction = Literal[
    "key.create",
    "key.rotate",
    "key.revoke",
    "budget.create",
    "budget.change",
    "budget.top_up",
    "config.reload",
    "ledger.prune",
]
"""What an operator can do to keys, budgets, configuration and ledger. Names are never dropped or renamed."""

AuditOutcome = Literal["done", "refused"]
"""`refused`: the act was not allowed, or its input was invalid; nothing was changed."""

ObjectKind = Literal["response", "batch", "file"]
"""What a provider keeps: a response that it works on in the background; batches and their files."""

ObjectState = Literal["pending", "settled", "lost"]
"""Of the call that made an object: followed until its usage is known; settled; settled at its reservation, since the
provider no longer knows the object or did not end it in time."""

Transport = Literal["tcp", "pipe", "inproc"]
"""OpenTelemetry's `network.transport`: HTTP is tcp, stdio is pipe, a client in the same process is inproc."""


class UsageItem(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A quantity of one thing that a provider bills by."""

    item: str
    """A name of `items.ITEMS`; of an unknown item, the path of its field as the provider writes it."""
    quantity: int
    """In the item's unit."""
    model: str = ""
    """The model that it is billed at; empty for the call's own."""


class Conditions(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What a price depends on beside model, date and size; all empty for the standard price."""

    tier: str = ""
    """The service tier that served the call: `flex`, `priority`, `ultrafast`, `scale`, `provisioned`, …"""
    speed: str = ""
    """`fast`, as Anthropic's `usage.speed` names it."""
    region: str = ""
    """The geography that the call was bound to: `us`, `eu`, …"""
    completion_window: str = ""
    """`2h`, `8h`, `24h`: the time within which the provider may complete the call."""
    batch: bool = False


STANDARD: Final = Conditions()
"""Of a call at the standard price."""


class Usage(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What one call used. The four details are parts of the totals, never added to them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    source: TokenSource = "missing"
    items: tuple[UsageItem, ...] = ()
    """Everything that is billed, in disjoint parts; empty if the counts above say it all: a cache write of the default
    time to live, no modality but text, nothing but tokens, one model."""
    unknown: tuple[UsageItem, ...] = ()
    """What the provider reports and no table knows. It has no price, and is counted."""
    conditions: Conditions = STANDARD


class ChargeLine(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One line of a charge. The lines of a call add up to its cost."""

    item: str
    quantity: int
    """In the item's unit."""
    nanousd: int | None
    """None: no price is known, and the line is counted as an unpriced item."""
    unit_price: str = ""
    """US dollars per unit as the list prints them (`2.50/Mtok`, `10/1000`), with what multiplies them; for display."""
    price_list: str = ""
    """The list and its date."""
    source: CostSource = "unpriced"
    model: str = ""
    """The model that it is billed at; empty for the call's own."""


class Charge(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Cost of one call. `nanousd` is 0 when `source` is `unpriced`, and such a call is counted, never shown as free."""

    nanousd: int = 0
    source: CostSource = "unpriced"
    price_list: str = ""
    """The price's list and its date, for example `holysheep 2026-11-01`."""
    reported_nanousd: int | None = None
    """The cost that the provider reported, if it did."""
    listed_nanousd: int | None = None
    """The cost by the price list, also of a call whose cost was reported."""
    unpriced_reason: UnpricedReason = ""
    fallback_nanousd: int = 0
    """What has no price, at the configured fallback price: an unpriced call, or the unpriced lines of a priced one.
    Budgets count it, so that such a call is limited too; it is not a cost, and no report adds it to one."""
    completion_nanousd: int = 0
    """The part of a cost without lines that its completion takes; its prompt takes the rest."""
    lines: tuple[ChargeLine, ...] = ()
    """The cost line by line; empty if it is prompt and completion alone, at the standard price."""


def plain_items(usage: Usage) -> tuple[UsageItem, ...]:
    """The disjoint items of a usage whose counts say it all; without those of nothing."""
    cached, written, reasoning = usage.cached_read_tokens, usage.cache_write_tokens, usage.reasoning_tokens
    quantities = (
        ("prompt", usage.prompt_tokens - cached - written),
        ("cached_read", cached),
        ("cache_write", written),
        ("completion", usage.completion_tokens - reasoning),
        ("reasoning", reasoning),
    )
    return tuple(UsageItem(name, quantity) for name, quantity in quantities if quantity > 0)


def unknown_items(usage: Usage, charge: Charge) -> list[UsageItem]:
    """What no table knows: fields that the provider reports, and conditions that no price list has."""
    lines = (UsageItem(line.item, line.quantity, line.model) for line in charge.lines if _is_unknown(line))
    return list({(item.item, item.model): item for item in (*usage.unknown, *lines)}.values())


def unpriced_items(usage: Usage, charge: Charge) -> list[str]:
    """What of a call has no price, by name. An unpriced call counts as a whole, so only unknown items are named."""
    lines = () if charge.source == "unpriced" else charge.lines
    known = [line.item for line in lines if line.nanousd is None and not _is_unknown(line)]
    return known + [item.item for item in unknown_items(usage, charge)]


def _is_unknown(line: ChargeLine) -> bool:
    return line.nanousd is None and line.item not in ITEMS


def lines_that_add_up(charge: Charge) -> tuple[ChargeLine, ...]:
    """The lines of a charge, without unknown items; they add up to its cost whatever made them.

    Those of an unpriced call have no amount. What a reported cost has beyond its lines is a line of its own; if it is
    less than they are, they explain nothing, and it is the only line.
    """
    lines = tuple([line for line in charge.lines if not _is_unknown(line)])
    if charge.source == "unpriced":
        return tuple([msgspec.structs.replace(line, nanousd=None) for line in lines])
    rest = charge.nanousd - sum(line.nanousd or 0 for line in lines)
    if not rest or not lines:
        return lines
    unexplained = ChargeLine("reported_cost", 1, rest if rest > 0 else charge.nanousd, source=charge.source)
    return (*lines, unexplained) if rest > 0 else (unexplained,)


class Scope(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The calls that a limit covers; an empty field matches all of them."""

    team: str = ""
    project: str = ""
    key_id: str = ""
    model: str = ""


class AddedCall(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A model call that a provider may make beyond, or instead of, the one that a request names."""

    model: str = ""
    """Empty for the call's own."""
    times: int = 1
    """At most; 0 if the request sets no bound."""
    max_completion_tokens: int | None = None
    """None if the request sets no limit."""
    by_reference: bool = False
    """Its prompt may fill the model's context window; otherwise it is the call's own."""
    is_instead: bool = False
    """Only one of the models answers, and is billed."""


class Reservation(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An amount that a call reserves of one limit before it is sent. Its settlement posts the true amount instead."""

    balance: str
    """Id of the limit's balance; it stays the same if the limit or its name changes."""
    unit: Unit = "nanousd"
    period_start_ns: int
    """Unix nanoseconds; 0 for a limit without a start."""
    period_end_ns: int = 0
    """0: the limit never resets."""
    amount: int
    """The most that the call can use, in `unit`."""
    limit: int = 0
    refuses: bool = True
    """False: the balance may exceed its limit, which is reported only."""
    scope: Scope = Scope()
    """Selects the calls that were settled before the balance existed and count into it."""
    answered_by: str = ""
    """The model that has to answer for the call to be posted; empty for any. Set if the call may go to several."""


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a limit is used in one of its periods, as the ledger keeps it; all amounts in `unit`."""

    balance: str
    unit: Unit
    period_start_ns: int
    period_end_ns: int
    spent: int
    """By settled calls, including those before the balance existed (`carried`)."""
    reserved: int
    """By open calls."""
    credit: int
    """Topped up, in addition to the limit."""
    carried: int


class TopUp(msgspec.Struct, frozen=True, kw_only=True):
    """An amount added to a prepaid credit."""

    id: str
    balance: str
    amount_nanousd: int
    """Negative to take back."""
    at_ns: int
    note: str = ""


class PathParams(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Model and stream from the request's path, in dialects that put them there (Gemini)."""

    model: str = ""
    stream: bool = False


NO_PATH_PARAMS: Final = PathParams()
"""For dialects whose paths hold neither."""


class LlmTarget(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The model call that a call makes."""

    provider: str
    model: str
    """As the client named it, without surrogates and NUL; a label only if it is on the allow-list."""
    operation: str = "chat"
    """OpenTelemetry's `gen_ai.operation.name`: chat, embeddings, …"""
    stream: bool = False
    prompt_tokens_estimate: int = 0
    otel_provider: str = ""
    """OpenTelemetry's well-known name of the provider (`gcp.gemini`) if it differs from ours."""


class McpTarget(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The MCP message that a call carries."""

    method: str
    tool: str = ""
    transport: Transport = "tcp"
    protocol_version: str = ""
    server: str = ""
    role: Literal["server", "client"] = "server"


class Call(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A call as it is known before it is sent."""

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
    """Its reservation of each limit that covers it."""
    reserved_nanousd: int = 0
    """The most that it can cost, if limits require to know it."""
    parent_id: str = ""
    """Id of the MCP message in which this model call is made; such a call is not a request of its own."""
    trace_id: str = ""
    """From `traceparent` (W3C Trace Context), 32 hex digits, or empty."""
    llm: LlmTarget | None = None
    mcp: McpTarget | None = None


class Settlement(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How a call ended. Made exactly once per `Call`; the ledger, the metrics and every page are fed from it."""

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
    """Why usage was not reported, if it was not: `no_usage`, `client_gone`, `upstream_broke`, `crash`, …"""
    postings: tuple[Reservation, ...] = ()
    """What the budgets of single models get of a call that several models are billed for; empty for all other calls,
    which post their cost to every balance that they reserved."""
    is_pending: bool = False
    """The provider works on after its response. The call's row stays open, and is settled later."""


class ProviderObject(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a provider keeps for a team, as the ledger keeps who made it and which call pays for it."""

    provider: str
    id: str
    """The provider's id: `resp_…`."""
    kind: ObjectKind = "response"
    call_id: str
    team: str
    project: str = ""
    key_id: str = ""
    """The key that made it. Keys rotate, so it is the team that may read it."""
    credential_id: str
    """The credential of ours that made it, as in `openai-1`: another account does not know the object."""
    model: str
    max_completion_tokens: int = 0
    """The limit of the request, or the assumed one."""
    conditions: Conditions = STANDARD
    """As the request asks for them."""
    created_at_ns: int
    state: ObjectState = "pending"
    settled_at_ns: int | None = None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's key as it is stored: never the key itself."""

    id: str
    """Public name, `key_` and 12 hex digits; in logs and the ledger."""
    name: str
    team: str
    prefix: str
    """Its first characters, for recognition."""
    sha256: str
    """Hex SHA-256 of the whole key (at least 256 random bits, so a plain hash is enough)."""
    created_at_ns: int
    revoked_at_ns: int | None = None
    expires_at_ns: int | None = None
    project: str = ""
    role: Role = "caller"
    models: tuple[str, ...] = ()
    """Names or globs of the models that it may call; empty: all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    previous_sha256: str = ""
    """After a rotation: the hash of the previous key, valid until `previous_until_ns`."""
    previous_until_ns: int | None = None


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """The origin of an administrative act."""

    name: str
    """The admin key's id and name, the operating system's user, a signal, or `this machine`."""
    source: str
    """The peer's address for a request, else the machine's host name."""


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An administrative act as the ledger keeps it. Texts are bounded and printable; made by `ledger.audit`."""

    id: str
    """`aud_` and 16 hex digits."""
    at_ns: int
    actor: str
    source: str
    action: str
    subject: str
    """The key's id, the budget's name, the configuration's file, or the ledger."""
    change: str
    """A JSON object: what changed, by name. Never a secret or a hash."""
    outcome: AuditOutcome


class LedgerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the ledger, as reports and recovery read it."""

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
    """Its reservations: a JSON array of [balance, period's start, unit, amount], or empty."""
