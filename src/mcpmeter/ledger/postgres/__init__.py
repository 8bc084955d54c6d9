"""The ledger on PostgreSQL, for several replicas of the service.

Owns connections, locks, leases and the tables. Needs psycopg; nothing outside imports it before a ledger is there.
Locks are taken in one order (calls, then balances by name), so that transactions of replicas never deadlock.
A row belongs to the replica that opened it, until that replica's lease ends.
"""
