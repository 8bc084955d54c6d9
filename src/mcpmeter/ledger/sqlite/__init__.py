"""The ledger in one SQLite file, for one service.

Owns the file, its lock, its tables and the thread that writes. SQL that PostgreSQL runs too is in the folder above.
One process writes rows (`<file>.lock`); commands may read, and change keys and top-ups, beside it.
"""
