"""What the messages of LLM APIs mean: requests, usage, finish reasons, errors and streams.

Owns one file per API and what the APIs of one vendor share; `base.py` is the interface, `sse.py` the only reader of
server-sent events. Does not own sending, prices or settlement. Invariants:

- Pure functions of bytes: no input, no output, no state of a call, so every recorded body is a test.
- Bytes pass unchanged except for the model's name and for usage that the relay requests in streams.
- Only billed fields are typed; any other field may hold anything. The cost of reading is linear in the bytes.
"""
