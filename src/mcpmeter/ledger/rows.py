"""Records to rows and back: the only place that knows the order of the columns. SQL here runs on both engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from mcpmeter.records import STANDARD, Call, Charge, Key, LedgerRow, LlmTarget, Reservation, Settlement, Unit, Usage

_Record = TypeVar("_Record", bound=msgspec.Struct)

OPEN_COLUMNS: Final = (
    "id",
    "started_at_ns",
    "endpoint",
    "method",
    "team",
    "project",
    "key_id",
    "parent_id",
    "trace_id",
    "provider",
    "model",
    "operation",
    "stream",
    "prompt_tokens_estimate",
    "reserved_nanousd",
    "claims",
)
SETTLED_COLUMNS: Final = (
    "provider",
    "model",
    "ended_at_ns",
    "duration_ns",
    "status",
    "outcome",
    "error_type",
    "error_id",
    "prompt_tokens",
    "completion_tokens",
    "cached_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_tokens",
    "token_source",
    "cost_nanousd",
    "cost_source",
    "price_list",
    "reported_cost_nanousd",
    "fallback_cost_nanousd",
    "response_model",
    "finish_reason",
    "upstream_status",
    "upstream_request_id",
    "time_to_first_chunk_ns",
    "chunks",
)
ROW_COLUMNS: Final = LedgerRow.__struct_fields__
KEY_COLUMNS: Final = Key.__struct_fields__

FALLBACK_SQL: Final = (
    "fallback_cost_nanousd + coalesce((SELECT fallback_nanousd FROM charges WHERE call_id = calls.id), 0)"
)
"""What budgets count of a row of `calls` beside its cost: an unpriced call, or the unpriced items of a priced one."""

# Only the constants above are ever joined into SQL; every value is a parameter.
OPEN_SQL: Final = f"INSERT INTO calls ({', '.join(OPEN_COLUMNS)}) VALUES ({', '.join('?' * len(OPEN_COLUMNS))})"  # noqa: S608
_SET_SETTLED: Final = ", ".join(f"{column} = ?{number}" for number, column in enumerate(SETTLED_COLUMNS, start=2))
SETTLE_SQL: Final = f"UPDATE calls SET state = 'settled', {_SET_SETTLED} WHERE id = ?1 AND state = 'open'"  # noqa: S608
REPLACE_RECOVERED_SQL: Final = f"UPDATE calls SET {_SET_SETTLED} WHERE id = ?1 AND outcome = 'recovered'"  # noqa: S608
RECOVERED_SQL: Final = (
    f"SELECT claims, model, cost_nanousd + {FALLBACK_SQL}, prompt_tokens + completion_tokens"  # noqa: S608
    " FROM calls WHERE id = ?1 AND outcome = 'recovered'"
)
"""What a recovered row reserved, and what it took of its balances, as `Taken`."""
SELECT_ROWS_SQL: Final = f"SELECT {', '.join(ROW_COLUMNS)} FROM calls"  # noqa: S608
_SELECT_KEY: Final = f"SELECT {', '.join(KEY_COLUMNS)} FROM keys"  # noqa: S608
SELECT_KEYS_SQL: Final = f"{_SELECT_KEY} ORDER BY created_at_ns, id"
SELECT_KEY_SQL: Final = f"{_SELECT_KEY} WHERE id = ?1"
CHANGING_KEY_COLUMNS: Final = ("prefix", "sha256", "previous_sha256", "previous_until_ns", "revoked_at_ns")
"""What a rotation or a revocation changes of a key; all other columns stay as they were created."""
UPDATE_KEY_SQL: Final = f"UPDATE keys SET {', '.join(f'{name} = ?' for name in CHANGING_KEY_COLUMNS)} WHERE id = ?"  # noqa: S608
INSERT_KEY_SQL: Final = f"INSERT INTO keys ({', '.join(KEY_COLUMNS)}) VALUES ({', '.join('?' * len(KEY_COLUMNS))})"  # noqa: S608

_NO_MODEL: Final = LlmTarget(provider="", model="", operation="")
_NO_USAGE: Final = Usage()
_NO_CHARGE: Final = Charge()


def open_values(call: Call) -> tuple[Any, ...]:
    """The parameters of `OPEN_SQL`."""
    llm = call.llm or _NO_MODEL
    return (
        call.id,
        call.started_at_ns,
        call.endpoint,
        call.method,
        call.team,
        call.project,
        call.key_id,
        call.parent_id,
        call.trace_id,
        llm.provider,
        llm.model,
        llm.operation,
        llm.stream,
        llm.prompt_tokens_estimate,
        call.reserved_nanousd,
        encode_call_reservations(call),
    )


def settled_values(settlement: Settlement) -> tuple[Any, ...]:
    """The parameters of `SETTLE_SQL`. A call that reached no model has empty sources."""
    usage = settlement.usage or _NO_USAGE
    charge = settlement.charge or _NO_CHARGE
    target = settlement.call.llm or _NO_MODEL
    return (
        settlement.call.id,
        # Written again, because a failover may have sent the call elsewhere than it was opened for.
        target.provider,
        target.model,
        settlement.ended_at_ns,
        settlement.duration_ns,
        settlement.status,
        settlement.outcome,
        settlement.error_type,
        settlement.error_id,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_read_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
        usage.audio_tokens,
        usage.source if settlement.usage else "",
        charge.nanousd,
        charge.source if settlement.charge else "",
        charge.price_list,
        charge.reported_nanousd,
        # That of a priced call's unpriced items is in its row of `charges`.
        charge.fallback_nanousd if charge.source == "unpriced" else 0,
        settlement.response_model,
        settlement.finish_reason,
        settlement.upstream_status,
        settlement.upstream_request_id,
        settlement.time_to_first_chunk_ns,
        settlement.chunks,
    )


def has_charge_row(settlement: Settlement) -> bool:
    """Whether a call is billed by more than plain prompt and completion, so that it has a row in `charges`."""
    usage, charge = settlement.usage, settlement.charge
    if charge is not None:
        # The row itself says that all of its cost was reported.
        if charge.lines and (len(charge.lines) > 1 or charge.lines[0].item != "reported_cost"):
            return True
        if charge.fallback_nanousd and charge.source != "unpriced":
            return True
    if usage is None or (usage.conditions is STANDARD and not usage.items and not usage.unknown):
        return False
    return bool(usage.items or usage.unknown or usage.conditions != STANDARD)


def row_of(row: Sequence[Any]) -> LedgerRow:
    """A row from its columns, in the order of `ROW_COLUMNS`."""
    return _record(LedgerRow, ROW_COLUMNS, row)


def key_of(row: Sequence[Any]) -> Key:
    """A key from its columns, in the order of `KEY_COLUMNS`."""
    models = KEY_COLUMNS.index("models")
    return _record(Key, KEY_COLUMNS, [*row[:models], msgspec.json.decode(row[models]), *row[models + 1 :]])


def key_values(key: Key) -> tuple[Any, ...]:
    """The parameters of `INSERT_KEY_SQL`."""
    values = msgspec.structs.asdict(key) | {"models": msgspec.json.encode(key.models).decode()}
    return tuple(values[name] for name in KEY_COLUMNS)


def changed_values(key: Key) -> tuple[Any, ...]:
    """The parameters of `UPDATE_KEY_SQL`."""
    return tuple(getattr(key, name) for name in (*CHANGING_KEY_COLUMNS, "id"))


def _record(record: type[_Record], columns: tuple[str, ...], row: Sequence[Any]) -> _Record:
    return msgspec.convert(dict(zip(columns, row, strict=True)), record, strict=False)


# Reservations. Their column and its JSON are called `claims`: the ledger's format is older than the word. -----------


class KeptReservation(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A reservation in a row. Rows hold the first four fields, and the others only if they say something."""

    balance: str
    period_start_ns: int
    unit: Unit
    amount: int
    answered_by: str = ""
    """The model that has to answer for the call to be posted; empty for any."""
    posted: int | None = None
    """What was posted, of a call that several models are billed for; None if that follows from the row."""

    @property
    def key(self) -> tuple[str, int]:
        """Its balance and period."""
        return self.balance, self.period_start_ns


_decoder = msgspec.json.Decoder(list[KeptReservation])
_encoder = msgspec.json.Encoder()


def encode_call_reservations(call: Call) -> str:
    """The reservations of a call as its row stores them: a JSON array, or empty."""
    if not call.reservations:
        return ""
    return _encoded(
        [
            (r.balance, r.period_start_ns, r.unit, r.amount, r.answered_by)
            if r.answered_by
            else (r.balance, r.period_start_ns, r.unit, r.amount)
            for r in call.reservations
        ]
    )


def _encoded(rows: list[Any]) -> str:
    return _encoder.encode(rows).decode()


def encode_reservations(reservations: Sequence[KeptReservation]) -> str:
    """Reservations as a row stores them."""
    kept = [(one, msgspec.structs.astuple(one)) for one in reservations]
    return _encoded([row if one.posted is not None else row[: 5 if one.answered_by else 4] for one, row in kept])


def decode_reservations(claims: str) -> list[KeptReservation]:
    """Reservations from a row's column `claims`."""
    return _decoder.decode(claims) if claims else []


def with_added(claims: str, reservation: Reservation, amount: int) -> str:
    """The column `claims` of an open row, with the amount that it reserves of one more balance."""
    added = KeptReservation(
        reservation.balance, reservation.period_start_ns, reservation.unit, amount, reservation.scope.model
    )
    return encode_reservations([*decode_reservations(claims), added])


def with_postings(claims: str, settlement: Settlement) -> str:
    """The column `claims` of a row that several models are billed for: what each balance of one of them gets.

    A row that says so itself stays right for `verify` and `prune`, which cannot know which lines were whose.
    """
    kept = {one.key: one for one in decode_reservations(claims)}
    for one in unreserved(settlement):
        key = (one.balance, one.period_start_ns)
        kept.setdefault(key, KeptReservation(*key, one.unit, 0, one.scope.model))
    for one in settlement.postings:
        key = (one.balance, one.period_start_ns)
        if key in kept:
            kept[key] = msgspec.structs.replace(kept[key], posted=one.amount)
    return encode_reservations(list(kept.values()))


def unreserved(settlement: Settlement) -> list[Reservation]:
    """The postings to budgets of other models than the one that the row names, which its call need not have reserved.

    A balance of the row's own model counts the row, without other models' lines, when it is made.
    """
    own = settlement.call.llm.model if settlement.call.llm else ""
    return [one for one in settlement.postings if one.scope.model != own]


class Taken(msgspec.Struct, frozen=True, gc=False):
    """What a settled row took of limits."""

    model: str
    """The model that answered."""
    nanousd: int
    """Cost and fallback cost."""
    tokens: int

    def of(self, kept: KeptReservation) -> int:
        """What it took of the balance of one of its reservations."""
        if kept.posted is not None:
            return kept.posted
        if kept.answered_by and kept.answered_by != self.model:
            return 0
        return 1 if kept.unit == "requests" else self.tokens if kept.unit == "tokens" else self.nanousd


def taken_by(settlement: Settlement) -> Taken:
    """What a settled call took of limits."""
    usage, charge, target = settlement.usage, settlement.charge, settlement.call.llm
    return Taken(
        target.model if target else "",
        charge.nanousd + charge.fallback_nanousd if charge else 0,
        usage.prompt_tokens + usage.completion_tokens if usage else 0,
    )
