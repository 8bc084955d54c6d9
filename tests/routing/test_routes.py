"""From configuration to plans: routes, aliases, weights, several keys and waiting times of one's own."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from mcpmeter.config import Settings, load
from mcpmeter.http.client.interface import Timeouts
from mcpmeter.providers import Provider
from mcpmeter.routing.circuit_breaker import CircuitOptions
from mcpmeter.routing.retries import RetryOptions
from mcpmeter.routing.routes import Plan, RouteRule, Routing, RuleUpstream, Upstream, route

unhurried = budget(deadline=None)

THREE = [
    Upstream(provider=Provider(name=name, paths=paths), api_key="k", models=models, weight=weight)
    for name, models, weight, paths in (
        ("one", ("gpt-*",), 1, {"chat": "/c"}),
        ("two", ("exact",), 5, {"chat": "/c", "embeddings": "/e"}),
        ("three", (), 1, {"messages": "/m"}),
    )
]
BOTH = RouteRule(models=("gpt-4*", "cheap"), upstreams=(RuleUpstream(name="two"), RuleUpstream(name="one")))


def places(plan: Plan) -> list[tuple[str, str]]:
    return [(entry.upstream.name, entry.model) for entry in plan.routes]


class TestRouting:
    def test_a_rule_gives_its_upstreams_in_its_order(self) -> None:
        assert places(Routing(THREE, rules=[BOTH]).plan("gpt-4.1")) == [("two", "gpt-4.1"), ("one", "gpt-4.1")]
        assert places(Routing(THREE, rules=[BOTH]).plan("cheap")) == [("two", "cheap"), ("one", "cheap")]

    def test_a_model_that_no_rule_covers_has_one_place(self) -> None:
        routing = Routing(THREE, rules=[BOTH], default="three")
        assert places(routing.plan("gpt-3")) == [("one", "gpt-3")]
        assert places(routing.plan("exact")) == [("two", "exact")]
        assert places(routing.plan("zzz")) == [("three", "zzz")]

    def test_the_first_rule_that_covers_a_model_counts(self) -> None:
        late = RouteRule(models=("*",), upstreams=(RuleUpstream(name="three"),))
        assert places(Routing(THREE, rules=[BOTH, late]).plan("gpt-4.1"))[0] == ("two", "gpt-4.1")
        assert places(Routing(THREE, rules=[late, BOTH]).plan("gpt-4.1")) == [("three", "gpt-4.1")]

    def test_a_forced_provider_goes_before_every_rule(self) -> None:
        every = RouteRule(models=("*",), upstreams=(RuleUpstream(name="three"),))
        assert places(Routing(THREE, rules=[every]).plan("one/gpt-4.1")) == [("one", "gpt-4.1")]

    def test_each_upstream_may_have_its_own_name_for_the_model(self) -> None:
        rule = RouteRule(
            models=("cheap",), upstreams=(RuleUpstream(name="one", model="gpt-4.1-mini"), RuleUpstream(name="two"))
        )
        assert places(Routing(THREE, rules=[rule]).plan("cheap")) == [("one", "gpt-4.1-mini"), ("two", "cheap")]

    def test_weights_are_the_rules_else_the_upstreams(self) -> None:
        upstreams = (RuleUpstream(name="one", weight=7), RuleUpstream(name="two"))
        plan = Routing(THREE, rules=[RouteRule(models=("m",), upstreams=upstreams, mode="weighted")]).plan("m")
        assert plan.mode == "weighted"
        assert [entry.weight for entry in plan.routes] == [7, 5]

    def test_an_alias_stands_for_its_model_and_no_rule_takes_it(self) -> None:
        every = RouteRule(models=("*",), upstreams=(RuleUpstream(name="three"),))
        routing = Routing(THREE, rules=[every], aliases={"fast": "two/org/model"})
        assert places(routing.plan("fast")) == [("two", "org/model")]
        assert places(routing.plan("faster")) == [("three", "faster")]

    def test_upstreams_that_do_not_speak_a_dialect_are_left_out(self) -> None:
        every = RouteRule(models=("*",), upstreams=tuple(RuleUpstream(name=up.name) for up in THREE))
        plan = Routing(THREE, rules=[every]).plan("m")
        spoken = plan.where(lambda upstream: "embeddings" in upstream.provider.paths)
        assert spoken is not None
        assert places(spoken) == [("two", "m")]
        assert plan.where(lambda upstream: False) is None

    @pytest.mark.parametrize("names", [(), ("nobody",), ("one", "nobody")])
    def test_a_rule_about_unknown_upstreams_is_a_mistake_of_the_caller(self, names: tuple[str, ...]) -> None:
        with pytest.raises(ValueError, match="not configured"):
            Routing(THREE, rules=[RouteRule(models=("m",), upstreams=tuple(RuleUpstream(name=n) for n in names))])

    @unhurried
    @given(model=st.text())
    def test_without_rules_and_aliases_any_name_goes_where_it_always_went(self, model: str) -> None:
        assert Routing(THREE, default="two").plan(model) == Plan(routes=(route(model, THREE, "two"),))


class TestCredentials:
    def test_several_keys_are_numbered_from_one_and_the_first_is_the_key(self) -> None:
        upstream = Upstream(provider=Provider(name="openai"), api_keys=("a", "b"))
        assert [(c.id, c.secret) for c in upstream.credentials] == [("openai-1", "a"), ("openai-2", "b")]
        assert upstream.api_key == "a"

    def test_without_a_key_there_is_one_credential_that_sends_none(self) -> None:
        (only,) = Upstream(provider=Provider(name="local")).credentials
        assert (only.id, only.secret) == ("local-1", "")

    def test_no_key_shows_in_a_repr(self) -> None:
        upstream = Upstream(provider=Provider(name="openai"), api_keys=("sk-hidden-1", "sk-hidden-2"))
        plan = Routing([upstream]).plan("m")
        assert "hidden" not in repr((upstream, upstream.credentials, plan))


class TestSettings:
    def loaded(self, folder: Path, text: str) -> Settings:
        path = folder / "mcpmeter.yaml"
        path.write_text(text)
        return load(path, {"OPENAI_API_KEY": "sk-env", "DEEPSEEK_API_KEY": "k"})

    def test_without_a_word_the_defaults_are_the_relays_own(self) -> None:
        relay = Settings().relay
        assert relay.retries.options() == RetryOptions(same_place=False)
        assert relay.circuit.options() == CircuitOptions()
        assert relay.retries.options().budget_ratio == Decimal("0.2")

    def test_what_is_said_is_what_the_relay_takes(self, tmp_path: Path) -> None:
        relay = self.loaded(
            tmp_path,
            """\
relay:
  retries: {max_attempts: 2, budget_ratio: 0.05, base_ms: 50, cap_ms: 800, same_place: true, after_timeout: true}
  circuit: {failures: 9, window_seconds: 60, open_seconds: 2.5}
""",
        ).relay
        assert relay.retries.options() == RetryOptions(
            max_attempts=2, budget_ratio=Decimal("0.05"), base_seconds=0.05, cap_seconds=0.8, after_timeout=True
        )
        assert relay.circuit.options() == CircuitOptions(failures=9, window_seconds=60.0, open_seconds=2.5)

    def test_routes_and_aliases_make_the_plans(self, tmp_path: Path) -> None:
        settings = self.loaded(
            tmp_path,
            """\
providers:
  - {name: openai, weight: 4}
  - {name: deepseek}
routes:
  - {models: [gpt-4*], upstreams: [openai, deepseek], model: gpt-4.1}
  - models: [cheap]
    mode: weighted
    upstreams: [openai, {name: deepseek, weight: 2, model: deepseek-v3.2}]
aliases: {fast: openai/gpt-4.1-mini}
""",
        )
        routing = settings.routing(settings.upstreams())
        assert places(routing.plan("gpt-4o")) == [("openai", "gpt-4.1"), ("deepseek", "gpt-4.1")]
        assert places(routing.plan("fast")) == [("openai", "gpt-4.1-mini")]
        cheap = routing.plan("cheap")
        assert places(cheap) == [("openai", "cheap"), ("deepseek", "deepseek-v3.2")]
        assert [entry.weight for entry in cheap.routes] == [4, 2]

    def test_routes_may_name_providers_that_the_environment_switches_on(self, tmp_path: Path) -> None:
        settings = self.loaded(tmp_path, "routes: [{models: ['*'], upstreams: [deepseek, openai]}]")
        assert places(settings.routing(settings.upstreams()).plan("m")) == [("deepseek", "m"), ("openai", "m")]

    def test_several_keys_replace_the_environments(self, tmp_path: Path) -> None:
        (upstream,) = self.loaded(tmp_path, "providers: [{name: openai, api_keys: [a, b]}]").upstreams()
        assert [credential.secret for credential in upstream.credentials] == ["a", "b"]

    def test_several_keys_do_not_show(self, tmp_path: Path) -> None:
        settings = self.loaded(tmp_path, "providers: [{name: openai, api_keys: [sk-hidden-1, sk-hidden-2]}]")
        for shown in (repr(settings), settings.model_dump_json(), repr(settings.upstreams())):
            assert "hidden" not in shown

    def test_waiting_times_of_a_provider_go_before_the_common_ones(self, tmp_path: Path) -> None:
        slow, other = self.loaded(
            tmp_path,
            """\
relay: {timeouts: {idle_seconds: 30}}
providers:
  - {name: openai, timeouts: {first_byte_seconds: 300, connect_seconds: 1}}
  - {name: deepseek}
""",
        ).upstreams()
        assert slow.timeouts == Timeouts(connect_seconds=1, first_byte_seconds=300, idle_seconds=30, total_seconds=600)
        assert other.timeouts == Timeouts(idle_seconds=30)
