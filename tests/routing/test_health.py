"""The backoff of one credential."""

from __future__ import annotations

from mcpmeter.routing.health import MAX_WAITS, CredentialBackoff, Pause


def test_waits_are_bounded_and_the_longest_are_kept() -> None:
    backoff = CredentialBackoff()
    backoff.wait_until("long", Pause(10**9, 10**9), 0)
    for n in range(10_000):
        backoff.wait_until(f"model-{n}", Pause(n + 100, n + 100, is_rate_limited=True), n)
    assert len(backoff.waits) <= MAX_WAITS
    assert backoff.until_ns("long") == 10**9
    assert backoff.until_ns("model-9999") == 10_099
