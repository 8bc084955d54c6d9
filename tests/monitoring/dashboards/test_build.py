"""The committed JSON is the SDK's output for the pages, and Grafana's types accept it."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from mcpmeter.monitoring.dashboards import MADE, _build, made, pages

PAGES = pages()
CHECK = """import type {{ Dashboard }} from "@grafana/schema";
type Plain<T> = T extends string ? `${{T}}` : T extends (infer I)[] ? Plain<I>[] : {{ [K in keyof T]: Plain<T[K]> }};
type Annotation = {{ expr: string; step: string; textFormat: string; titleFormat: string }};
const made: Plain<Dashboard> & {{ annotations: {{ list: Annotation[] }} }} = {document};
export default made;
"""
"""`Plain` replaces enums of the types by their strings, as in JSON. `Annotation` is the Prometheus plugin's part of an
annotation, which the types leave to plugins."""

STRICT = ("--strict", "--noEmit", "--module", "nodenext", "--moduleResolution", "nodenext", "--target", "es2022")


def test_there_are_five_dashboards() -> None:
    assert [page.title for page in PAGES.values()] == [
        "mcpmeter: LLM cost and tokens",
        "mcpmeter: MCP servers and tools",
        "mcpmeter: The meter itself",
        "mcpmeter: Overview",
        "mcpmeter: Upstreams and quota",
    ]


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_json_is_up_to_date(name: str) -> None:
    assert made(name) == _build.to_json(PAGES[name]), "run: make docs"


def test_every_committed_dashboard_has_a_page() -> None:
    folder = files("mcpmeter.monitoring.dashboards") / MADE
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.json" for name in PAGES)


def type_errors(schemas, folder: Path, documents: dict[str, str]) -> str:
    (folder / "node_modules").symlink_to(schemas.packages)
    (folder / "package.json").write_text('{"type": "module"}')
    sources = [folder / f"{name}.ts" for name in documents]
    for source, document in zip(sources, documents.values(), strict=True):
        source.write_text(CHECK.format(document=document))
    tsc = schemas.packages / "typescript" / "bin" / "tsc"
    checked = schemas.node(tsc, *STRICT, *sources, cwd=folder)
    assert checked.stderr == ""
    return checked.stdout


def test_grafanas_types_accept_every_dashboard(schemas, tmp_path: Path) -> None:
    assert type_errors(schemas, tmp_path, {name: made(name) for name in PAGES}) == ""


def test_the_types_refuse_unknown_fields_and_wrong_values(schemas, tmp_path: Path) -> None:
    unknown, wrong = json.loads(made("overview")), json.loads(made("overview"))
    unknown["autoRefresh"] = True
    wrong["panels"][1]["fieldConfig"]["defaults"]["unit"] = 5
    errors = type_errors(schemas, tmp_path, {"unknown": json.dumps(unknown), "wrong": json.dumps(wrong)})
    assert "'\"autoRefresh\"' does not exist in type" in errors
    assert "Type 'number' is not assignable to type 'string'" in errors
