from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from pydantic import BaseModel, ValidationError

from mcpmeter.catalog import labels
from mcpmeter.errors import ERROR_TYPES
from mcpmeter.instrument import endings
from mcpmeter.meter import CallResult

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


def told(ending: CallResult) -> tuple[str, str, str, str]:
    return ending.status, ending.error_type, ending.error_side, ending.otel_error_type


class TestResults:
    @pytest.mark.parametrize("result", [{}, {"content": []}, {"isError": False}, {"isError": None}, None])
    def test_what_says_no_error_is_ok(self, result: object) -> None:
        assert told(endings.of_result(result)) == ("ok", "", "", "")

    @pytest.mark.parametrize("result", [{"isError": True}, CallToolResult(content=[], is_error=True)])
    def test_is_error_is_the_tools_error_on_the_servers_side(self, result: object) -> None:
        assert told(endings.of_result(result)) == ("tool_error", "tool_error", "server", "tool_error")

    def test_a_cause_that_the_tool_told_replaces_error_type_and_side_but_not_the_standards_name(self) -> None:
        ending = endings.of_result({"isError": True}, ("upstream_timeout", "upstream"))
        assert told(ending) == ("tool_error", "upstream_timeout", "upstream", "tool_error")

    def test_a_cause_without_a_failed_result_counts_nothing(self) -> None:
        assert told(endings.of_result({}, ("upstream_timeout", "upstream"))) == ("ok", "", "", "")

    def test_asking_for_input_is_no_error(self) -> None:
        ending = endings.of_result({"resultType": "input_required"})
        assert told(ending) == ("input_required", "", "", "input_required")

    @given(st.dictionaries(st.sampled_from(["isError", "resultType", "content"]), JSON))
    def test_any_result_has_an_ending_of_the_closed_sets(self, result: dict[str, object]) -> None:
        ending = endings.of_result(result)
        assert ending.status in labels.MCP_OUTCOMES
        assert ending.otel_error_type in (labels.OTEL_ERROR_TYPE.values or ())


class TestExceptions:
    @pytest.mark.parametrize("code", [-32700, -32600, -32601, -32602, -32002, -32020, -32021, -32022])
    def test_what_the_caller_got_wrong_is_a_protocol_error_of_the_client(self, code: int) -> None:
        ending = endings.of_exception(MCPError(code, "…"))
        assert told(ending) == ("error", "protocol_error", "client", str(code))

    @pytest.mark.parametrize("code", [-32603, -32000, 0, 7])
    def test_other_codes_are_the_servers_fault(self, code: int) -> None:
        ending = endings.of_exception(MCPError(code, "…"))
        assert told(ending) == ("error", "internal_error", "server", str(code))

    def test_asking_for_a_page_to_be_opened_is_no_error(self) -> None:
        ending = endings.of_exception(MCPError(-32042, "…"))
        assert told(ending) == ("input_required", "", "", "input_required")

    def test_params_that_do_not_validate_are_invalid_params(self) -> None:
        class Params(BaseModel):
            name: str

        with pytest.raises(ValidationError) as raised:
            Params.model_validate({})
        assert told(endings.of_exception(raised.value)) == ("error", "protocol_error", "client", "-32602")

    def test_a_crash_is_an_internal_error(self) -> None:
        # The standards' name is taken from the error type when a call is settled.
        assert told(endings.of_exception(RuntimeError("secret"))) == ("error", "internal_error", "server", "")

    @given(st.integers())
    def test_every_code_has_a_known_error_type(self, code: int) -> None:
        ending = endings.of_exception(MCPError(code, "…"))
        assert ending.error_type in ("", *ERROR_TYPES)
        assert bool(ending.error_type) == bool(ending.error_side)
