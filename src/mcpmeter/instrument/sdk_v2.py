"""The adapter to the MCP SDK 2 (`MCPServer`, the low-level `Server`) and FastMCP 4, which is built on it.

It stands first in the low-level server's middleware, which sees both eras of the protocol and every transport. The
SDK calls that hook provisional: nothing outside this folder knows it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from mcp.server.lowlevel import Server

from mcpmeter.catalog import labels, mcp, service
from mcpmeter.instrument import ServerNotSupported, context_cost, endings
from mcpmeter.instrument.asgi import TransportMeter, announce_rejections
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
_TRACEPARENT: Final = re.compile(r"^[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
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
    """The server whose middleware sees every message. Raises ServerNotSupported."""
    for candidate in (getattr(server, "_mcp_server", None), getattr(server, "_lowlevel_server", None), server):
        if isinstance(candidate, Server) and isinstance(getattr(candidate, "middleware", None), list):
            return candidate
    kind = f"{type(server).__module__}.{type(server).__qualname__}"
    raise ServerNotSupported(
        f"An object of type {kind} cannot be metered.",
        hint="Give an MCPServer or Server of the MCP SDK 2, or a FastMCP 4 server (SDK 1 is not supported yet).",
    )


def handle_of(server: Server[Any]) -> object | None:
    """What an earlier call attached to this server: its handle, or the hook itself; None if it is not metered."""
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
    """Count a server's operations with a meter that exists already. Raises ServerNotSupported.

    `counts_active` False: whoever answers HTTP keeps `mcp_active_requests` itself. `counts_transport` False: it puts
    a `TransportMeter` before the application itself; else the applications that the server makes come with one.
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
class _Begun:
    """An operation that is being answered."""

    opened: OpenCall
    operation: Operation
    is_new_session: bool


class _Contained:
    """A fault of the meter's own is counted and told by its kind; the server goes on."""

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
    """The middleware: one call opened and settled for each message. Its own faults are counted, never raised."""

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
        vocabulary = meter.recorder.label_allowlist
        vocabulary.register("endpoint", [endpoint])
        vocabulary.register("server", [server_name])
        self._tools = ToolNames(server, vocabulary)
        self._announce_children()

    def _announce_children(self) -> None:
        served = ["initialize", *(name for name in labels.MCP_METHODS if self._server.get_request_handler(name))]
        self._recorder.register_children(mcp.REQUESTS, endpoint=[self._endpoint], method=served, status=["ok", "error"])
        self._recorder.register_children(
            mcp.REQUESTS, endpoint=[self._endpoint], method=["tools/call"], status=labels.MCP_OUTCOMES
        )
        for error_type, side in ERRORS_AT_START:
            self._recorder.families[mcp.ERRORS.name].ensure(error_type=error_type, side=side)
        announce_rejections(self._recorder)

    async def __call__(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Meter one message; what it returns or raises passes unchanged."""
        if _is_schema_lookup(ctx):
            return self._seen(ctx, await call_next(ctx))
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
        begun = await self._begin(ctx)
        if begun is None:
            return await call_next(ctx)
        token = CURRENT.set(begun.operation)
        try:
            result = await call_next(ctx)
        except Exception as fault:
            self._end(ctx, begun, partial(endings.of_exception, fault))
            raise
        except BaseException:
            self._end(ctx, begun, lambda: endings.CANCELLED)
            raise
        else:
            self._end(ctx, begun, partial(endings.of_result, result, begun.operation.blamed), result)
            return self._seen(ctx, result)
        finally:
            CURRENT.reset(token)

    def _seen(self, ctx: Context, result: HandlerResult) -> HandlerResult:
        if ctx.method == "tools/list":
            with self._contained:
                self._tools.see(result)
                self._show_definitions(result)
        return result

    def _show_definitions(self, listing: HandlerResult) -> None:
        for name, tokens in context_cost.definitions(listing):
            if name in self._recorder.label_allowlist.of("tool"):
                self._recorder.set(mcp.TOOL_DEFINITION_TOKENS, tokens, server=self._server_name, tool=name)

    def _count_content(self, opened: OpenCall, result: HandlerResult) -> None:
        target = opened.call.mcp
        if target is None or not target.tool or target.tool not in self._recorder.label_allowlist.of("tool"):
            return
        cost, trace_id = context_cost.of_result(result), opened.call.trace_id
        of = {"server": target.server, "tool": target.tool}
        self._recorder.observe(mcp.TOOL_RESULT_BYTES, cost.content_bytes, trace_id, **of)
        self._recorder.observe(mcp.TOOL_RESULT_TOKENS, cost.text_tokens, trace_id, **of)

    async def _begin(self, ctx: Context) -> _Begun | None:
        with self._contained:
            request = metered_request(ctx.request.scope) if ctx.request is not None else None
            if request is not None:
                request.message_seen = True
            tool = await self._tool(ctx)
            opened = self._open(ctx, tool)
            operation = Operation(opened.call.id, opened.call.trace_id, request)
            return _Begun(opened, operation, _is_new_session(ctx))
        return None

    async def _tool(self, ctx: Context) -> str:
        name = ctx.params.get("name") if ctx.method == "tools/call" and ctx.params else None
        if not isinstance(name, str):
            return ""
        with self._contained:
            await self._tools.learn(ctx, name)
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
                # What `initialize` negotiates is known when it has ended; before, the context holds a default.
                protocol_version="" if ctx.method == "initialize" else ctx.protocol_version,
                server=self._server_name,
            ),
        )

    def _end(self, ctx: Context, begun: _Begun, ending: Callable[[], CallResult], result: HandlerResult = None) -> None:
        with self._contained:
            if ctx.method == "initialize":
                self._take_negotiated_version(ctx, begun, result)
            self._count(ctx, begun.opened, ending())
            if ctx.method == "tools/call" and result is not None:
                self._count_content(begun.opened, result)

    def _count(self, ctx: Context, opened: OpenCall, ending: CallResult) -> None:
        if ctx.method == LISTEN and ending.status in ("ok", "cancelled"):
            # It lasts as long as the client likes, and ends by being cancelled: neither a latency nor an error.
            self._recorder.add(mcp.REQUESTS, endpoint=self._endpoint, method=LISTEN, status="ok")
        else:
            opened.count(ending)

    def _take_negotiated_version(self, ctx: Context, begun: _Begun, result: HandlerResult) -> None:
        version = endings.field_of(result, "protocolVersion", "protocol_version")
        target = begun.opened.call.mcp
        if not isinstance(version, str) or target is None:
            return
        target = msgspec.structs.replace(target, protocol_version=version)
        begun.opened.call = msgspec.structs.replace(begun.opened.call, mcp=target)
        if begun.is_new_session:
            ended = partial(self._end_session, begun.opened.started_ns, target)
            ctx.session._connection.exit_stack.callback(ended)

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

    # The applications that the server makes ---------------------------------------------------------------------------

    def meter_http_apps(self, server: Any) -> None:
        """Put the transport layer's counter into every Streamable HTTP application that the server makes from now."""
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
        """Take the meter out of the server. Applications made meanwhile keep their counter of rejections."""
        if self in self._server.middleware:
            self._server.middleware.remove(self)
        while self._undo:
            self._undo.pop()()


def _path_of_sdk_app(app: Any, options: dict[str, Any]) -> str:
    return str(options.get("streamable_http_path", MCP_PATH))


def _path_of_fastmcp_app(app: Any, options: dict[str, Any]) -> str:
    return str(getattr(app.state, "path", MCP_PATH))


def _is_schema_lookup(ctx: Context) -> bool:
    """Whether the SDK asks itself: before a tool call over HTTP it may run `tools/list` to check headers against it.

    Only the 2026-07-28 revision does, where the header is held equal to the body's method, so no client can pretend.
    """
    if ctx.method != "tools/list" or ctx.request is None or ctx.protocol_version < "2026-07-28":
        return False
    return bool(ctx.request.headers.get("mcp-method") == "tools/call")


def _is_new_session(ctx: Context) -> bool:
    """Whether an `initialize` opens a session: a stateless connection was born ready and has none."""
    return ctx.method == "initialize" and not ctx.session._connection.initialize_accepted


def _transport(ctx: Context) -> Transport:
    if ctx.request is not None:
        return "tcp"
    kind = getattr(getattr(ctx.session._request_outbound, "transport", None), "kind", "")
    return "inproc" if kind == "direct" else "pipe"


def _trace_id(ctx: Context) -> str:
    meta = ctx.params.get("_meta") if ctx.params else None
    told = meta.get("traceparent") if isinstance(meta, dict) else None
    if told is None and ctx.request is not None:
        told = ctx.request.headers.get("traceparent")
    found = _TRACEPARENT.match(told) if isinstance(told, str) else None
    return found[1] if found else ""
