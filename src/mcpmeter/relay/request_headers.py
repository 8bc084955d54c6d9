"""Headers of requests to providers, as far as they do not differ from call to call."""

from __future__ import annotations

from collections.abc import Mapping

from mcpmeter.providers import Provider
from mcpmeter.routing.routes import Credential


class RequestHeaders:
    """Made once for each credential, path and kind of answer. A reload makes all anew, as it may change any of them."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str, bool], Mapping[str, str]] = {}

    def of(self, provider: Provider, credential: Credential, path_name: str, *, stream: bool) -> Mapping[str, str]:
        """All headers of a request but those that the caller's own client adds."""
        key = credential.id, credential.secret, path_name, stream  # from configuration, so there are few
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = {
                "content-type": "application/json",
                "accept": "text/event-stream" if stream else "application/json",
                "accept-encoding": "identity",
                "user-agent": "mcpmeter",
                **provider.auth_headers(credential.secret, path_name),
            }
        return found
