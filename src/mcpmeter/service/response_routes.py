"""Routes of background responses: `/v1/responses/{response_id}` and its `/cancel`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from mcpmeter.http.asgi import Receive, Scope, Send
from mcpmeter.http.exchange import HttpExchange
from mcpmeter.relay.object_requests import Action, ObjectRequest, ObjectRequests
from mcpmeter.service.app import Endpoint, PathTemplate

LABEL: Final = "/v1/responses/{response_id}"
ACTIONS: Final[dict[str, Action]] = {"GET": "retrieve", "DELETE": "delete"}


class _ObjectEndpoint:
    """Answers one request for a response."""

    def __init__(self, requests: ObjectRequests, label: str, request: ObjectRequest) -> None:
        self._requests = requests
        self._label = label
        self._request = request

    async def __call__(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        await self._requests.run(HttpExchange(scope, endpoint=self._label), self._request)


def response_templates(requests: ObjectRequests) -> Sequence[PathTemplate]:
    """Retrieve and delete a response, and cancel one."""
    one, cancel = re.compile(r"/v1/responses/(?P<id>[^/]+)"), re.compile(r"/v1/responses/(?P<id>[^/]+)/cancel")
    return [
        PathTemplate(one, LABEL, _endpoint(requests, LABEL), verbs=tuple(ACTIONS)),
        PathTemplate(cancel, f"{LABEL}/cancel", _endpoint(requests, f"{LABEL}/cancel")),
    ]


def _endpoint(requests: ObjectRequests, label: str) -> Callable[[re.Match[str], Scope], Endpoint]:
    def endpoint(match: re.Match[str], scope: Scope) -> Endpoint:
        raw: bytes = scope.get("query_string", b"")
        action = ACTIONS.get(scope["method"], "cancel")
        return _ObjectEndpoint(requests, label, ObjectRequest(action, match["id"], raw.decode("latin-1")))

    return endpoint
