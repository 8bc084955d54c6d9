"""Usage objects with fields that no provider has published, for the dialects' tests of completeness."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

DEPTHS = {False: 200, True: 20_000}
"""Examples of a property in `make test` and in a full trial."""

Addition = tuple[int, str, Any]
"""(which object of the usage it is planted in, the field's name, its value)."""

leaves = st.none() | st.just(0) | st.integers(1, 99) | st.just("") | st.just("text") | st.booleans() | st.just(2.5)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=4,
)


def counts_of_json() -> st.SearchStrategy[Any]:
    """A valid count as providers write them: whole, as `12.0`, null."""
    return st.none() | st.integers(0, 500) | st.integers(0, 500).map(float)


def invented() -> st.SearchStrategy[Addition]:
    """A field that no table knows, at any depth."""
    return st.tuples(st.integers(0, 20), st.sampled_from(["zz_one", "zz_two"]), trees)


def planted(usage: dict[str, Any], additions: list[Addition]) -> int:
    """Insert the fields into the objects of a usage. Returns the sum of the quantities that have to show up."""
    objects = [*_objects(usage)]
    for index, name, value in additions:
        objects[index % len(objects)][name] = value
    return sum(_size(value) for found in objects for name, value in found.items() if name.startswith("zz_"))


def sum_of(usage: dict[str, Any], *names: str) -> int:
    """The sum of some counts."""
    return sum(int(usage.get(name) or 0) for name in names)


def unpublished(value: Any) -> int:
    """The sum of whole numbers in fields that no table knows."""
    if isinstance(value, dict | list):
        return sum(map(unpublished, value.values() if isinstance(value, dict) else value))
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _objects(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [found for inner in value for found in _objects(inner)]
    if isinstance(value, dict):
        return [value, *(found for inner in value.values() for found in _objects(inner))]
    return []


def _size(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(map(_size, value.values() if isinstance(value, dict) else value))
    if isinstance(value, bool | str):
        return int(bool(value))
    return 3 if value == 2.5 else value or 0
