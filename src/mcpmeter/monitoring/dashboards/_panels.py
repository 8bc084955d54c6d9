"""Builds Grafana panels with its SDK."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from mcpmeter.monitoring.dashboards._sdk import (
    PromQueryFormat,
    builders,
    common,
    commons,
    models,
    prometheus,
    stat,
    table,
    timeseries,
)
from mcpmeter.monitoring.dashboards.spec import HEADINGS, Kind, Panel

SOURCE: Final = commons.DataSourceRef(type_val="prometheus", uid="${datasource}")

Builder = timeseries.Panel | stat.Panel | table.Panel


def panel(content: Panel, number: int) -> Builder:
    """One panel, with the properties that all kinds share."""
    made = KINDS[content.kind](content)
    made.id(number).title(content.title).description(content.description)
    made.datasource(SOURCE).span(content.width).height(content.height)
    made.unit(content.unit).thresholds(_thresholds(content))
    made.no_value("–" if content.kind == "stat" else "No data in this time range")
    if content.decimals is not None:
        made.decimals(content.decimals)
    for letter, query in zip(string.ascii_uppercase, content.queries, strict=False):
        made.with_target(_target(content, letter, query.expr, query.legend))
    return made


def _target(content: Panel, letter: str, expr: str, legend: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(letter).expr(expr).datasource(SOURCE).legend_format(legend)
    if content.kind == "table":
        return target.instant().format(PromQueryFormat.TABLE).exemplar(False)
    if content.kind == "timeseries":
        return target.range().exemplar("_bucket" in expr)
    # A tile shows only the last value, so an instant query suffices.
    return target.instant().exemplar(False)


def _lines(content: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(40 if content.stacked else 8)
        .show_points(commons.VisibilityMode.NEVER)
        .legend(_legend())
        .tooltip(common.VizTooltipOptions().mode(commons.TooltipDisplayMode.MULTI).sort(commons.SortOrder.DESCENDING))
        .axis_soft_min(content.least)
        .color_scheme(builders.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    )
    if content.stacked:
        made.stacking(common.StackingConfig().mode(commons.StackingMode.NORMAL).group("A"))
    if content.logarithmic:
        made.scale_distribution(common.ScaleDistributionConfig().type(commons.ScaleDistribution.LOG).log(10))
    if len(content.thresholds) > 1:
        made.thresholds_style(common.GraphThresholdsStyleConfig().mode(commons.GraphThresholdsStyleMode.DASHED))
    if content.greatest is not None:
        made.axis_soft_max(content.greatest)
    for name, colour in (content.colours or {}).items():
        fixed = {"mode": "fixed", "fixedColor": colour}
        made.override_by_name(name, [models.DynamicConfigValue(id_val="color", value=fixed)])
    return made


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(commons.LegendDisplayMode.LIST)
        .placement(commons.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )


def _figure(content: Panel) -> stat.Panel:
    several = len(content.queries) > 1 or "{{" in content.queries[0].legend
    return (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .graph_mode(commons.BigValueGraphMode.NONE)
        .color_mode(commons.BigValueColorMode.VALUE)
        .text_mode(commons.BigValueTextMode.VALUE_AND_NAME if several else commons.BigValueTextMode.VALUE)
        .justify_mode(commons.BigValueJustifyMode.AUTO)
        .color_scheme(builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    )


def _sentence(content: Panel) -> stat.Panel:
    return _figure(content).mappings(list(_mappings(content))).color_mode(commons.BigValueColorMode.BACKGROUND_SOLID)


def _mappings(content: Panel) -> Iterator[models.RangeMap]:
    """Value mappings: the highest set bit selects the sentence."""
    colours = [colour for _, colour in content.thresholds]
    texts = [content.queries[0].legend, *(content.colours or {})]
    bounds = [0, *(2**place for place in range(len(texts)))]
    for place, ((first, beyond), text, colour) in enumerate(zip(pairwise(bounds), texts, colours, strict=True)):
        result = models.ValueMappingResult(text=text, color=colour, index=place)
        options = builders.DashboardRangeMapOptions().from_val(first).to(beyond - 1).result(result).build()
        yield models.RangeMap(options=options)


def _table(content: Panel) -> table.Panel:
    letters = dict(zip(string.ascii_uppercase, content.queries, strict=False))
    one = len(content.queries) == 1
    names = {("Value" if one else f"Value #{letter}"): query.legend for letter, query in letters.items()}
    made = (
        table.Panel()
        .with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": {**HEADINGS, **names}},
            )
        )
        .sort_by([common.TableSortByFieldState().display_name(content.queries[0].legend).desc(True)])
    )
    for name, unit in (content.units or {}).items():
        made.override_by_name(name, [models.DynamicConfigValue(id_val="unit", value=unit)])
    return made


def _thresholds(content: Panel) -> builders.ThresholdsConfig:
    steps: list[Any] = [models.Threshold(value=value, color=colour) for value, colour in content.thresholds]
    made = builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    return made.steps(steps or [models.Threshold(value=None, color="text")])


KINDS: Final[Mapping[Kind, Callable[[Panel], Builder]]] = {
    "timeseries": _lines,
    "stat": _figure,
    "verdict": _sentence,
    "table": _table,
}
