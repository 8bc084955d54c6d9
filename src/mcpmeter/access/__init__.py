"""Keys and callers: `keys.py` makes and identifies keys, `callers.py` decides what a caller may do, `key_view.py` is a
key's public form.

Does not own storage (`ledger`), configuration, or how a secret arrives in a request (`http`).
Invariants: a secret is kept only as its SHA-256 and shown once; a key is looked up by the whole hash and compared in
constant time; errors never quote a secret; revoking the last key does not allow anonymous calls.
"""
