"""The ledger: one durable row per call, opened before the request goes upstream and settled exactly once.

Owns rows, balances and keys on two engines (sqlite/, postgres/), how they are read (queries/) and maintained
(maintenance/). Does not decide what a call may cost (budgets/) or what it used (meter.py).

A row is `open` once it is durable with its reservations, and `settled` with the outcome ok, error or partial. If the
process ends in between, the next start settles the row with the outcome `recovered`. A settled row never changes,
except that true figures which arrive late replace recovered ones. What the ledger cannot take now waits in pending.py.
A balance changes only in the transaction that opens or settles a call, so balances and rows agree after any crash.
The tables are public: migrations are appended, never edited.
"""
