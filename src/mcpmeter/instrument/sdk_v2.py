"""The adapter to the MCP SDK 2 (`MCPServer`, the low-level `Server`) and FastMCP 4, which is built on it.

The hook is the first middleware of the low-level server, where messages of both protocol eras and every transport
pass. The SDK calls this interface provisional, so only this folder uses it.

A message: `OperationMeter.__call__` → `_begin` opens a call → the handler runs → `_end` settles it by its result or
exception. Every step of the meter runs inside `_Contained`, which counts a fault and lets the server continue.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from mcp.server.lowlevel import Server

from mcpmeter.catalog import labels, mcp, service
from mcpmeter.http.trace_context import trace_id_of
from mcpmeter.instrument import context_cost, outcomes
from mcpmeter.instrument.asgi import TransportMeter, register_rejections
from mcpmeter.instrument.errors import ServerNotSupported
from mcpmeter.instrument.http_request import metered_request, principal
from mcpmeter.instrument.operation import CURRENT, Operation
from mcpmeter.instrument.tool_names import ToolNames
from mcpmeter.meter import CallResult, Meter, OpenCall
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.records import McpTarget, Transport

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

    Context = ServerRequestContext[Any, Any]

log = logging.getLogger("mcpmeter")

MCP_PATH: Final = "/mcp"
LISTEN: Final = "subscriptions/listen"
"""W3C Trace Context."""

ERRORS_AT_START: Final = (
    ("tool_error", "server"),
    ("internal_error", "server"),
    ("protocol_error", "client"),
    ("validation_error", "client"),
    ("auth_error", "client"),
    ("client_disconnected", "client"),
)


def low_level_server(server: Any) -> Server[Any]:
    """The low-level server, whose middleware receives every message. Raises ServerNotSupported."""
    for candidate in (getattr(server, "_mcp_server", None), getattr(server, "_lowlevel_server", None), server):
        if isinstance(candidate, Server) and isinstance(getattr(candidate, "middleware", None), list):
            return candidate
    kind = f"{type(server).__module__}.{type(server).__qualname__}"
    raise ServerNotSupported(
        f"An object of type {kind} cannot be metered.",
        hint="Give an MCPServer or Server of the MCP SDK 2, or a FastMCP 4 server (SDK 1 is not supported yet).",
    )


def handle_of(server: Server[Any]) -> object | None:
    """The handle or hook that an earlier call attached to this server; None if it is not metered."""
    hooks = (hook for hook in server.middleware if isinstance(hook, OperationMeter))
    return next((hook.handle or hook for hook in hooks), None)


def instrument_with(
    meter: Meter,
    server: Any,
    *,
    endpoint: str = MCP_PATH,
    server_name: str = "",
    counts_active: bool = True,
    counts_transport: bool = True,
    handle: object | None = None,
) -> OperationMeter:
    """Count a server's operations with an existing meter. Raises ServerNotSupported.

    `counts_active` False: the HTTP application counts `mcp_active_requests`. `counts_transport` False: it adds its own
    `TransportMeter`; otherwise the applications that the server makes get one.
    """
    low_level = low_level_server(server)
    hook = OperationMeter(
        meter, low_level, endpoint=endpoint, server_name=server_name, counts_active=counts_active, handle=handle
    )
    low_level.middleware.insert(0, hook)
    if counts_transport:
        hook.meter_http_apps(server)
    return hook


@dataclass(slots=True)
class _Started:
    """An operation in progress."""

    opened: OpenCall
    operation: Operation
    is_new_session: bool


class _Contained:
    """Counts and logs a fault of the meter by its type, and lets the server continue."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: object) -> bool:
        if not isinstance(fault, Exception):
            return False
        log.warning("the meter could not record an MCP operation (%s)", type(fault).__name__)
        self._recorder.add(service.INTERNAL_FAULTS)
        return True


class OperationMeter:
    """The middleware: opens and settles one call per message. Counts its own faults, never raises them."""

    def __init__(
        self,
        meter: Meter,
        server: Server[Any],
        *,
        endpoint: str,
        server_name: str,
        counts_active: bool,
        handle: object | None,
    ) -> None:
        self.handle = handle
        self._meter = meter
        self._recorder = meter.recorder
        self._server = server
        self._endpoint = endpoint
        self._server_name = server_name
        self._counts_active = counts_active
        self._contained = _Contained(meter.recorder)
        self._undo: list[Callable[[], None]] = []
        allowlist = meter.recorder.label_allowlist
        allowlist.register("endpoint", [endpoint])
        allowlist.register("server", [server_name])
        self._tools = ToolNames(server, allowlist)
        self._register_children()

    def _register_children(self) -> None:
        served = ["initialize", *(name for name in labels.MCP_METHODS if self._server.get_request_handler(name))]
        self._recorder.register_children(mcp.REQUESTS, endpoint=[self._endpoint], method=served, status=["ok", "error"])
        self._recorder.register_children(
            mcp.REQUESTS, endpoint=[self._endpoint], method=["tools/call"], status=labels.MCP_OUTCOMES
        )
        for error_type, side in ERRORS_AT_START:
            self._recorder.families[mcp.ERRORS.name].ensure(error_type=error_type, side=side)
        register_rejections(self._recorder)

    async def __call__(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Meter one message; its result or exception passes unchanged."""
        if _is_schema_lookup(ctx):
            return self._listed(ctx, await call_next(ctx))
        if not self._counts_active or ctx.method == LISTEN:
            return await self._metered(ctx, call_next)
        with self._contained:
            self._recorder.begin_request()
        try:
            return await self._metered(ctx, call_next)
        finally:
            with self._contained:
                self._recorder.end_request()

    async def _metered(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        started = await self._begin(ctx)
        if started is None:
            return await call_next(ctx)
        token = CURRENT.set(started.operation)
        try:
            result = await call_next(ctx)
        except Exception as fault:
            self._end(ctx, started, partial(outcomes.of_exception, fault))
            raise
        except BaseException:
            self._end(ctx, started, lambda: outcomes.CANCELLED)
            raise
        else:
            self._end(ctx, started, partial(outcomes.of_result, result, started.operation.cause), result)
            return self._listed(ctx, result)
        finally:
            CURRENT.reset(token)

    def _listed(self, ctx: Context, result: HandlerResult) -> HandlerResult:
        if ctx.method == "tools/list":
            with self._contained:
                self._tools.register_listed(result)
                self._record_definitions(result)
        return result

    def _record_definitions(self, listing: HandlerResult) -> None:
        for name, tokens in context_cost.definitions(listing):
            if name in self._recorder.label_allowlist.of("tool"):
                self._recorder.set(mcp.TOOL_DEFINITION_TOKENS, tokens, server=self._server_name, tool=name)

    def _record_content(self, opened: OpenCall, result: HandlerResult) -> None:
        target = opened.call.mcp
        if target is None or not target.tool or target.tool not in self._recorder.label_allowlist.of("tool"):
            return
        cost, trace_id = context_cost.of_result(result), opened.call.trace_id
        names = {"server": target.server, "tool": target.tool}
        self._recorder.observe(mcp.TOOL_RESULT_BYTES, cost.content_bytes, trace_id, **names)
        self._recorder.observe(mcp.TOOL_RESULT_TOKENS, cost.text_tokens, trace_id, **names)

    async def _begin(self, ctx: Context) -> _Started | None:
        with self._contained:
            request = metered_request(ctx.request.scope) if ctx.request is not None else None
            if request is not None:
                request.message_seen = True
            tool = await self._tool(ctx)
            opened = self._open(ctx, tool)
            operation = Operation(opened.call.id, opened.call.trace_id, request)
            return _Started(opened, operation, _is_new_session(ctx))
        return None

    async def _tool(self, ctx: Context) -> str:
        name = ctx.params.get("name") if ctx.method == "tools/call" and ctx.params else None
        if not isinstance(name, str):
            return ""
        with self._contained:
            await self._tools.look_up(ctx, name)
        return name

    def _open(self, ctx: Context, tool: str) -> OpenCall:
        team, key_id = principal(ctx.request.scope) if ctx.request is not None else ("", "")
        return self._meter.open(
            self._endpoint,
            ctx.method,
            trace_id=_trace_id(ctx),
            team=team,
            key_id=key_id,
            mcp=McpTarget(
                method=ctx.method,
                tool=tool,
                transport=_transport(ctx),
                # `initialize` negotiates the version; until it ends, the context has a default.
                protocol_version="" if ctx.method == "initialize" else ctx.protocol_version,
                server=self._server_name,
            ),
        )

    def _end(
        self, ctx: Context, started: _Started, outcome: Callable[[], CallResult], result: HandlerResult = None
    ) -> None:
        with self._contained:
            if ctx.method == "initialize":
                self._set_negotiated_version(ctx, started, result)
            self._count(ctx, started.opened, outcome())
            if ctx.method == "tools/call" and result is not None:
                self._record_content(started.opened, result)

    def _count(self, ctx: Context, opened: OpenCall, outcome: CallResult) -> None:
        if ctx.method == LISTEN and outcome.status in ("ok", "cancelled"):
            # It lasts until the client cancels it: neither a latency nor an error.
            self._recorder.add(mcp.REQUESTS, endpoint=self._endpoint, method=LISTEN, status="ok")
        else:
            opened.count(outcome)

    def _set_negotiated_version(self, ctx: Context, started: _Started, result: HandlerResult) -> None:
        version = outcomes.field_of(result, "protocolVersion", "protocol_version")
        target = started.opened.call.mcp
        if not isinstance(version, str) or target is None:
            return
        target = msgspec.structs.replace(target, protocol_version=version)
        started.opened.call = msgspec.structs.replace(started.opened.call, mcp=target)
        if started.is_new_session:
            ctx.session._connection.exit_stack.callback(self._end_session, started.opened.started_ns, target)

    def _end_session(self, started_ns: int, target: McpTarget) -> None:
        with self._contained:
            self._recorder.observe(
                mcp.SERVER_SESSION_DURATION,
                time.monotonic_ns() - started_ns,
                error_type="",
                network_transport=target.transport,
                mcp_protocol_version=target.protocol_version,
                server=target.server,
            )

    def meter_http_apps(self, server: Any) -> None:
        """Add a `TransportMeter` to every Streamable HTTP application that the server makes from now on."""
        self._wrap_factory(self._server, "streamable_http_app", _path_of_sdk_app)
        if server is not self._server and hasattr(server, "http_app"):
            self._wrap_factory(server, "http_app", _path_of_fastmcp_app)

    def _wrap_factory(self, owner: Any, name: str, path_of: Callable[[Any, dict[str, Any]], str]) -> None:
        make = getattr(owner, name)

        def make_metered(*args: Any, **options: Any) -> Any:
            app = make(*args, **options)
            with self._contained:
                path = path_of(app, options)
                app.add_middleware(TransportMeter, meter=self._meter, endpoint=self._endpoint, path=path)
            return app

        setattr(owner, name, make_metered)
        self._undo.append(partial(delattr, owner, name))

    def remove(self) -> None:
        """Remove the meter from the server. Applications made before keep their `TransportMeter`."""
        if self in self._server.middleware:
            self._server.middleware.remove(self)
        while self._undo:
            self._undo.pop()()


def _path_of_sdk_app(app: Any, options: dict[str, Any]) -> str:
    return str(options.get("streamable_http_path", MCP_PATH))


def _path_of_fastmcp_app(app: Any, options: dict[str, Any]) -> str:
    return str(getattr(app.state, "path", MCP_PATH))


def _is_schema_lookup(ctx: Context) -> bool:
    """Whether the SDK itself runs `tools/list`, to check the headers of a tool call over HTTP.

    Only revision 2026-07-28 does so. There the SDK verifies that this header equals the body's method, so a client
    cannot fake it.
    """
    if ctx.method != "tools/list" or ctx.request is None or ctx.protocol_version < "2026-07-28":
        return False
    return bool(ctx.request.headers.get("mcp-method") == "tools/call")


def _is_new_session(ctx: Context) -> bool:
    """Whether this is an `initialize` that opens a session; a stateless connection has none."""
    return ctx.method == "initialize" and not ctx.session._connection.initialize_accepted


def _transport(ctx: Context) -> Transport:
    if ctx.request is not None:
        return "tcp"
    kind = getattr(getattr(ctx.session._request_outbound, "transport", None), "kind", "")
    return "inproc" if kind == "direct" else "pipe"


def _trace_id(ctx: Context) -> str:
    meta = ctx.params.get("_meta") if ctx.params else None
    traceparent = meta.get("traceparent") if isinstance(meta, dict) else None
    if traceparent is None and ctx.request is not None:
        traceparent = ctx.request.headers.get("traceparent")
    return trace_id_of(traceparent) if isinstance(traceparent, str) else ""
