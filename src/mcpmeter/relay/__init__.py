"""The relay of LLM calls: from an authenticated request to a settled call and its last byte.

A call runs through `pipeline` (authenticate, read, price the worst case, reserve, write down), `call` (attempts, send),
`stream` or the whole response, and `result` (what it used); `mcpmeter.meter` then prices and settles it. `headers` and
`upstream_errors` are pure tables and rules, `runtime` is what a reload replaces.

Invariants: bytes pass unchanged in both directions, except the model's name and usage that only the relay requests.
No request goes upstream before its row is durable, and no last byte goes out before its settlement is. Every call is
settled exactly once. Dialects, routing decisions, budgets and the ledger live in folders of their own.
"""
