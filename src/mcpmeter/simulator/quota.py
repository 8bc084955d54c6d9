"""The provider's rate limits; each vendor reports them in its own headers."""

from __future__ import annotations

import time
from collections.abc import Callable

NS_PER_S = 1_000_000_000


class Quota:
    """Requests and tokens left in the current window, on the given monotonic clock (ns).

    `tokens` counts both kinds; `input_tokens` and `output_tokens` limit one kind each, by default to the same number.
    Counts stop at 0; only with `enforce` does an empty window refuse requests.
    """

    def __init__(
        self,
        *,
        requests: int = 10_000,
        tokens: int = 2_000_000,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        window_seconds: float = 60.0,
        enforce: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.enforce = enforce
        self.limit_requests = requests
        self.limit_tokens = tokens
        self.limit_input_tokens = tokens if input_tokens is None else input_tokens
        self.limit_output_tokens = tokens if output_tokens is None else output_tokens
        self._window_ns = max(1, round(window_seconds * NS_PER_S))
        self._clock_ns = clock_ns
        self._ends_at_ns = 0
        self._refill()

    def _refill(self) -> None:
        self.left_requests = self.limit_requests
        self.left_tokens = self.limit_tokens
        self.left_input_tokens = self.limit_input_tokens
        self.left_output_tokens = self.limit_output_tokens

    def admit(self) -> bool:
        """Count one request; False if the window is empty and limits are enforced."""
        self._renew()
        if self.enforce and self._is_empty():
            return False
        self.left_requests = max(0, self.left_requests - 1)
        return True

    def spend(self, input_tokens: int, output_tokens: int = 0) -> None:
        """Count tokens."""
        self.left_tokens = max(0, self.left_tokens - input_tokens - output_tokens)
        self.left_input_tokens = max(0, self.left_input_tokens - input_tokens)
        self.left_output_tokens = max(0, self.left_output_tokens - output_tokens)

    @property
    def reset_seconds(self) -> float:
        """Seconds until the window ends."""
        self._renew()
        return (self._ends_at_ns - self._clock_ns()) / NS_PER_S

    def _is_empty(self) -> bool:
        return min(self.left_requests, self.left_tokens, self.left_input_tokens, self.left_output_tokens) <= 0

    def _renew(self) -> None:
        now = self._clock_ns()
        if now < self._ends_at_ns:
            return
        missed = (now - self._ends_at_ns) // self._window_ns if self._ends_at_ns else 0
        self._ends_at_ns = (self._ends_at_ns or now) + (missed + 1) * self._window_ns
        self._refill()
