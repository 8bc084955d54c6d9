"""docs/runbooks/ is generated from the alerts."""

from __future__ import annotations

from pathlib import Path

from mcpmeter.monitoring import MonitoringOptions
from mcpmeter.monitoring.alerts import alerts
from mcpmeter.monitoring.runbooks import main, pages

FOLDER = Path(__file__).parents[2] / "docs" / "runbooks"


def test_the_committed_pages_are_up_to_date() -> None:
    committed = {path.name: path.read_text() for path in FOLDER.glob("*")}
    assert sorted(committed) == sorted(pages())
    assert [name for name, text in pages().items() if committed[name] != text] == [], "run: make docs"


def test_every_alert_has_a_page_and_an_index_entry() -> None:
    index = (FOLDER / "README.md").read_text()
    for alert in alerts(MonitoringOptions()):
        assert (FOLDER / f"{alert.name}.md").is_file()
        assert f"[{alert.name}]({alert.name}.md)" in index


def test_the_page_of_a_removed_alert_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "MCPGone.md").write_text("old")
    main(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(pages())
