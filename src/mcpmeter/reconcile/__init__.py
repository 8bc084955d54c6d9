"""The ledger against the provider's bill: `bills/` reads exports, `match.py` compares, `run.py` joins the two."""
