"""`mcpmeter monitoring`: write rules, routes and dashboards, and explain what is wrong with anybody's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcpmeter.errors import MissingDependency, SetupError

if TYPE_CHECKING:
    from mcpmeter.monitoring.lint import LintIssue


@click.group(name="monitoring")
def command() -> None:
    """Write Prometheus rules, alerts, routes and dashboards, or explain what is wrong with others.

    \b
    Example:
      mcpmeter monitoring write deploy
      mcpmeter monitoring lint my-rules.yml my-dashboard.json
    """


@command.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The file with `monitoring:`; else $MCPMETER_CONFIG or ./mcpmeter.yaml. Nothing else in it is read.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 where DIR is not what would be written.")
def write(folder: Path, config_path: Path | None, check: bool) -> int:
    """Write everything that monitors mcpmeter into DIR.

    Files of the same name are replaced, others are left alone.

    \b
    Example:
      mcpmeter monitoring write deploy --config mcpmeter.yaml
      mcpmeter monitoring write deploy --check     # in CI: is what is committed up to date?
    """
    from mcpmeter.config import find_file, load_monitoring
    from mcpmeter.monitoring import files

    made = files(load_monitoring(find_file(config_path, os.environ), os.environ))
    changed = [path for path, content in made.items() if _content(folder / path) != content]
    if check:
        return _compared(folder, changed)
    _write(folder, {path: made[path] for path in changed})
    click.echo(f"{folder}: {len(made)} files, {len(changed)} of them new or changed.")
    return 0


def _content(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None


def _compared(folder: Path, changed: list[str]) -> int:
    for path in changed:
        click.echo(f"{folder / path}: {'differs' if (folder / path).exists() else 'is missing'}", err=True)
    if changed:
        click.echo(f"mcpmeter: {len(changed)} files are out of date. Run: mcpmeter monitoring write {folder}", err=True)
    else:
        click.echo(f"{folder}: up to date.")
    return 1 if changed else 0


def _write(folder: Path, made: Mapping[str, str]) -> None:
    for path, content in made.items():
        place = folder / path
        if place.is_dir():
            raise SetupError(f"{place} is a folder and would be a file.", hint="Move it away, or choose another DIR.")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode())


@command.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--scrape", help="Hold them against this /metrics (a URL or a file), not against the catalog.")
@click.option("--prometheus", "prometheus_url", help="Also ask this Prometheus whether each selector matches now.")
@click.option("--strict", is_flag=True, help="Exit code 1 for warnings as well.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of findings.")
def lint(files: Sequence[Path], scrape: str | None, prometheus_url: str | None, strict: bool, as_json: bool) -> int:
    """Explain what in anybody's rules and dashboards can never match, and what to write instead.

    Takes Prometheus rule files, PrometheusRules, Grafana dashboards and ConfigMaps of them.
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
        raise _grammar_missing(missing) from None
    texts = {str(path): _read(path) for path in files}
    findings = find(texts, known_of(scrape))
    if prometheus_url:
        findings = [*findings, *unmatched(texts, prometheus_url)]
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(findings), indent=2))
    else:
        _print(findings, len(texts))
    return 1 if any(strict or found.level == "error" for found in findings) else 0


def _grammar_missing(missing: ModuleNotFoundError) -> Exception:
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


def _print(findings: Sequence[LintIssue], files: int) -> None:
    for found in findings:
        click.echo(f"{found.file}: {found.place}: {found.level}: {found.message} [{found.kind}]")
        if found.hint:
            click.echo(f"    {found.hint}")
    errors = sum(found.level == "error" for found in findings)
    click.echo(f"{files} files: {errors} errors, {len(findings) - errors} warnings.", err=True)
