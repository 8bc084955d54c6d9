"""From settlements to a scrape: recorder (hot path), vocabulary (closed label sets), collector (rendering)."""
