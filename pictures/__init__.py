"""Draws the dashboards from a live stack: a seeded run of the service, scraped by a real Prometheus.

Owns the stack, its traffic and the drawing; the queries are those of `mcpmeter.monitoring.dashboards`. The tests run
every panel's query on the same stack.
"""
