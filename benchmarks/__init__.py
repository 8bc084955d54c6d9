"""Benchmarks: mcpmeter and its peers in one run, as ratios; the ledger; two checkouts in pairs; traces of requests.

Start with `run.py`. Each run compares on the same machine at the same time: absolute figures depend on the machine. A
figure counts only if the server proves that it did the work; a single wrong response voids the run.
"""
