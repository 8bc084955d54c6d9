"""Rules, alerts, routes, dashboards and runbooks, made from the catalog and from one set of options."""

from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.render import files

__all__ = ["MonitoringOptions", "files"]
