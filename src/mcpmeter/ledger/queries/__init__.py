"""What commands, reports and the API read from a ledger, and the few rows they change beside a running service.

Owns portable SQL: every query runs on both engines through `reader.Reader` and `reader.Writer`.
All that one reader reads is one snapshot. Sums are exact integers of any size.
"""
