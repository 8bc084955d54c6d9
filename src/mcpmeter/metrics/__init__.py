"""From settlements to a scrape: `recorder` (hot path), `label_allowlist` (closed label sets), `collector` (rendering).

Owns every accumulator and how it is rendered; the metrics themselves are rows of `mcpmeter.catalog`.

- Every label value is from its label's closed set, or is `other` and counted in `mcp_label_overflow_total`.
- One thread writes an accumulator; a scrape copies them all on that thread and renders the copy in another.
- Money and time are integers until they are rendered.
"""
