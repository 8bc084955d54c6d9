"""The error tree: as drawn, each class with its own id, mapping, sentence and remedy."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import mcpmeter
from mcpmeter import errors
from mcpmeter.cli._reference import REMEDIES, all_errors, errors_reference, sentence
from mcpmeter.config import Settings
from mcpmeter.config.faults import model_in
from mcpmeter.errors import (
    CallerError,
    MeterError,
    ServiceFault,
    SetupError,
    UpstreamFault,
)

ROOT = Path(__file__).parents[1]
TREE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MeterError)]
EVERY = all_errors()

# Ids are public: programs match on them. An id may be added, none may be removed or changed.
IDS = {
    "validation_error", "invalid_request", "body_too_large", "body_too_slow", "headers_too_large",
    "unsupported_media_type",
    "unsupported_content_encoding", "unsupported_transfer_encoding",
    "route_not_found", "method_not_allowed", "call_not_found", "response_not_found", "key_not_found", "key_configured",
    "not_authenticated", "not_allowed", "rate_limited", "budget_exhausted", "caller_gone",
    "upstream_fault", "upstream_refused_account", "upstream_answered_garbage", "upstream_answer_too_large",
    "upstream_broke", "background_lost", "upstream_unreachable", "upstream_timed_out", "upstream_rate_limited",
    "internal_error", "draining", "overloaded", "ledger_unavailable",
    "setup_error", "config_invalid", "port_taken", "ledger_not_usable", "part_missing",
    # defined in other modules
    "settled_twice", "settlement_conflict", "row_refused", "registry_taken", "server_not_supported",
    "bill_invalid",
}  # fmt: skip

MAPPING = {
    # id: (HTTP, JSON-RPC, type, side), by hand
    "validation_error": (400, -32600, "validation_error", "client"),
    "invalid_request": (400, -32602, "validation_error", "client"),
    "body_too_large": (413, -32602, "validation_error", "client"),
    "body_too_slow": (408, -32602, "validation_error", "client"),
    "headers_too_large": (431, -32602, "validation_error", "client"),
    "unsupported_media_type": (415, -32602, "validation_error", "client"),
    "unsupported_content_encoding": (415, -32602, "validation_error", "client"),
    "unsupported_transfer_encoding": (501, -32602, "validation_error", "client"),
    "route_not_found": (404, -32601, "validation_error", "client"),
    "method_not_allowed": (405, -32601, "validation_error", "client"),
    "call_not_found": (404, -32602, "validation_error", "client"),
    "response_not_found": (404, -32602, "validation_error", "client"),
    "key_not_found": (404, -32602, "validation_error", "client"),
    "key_configured": (409, -32602, "validation_error", "client"),
    "not_authenticated": (401, -32600, "auth_error", "client"),
    "not_allowed": (403, -32600, "auth_error", "client"),
    "rate_limited": (429, -32600, "rate_limited", "client"),
    "budget_exhausted": (402, -32600, "budget_exceeded", "client"),
    "caller_gone": (499, -32600, "client_disconnected", "client"),
    "upstream_fault": (502, -32603, "upstream_error", "upstream"),
    "upstream_refused_account": (502, -32603, "upstream_error", "upstream"),
    "upstream_answered_garbage": (502, -32603, "upstream_error", "upstream"),
    "upstream_answer_too_large": (502, -32603, "upstream_error", "upstream"),
    "upstream_broke": (502, -32603, "upstream_error", "upstream"),
    "background_lost": (502, -32603, "upstream_error", "upstream"),
    "upstream_unreachable": (502, -32603, "upstream_unreachable", "upstream"),
    "upstream_timed_out": (504, -32603, "upstream_timeout", "upstream"),
    "upstream_rate_limited": (429, -32603, "upstream_rate_limited", "upstream"),
    "internal_error": (500, -32603, "internal_error", "server"),
    "draining": (503, -32603, "internal_error", "server"),
    "overloaded": (503, -32603, "internal_error", "server"),
    "ledger_unavailable": (503, -32603, "internal_error", "server"),
    "settled_twice": (500, -32603, "internal_error", "server"),
    "settlement_conflict": (500, -32603, "internal_error", "server"),
    "row_refused": (500, -32603, "internal_error", "server"),
}

each = pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)


def drawn() -> list[tuple[str, str, str]]:
    """(class, its base, the rest of the line) for each line of the drawing."""
    found: list[tuple[str, str, str]] = []
    path: list[str] = []
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        shape = re.fullmatch(r"((?:[│ ] {3})*(?:[├└]── )?)([A-Z]\w+)( .*)?", line)
        if shape and (shape[1] or shape[2] == "MeterError"):
            depth = len(shape[1]) // 4
            path = [*path[:depth], shape[2]]
            found.append((shape[2], path[depth - 1] if depth else "Exception", (shape[3] or "").strip()))
    return found


class TestDrawing:
    def test_it_shows_every_class_once_below_its_base(self) -> None:
        shown = [(name, base) for name, base, _ in drawn()]
        assert sorted(shown) == sorted((kind.__name__, kind.__base__.__name__) for kind in (MeterError, *EVERY))  # type: ignore[union-attr]

    def test_classes_are_defined_in_the_order_of_the_drawing(self) -> None:
        ours = {kind.__name__ for kind in TREE}
        assert [name for name, _, _ in drawn() if name in ours] == [kind.__name__ for kind in TREE]

    def test_a_class_of_another_file_is_shown_with_that_file(self) -> None:
        files = {name: re.findall(r"\((\S+\.py)\)$", rest) for name, _, rest in drawn()}
        for kind in EVERY:
            lives_in = Path(inspect.getfile(kind)).relative_to(Path(mcpmeter.__file__).parent).as_posix()
            assert files[kind.__name__] == ([] if kind in TREE else [lives_in]), kind

    def test_drawn_status_and_type_are_those_of_the_class(self) -> None:
        by_name = {kind.__name__: kind for kind in (MeterError, *EVERY)}
        numbered = set()
        for name, base, rest in drawn():
            numbers = re.match(r"(\d{3})(?:\s+([a-z_]+))?(?:\s+\(|$)", rest)
            if numbers:
                numbered.add(by_name[name])
                assert by_name[name].http_status == int(numbers[1]), name
                # A line without a type has the type of its base.
                assert by_name[name].error_type == (numbers[2] or by_name[base].error_type), name
        assert numbered == {kind for kind in EVERY if kind is not CallerError and not issubclass(kind, SetupError)}

    def test_setup_errors_are_drawn_with_their_exit_code(self) -> None:
        (rest,) = (rest for name, _, rest in drawn() if name == "SetupError")
        assert rest == "exit code 1, one line, no traceback"


class TestEveryError:
    def test_ids_are_unique_and_stable(self) -> None:
        ids = [kind.id for kind in EVERY]
        assert sorted(ids) == sorted(set(ids))
        assert set(ids) >= IDS, "an id that programs match on was removed"
        assert set(ids) <= IDS, "a new id is a promise: add it to the list"

    @each
    def test_its_id_is_its_name_or_the_public_one(self, kind: type[MeterError]) -> None:
        spelt = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
        public = {  # ids that programs match on, kept when a class was renamed
            "caller_error": "validation_error",
            "service_fault": "internal_error",
            "client_disconnected": "caller_gone",
            "invalid_upstream_response": "upstream_answered_garbage",
            "upstream_response_too_large": "upstream_answer_too_large",
            "upstream_disconnected": "upstream_broke",
            "missing_dependency": "part_missing",
        }
        assert kind.id == public.get(spelt, spelt)

    @each
    def test_it_has_the_side_of_its_one_branch(self, kind: type[MeterError]) -> None:
        sides = {CallerError: "client", UpstreamFault: "upstream", ServiceFault: "server", SetupError: "server"}
        (side,) = (side for branch, side in sides.items() if issubclass(kind, branch))
        assert kind.side == side

    @each
    def test_it_is_mapped_to_http_and_to_json_rpc(self, kind: type[MeterError]) -> None:
        if issubclass(kind, SetupError):
            assert kind.id not in MAPPING  # a line on stderr, never a response
            return
        assert (kind.http_status, kind.jsonrpc_code, kind.error_type, kind.side) == MAPPING[kind.id]

    @each
    def test_it_has_a_sentence_of_its_own_and_a_remedy(self, kind: type[MeterError]) -> None:
        assert kind.__doc__ != kind.__base__.__doc__  # type: ignore[union-attr]
        assert sentence(kind).endswith(".")
        assert REMEDIES[kind.id].endswith(".")

    def test_message_and_hint_make_one_line(self) -> None:
        assert (
            str(errors.PortTaken("Port 80 is in use.", hint="Choose another.")) == "Port 80 is in use. Choose another."
        )
        assert str(errors.PortTaken("Port 80 is in use.")) == "Port 80 is in use."

    def test_only_caller_errors_and_429_are_below_500(self) -> None:
        for kind in EVERY:
            if kind is errors.UnsupportedTransferEncoding:
                continue  # RFC 9112, 6.1: 501
            assert (kind.http_status < 500) == issubclass(kind, CallerError | errors.UpstreamRateLimited)


def raised_names() -> set[str]:
    trees = (ast.parse(path.read_text()) for path in Path(mcpmeter.__file__).parent.rglob("*.py"))
    return {
        ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and node.exc is not None
    }


def test_branches_are_never_raised_themselves() -> None:
    assert not raised_names() & {"MeterError", "CallerError", "errors.MeterError", "errors.CallerError"}


class TestPage:
    def test_it_is_the_trees(self) -> None:
        assert (ROOT / "docs" / "errors.md").read_text() == errors_reference(), "run: make docs"

    def test_every_error_has_one_row_and_one_remedy(self) -> None:
        rows = re.findall(r"^\| `(\w+)` \|", errors_reference(), re.MULTILINE)
        assert sorted(rows) == sorted(kind.id for kind in EVERY) == sorted(REMEDIES)

    def test_its_settings_exist(self) -> None:
        named = {name for text in REMEDIES.values() for name in re.findall(r"`([a-z_]+\.[a-z_.]+)`", text)}
        assert named
        for name in named:
            section, _, key = name.partition(".")
            model = model_in(Settings.model_fields[section].annotation)
            assert model is not None
            assert key in model.model_fields, name
