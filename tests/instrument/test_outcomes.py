from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from pydantic import BaseModel, ValidationError

from mcpmeter.catalog import labels
from mcpmeter.errors import ERROR_TYPES
from mcpmeter.instrument import outcomes
from mcpmeter.meter import CallResult

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


def fields(result: CallResult) -> tuple[str, str, str, str]:
    return result.status, result.error_type, result.error_side, result.otel_error_type


class TestResults:
    @pytest.mark.parametrize("result", [{}, {"content": []}, {"isError": False}, {"isError": None}, None])
    def test_a_result_without_is_error_is_ok(self, result: object) -> None:
        assert fields(outcomes.of_result(result)) == ("ok", "", "", "")

    @pytest.mark.parametrize("result", [{"isError": True}, CallToolResult(content=[], is_error=True)])
    def test_is_error_is_a_tool_error_of_the_server(self, result: object) -> None:
        assert fields(outcomes.of_result(result)) == ("tool_error", "tool_error", "server", "tool_error")

    def test_a_cause_replaces_error_type_and_side(self) -> None:
        outcome = outcomes.of_result({"isError": True}, ("upstream_timeout", "upstream"))
        assert fields(outcome) == ("tool_error", "upstream_timeout", "upstream", "tool_error")

    def test_a_cause_without_is_error_is_ignored(self) -> None:
        assert fields(outcomes.of_result({}, ("upstream_timeout", "upstream"))) == ("ok", "", "", "")

    def test_input_required_is_no_error(self) -> None:
        outcome = outcomes.of_result({"resultType": "input_required"})
        assert fields(outcome) == ("input_required", "", "", "input_required")

    @given(st.dictionaries(st.sampled_from(["isError", "resultType", "content"]), JSON))
    def test_any_result_has_an_outcome_in_the_closed_sets(self, result: dict[str, object]) -> None:
        outcome = outcomes.of_result(result)
        assert outcome.status in labels.MCP_OUTCOMES
        assert outcome.otel_error_type in (labels.OTEL_ERROR_TYPE.values or ())


class TestExceptions:
    @pytest.mark.parametrize("code", [-32700, -32600, -32601, -32602, -32002, -32020, -32021, -32022])
    def test_client_error_codes_are_protocol_errors_of_the_client(self, code: int) -> None:
        outcome = outcomes.of_exception(MCPError(code, "…"))
        assert fields(outcome) == ("error", "protocol_error", "client", str(code))

    @pytest.mark.parametrize("code", [-32603, -32000, 0, 7])
    def test_other_codes_are_errors_of_the_server(self, code: int) -> None:
        outcome = outcomes.of_exception(MCPError(code, "…"))
        assert fields(outcome) == ("error", "internal_error", "server", str(code))

    def test_url_elicitation_is_no_error(self) -> None:
        outcome = outcomes.of_exception(MCPError(-32042, "…"))
        assert fields(outcome) == ("input_required", "", "", "input_required")

    def test_validation_errors_are_invalid_params(self) -> None:
        class Params(BaseModel):
            name: str

        with pytest.raises(ValidationError) as raised:
            Params.model_validate({})
        assert fields(outcomes.of_exception(raised.value)) == ("error", "protocol_error", "client", "-32602")

    def test_a_crash_is_an_internal_error(self) -> None:
        # Settlement sets OpenTelemetry's error type from ours.
        assert fields(outcomes.of_exception(RuntimeError("secret"))) == ("error", "internal_error", "server", "")

    @given(st.integers())
    def test_every_code_has_a_known_error_type(self, code: int) -> None:
        outcome = outcomes.of_exception(MCPError(code, "…"))
        assert outcome.error_type in ("", *ERROR_TYPES)
        assert bool(outcome.error_type) == bool(outcome.error_side)
