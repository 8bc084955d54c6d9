"""The ledger: one durable row for each call, opened before the request goes upstream and settled once."""
