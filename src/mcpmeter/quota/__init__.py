"""What providers report as left of their limits: `rate_limit_headers.py` reads a response's headers into samples,
`tracker.py` follows each quota over time and writes report and gauges.

Does not own waiting or retries (`routing`), nor limits of our own (`budgets`).
Invariants: the caller passes the time; reading never raises and is bounded; an impossible value is dropped and never
shown; an unknown value is absent, never 0; labels come from registered credentials.
"""
