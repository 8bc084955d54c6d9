"""Checks of one expression. Each check yields its problems, independently of the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, Literal

import promql_parser as promql

from mcpmeter.catalog import service
from mcpmeter.monitoring.lint.expressions import Expression, LintIssue
from mcpmeter.monitoring.lint.known import SCRAPED, Known, Series
from mcpmeter.monitoring.lint.shapes import COMPARISONS, bare, is_scalar, matched, operator, shape

OF_COUNTERS: Final = frozenset(("rate", "increase", "irate"))
OF_GAUGES: Final = frozenset(("delta", "idelta", "deriv", "predict_linear"))
ANY_VALUE: Final = frozenset(
    ("absent", "absent_over_time", "present_over_time", "changes", "resets", "timestamp", "count_over_time")
)
AT_START: Final = service.LEDGER_RECOVERED.name
"""Rises before the first scrape, so that only its value is useful."""
COUNTS_SERIES: Final = frozenset(("count", "group"))
HOURS_6: Final = 6 * 3600
Problem = tuple[Literal["error", "warning"], str, str, str]
"""Level, kind, message, hint."""


def check(expression: Expression, known: Known) -> Iterator[LintIssue]:
    """All issues of one expression, without duplicates."""
    try:
        tree = promql.parse(expression.expr)
    except ValueError as fault:
        problems: list[Problem] = [("error", "syntax", f"invalid PromQL: {' '.join(str(fault).split())[:200]}", "")]
    else:
        problems = list(_problems(tree, expression, known))
    for level, kind, message, hint in dict.fromkeys(problems):
        yield LintIssue(
            file=expression.file, place=expression.place, level=level, kind=kind, message=message, hint=hint
        )


def _problems(tree: Any, expression: Expression, known: Known) -> Iterator[Problem]:
    for node, above in walk(tree, ()):
        match node:
            case promql.VectorSelector():
                yield from _selector(node, above, expression, known)
            case promql.AggregateExpr():
                yield from _grouping(node, known)
            case promql.BinaryExpr():
                yield from _matching(node, known)
                yield from _comparison(node, above, expression, known)
            case promql.Call():
                yield from _quantile(node, known)


def walk(node: Any, above: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every node with its ancestors."""
    yield node, above
    inner = (*above, node)
    match node:
        case promql.BinaryExpr():
            children = [node.lhs, node.rhs]
        case promql.Call():
            children = list(node.args)
        case promql.MatrixSelector():
            children = [node.vector_selector]
        case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            children = [node.expr]
        case _:
            children = []
    for child in children:
        yield from walk(child, inner)


# Selectors


def _selector(node: Any, above: tuple[Any, ...], expression: Expression, known: Known) -> Iterator[Problem]:
    name = node.name or ""
    series = known.series.get(name)
    if series is not None:
        yield from _labels(node, series)
        yield from _functions(series, above, expression)
    elif name not in known.recorded and known.should_be_known(name):
        near = known.nearest(name)
        hint = f"Did you mean '{near}'?" if near else "docs/metrics.md lists all names."
        yield (
            "error",
            "unknown-metric",
            f"no series is named '{name}' (according to {known.source}): the result is empty",
            hint,
        )


def _labels(node: Any, series: Series) -> Iterator[Problem]:
    for matcher in node.matchers.matchers:
        label, value = matcher.name, matcher.value
        if not _requires_value(matcher) or "$" in value:
            continue
        if label not in series.labels:
            if label in SCRAPED:
                continue
            has = ", ".join(series.labels) or "none"
            message = f"'{series.name}' has no label '{label}': {{{label}{_sign(matcher)}\"{value}\"}} matches nothing"
            yield "error", "unknown-label", message, f"Its labels: {has}."
            continue
        values = series.labels[label]
        if values is not None and not any(_accepts(matcher, held) for held in values):
            message = f"'{label}' of '{series.name}' is never \"{value}\": the selector matches nothing"
            yield "error", "unknown-value", message, f"Its values: {', '.join(sorted(filter(None, values)))}."
        elif (label, value) == ("error_type", "upstream_error") and matcher.op == promql.MatchOp.Equal:
            message = 'error_type="upstream_error" excludes upstream_timeout, upstream_unreachable and others'
            yield "warning", "narrow-error-type", message, 'side="upstream" matches all of them.'


def _requires_value(matcher: Any) -> bool:
    return not _accepts(matcher, "")


def _accepts(matcher: Any, value: str) -> bool:
    if matcher.op == promql.MatchOp.Equal:
        return bool(matcher.value == value)
    if matcher.op == promql.MatchOp.NotEqual:
        return bool(matcher.value != value)
    try:
        found = re.fullmatch(matcher.value, value) is not None
    except re.error:
        return True
    return found if matcher.op == promql.MatchOp.Re else not found


def _sign(matcher: Any) -> str:
    signs = (("=", promql.MatchOp.Equal), ("!=", promql.MatchOp.NotEqual), ("=~", promql.MatchOp.Re))
    return next((sign for sign, op in signs if matcher.op == op), "!~")


def _functions(series: Series, above: tuple[Any, ...], expression: Expression) -> Iterator[Problem]:
    calls = [node.func.name for node in above if isinstance(node, promql.Call)]
    counted = any(isinstance(node, promql.AggregateExpr) and str(node.op) in COUNTS_SERIES for node in above)
    if not series.is_counter:
        if wrong := sorted(OF_COUNTERS.intersection(calls)):
            message = f"{wrong[0]}() of the gauge '{series.name}' treats every decrease as a restart"
            yield "error", "rate-of-gauge", message, "Use delta() or deriv(), or the gauge itself."
    elif wrong := sorted(OF_GAUGES.intersection(calls)):
        yield (
            "warning",
            "gauge-function-of-counter",
            f"{wrong[0]}() of the counter '{series.name}' drops at a restart",
            _RATE,
        )
    elif not (counted or (OF_COUNTERS | ANY_VALUE).intersection(calls) or _may_stand_alone(series, expression)):
        compared = any(isinstance(node, promql.BinaryExpr) and operator(node) in COMPARISONS for node in above)
        money = series.unit == "usd" and expression.kind == "alert"
        if not money or not compared:
            how = "compared" if compared else "shown"
            message = f"the counter '{series.name}' is {how} as a total since the last start: a restart resets it to 0"
            yield "warning" if expression.kind == "panel" else "error", "counter-without-rate", message, _RATE


def _may_stand_alone(series: Series, expression: Expression) -> bool:
    return expression.kind == "record" or series.name == AT_START


_RATE: Final = "Use rate() or increase()."


# Groupings and operations


def _grouping(node: Any, known: Known) -> Iterator[Problem]:
    inner = shape(node.expr, known)
    if inner is None or node.modifier is None or node.modifier.type != promql.AggModifierType.By:
        return
    for label in node.modifier.labels:
        if label not in inner:
            has = ", ".join(sorted(set(inner) - SCRAPED)) or "none"
            yield (
                "error",
                "unknown-label",
                f"'by ({label})' groups by a label that no series in it has",
                f"Their labels: {has}.",
            )


def _matching(node: Any, known: Known) -> Iterator[Problem]:
    if operator(node) == "or" or is_scalar(node.lhs) or is_scalar(node.rhs):
        return
    left, right = shape(node.lhs, known), shape(node.rhs, known)
    if left is None or right is None:
        return
    many = node.modifier is not None and node.modifier.card in _GROUPED
    left, right = matched(left, node), matched(right, node)
    only_left = sorted(label for label, always in left.items() if always and label not in right)
    only_right = sorted(label for label, always in right.items() if always and label not in left)
    apart = only_left + only_right
    if not apart or (many and _included(node)):
        return
    sides = f"{_side('left', only_left)}{_side('right', only_right)}".rstrip("; ")
    message = f"the two sides of '{operator(node)}' never match: {sides}"
    yield (
        "error",
        "never-matches",
        message,
        "Aggregate both sides by the same labels, for example sum(…) / sum(…), or use on (…).",
    )


_GROUPED: Final = (promql.VectorMatchCardinality.ManyToOne, promql.VectorMatchCardinality.OneToMany)


def _included(node: Any) -> bool:
    matching = node.modifier.matching
    return matching is None or matching.type == promql.LabelModifierType.Exclude


def _side(name: str, labels: list[str]) -> str:
    return f"only the {name} side has {', '.join(labels)}; " if labels else ""


# Comparisons


def _comparison(node: Any, above: tuple[Any, ...], expression: Expression, known: Known) -> Iterator[Problem]:
    if operator(node) not in COMPARISONS or expression.kind != "alert":
        return
    limit, vector, rises = _limit(node)
    if limit is not None:
        yield from _beyond_top(vector, limit, rises, known)
        yield from _lifetime_money(vector, limit, known)
        yield from _no_floor(vector, limit, rises, above, known)
    else:
        yield from _mean_of_a_day(node, known)


def _limit(node: Any) -> tuple[float | None, Any, bool]:
    """The threshold, the vector, and whether values above the threshold fire."""
    left, right = bare(node.lhs), bare(node.rhs)
    if isinstance(right, promql.NumberLiteral):
        return right.val, left, operator(node).startswith(">")
    if isinstance(left, promql.NumberLiteral):
        return left.val, right, operator(node).startswith("<")
    return None, None, False


def _beyond_top(vector: Any, limit: float, rises: bool, known: Known) -> Iterator[Problem]:
    if not (rises and isinstance(vector, promql.Call) and vector.func.name == "histogram_quantile"):
        return
    for series in _series_in(vector, known):
        if series.top is not None and limit >= series.top:
            message = (
                f"no quantile of '{series.family}' exceeds its top bucket, {series.top:g}: > {limit:g} is never true"
            )
            yield "error", "beyond-top-bucket", message, "Lower the threshold, or alert on the share above a bucket."


def _lifetime_money(vector: Any, limit: float, known: Known) -> Iterator[Problem]:
    factor, inner = _scaled(vector)
    inside = {node.func.name for node, _ in walk(inner, ()) if isinstance(node, promql.Call)}
    if inside & OF_COUNTERS or factor == 0:
        return
    for series in _money_in(inner, known):
        amount = f"{limit / factor:,.6g} USD"
        message = f"'{series.name}' counts since the last start: this fires above {amount}, and a restart resets it"
        hint = "Compare mcp_budget_spent_usd (the current period, from the ledger) with mcp_budget_limit_usd."
        yield "error", "lifetime-counter", message, hint


def _scaled(vector: Any) -> tuple[float, Any]:
    """`x / 1000` is (0.001, x)."""
    vector = bare(vector)
    if isinstance(vector, promql.BinaryExpr) and isinstance(bare(vector.rhs), promql.NumberLiteral):
        factor, inner = _scaled(vector.lhs)
        number = bare(vector.rhs).val
        if operator(vector) == "/" and number:
            return factor / number, inner
        if operator(vector) == "*":
            return factor * number, inner
    return 1.0, vector


def _no_floor(vector: Any, limit: float, rises: bool, above: tuple[Any, ...], known: Known) -> Iterator[Problem]:
    if not rises or any(isinstance(node, promql.BinaryExpr) and operator(node) in ("and", "unless") for node in above):
        return
    rated = [series for series in _series_in(vector, known) if series.is_counter and _is_rated(vector)]
    if rated and isinstance(vector, promql.BinaryExpr) and operator(vector) == "/" and not is_scalar(vector.rhs):
        message = "a ratio without a minimum volume: at night, one failed request of one is 100 %"
        yield "warning", "no-volume-floor", message, "Add: and sum(increase(requests[5m])) >= 20."
    elif rated and limit <= 0:
        message = f"a single event fires this: any increase of '{rated[0].name}' exceeds the threshold"
        yield "warning", "no-volume-floor", message, "Compare a ratio, and add a minimum volume."


def _is_rated(vector: Any) -> bool:
    return any(isinstance(node, promql.Call) and node.func.name in OF_COUNTERS for node, _ in walk(vector, ()))


def _mean_of_a_day(node: Any, known: Known) -> Iterator[Problem]:
    short, long = _ranges(node.lhs, known), _ranges(node.rhs, known)
    for name, seconds in long.items():
        if name in short and seconds >= HOURS_6 and short[name] * 4 <= seconds:
            hours = f"{seconds / 3600:g} h"
            message = (
                f"'{name}' is compared with its mean over {hours}: every new series and every office day exceeds it"
            )
            yield (
                "warning",
                "mean-as-baseline",
                message,
                "Compare with the same hour (offset 1d and offset 7d), and add a minimum in dollars.",
            )


def _ranges(node: Any, known: Known) -> dict[str, float]:
    """Money counter -> its window, for selectors without offset."""
    return {
        inner.vector_selector.name or "": inner.range.total_seconds()
        for inner, _ in walk(node, ())
        if isinstance(inner, promql.MatrixSelector)
        and inner.vector_selector.offset is None
        and list(_money_in(inner, known))
    }


def _series_in(node: Any, known: Known) -> Iterator[Series]:
    for inner, _ in walk(node, ()):
        if isinstance(inner, promql.VectorSelector) and inner.name in known.series:
            yield known.series[inner.name]


def _money_in(node: Any, known: Known) -> Iterator[Series]:
    """Counters in dollars, even if the name lacks its `_total`."""
    for inner, _ in walk(node, ()):
        if isinstance(inner, promql.VectorSelector):
            series = known.series.get(inner.name or "") or known.series.get(f"{inner.name}_total")
            if series is not None and series.is_counter and series.unit == "usd":
                yield series


# Quantiles


def _quantile(node: Any, known: Known) -> Iterator[Problem]:
    if node.func.name != "histogram_quantile":
        return
    vector = bare(node.args[1])
    inner = shape(vector, known)
    if inner is not None and "le" not in inner:
        message = "histogram_quantile has no buckets: its argument has no label 'le'"
        yield "error", "quantile-without-le", message, "Use sum by (le) (rate(…_bucket[5m]))."
    elif not isinstance(vector, promql.AggregateExpr) and any(s.type == "bucket" for s in _series_in(vector, known)):
        message = "histogram_quantile without sum by (le): one result per replica and label, and none in total"
        yield (
            "warning",
            "quantile-not-aggregated",
            message,
            "Use histogram_quantile(0.95, sum by (le) (rate(…_bucket[5m]))).",
        )
