"""From a model's name to a plan: prefixes, patterns, rules, aliases, weights, keys, and what configuration makes."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.config import Settings, load
from mcpmeter.http.client.interface import Timeouts
from mcpmeter.providers import GENERIC, Provider, load_providers
from mcpmeter.routing.circuit_breaker import CircuitOptions
from mcpmeter.routing.retries import RetryOptions
from mcpmeter.routing.routes import Plan, RouteRule, Routing, RuleUpstream, Upstream, route

unhurried = settings(deadline=None)

BUILT_IN = load_providers()
THREE = [
    Upstream(provider=Provider(name=name, paths=paths), api_key="k", models=models, weight=weight)
    for name, models, weight, paths in (
        ("one", ("gpt-*",), 1, {"chat": "/c"}),
        ("two", ("exact",), 5, {"chat": "/c", "embeddings": "/e"}),
        ("three", (), 1, {"messages": "/m"}),
    )
]
BOTH = RouteRule(models=("gpt-4*", "cheap"), upstreams=(RuleUpstream(name="two"), RuleUpstream(name="one")))
EVERY = RouteRule(models=("*",), upstreams=(RuleUpstream(name="three"),))


def upstreams(*names: str) -> list[Upstream]:
    return [Upstream(provider=BUILT_IN[name], api_key="k") for name in names]


def local(*models: str) -> Upstream:
    return Upstream(provider=BUILT_IN[GENERIC].renamed("local", base_url="http://127.0.0.1:1/v1"), models=models)


def pairs(plan: Plan) -> list[tuple[str, str]]:
    return [(entry.upstream.name, entry.model) for entry in plan.routes]


class TestRoute:
    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            ("openai/gpt-4.1", ("openai", "gpt-4.1")),
            ("local/openai/gpt-4.1", ("local", "openai/gpt-4.1")),  # only the first prefix is removed
        ],
    )
    def test_a_providers_prefix_selects_it_and_is_removed(self, model: str, expected: tuple[str, str]) -> None:
        chosen = route(model, [*upstreams("holysheep", "openai"), local()])
        assert (chosen.upstream.name, chosen.model) == expected

    @pytest.mark.parametrize("model", ["meta/llama", "openai/", "/gpt-4.1", "", "OpenAI/gpt-4.1"])
    def test_any_other_prefix_is_part_of_the_name(self, model: str) -> None:
        chosen = route(model, upstreams("openai", "deepseek"))
        assert (chosen.upstream.name, chosen.model) == ("openai", model)

    def test_an_exact_name_takes_precedence_over_patterns(self) -> None:
        assert route("gpt-4.1", [*upstreams("openai"), local("gpt-4.1")]).upstream.name == "local"

    def test_patterns_are_tried_in_the_order_of_the_upstreams(self) -> None:
        three = upstreams("holysheep", "openai", "anthropic")
        assert route("gpt-4.1", three).upstream.name == "holysheep"
        assert route("gpt-5-mini", three).upstream.name == "openai"
        assert route("claude-opus-4", three).upstream.name == "anthropic"
        assert route("gpt-5", [local("gpt-*"), *three]).upstream.name == "local"

    def test_patterns_match_case_and_the_whole_name(self) -> None:
        both = upstreams("deepseek", "openai")
        assert route("gpt-x\ny", both).upstream.name == "openai"
        assert route("GPT-5", both).upstream.name == "deepseek"
        assert route("my-gpt-5", both).upstream.name == "deepseek"

    def test_an_unknown_model_goes_to_the_default_or_the_first(self) -> None:
        both = upstreams("deepseek", "openai")
        assert route("zzz", both).upstream.name == "deepseek"
        assert route("zzz", both, "openai").upstream.name == "openai"

    def test_without_upstreams_there_is_no_route(self) -> None:
        with pytest.raises(ValueError, match="no upstreams"):
            route("gpt-4.1", [])

    @unhurried
    @given(model=st.text())
    def test_a_name_changes_by_its_prefix_alone(self, model: str) -> None:
        chosen = route(model, upstreams("holysheep", "openai"))
        assert chosen.model == model or f"{chosen.upstream.name}/{chosen.model}" == model


class TestRouting:
    def test_a_rule_gives_its_upstreams_in_its_order(self) -> None:
        assert pairs(Routing(THREE, rules=[BOTH]).plan("gpt-4.1")) == [("two", "gpt-4.1"), ("one", "gpt-4.1")]
        assert pairs(Routing(THREE, rules=[BOTH]).plan("cheap")) == [("two", "cheap"), ("one", "cheap")]

    def test_a_model_without_a_rule_has_one_upstream(self) -> None:
        routing = Routing(THREE, rules=[BOTH], default="three")
        assert [pairs(routing.plan(model)) for model in ("gpt-3", "exact", "zzz")] == [
            [("one", "gpt-3")],
            [("two", "exact")],
            [("three", "zzz")],
        ]

    def test_the_first_rule_that_covers_a_model_counts(self) -> None:
        assert pairs(Routing(THREE, rules=[BOTH, EVERY]).plan("gpt-4.1"))[0] == ("two", "gpt-4.1")
        assert pairs(Routing(THREE, rules=[EVERY, BOTH]).plan("gpt-4.1")) == [("three", "gpt-4.1")]

    def test_a_prefix_takes_precedence_over_rules(self) -> None:
        assert pairs(Routing(THREE, rules=[EVERY]).plan("one/gpt-4.1")) == [("one", "gpt-4.1")]

    def test_each_upstream_may_have_its_own_name_for_the_model(self) -> None:
        rule = RouteRule(
            models=("cheap",), upstreams=(RuleUpstream(name="one", model="gpt-4.1-mini"), RuleUpstream(name="two"))
        )
        assert pairs(Routing(THREE, rules=[rule]).plan("cheap")) == [("one", "gpt-4.1-mini"), ("two", "cheap")]

    def test_weights_are_the_rules_else_the_upstreams(self) -> None:
        weighted = (RuleUpstream(name="one", weight=7), RuleUpstream(name="two"))
        plan = Routing(THREE, rules=[RouteRule(models=("m",), upstreams=weighted, mode="weighted")]).plan("m")
        assert plan.mode == "weighted"
        assert [entry.weight for entry in plan.routes] == [7, 5]

    def test_an_alias_is_its_target_before_any_rule(self) -> None:
        routing = Routing(THREE, rules=[EVERY], aliases={"fast": "two/org/model"})
        assert pairs(routing.plan("fast")) == [("two", "org/model")]
        assert pairs(routing.plan("faster")) == [("three", "faster")]

    def test_upstreams_without_the_dialect_are_left_out(self) -> None:
        every = RouteRule(models=("*",), upstreams=tuple(RuleUpstream(name=up.name) for up in THREE))
        plan = Routing(THREE, rules=[every]).plan("m")
        spoken = plan.where(lambda upstream: "embeddings" in upstream.provider.paths)
        assert spoken is not None
        assert pairs(spoken) == [("two", "m")]
        assert plan.where(lambda upstream: False) is None

    @pytest.mark.parametrize("names", [(), ("one", "unknown")])
    def test_a_rule_about_unknown_upstreams_raises(self, names: tuple[str, ...]) -> None:
        with pytest.raises(ValueError, match="not configured"):
            Routing(THREE, rules=[RouteRule(models=("m",), upstreams=tuple(RuleUpstream(name=n) for n in names))])


class TestCredentials:
    def test_several_keys_are_numbered_from_one(self) -> None:
        upstream = Upstream(provider=Provider(name="openai"), api_keys=("a", "b"))
        assert [(c.id, c.secret) for c in upstream.credentials] == [("openai-1", "a"), ("openai-2", "b")]
        assert upstream.api_key == "a"

    def test_without_a_key_there_is_one_empty_credential(self) -> None:
        (only,) = Upstream(provider=Provider(name="local")).credentials
        assert (only.id, only.secret) == ("local-1", "")

    def test_no_key_shows_in_a_repr(self) -> None:
        upstream = Upstream(provider=Provider(name="openai"), api_key="sk-hidden-0", api_keys=("sk-hidden-1",))
        assert "hidden" not in repr((upstream, upstream.credentials, Routing([upstream]).plan("m")))


class TestSettings:
    def loaded(self, folder: Path, text: str) -> Settings:
        path = folder / "mcpmeter.yaml"
        path.write_text(text)
        return load(path, {"OPENAI_API_KEY": "sk-env", "DEEPSEEK_API_KEY": "k"})

    def test_the_defaults_are_the_relays(self) -> None:
        relay = Settings().relay
        assert relay.retries.options() == RetryOptions(same_place=False)
        assert relay.circuit.options() == CircuitOptions()

    def test_configured_options_are_used(self, tmp_path: Path) -> None:
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
        loaded = self.loaded(
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
        routing = loaded.routing(loaded.upstreams())
        assert pairs(routing.plan("gpt-4o")) == [("openai", "gpt-4.1"), ("deepseek", "gpt-4.1")]
        assert pairs(routing.plan("fast")) == [("openai", "gpt-4.1-mini")]
        cheap = routing.plan("cheap")
        assert pairs(cheap) == [("openai", "cheap"), ("deepseek", "deepseek-v3.2")]
        assert [entry.weight for entry in cheap.routes] == [4, 2]

    def test_routes_may_name_providers_enabled_by_environment(self, tmp_path: Path) -> None:
        loaded = self.loaded(tmp_path, "routes: [{models: ['*'], upstreams: [deepseek, openai]}]")
        assert pairs(loaded.routing(loaded.upstreams()).plan("m")) == [("deepseek", "m"), ("openai", "m")]

    def test_several_keys_replace_the_environments_and_stay_hidden(self, tmp_path: Path) -> None:
        loaded = self.loaded(tmp_path, "providers: [{name: openai, api_keys: [sk-hidden-1, sk-hidden-2]}]")
        (upstream,) = loaded.upstreams()
        assert [credential.secret for credential in upstream.credentials] == ["sk-hidden-1", "sk-hidden-2"]
        for shown in (repr(loaded), loaded.model_dump_json(), repr(upstream)):
            assert "hidden" not in shown

    def test_a_providers_timeouts_override_the_common_ones(self, tmp_path: Path) -> None:
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
