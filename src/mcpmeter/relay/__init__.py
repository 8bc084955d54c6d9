"""The metered relay: bytes pass unchanged, what they cost is read on the way."""
