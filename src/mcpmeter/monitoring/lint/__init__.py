"""`mcpmeter monitoring lint`: what in anybody's rules and dashboards can never match, and why."""

from mcpmeter.monitoring.lint.checks import check
from mcpmeter.monitoring.lint.finding import LintIssue
from mcpmeter.monitoring.lint.known import Known
from mcpmeter.monitoring.lint.reading import Asked, read

__all__ = ["Asked", "Known", "LintIssue", "check", "lint", "read"]


def lint(files: dict[str, str], known: Known) -> list[LintIssue]:
    """Findings in files (name -> content), in their order. What one file records, the others may ask for."""
    read_files = [read(name, content) for name, content in files.items()]
    for asked, _ in read_files:
        known.learn(asked)
    return [
        found for asked, findings in read_files for found in (*findings, *(f for a in asked for f in check(a, known)))
    ]
