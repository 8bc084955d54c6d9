"""Every error that mcpmeter reports, drawn as one tree.

MeterError
├── CallerError                        the caller can fix it
│   ├── InvalidRequest           400   validation_error
│   │   ├── BodyTooLarge         413
│   │   ├── BodyTooSlow          408
│   │   ├── UnsupportedMediaType 415
│   │   ├── HeadersTooLarge      431
│   │   ├── UnsupportedContentEncoding   415
│   │   ├── UnsupportedTransferEncoding  501
│   │   ├── RouteNotFound        404
│   │   ├── MethodNotAllowed     405
│   │   ├── CallNotFound         404
│   │   ├── ResponseNotFound     404
│   │   ├── KeyNotFound          404
│   │   └── KeyConfigured        409
│   ├── NotAuthenticated         401   auth_error
│   ├── NotAllowed               403   auth_error
│   ├── RateLimited              429   rate_limited
│   ├── BudgetExhausted          402   budget_exceeded
│   └── ClientDisconnected       499   client_disconnected
├── UpstreamFault                502   upstream_error
│   ├── UpstreamRefusedAccount   502
│   ├── InvalidUpstreamResponse  502
│   ├── UpstreamResponseTooLarge 502
│   ├── UpstreamDisconnected     502
│   ├── BackgroundLost           502
│   ├── UpstreamUnreachable      502   upstream_unreachable
│   ├── UpstreamTimedOut         504   upstream_timeout
│   └── UpstreamRateLimited      429   upstream_rate_limited
├── ServiceFault                 500   internal_error
│   ├── Draining                 503
│   ├── Overloaded               503
│   ├── LedgerUnavailable        503
│   ├── SettlementConflict       500   (ledger/store.py)
│   ├── RowRefused               500   (ledger/store.py)
│   └── SettledTwice             500   (meter.py)
└── SetupError                         exit code 1, one line, no traceback
    ├── ConfigInvalid
    ├── PortTaken
    ├── LedgerNotUsable
    ├── MissingDependency
    ├── BillInvalid                    (reconcile/bills/base.py)
    ├── ServerNotSupported             (instrument/errors.py)
    └── RegistryTaken                  (instrument/errors.py)

`id` is stable: programs match on it and runbooks are named after it, so it stays when a class is renamed. `message`
says what happened, `hint` what to do. No message ever contains a body, a prompt or a key.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

Side = Literal["client", "server", "upstream"]

ERROR_TYPES: Final = (
    "validation_error",
    "auth_error",
    "rate_limited",
    "budget_exceeded",
    "upstream_error",
    "upstream_timeout",
    "upstream_rate_limited",
    "upstream_unreachable",
    "client_disconnected",
    "internal_error",
    "tool_error",
    "protocol_error",
)


class MeterError(Exception):
    """The root: what happened (`message`), what to do (`hint`), and how it is counted and sent to the client."""

    id: ClassVar[str] = "internal_error"
    error_type: ClassVar[str] = "internal_error"
    side: ClassVar[Side] = "server"
    http_status: int = 500
    """Of the class; an error that passes a provider's status on sets its own."""
    jsonrpc_code: ClassVar[int] = -32603

    def __init__(self, message: str, *, hint: str = "", retry_after: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class CallerError(MeterError):
    """An error that only the caller can fix; it never pages."""

    id = "validation_error"
    error_type = "validation_error"
    side = "client"
    http_status = 400
    jsonrpc_code = -32600


class InvalidRequest(CallerError):
    """The request cannot be parsed or lacks a required part."""

    id = "invalid_request"
    jsonrpc_code = -32602


class BodyTooLarge(InvalidRequest):
    """The request body exceeds the configured limit."""

    id = "body_too_large"
    http_status = 413


class BodyTooSlow(InvalidRequest):
    """The request body did not arrive in time."""

    id = "body_too_slow"
    http_status = 408


class UnsupportedMediaType(InvalidRequest):
    """The request body has a media type that this route does not take."""

    id = "unsupported_media_type"
    http_status = 415


class HeadersTooLarge(InvalidRequest):
    """The request's headers, chunk extensions or trailers exceed the limit."""

    id = "headers_too_large"
    http_status = 431


class UnsupportedContentEncoding(InvalidRequest):
    """The request body is compressed in a way that is not supported."""

    id = "unsupported_content_encoding"
    http_status = 415


class UnsupportedTransferEncoding(InvalidRequest):
    """The request's Transfer-Encoding is not `chunked`."""

    id = "unsupported_transfer_encoding"
    http_status = 501


class RouteNotFound(InvalidRequest):
    """No route has this path."""

    id = "route_not_found"
    http_status = 404
    jsonrpc_code = -32601


class MethodNotAllowed(InvalidRequest):
    """The path exists, for other HTTP methods."""

    id = "method_not_allowed"
    http_status = 405
    jsonrpc_code = -32601


class CallNotFound(InvalidRequest):
    """The ledger has no call with this ID that the caller may see."""

    id = "call_not_found"
    http_status = 404


class ResponseNotFound(InvalidRequest):
    """No background response of this id was made by the caller's team, or the provider no longer has it."""

    id = "response_not_found"
    http_status = 404


class KeyNotFound(InvalidRequest):
    """No key has this ID."""

    id = "key_not_found"
    http_status = 404


class KeyConfigured(InvalidRequest):
    """The key is defined in the configuration file, which no request can change."""

    id = "key_configured"
    http_status = 409


class NotAuthenticated(CallerError):
    """The request has no key, or one that is unknown, revoked or expired."""

    id = "not_authenticated"
    error_type = "auth_error"
    http_status = 401


class NotAllowed(CallerError):
    """The caller may not do this: a foreign Host or Origin, a model outside the key's list."""

    id = "not_allowed"
    error_type = "auth_error"
    http_status = 403


class RateLimited(CallerError):
    """The key's limit on requests, tokens or concurrent calls is reached, or the address's on connections."""

    id = "rate_limited"
    error_type = "rate_limited"
    http_status = 429


class BudgetExhausted(CallerError):
    """A budget cannot cover the call's maximum cost; the message names the budget and says when it resets."""

    id = "budget_exhausted"
    error_type = "budget_exceeded"
    http_status = 402


class ClientDisconnected(CallerError):
    """The client closed the connection before the response was complete (499 as in nginx; it is never sent)."""

    id = "caller_gone"
    error_type = "client_disconnected"
    http_status = 499


class UpstreamFault(MeterError):
    """The provider returned an error or an invalid response."""

    id = "upstream_fault"
    error_type = "upstream_error"
    side = "upstream"
    http_status = 502


class UpstreamRefusedAccount(UpstreamFault):
    """The provider refused the relay's own credential, credit or rights: for the operator to fix, never the client."""

    id = "upstream_refused_account"


class InvalidUpstreamResponse(UpstreamFault):
    """The provider sent a success status with a body that does not fit the dialect."""

    id = "upstream_answered_garbage"


class UpstreamResponseTooLarge(UpstreamFault):
    """The provider's response exceeds the configured limit."""

    id = "upstream_answer_too_large"


class UpstreamDisconnected(UpstreamFault):
    """The provider closed the connection before its response was complete."""

    id = "upstream_broke"


class BackgroundLost(UpstreamFault):
    """A background response whose usage the provider can no longer report; settled at its reservation."""

    id = "background_lost"


class UpstreamUnreachable(UpstreamFault):
    """No connection to the provider: its name does not resolve, it refuses, or TLS fails."""

    id = "upstream_unreachable"
    error_type = "upstream_unreachable"


class UpstreamTimedOut(UpstreamFault):
    """The provider accepted the connection and then sent nothing for too long."""

    id = "upstream_timed_out"
    error_type = "upstream_timeout"
    http_status = 504


class UpstreamRateLimited(UpstreamFault):
    """The provider returned 429; its Retry-After is passed on."""

    id = "upstream_rate_limited"
    error_type = "upstream_rate_limited"
    http_status = 429


class ServiceFault(MeterError):
    """A fault of mcpmeter itself."""


class Draining(ServiceFault):
    """The service is stopping and accepts no new requests."""

    id = "draining"
    http_status = 503


class Overloaded(ServiceFault):
    """A limit of the service is reached: on connections, concurrent calls or memory."""

    id = "overloaded"
    http_status = 503


class LedgerUnavailable(ServiceFault):
    """The ledger is not writable, or known costs wait to be written: the call is refused, nothing passes unmetered."""

    id = "ledger_unavailable"
    http_status = 503


class SetupError(MeterError):
    """An error found at startup or by a command; printed as one line, exit code 1."""

    id = "setup_error"


class ConfigInvalid(SetupError):
    """The configuration cannot be run; the message names the file and line."""

    id = "config_invalid"


class PortTaken(SetupError):
    """The port is in use, or this user may not listen on it."""

    id = "port_taken"


class LedgerNotUsable(SetupError):
    """The ledger's folder or file is not writable, is in use, or is damaged."""

    id = "ledger_not_usable"


class MissingDependency(SetupError):
    """An optional package is not installed; the hint is the command that installs it."""

    id = "part_missing"
