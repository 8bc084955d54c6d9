"""The dashboards on a live stack: a seeded run of the service under a real Prometheus, asked by the panels' queries.

The tests hold every panel to it; `make pictures` draws from it.
"""
