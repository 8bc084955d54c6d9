"""Labels of an expression's result: enough of PromQL's rules to find vectors that never match."""

from __future__ import annotations

from typing import Any, Final

import promql_parser as promql

from mcpmeter.monitoring.lint.known import SCRAPED, TARGET_LABELS, Known

Shape = dict[str, bool] | None
"""Label -> True if always present, False if optional; other labels are never present. None if unknown."""

KEEPS_LABELS: Final = frozenset(("topk", "bottomk", "limitk", "limit_ratio"))
CHANGES_LABELS: Final = frozenset(("label_replace", "label_join", "absent", "absent_over_time", "info", "count_values"))
SET_OPERATORS: Final = frozenset(("and", "or", "unless"))
COMPARISONS: Final = frozenset(("==", "!=", ">", "<", ">=", "<="))


def operator(node: Any) -> str:
    """The operator without `bool`."""
    return str(node.op).removeprefix("bool ").strip()


def bare(node: Any) -> Any:
    """Without parentheses and sign."""
    while isinstance(node, promql.ParenExpr | promql.UnaryExpr):
        node = node.expr
    return node


def is_scalar(node: Any) -> bool:
    """Whether the node is a scalar, not a vector."""
    node = bare(node)
    if isinstance(node, promql.BinaryExpr):
        return is_scalar(node.lhs) and is_scalar(node.rhs)
    if isinstance(node, promql.Call):
        return bool(node.func.return_type == promql.ValueType.Scalar)
    return isinstance(node, promql.NumberLiteral | promql.StringLiteral)


def shape(node: Any, known: Known) -> Shape:
    """The labels of a vector expression's result."""
    node = bare(node)
    match node:
        case promql.VectorSelector():
            return _of_selector(node, known)
        case promql.MatrixSelector():
            return _of_selector(node.vector_selector, known)
        case promql.SubqueryExpr():
            return shape(node.expr, known)
        case promql.AggregateExpr():
            return _of_aggregate(node, known)
        case promql.Call():
            return _of_call(node, known)
        case promql.BinaryExpr():
            return _of_binary(node, known)
    return None


def _of_selector(node: Any, known: Known) -> Shape:
    name = node.name or ""
    if name in known.series:
        series = known.series[name]
        labels = {label: label not in series.optional for label in series.labels}
        return {**dict.fromkeys(SCRAPED, False), **dict.fromkeys(TARGET_LABELS, True), **labels}
    if name in known.recorded:
        try:
            return shape(promql.parse(known.recorded[name]), known)
        except (ValueError, RecursionError):
            return None
    return None


def _of_aggregate(node: Any, known: Known) -> Shape:
    inner = shape(node.expr, known)
    if str(node.op) in KEEPS_LABELS or str(node.op) in CHANGES_LABELS:
        return inner if str(node.op) in KEEPS_LABELS else None
    if node.modifier is None:
        return {}
    labels = set(node.modifier.labels)
    if node.modifier.type == promql.AggModifierType.By:
        return {label: held for label, held in (inner or dict.fromkeys(labels, False)).items() if label in labels}
    return None if inner is None else {label: held for label, held in inner.items() if label not in labels}


def _of_call(node: Any, known: Known) -> Shape:
    if node.func.name in CHANGES_LABELS:
        return None
    if node.func.name == "vector":
        return {}
    vectors = [argument for argument in node.args if not is_scalar(argument)]
    inner = shape(vectors[0], known) if vectors else None
    if inner is not None and node.func.name == "histogram_quantile":
        return {label: held for label, held in inner.items() if label != "le"}
    return inner


def _of_binary(node: Any, known: Known) -> Shape:
    if is_scalar(node.lhs):
        return shape(node.rhs, known)
    left = shape(node.lhs, known)
    if is_scalar(node.rhs) or operator(node) in SET_OPERATORS:
        return left if operator(node) != "or" else _either(left, shape(node.rhs, known))
    if node.modifier is None or left is None:
        return left
    if node.modifier.card != promql.VectorMatchCardinality.OneToOne:
        return None
    return matched(left, node)


def _either(left: Shape, right: Shape) -> Shape:
    if left is None or right is None:
        return None
    return {label: left.get(label, False) and right.get(label, False) for label in {*left, *right}}


def matched(side: dict[str, bool], node: Any) -> dict[str, bool]:
    """The labels of one side on which a binary operation matches."""
    matching = node.modifier.matching if node.modifier is not None else None
    if matching is None:
        return side
    labels = set(matching.labels)
    if matching.type == promql.LabelModifierType.Include:
        return {label: held for label, held in side.items() if label in labels}
    return {label: held for label, held in side.items() if label not in labels}
