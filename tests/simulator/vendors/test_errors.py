import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import BodyTooLarge, InvalidRequest, MethodNotAllowed, NotAuthenticated, RouteNotFound
from mcpmeter.simulator.vendors.anthropic import ANTHROPIC
from mcpmeter.simulator.vendors.google import GOOGLE, GOOGLE_ARRAY
from mcpmeter.simulator.vendors.openai import OPENAI

VENDORS = [OPENAI, ANTHROPIC, GOOGLE, GOOGLE_ARRAY]
ALL = pytest.mark.parametrize("vendor", VENDORS, ids=["openai", "anthropic", "google", "google_array"])


@pytest.mark.parametrize(
    ("status", "openai", "anthropic", "google"),
    [
        (400, "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
        (401, "invalid_request_error", "authentication_error", "UNAUTHENTICATED"),
        (402, "insufficient_quota", "billing_error", "FAILED_PRECONDITION"),
        (403, "invalid_request_error", "permission_error", "PERMISSION_DENIED"),
        (404, "invalid_request_error", "not_found_error", "NOT_FOUND"),
        (418, "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
        (429, "requests", "rate_limit_error", "RESOURCE_EXHAUSTED"),
        (500, "server_error", "api_error", "INTERNAL"),
        (503, "server_error", "api_error", "UNAVAILABLE"),
        (529, "overloaded_error", "overloaded_error", "INTERNAL"),
    ],
)
def test_a_status_has_the_vendors_error_type(status, openai, anthropic, google):
    assert json.loads(OPENAI.typical(status).body)["error"]["type"] == openai
    error_json = json.loads(ANTHROPIC.typical(status, request_id="req_1").body)
    assert (error_json["type"], error_json["error"]["type"], error_json["request_id"]) == ("error", anthropic, "req_1")
    assert json.loads(GOOGLE.typical(status).body)["error"]["status"] == google


@ALL
@given(status=st.integers(200, 599))
def test_every_status_has_a_response(vendor, status):
    refusal = vendor.typical(status)
    assert refusal.status == status
    if refusal.content_type.startswith("text/html"):
        assert b"<html>" in refusal.body
    elif refusal.body:
        body = json.loads(refusal.body)
        assert status < 400 or (body[0] if isinstance(body, list) else body)["error"]["message"]


def test_only_openais_504_is_an_html_page():
    pages = {vendor: vendor.typical(504).content_type.startswith("text/html") for vendor in VENDORS}
    assert pages == {OPENAI: True, ANTHROPIC: False, GOOGLE: False, GOOGLE_ARRAY: False}
    assert json.loads(ANTHROPIC.typical(504).body)["error"]["type"] == "timeout_error"
    assert json.loads(GOOGLE.typical(504).body)["error"]["status"] == "DEADLINE_EXCEEDED"


@ALL
@pytest.mark.parametrize("error", [InvalidRequest, BodyTooLarge, RouteNotFound, MethodNotAllowed, NotAuthenticated])
def test_our_errors_have_the_vendors_format(vendor, error):
    refusal = vendor.from_error(error("What.", hint="Do."))
    body = json.loads(refusal.body)
    error_json = (body[0] if isinstance(body, list) else body)["error"]
    assert error_json["message"] == "What. Do."
    google_says_400 = error is NotAuthenticated and vendor in (GOOGLE, GOOGLE_ARRAY)
    assert refusal.status == (400 if google_says_400 else error.http_status)


def test_googles_error_details_have_the_retry_delay():
    (failure, retry) = json.loads(GOOGLE.typical(429, retry_after_seconds=0.5).body)["error"]["details"]
    assert failure["@type"] == "type.googleapis.com/google.rpc.QuotaFailure"
    assert retry == {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.5s"}
    assert len(json.loads(GOOGLE.typical(429).body)["error"]["details"]) == 1
