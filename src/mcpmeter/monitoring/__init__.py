"""Rules, alerts, dashboards, runbooks and Kubernetes objects, generated from the catalog and one set of options.

Owns every PromQL expression, its wording and its test series; owns no metric (`mcpmeter.catalog`) and runs nothing.

- Expressions are built from catalog rows, so that a metric or label that does not exist cannot be written.
- Each alert, dashboard and lint check is one file; rendering only reads them.
"""

from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.render import files

__all__ = ["MonitoringOptions", "files"]
