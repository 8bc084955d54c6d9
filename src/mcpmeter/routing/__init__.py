"""Which upstream and credential an attempt uses is decided in `attempts.py` by `Attempts.next`, ranked in
`candidates.py` by `Selector.ready`; which upstreams a model may use at all, in `routes.py` by `Routing.plan`.

Owns routes, aliases, weights, retries, the retry budget, circuit breakers and backoff of credentials.
Does not own sending, sleeping or the upstream's limits (`quota`): the relay does what a decision says.
Invariants: decisions are pure, time and randomness are injected; nothing is sent before a Retry-After has passed;
retries stay within the retry budget; no attempt follows the first byte to the client.
"""
