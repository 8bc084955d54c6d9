"""Rows of the audit: what an administrative act leaves in the ledger, in the transaction of the act itself.

Everything in a row is bounded and printable: names arrive from requests and configurations. A row holds what changed
by name and never a secret, a hash or an address with a password, so it can be shown to any admin.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, get_args

import msgspec

from mcpmeter.ledger.sums import MAX_INT64
from mcpmeter.money import usd_text
from mcpmeter.records import Actor, AuditAction, AuditEntry, AuditOutcome, Key, TopUp

AUDIT_ACTIONS: Final[frozenset[str]] = frozenset(get_args(AuditAction))

MAX_TEXT: Final = 256
"""Characters of an actor, source, subject, or one text of a change."""

MAX_ITEMS: Final = 50
"""Items of one list of a change."""

MAX_CHANGE_BYTES: Final = 8192

CUT: Final = "\N{HORIZONTAL ELLIPSIS}"
"""Ends a text that is cut, and is the name under which a change counts what it leaves out."""

AUDIT_COLUMNS: Final = AuditEntry.__struct_fields__
# The same entry again changes nothing but `change`: a retry after a lost response, or the next batch of a long act.
INSERT_AUDIT_SQL: Final = (
    f"INSERT INTO audit ({', '.join(AUDIT_COLUMNS)}) VALUES ({', '.join('?' * len(AUDIT_COLUMNS))})"  # noqa: S608
    " ON CONFLICT (id) DO UPDATE SET change = excluded.change"
)

_NOT_SHOWN: Final = frozenset(("id", "sha256", "previous_sha256", "created_at_ns"))
"""Fields of a key that are secret, the row's subject, or its time."""

Change = Mapping[str, object]
"""Names to what changed: `[before, after]` for a value that was replaced, any other JSON for details of the act."""


def audit_entry(
    action: AuditAction,
    by: Actor,
    subject: str,
    change: Change,
    *,
    outcome: AuditOutcome = "done",
    at_ns: int | None = None,
) -> AuditEntry:
    """A new entry; its id is random. Texts and change are cleaned and cut to their bounds."""
    return AuditEntry(
        id=f"aud_{secrets.token_hex(8)}",
        at_ns=time.time_ns() if at_ns is None else at_ns,
        actor=cleaned(by.name) or "unknown",
        source=cleaned(by.source),
        action=action,
        subject=cleaned(subject),
        change=encode_change(change),
        outcome=outcome,
    )


def audit_values(entry: AuditEntry) -> tuple[Any, ...]:
    """The parameters of `INSERT_AUDIT_SQL`."""
    return msgspec.structs.astuple(entry)


def key_created(key: Key, by: Actor) -> AuditEntry:
    """The entry of a new key."""
    fields = {name: [None, value] for name, value in _shown(key) if value not in ("", (), None)}
    return audit_entry("key.create", by, key.id, fields, at_ns=key.created_at_ns)


def key_changed(action: AuditAction, before: Key, after: Key, by: Actor) -> AuditEntry:
    """The entry of a rotation or a revocation: the fields that differ."""
    old = dict(_shown(before))
    fields = {name: [old[name], value] for name, value in _shown(after) if value != old[name]}
    return audit_entry(action, by, after.id, fields)


def topped_up(budget: str, top_up: TopUp, credit_nanousd: int, by: Actor) -> AuditEntry:
    """The entry of a top-up, after which a budget has this credit."""
    change = {
        "credit_usd": [usd_text(credit_nanousd - top_up.amount_nanousd), usd_text(credit_nanousd)],
        "top_up": top_up.id,
        "note": top_up.note,
    }
    return audit_entry("budget.top_up", by, budget, change, at_ns=top_up.at_ns)


def _shown(key: Key) -> Iterator[tuple[str, object]]:
    for name, value in msgspec.structs.asdict(key).items():
        if name.endswith("_ns") and name not in _NOT_SHOWN:
            yield name.removesuffix("_ns"), utc_text(value)
        elif name not in _NOT_SHOWN:
            yield name, value


def utc_text(unix_ns: int | None) -> str | None:
    """Unix nanoseconds as RFC 3339 in UTC, to the second."""
    return None if unix_ns is None else f"{datetime.fromtimestamp(unix_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"


# Bounds --------------------------------------------------------------------------------------------------------------


def cleaned(text: str, max_length: int = MAX_TEXT) -> str:
    """One printable line, cut visibly. What is not printable, lone surrogates included, is replaced."""
    kept = "".join(letter if letter.isprintable() else "\ufffd" for letter in text[:max_length])
    return kept if len(text) <= max_length else f"{kept[:-1]}{CUT}"


def encode_change(change: Change) -> str:
    """The change as compact JSON of at most `MAX_CHANGE_BYTES`; names that do not fit are counted under `CUT`."""
    encoded: dict[str, object] = {}
    size = 40  # braces and the count of what is left out
    left_out = 0
    for name, value in change.items():
        key, item = cleaned(str(name)), _bounded(value)
        size += len(msgspec.json.encode({key: item}))
        if left_out or size > MAX_CHANGE_BYTES:
            left_out += 1
        else:
            encoded[key] = item
    if left_out:
        encoded[CUT] = f"{left_out} more"
    return msgspec.json.encode(encoded).decode()


def _bounded(value: object, depth: int = 4) -> object:
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) <= MAX_INT64):
        return value
    if depth and isinstance(value, Mapping):
        items = list(value.items())
        kept = {cleaned(str(name)): _bounded(item, depth - 1) for name, item in items[:MAX_ITEMS]}
        return kept if len(items) <= MAX_ITEMS else {**kept, CUT: f"{len(items) - MAX_ITEMS} more"}
    if depth and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        some = [_bounded(item, depth - 1) for item in value[:MAX_ITEMS]]
        return some if len(value) <= MAX_ITEMS else [*some, f"{CUT} {len(value) - MAX_ITEMS} more"]
    return cleaned(str(value))
