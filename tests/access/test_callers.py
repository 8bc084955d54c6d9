"""What a caller may do, and the project that a request may name."""

from __future__ import annotations

import pytest

from mcpmeter.access.callers import Attribution, Caller
from mcpmeter.access.keys import KeyLimits, KeyRing, new_key
from mcpmeter.errors import NotAllowed

PROJECTS = Attribution(header="x-mcpmeter-project", values=("web", "mobile"))


def test_a_caller_has_the_limits_of_its_key():
    limits = KeyLimits(project="web", role="admin", models=("gpt-*",), requests_per_minute=5, tokens_per_minute=100)
    secret, key = new_key("n", "search", 1, limits)
    caller = KeyRing([key]).caller(secret)
    assert (caller.team, caller.project, caller.key_id, caller.is_admin) == ("search", "web", key.id, True)
    assert (caller.models, caller.requests_per_minute, caller.tokens_per_minute) == (("gpt-*",), 5, 100)


@pytest.mark.parametrize("names", [("gpt-4.1",), ("fast", "gpt-4.1"), ("deepseek-v3.2",)])
def test_a_listed_model_may_be_called_by_any_of_its_names(names):
    Caller(team="t", models=("gpt-*", "deepseek-v3.2")).require_model(*names)


def test_an_unlisted_model_is_refused_with_the_list():
    with pytest.raises(NotAllowed, match=r"gpt-\*"):
        Caller(team="t", models=("gpt-*",)).require_model("claude-sonnet-4.5", "openrouter/claude-sonnet-4.5")


def test_a_request_may_name_one_of_the_configured_projects():
    caller = Caller(team="t", project="web")
    assert caller.refined(PROJECTS, "mobile").project == "mobile"
    assert caller.refined(PROJECTS, None) is caller
    assert caller.refined(None, "mobile") is caller


def test_an_unknown_project_is_refused_and_not_quoted():
    with pytest.raises(NotAllowed) as caught:
        Caller(team="t").refined(PROJECTS, "invented")
    assert "invented" not in str(caught.value)
    assert "web, mobile" in str(caught.value)


def test_only_admins_pass_require_admin():
    Caller(team="t", role="admin").require_admin()
    with pytest.raises(NotAllowed, match="--role admin"):
        Caller(team="t").require_admin()
