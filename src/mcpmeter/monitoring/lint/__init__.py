"""`mcpmeter monitoring lint`: expressions in rules and dashboards that can never match, or mislead.

`expressions` reads files, `known` lists the series that exist, `checks` finds issues in one expression, `shapes` infers
the labels of an expression's result, `live` looks series up in a running service or Prometheus.
"""

from mcpmeter.monitoring.lint.checks import check
from mcpmeter.monitoring.lint.expressions import Expression, LintIssue, read
from mcpmeter.monitoring.lint.known import Known

__all__ = ["Expression", "Known", "LintIssue", "check", "lint", "read"]


def lint(files: dict[str, str], known: Known) -> list[LintIssue]:
    """Issues in files (name -> content), in the order of the files. All files may use what one of them records."""
    contents = [read(name, content) for name, content in files.items()]
    for expressions, _ in contents:
        known.learn(expressions)
    issues: list[LintIssue] = []
    for expressions, file_issues in contents:
        issues += file_issues
        issues += (issue for expression in expressions for issue in check(expression, known))
    return issues
