"""Grafana's SDK, without its warning to prefer schema v2, which file provisioning rejects."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import common, prometheus, stat, table, timeseries
    from grafana_foundation_sdk.builders import dashboard as builders
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import common as commons
    from grafana_foundation_sdk.models import dashboard as models
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = [
    "JSONEncoder",
    "PromQueryFormat",
    "builders",
    "common",
    "commons",
    "models",
    "prometheus",
    "stat",
    "table",
    "timeseries",
]
