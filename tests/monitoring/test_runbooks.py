"""docs/runbooks/ is made from the alerts' files."""

from __future__ import annotations

from pathlib import Path

from mcpmeter.monitoring import MonitoringOptions
from mcpmeter.monitoring.alerts import alerts
from mcpmeter.monitoring.runbooks import main, pages

FOLDER = Path(__file__).parents[2] / "docs" / "runbooks"


def test_the_committed_pages_are_those_that_would_be_made() -> None:
    committed = {path.name: path.read_text() for path in FOLDER.glob("*")}
    assert sorted(committed) == sorted(pages())
    assert [name for name, text in pages().items() if committed[name] != text] == [], "run: make docs"


def test_every_alert_links_to_a_page_that_is_there_and_the_index_lists_it() -> None:
    index = (FOLDER / "README.md").read_text()
    for alert in alerts(MonitoringOptions()):
        assert (FOLDER / f"{alert.name}.md").is_file()
        assert f"[{alert.name}]({alert.name}.md)" in index


def test_a_page_of_an_alert_that_is_no_more_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "MCPGone.md").write_text("old")
    main(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(pages())
