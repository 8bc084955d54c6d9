"""The provider's own limits, told in OpenAI's `x-ratelimit-…` headers."""

from __future__ import annotations

import time
from collections.abc import Callable

NS_PER_S = 1_000_000_000


class Quota:
    """Requests and tokens that a window still allows. Windows follow each other on the given clock (monotonic ns).

    Counts down to 0 and stays there; only with `enforce` does an empty window refuse.
    """

    def __init__(
        self,
        *,
        requests: int = 10_000,
        tokens: int = 2_000_000,
        window_seconds: float = 60.0,
        enforce: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.enforce = enforce
        self._limit_requests = requests
        self._limit_tokens = tokens
        self._window_ns = max(1, round(window_seconds * NS_PER_S))
        self._clock_ns = clock_ns
        self._ends_at_ns = 0
        self._left_requests = requests
        self._left_tokens = tokens

    def admit(self) -> bool:
        """Take one request out of the window; False if it is empty and limits are enforced."""
        self._turn()
        if self.enforce and (self._left_requests <= 0 or self._left_tokens <= 0):
            return False
        self._left_requests = max(0, self._left_requests - 1)
        return True

    def spend(self, tokens: int) -> None:
        """Take tokens out of the window."""
        self._left_tokens = max(0, self._left_tokens - tokens)

    @property
    def reset_seconds(self) -> float:
        """Until the window ends."""
        self._turn()
        return (self._ends_at_ns - self._clock_ns()) / NS_PER_S

    def headers(self) -> dict[str, str]:
        """The six headers as OpenAI names and writes them."""
        reset = go_duration(self.reset_seconds)
        return {
            "x-ratelimit-limit-requests": str(self._limit_requests),
            "x-ratelimit-limit-tokens": str(self._limit_tokens),
            "x-ratelimit-remaining-requests": str(self._left_requests),
            "x-ratelimit-remaining-tokens": str(self._left_tokens),
            "x-ratelimit-reset-requests": reset,
            "x-ratelimit-reset-tokens": reset,
        }

    def _turn(self) -> None:
        now = self._clock_ns()
        if now < self._ends_at_ns:
            return
        missed = (now - self._ends_at_ns) // self._window_ns if self._ends_at_ns else 0
        self._ends_at_ns = (self._ends_at_ns or now) + (missed + 1) * self._window_ns
        self._left_requests = self._limit_requests
        self._left_tokens = self._limit_tokens


def go_duration(seconds: float) -> str:
    """A duration as OpenAI writes it: `17ms`, `8.64s`, `6m0s`, `1h2m3s`."""
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    if not minutes:
        return f"{rest / 1000:g}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest // 1000}s" if hours else f"{minutes}m{rest // 1000}s"
