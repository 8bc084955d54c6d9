"""mcpmeter against its peers: one command, one run, ratios. Start with `run.py`."""
