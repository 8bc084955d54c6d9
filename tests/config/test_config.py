"""Strict configuration: which files are refused, with which message; which are accepted; secrets stay hidden."""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, get_origin

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from mcpmeter.config import (
    AdminSettings,
    BudgetSettings,
    KeySettings,
    LedgerSettings,
    MetricsSettings,
    ProviderSettings,
    ServerSettings,
    Settings,
    find_file,
    is_loopback,
    load,
    price_book,
    refuse_open_bind,
)
from mcpmeter.config.document import MAX_BYTES, read_document
from mcpmeter.config.faults import model_in
from mcpmeter.config.reference import reference
from mcpmeter.errors import ConfigInvalid
from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.routing.routes import route

relaxed = budget(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is not a failure

ROOT = Path(__file__).parents[2]
FAULTS = sorted((Path(__file__).parent / "faults").glob("*.yaml"))
ENVIRON = {"OPENAI_API_KEY": "sk-openai-0001"}
SECRET = "sk-very-secret-q7Zk2vXw9LtRbN4mJcHs8d"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mcpmeter.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return path


def loaded(folder: Path, text: str, environ: Mapping[str, str] = ENVIRON) -> Settings:
    return load(write(folder, text), environ)


def refusal(folder: Path, text: str | bytes, environ: Mapping[str, str] = ENVIRON) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        load(write(folder, text), environ)
    return str(caught.value)


def test_synchronous_is_dropped_when_the_ledger_is_a_database(tmp_path: Path) -> None:
    ledger = loaded(tmp_path, "ledger: {synchronous: normal}").ledger
    assert ledger.at(tmp_path / "other.db").synchronous == "normal"
    assert ledger.at(PostgresUrl("postgresql://meter@127.0.0.1/meter")).synchronous == "full"


# Refused files


def test_thousands_of_faults_cost_linear_time(tmp_path: Path) -> None:
    began = time.process_time()
    text = refusal(tmp_path, "teams:\n" + "- !x a\n" * 18_000)
    assert len(text.splitlines()) == 18_000
    assert time.process_time() - began < 8  # comparing each fault with each takes 17 s of CPU time


@pytest.mark.parametrize("file", FAULTS, ids=lambda file: file.stem)
def test_a_file_with_one_fault_is_refused_as_its_header_says(file: Path) -> None:
    expected = file.read_bytes().splitlines()[0].decode().removeprefix("# ")
    with pytest.raises(ConfigInvalid) as caught:
        load(file, ENVIRON)
    assert str(caught.value) == f"{file}{expected}"
    assert "hunter2secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_all_faults_are_reported_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = """\
server: {prot: 1, host: 5}
providers:
  - {name: openia}
relay: {default_model: "${NOWHERE}"}
teams: [search]
teams: [search]
keys:
  - {name: a, team: serch, secret: q7Zk2vXw9LtRbN4mJcHs8dPfYg3eUaT5}
"""
    faults = [line.removeprefix(f"{tmp_path}/mcpmeter.yaml:") for line in refusal(tmp_path, text).splitlines()]
    assert [line.partition(" ")[0] for line in faults] == ["1:", "1:", "3:", "4:", "6:", "8:"]
    assert "did you mean 'openai'" in faults[2]
    assert "'NOWHERE'" in faults[3]
    assert "did you mean 'search'" in faults[5]


def test_an_unset_variable_is_reported_once(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, "relay: {default_model: '${NOWHERE}'}").splitlines()) == 1


def test_a_faulty_server_port_is_not_compared_with_the_metrics_port(tmp_path: Path) -> None:
    assert "metrics" not in refusal(tmp_path, "server: {port: 99999}\nmetrics: {port: 8000}")


def test_a_server_on_every_address_conflicts_with_the_metrics_port(tmp_path: Path) -> None:
    assert "'metrics.port'" in refusal(tmp_path, "server: {host: 0.0.0.0}\nmetrics: {port: 8000}")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "mcpmeter.yaml:1: the file is empty" in refusal(tmp_path, "")


def test_deep_nesting_is_refused_without_exhausting_the_stack(tmp_path: Path) -> None:
    assert "nested more than 16 deep" in refusal(tmp_path, "teams: " + "[" * 100_000)
    assert "nested more than 16 deep" in refusal(tmp_path, "teams: " + "{a: " * 50_000)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    assert f"larger than {MAX_BYTES} bytes" in refusal(tmp_path, b"#" * (MAX_BYTES + 1))


@pytest.mark.parametrize("name", ["nowhere.yaml", "", "a\0b"])
def test_an_unreadable_file_is_reported_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"cannot be read: .*--config") as caught:
        load(tmp_path / name, ENVIRON)
    assert len(str(caught.value).splitlines()) == 1


def test_numbers_of_absurd_length_are_refused(tmp_path: Path) -> None:
    assert "plain decimal" in refusal(tmp_path, "server: {port: " + "9" * 100_000 + "}")
    assert "plain decimal" in refusal(tmp_path, "server: {port: 1" + ":59" * 50_000 + "}")


def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    for text in (
        f"keys: [{{name: a, team: b, secret: [{SECRET}]}}]",
        f"metrics: {{bearer_token: {{x: {SECRET}}}}}",
        f"providers: [{{name: '{SECRET} !'}}]",
        f"server: {{host: 'http://{SECRET}/'}}",
        f"ledger: {{path: *{SECRET}}}",
        f"keys: &{SECRET} [*{SECRET}]",
        f"ledger: {{path: '${{{SECRET}}}'}}",
    ):
        assert SECRET not in refusal(tmp_path, text)


# Hypothesis: any file gives Settings or ConfigInvalid

KEYS = sorted(
    {name for model in [Settings] for name in model.model_fields}
    | {
        name
        for info in Settings.model_fields.values()
        for name in getattr(model_in(info.annotation), "model_fields", {})
    }
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["127.0.0.1", "openai", "${OPENAI_API_KEY}", "${X", "$${", "https://a.example/v1", "~nobody/x", "\0"]
    )
)


def shaped(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Trees of known keys, their values mostly the examples, so that some pass every check."""
    return st.fixed_dictionaries({}, optional={name: values(info) for name, info in model.model_fields.items()})


def values(info: FieldInfo) -> st.SearchStrategy[Any]:
    inner, example = model_in(info.annotation), st.just((info.examples or [None])[0])
    if inner is None:
        return st.one_of(example, example, SCALARS, st.lists(SCALARS, max_size=2))
    whole = shaped(inner)
    return st.lists(whole | example.map(str), max_size=3) if get_origin(info.annotation) is tuple else whole


MARKS = ["\n", "\n  ", "\n- ", ": ", "---\n", "<<", "!!", "\\U", "${", "\ud800", "𝄞", "0x1", "1:2", "8"]
YAML_PIECES = st.lists(
    st.sampled_from([*KEYS, *MARKS, *"\n:-[]{}&*!|>'\"%@`#?,~=<\t "])
    | st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=4),
    max_size=60,
).map("".join)


def settings_or_invalid(content: bytes, folder: Path) -> None:
    try:
        printed = ""
        assert load(write(folder, content), ENVIRON).upstreams()
    except ConfigInvalid as invalid:
        printed = str(invalid)
        printed.encode("utf-8")
    assert all(line.isprintable() and line.strip() for line in printed.split("\n") if printed)


@relaxed
@given(tree=shaped(Settings))
def test_any_tree_is_settings_or_config_invalid(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    settings_or_invalid(json.dumps(tree, default=str).encode(), tmp_path_factory.getbasetemp())


@relaxed
@given(text=YAML_PIECES)
def test_any_text_is_settings_or_config_invalid(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    settings_or_invalid(text.encode("utf-8", "surrogatepass"), tmp_path_factory.getbasetemp())


@relaxed
@given(content=st.binary(max_size=200))
def test_any_bytes_are_settings_or_config_invalid(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    settings_or_invalid(content, tmp_path_factory.getbasetemp())


# Accepted files


def test_the_example_loads_and_routes() -> None:
    environ = {**ENVIRON, "HOLYSHEEP_API_KEY": "hs-1", "SEARCH_KEY": "q7Zk2vXw9LtRbN4mJcHs8dPfYg3eUaT5"}
    settings = load(ROOT / "examples" / "mcpmeter.yaml", environ)
    assert settings.server.port == 8000
    assert settings.source.endswith("mcpmeter.yaml")
    assert settings.pricing.currency is not None
    assert settings.pricing.currency.rate == Decimal("7.2")
    upstreams = settings.upstreams()
    assert [upstream.name for upstream in upstreams] == ["holysheep", "openai", "local"]
    assert route("llama-3", upstreams).upstream.provider.url("chat") == "http://127.0.0.1:11434/v1/chat/completions"


def test_references_are_replaced_and_can_be_escaped(tmp_path: Path) -> None:
    text = "server: {port: '${PORT}', host: '${HOST:-localhost}'}\nledger: {path: '$${x}/${EMPTY:-d}/${A}${A}'}"
    settings = loaded(tmp_path, text, {**ENVIRON, "PORT": "9001", "EMPTY": "", "A": "a"})
    assert (settings.server.port, settings.server.host) == (9001, "localhost")
    assert settings.ledger.path == tmp_path / "${x}" / "d" / "aa"


def test_a_reference_within_a_variable_is_not_replaced(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "ledger: {path: '${A}'}", {**ENVIRON, "A": "${B}", "B": "b"})
    assert settings.ledger.path == tmp_path / "${B}"


def test_a_key_of_digits_in_the_environment_stays_text(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "providers:\n  - name: openai\n    api_key: ${K}", {"K": "0123"})
    assert settings.upstreams()[0].api_key == "0123"


def test_anchors_may_be_used(tmp_path: Path) -> None:
    assert (
        loaded(tmp_path, "teams: [&t search]\nkeys: [{name: a, team: *t, secret: q7Zk2vXw9LtRbN4mJcHs8dPfYg3eUaT5}]")
        .keys[0]
        .team
        == "search"
    )


def test_relative_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text('name = "ours"\n')
    settings = loaded(tmp_path, "ledger: {path: l.db}\npricing: {files: [ours.toml]}")
    assert settings.ledger.path == tmp_path / "l.db"
    assert settings.pricing.files == (tmp_path / "ours.toml",)


def test_a_date_stays_text(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "relay: {default_model: 2026-11-01}")
    assert settings.relay.default_model == "2026-11-01"


def test_teams_are_names_or_mappings(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "teams: [search, {name: support}]")
    assert [team.name for team in settings.teams] == ["search", "support"]


def test_a_key_has_the_same_digest_from_secret_and_hash() -> None:
    whole = KeySettings(name="a", team="t", secret=SecretStr(SECRET))
    hashed = KeySettings(name="a", team="t", sha256=hashlib.sha256(SECRET.encode()).hexdigest())
    assert whole.digest == hashed.digest


# Without a file


def test_without_a_file_every_provider_with_a_key_is_enabled() -> None:
    names = ["HOLYSHEEP", "OPENAI", "ANTHROPIC", "GEMINI", "DEEPSEEK"]
    settings = load(None, {f"{name}_API_KEY": f"key-{name}" for name in reversed(names)})
    assert [upstream.name.upper() for upstream in settings.upstreams()] == names
    assert settings.upstreams()[0].api_key == "key-HOLYSHEEP"
    assert settings.source == "environment"


def test_a_file_without_providers_uses_the_environment(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "relay: {default_provider: openai}")
    assert [entry.name for entry in settings.providers] == ["openai"]


def test_an_empty_variable_enables_no_provider() -> None:
    settings = load(None, {"OPENAI_API_KEY": " ", "DEEPSEEK_API_KEY": "k\n"})
    assert [(upstream.name, upstream.api_key) for upstream in settings.upstreams()] == [("deepseek", "k")]


def test_without_any_key_the_error_names_variables_and_demo() -> None:
    with pytest.raises(ConfigInvalid, match=r"HOLYSHEEP_API_KEY, OPENAI_API_KEY.*mcpmeter demo") as caught:
        load(None, {})
    assert len(str(caught.value).splitlines()) == 1


def test_a_key_unfit_for_a_header_is_refused_by_its_variable() -> None:
    with pytest.raises(ConfigInvalid, match="OPENAI_API_KEY contains characters") as caught:
        load(None, {"OPENAI_API_KEY": "sk-a\r\nb"})
    assert "sk-a" not in str(caught.value)


def test_a_key_of_the_environment_is_used_at_its_own_address_only(tmp_path: Path) -> None:
    text = "providers:\n  - {name: openai, base_url: 'http://127.0.0.1:1/v1/'}\n  - {name: second, type: openai}"
    first, second = loaded(tmp_path, text).upstreams()
    assert (first.api_key, first.provider.base_url) == ("", "http://127.0.0.1:1/v1")
    assert second.api_key == "sk-openai-0001"


def test_the_file_is_option_else_variable_else_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_file(None, {}) is None
    write(tmp_path, "server: {}")
    assert find_file(None, {}) == Path("mcpmeter.yaml")
    assert find_file(None, {"MCPMETER_CONFIG": "b.yaml"}) == Path("b.yaml")
    assert find_file(Path("a.yaml"), {"MCPMETER_CONFIG": "b.yaml"}) == Path("a.yaml")


# Open listeners


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True), ("LocalHost", True)]
    + [
        (host, False)
        for host in ("0.0.0.0", "::", "", "10.0.0.1", "localhost.example.com", "127.0.0.1.example.com", "0")
    ],
)
def test_loopback_is_recognized(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


GUARDED = ServerSettings(host="0.0.0.0", allowed_hosts=("meter.example.com",))
TOKEN = MetricsSettings(bearer_token=SecretStr(SECRET))


def open_bind_faults(have_keys: bool = True, **sections: Any) -> list[str]:
    try:
        refuse_open_bind(Settings(**sections), have_keys)
    except ConfigInvalid as fault:
        return str(fault).splitlines()
    return []


def test_a_wide_bind_is_refused_with_the_line_for_each_missing_guard() -> None:
    key, token, hosts = open_bind_faults(have_keys=False, server=ServerSettings(host="0.0.0.0"))
    assert "mcpmeter keys create" in key
    assert token.endswith('add metrics: {bearer_token: "${METRICS_TOKEN}"}, or metrics: {public: true}')
    assert hosts.endswith("to 'server': allowed_hosts: [meter.example.com]")
    assert open_bind_faults(server=ServerSettings(host="0.0.0.0")) == [token, hosts]
    assert open_bind_faults(server=GUARDED) == [token]
    assert open_bind_faults(server=GUARDED, metrics=TOKEN) == []
    assert open_bind_faults(server=GUARDED, metrics=MetricsSettings(public=True)) == []
    assert open_bind_faults(have_keys=False) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "meter.example.com"])
def test_every_further_listener_beyond_loopback_is_guarded_too(host: str) -> None:
    scrape = {"host": host, "port": 9464}
    (token, hosts) = open_bind_faults(have_keys=False, metrics=MetricsSettings(**scrape))
    assert token.startswith(f"'metrics.host' {host} can be reached from the network and /metrics there has no token")
    assert "'server.allowed_hosts' is empty" in hosts
    named = ServerSettings(allowed_hosts=("meter",))
    assert open_bind_faults(False, server=named, metrics=MetricsSettings(**scrape, public=True)) == []

    admin = ServerSettings(allowed_hosts=("meter",), admin=AdminSettings(host=host, port=9465))
    key, token = open_bind_faults(False, server=admin)
    assert key.startswith(f"'server.admin.host' {host} can be reached from the network and there is no key")
    assert token.startswith(f"'server.admin.host' {host} can be reached from the network and /metrics there")
    assert open_bind_faults(server=admin, metrics=MetricsSettings(port=9464)) == []


def test_metrics_on_a_loopback_listener_of_its_own_need_no_token() -> None:
    assert open_bind_faults(server=GUARDED, metrics=MetricsSettings(port=9464)) == []
    with_admin = GUARDED.model_copy(update={"admin": AdminSettings(port=9465)})
    assert open_bind_faults(server=with_admin) == []


# Secrets


def test_secrets_are_hidden_in_repr_str_json_and_upstreams(tmp_path: Path) -> None:
    text = f"""\
metrics: {{bearer_token: {SECRET}-1}}
providers: [{{name: openai, api_key: {SECRET}-2}}]
keys: [{{name: a, team: t, secret: {SECRET}-3}}]
"""
    settings = loaded(tmp_path, text)
    for shown in (
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        str(settings.model_dump()),
        repr(settings.upstreams()),
        json.dumps(settings.model_dump(), default=str),
    ):
        assert SECRET not in shown
    assert settings.upstreams()[0].api_key == f"{SECRET}-2"
    assert settings.metrics.bearer_token is not None
    assert settings.metrics.bearer_token.get_secret_value() == f"{SECRET}-1"


def test_errors_of_settings_made_in_code_repeat_no_input() -> None:
    with pytest.raises(ValidationError) as caught:
        KeySettings(name="a", team="t", secret=SecretStr(SECRET), sha256=SECRET)
    assert SECRET not in str(caught.value)


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        Settings().server.port = 1  # type: ignore[misc]


def test_settings_of_the_same_file_are_equal(tmp_path: Path) -> None:
    text = "teams: [search]"
    first, second = loaded(tmp_path, text), loaded(tmp_path, text)
    assert first == second
    assert pickle.loads(pickle.dumps(first)) == first
    assert first != loaded(tmp_path, "teams: [support]")


# Prices


def test_each_provider_has_the_prices_of_its_own_list(tmp_path: Path) -> None:
    text = "providers: [{name: sheep, type: holysheep, api_key: k}, {name: openai}, {name: x, type: generic, base_url: 'http://x'}]"
    book = price_book(loaded(tmp_path, text))
    assert book.models("sheep")[0].id == "gpt-4.1"
    assert "gpt-4o" in {price.id for price in book.models("openai")}
    assert book.models("x") == []


def test_an_unknown_price_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="'holyshep'"):
        price_book(loaded(tmp_path, "providers: [{name: openai, price_list: holyshep}]"))


# The reference


def models_of(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [found for info in model.model_fields.values() if (found := model_in(info.annotation)) is not None]
    return [model, *(deeper for each in inner for deeper in models_of(each))]


def test_the_reference_is_the_settings_tree() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize("model", models_of(Settings), ids=lambda model: model.__name__)
def test_every_setting_has_a_description_and_a_valid_example(model: type[BaseModel]) -> None:
    for name, info in model.model_fields.items():
        assert info.description, name
        assert info.examples, name
        assert f"`{name}`" in reference()
    examples = {name: (info.examples or [None])[0] for name, info in model.model_fields.items()}
    if model is KeySettings:
        del examples["sha256"]
    if model is BudgetSettings:
        del examples["start"]  # of `once` only
    if model is LedgerSettings:
        del examples["path"]  # it, or `url`
    if model is Settings:
        examples["keys"], examples["metrics"] = [], {}
    variables = {"METRICS_TOKEN": SECRET, "SEARCH_KEY": SECRET, "OPENAI_API_KEY": SECRET}
    variables["LEDGER_URL"] = "postgresql://meter@127.0.0.1/meter"
    filled = read_document(json.dumps(examples, default=str).encode(), variables)
    assert not filled.faults
    assert model.model_validate(filled.data)


def test_a_provider_of_unknown_type_made_in_code_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="'unknown'"):
        Settings(providers=(ProviderSettings(name="unknown"),)).upstreams()
