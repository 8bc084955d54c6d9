"""`mcpmeter monitoring`: writes rules, routes and dashboards, and lints existing ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcpmeter.cli._options import config_option_for, json_option
from mcpmeter.errors import MissingDependency, SetupError

if TYPE_CHECKING:
    from mcpmeter.monitoring.lint import LintIssue


@click.group(name="monitoring")
def command() -> None:
    """Write Prometheus rules, alerts, routes and dashboards, or lint existing ones.

    \b
    Example:
      mcpmeter monitoring write deploy
      mcpmeter monitoring lint my-rules.yml my-dashboard.json
    """


@command.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@config_option_for("The file with `monitoring:`, the only section read. Default: $MCPMETER_CONFIG or ./mcpmeter.yaml.")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a file in DIR is out of date.")
def write(folder: Path, config_path: Path | None, check: bool) -> int:
    """Write all monitoring files for mcpmeter into DIR.

    Files of the same name are replaced, others are kept.

    \b
    Example:
      mcpmeter monitoring write deploy --config mcpmeter.yaml
      mcpmeter monitoring write deploy --check     # in CI: are the committed files up to date?
    """
    from mcpmeter.config import find_file, load_monitoring
    from mcpmeter.monitoring import files

    contents = files(load_monitoring(find_file(config_path, os.environ), os.environ))
    changed = [path for path, content in contents.items() if _content(folder / path) != content]
    if check:
        return _report_changed(folder, changed)
    _write(folder, {path: contents[path] for path in changed})
    click.echo(f"{folder}: {len(contents)} files, {len(changed)} of them new or changed.")
    return 0


def _content(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None


def _report_changed(folder: Path, changed: list[str]) -> int:
    for path in changed:
        click.echo(f"{folder / path}: {'differs' if (folder / path).exists() else 'is missing'}", err=True)
    if changed:
        click.echo(f"mcpmeter: {len(changed)} files are out of date. Run: mcpmeter monitoring write {folder}", err=True)
    else:
        click.echo(f"{folder}: up to date.")
    return 1 if changed else 0


def _write(folder: Path, contents: Mapping[str, str]) -> None:
    for path, content in contents.items():
        file = folder / path
        if file.is_dir():
            raise SetupError(f"{file} is a folder and has to be a file.", hint="Move it, or choose another DIR.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode())


@command.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--scrape", help="Compare with this /metrics (a URL or a file) instead of the catalog.")
@click.option("--prometheus", "prometheus_url", help="Also query this Prometheus: does each selector match now?")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings as well.")
@json_option("Print a JSON array of issues.")
def lint(files: Sequence[Path], scrape: str | None, prometheus_url: str | None, strict: bool, as_json: bool) -> int:
    """Find queries in rules and dashboards that can never match, and suggest what to write instead.

    Reads Prometheus rule files, PrometheusRules, Grafana dashboards and ConfigMaps of them.
    Exit code 1: an error was found.

    \b
    Example:
      mcpmeter monitoring lint rules/*.yml dashboards/*.json
      mcpmeter monitoring lint --scrape http://127.0.0.1:8000/metrics alerts.yml
    """
    try:
        from mcpmeter.monitoring.lint import lint as find
        from mcpmeter.monitoring.lint.live import known_of, unmatched
    except ModuleNotFoundError as missing:
        raise _missing_parser(missing) from None
    texts = {str(path): _read(path) for path in files}
    issues = find(texts, known_of(scrape))
    if prometheus_url:
        issues = [*issues, *unmatched(texts, prometheus_url)]
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(issues), indent=2))
    else:
        _print(issues, len(texts))
    return 1 if any(strict or issue.level == "error" for issue in issues) else 0


def _missing_parser(missing: ModuleNotFoundError) -> Exception:
    if missing.name != "promql_parser":
        return missing
    return MissingDependency(
        "The linter needs the package 'promql-parser', which is not installed.",
        hint="Run: pip install 'mcpmeter[server,monitoring]'",
    )


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else "it is not UTF-8"
        raise SetupError(f"{path} cannot be read: {why}.", hint="Name a rule file or a dashboard.") from None


def _print(issues: Sequence[LintIssue], files: int) -> None:
    for issue in issues:
        click.echo(f"{issue.file}: {issue.place}: {issue.level}: {issue.message} [{issue.kind}]")
        if issue.hint:
            click.echo(f"    {issue.hint}")
    errors = sum(issue.level == "error" for issue in issues)
    click.echo(f"{files} files: {errors} errors, {len(issues) - errors} warnings.", err=True)
