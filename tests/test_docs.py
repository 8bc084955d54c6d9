"""The README's examples do what they say, against the demo as the README starts it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from mcp.server.mcpserver import MCPServer

from mcpmeter.config import load

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def snippets() -> dict[str, str]:
    found = {"openai": "from openai", "mcp": "import mcp\n", "instrument": "mcpmeter.instrument"}
    return {name: next(block for block in blocks("python") if mark in block) for name, mark in found.items()}


def test_every_python_example_is_run_here(snippets: dict[str, str]) -> None:
    assert sorted(snippets.values()) == sorted(blocks("python"))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_sdk_and_an_mcp_client_are_pointed_at_the_demo(start: Any, snippets: dict[str, str], capsys: Any) -> None:
    demo = start("demo", "--port", "0")
    address = demo.says(r"Metrics +(http://[0-9.:]+)/metrics")[1]
    try:
        openai_example: dict[str, Any] = {}
        exec(snippets["openai"].replace("http://127.0.0.1:8000", address), openai_example)
        assert openai_example["answer"].choices[0].message.content
        exec(snippets["mcp"].replace("http://127.0.0.1:8000", address), {})
        assert "'call_id': 'call_" in capsys.readouterr().out
    finally:
        demo.end()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_server_is_metered_by_one_line(snippets: dict[str, str]) -> None:
    server = MCPServer("mine")
    example = (
        snippets["instrument"].replace("mcpmeter.instrument(", "handle = mcpmeter.instrument(").replace("9100", "0")
    )
    namespace: dict[str, Any] = {"server": server}
    exec(example, namespace)
    try:
        assert namespace["handle"].port
    finally:
        namespace["handle"].close()


def test_three_lines_of_configuration_are_taken(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    path = tmp_path / "mcpmeter.yaml"
    path.write_text(text)
    settings = load(path, {"OPENAI_API_KEY": "sk-1", "SEARCH_KEY": "q7Zk2vXw9LtRbN4mJcHs8dPfYg3eUaT5"})
    assert [(key.name, key.team) for key in settings.keys] == [("search-backend", "search")]


def test_every_page_that_the_readme_names_is_there() -> None:
    pages = {target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target}
    assert [page for page in sorted(pages) if not (Path(__file__).parents[1] / page).exists()] == []
