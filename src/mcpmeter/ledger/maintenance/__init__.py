"""Work on a whole ledger: back up, verify, prune, export, recover from damage.

Owns no tables and no hot path. Nothing here overwrites a file that exists or changes the source it reads;
`prune` alone deletes rows, and keeps their exact sums.
"""
