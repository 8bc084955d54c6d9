"""The management API's operations, and their OpenAPI description made from the types of requests and responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from mcpmeter.access.key_view import ShownKey
from mcpmeter.budgets.view import BudgetReport
from mcpmeter.ledger.queries.selection import GROUPINGS
from mcpmeter.quota.tracker import QuotaReport
from mcpmeter.service.api.keys import KeyList, KeyRevocation, KeyRotation, KeyWithSecret, NewKey
from mcpmeter.usage import UsageReport
from mcpmeter.usage.call_view import ShownCall

ROWS: Final = 1_000
MAX_ROWS: Final = 10_000
"""Rows of a page of `/api/usage`: by default, and at most."""

_REFS: Final = "#/components/schemas/{name}"


class ErrorDetail(msgspec.Struct, rename={"kind": "type"}):
    """One error: `code` is stable (docs/errors.md), `message` says what to do."""

    message: str
    kind: str
    param: str | None
    code: str
    call_id: str


class Error(msgspec.Struct):
    """The body of every response other than 200."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class Parameter:
    """One query parameter."""

    name: str
    description: str
    example: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One verb at one path."""

    path: str
    id: str
    summary: str
    response: type[msgspec.Struct]
    parameters: tuple[Parameter, ...] = ()
    verb: str = "get"
    request: type[msgspec.Struct] | None = None
    """The type of the request body, if there is one."""


OPERATIONS: Final = (
    Operation("/api/quota", "getQuota", "What is left of each provider's quotas, and until when.", QuotaReport),
    Operation(
        "/api/budgets",
        "getBudgets",
        "Budgets of the caller's team and key; an admin sees all.",
        BudgetReport,
    ),
    Operation(
        "/api/usage",
        "getUsage",
        "Usage and cost of the caller's team; an admin sees all.",
        UsageReport,
        (
            Parameter(
                "by", f"Groupings, separated by commas: {', '.join(GROUPINGS)}. Default: team,model.", "team,day"
            ),
            Parameter(
                "since",
                "Start of the span, inclusive. Default: this month.",
                "2026-11-01",
            ),
            Parameter("until", "End of the span, exclusive.", "2026-11-08T00:00:00Z"),
            Parameter("month", "A month, instead of since and until.", "2026-11"),
            Parameter("last", "Hours, days or weeks up to now, instead of the others.", "7d"),
            Parameter("time_zone", "Time zone of days and months. Default: UTC.", "Europe/Berlin"),
            Parameter("team", "Only this team. Any team but the caller's needs an admin's key.", "search"),
            Parameter("limit", f"Rows per page, at most {MAX_ROWS}. Default: {ROWS}.", "100"),
            Parameter("cursor", "next_cursor of the previous page.", "WyJzZWFyY2giXQ"),
        ),
    ),
    Operation(
        "/api/call",
        "getCall",
        "One call with its charge line by line. Callers see their own team's; an admin sees all.",
        ShownCall,
        (Parameter("id", "The call's id, of the header x-mcpmeter-call-id.", "call_019a2b3c4d5e"),),
    ),
    Operation("/api/keys", "listKeys", "All keys, also revoked ones, without secrets. For admins.", KeyList),
    Operation(
        "/api/keys",
        "createKey",
        "Create a key; only this response holds its secret. For admins; the first key is made from this machine.",
        KeyWithSecret,
        verb="post",
        request=NewKey,
    ),
    Operation(
        "/api/keys/rotate",
        "rotateKey",
        "Give a key a new secret. Only this response holds it. For admins.",
        KeyWithSecret,
        verb="post",
        request=KeyRotation,
    ),
    Operation(
        "/api/keys/revoke", "revokeKey", "Revoke a key. For admins.", ShownKey, verb="post", request=KeyRevocation
    ),
)


def openapi(version: str) -> dict[str, Any]:
    """Return the API's description (OpenAPI 3.1.0)."""
    types = {kind for operation in OPERATIONS for kind in (operation.response, operation.request) if kind} | {Error}
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFS)
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.verb] = _described(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mcpmeter",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Required once the service has a key."}
            },
        },
    }


def _described(operation: Operation, schema_of: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    body = (
        {} if operation.request is None else {"requestBody": {"required": True, **_json(schema_of[operation.request])}}
    )
    return {
        **body,
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [
            {
                "name": parameter.name,
                "in": "query",
                "description": parameter.description,
                "schema": {"type": "string"},
                "example": parameter.example,
            }
            for parameter in operation.parameters
        ],
        "responses": {
            "200": {"description": "Success.", **_json(schema_of[operation.response])},
            "default": {"description": "An error.", **_json(schema_of[Error])},
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
