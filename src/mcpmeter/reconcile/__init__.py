"""Compares the ledger with providers' bills.

`reading.py` recognizes and reads bill files in the formats of `bills/`, `sorting.py` sorts their lines on disk,
`match.py` pairs lines with calls, `verdict.py` sums up, `window.py` finds the period of a bill, `run.py` joins them.

Owns the formats and the comparison; the ledger is only read and nothing is sent anywhere.

Invariants: every line and every call of the period is in exactly one `ReconcileItem`; memory does not grow with the
size of a bill; a malformed line fails the whole comparison.
"""
