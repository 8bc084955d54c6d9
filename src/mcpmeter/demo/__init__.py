"""The demo: the service on the simulator with steady traffic, and a real Prometheus and Alertmanager beside it.

Owns the demo's settings, its traffic and the processes of the monitoring stack, which tests use too. The command itself
is `cli/demo.py`. Invariants: everything listens on free ports of loopback unless `--host` changes it, needs no key and
no network, and is stopped when its block ends.
"""
