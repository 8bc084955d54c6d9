"""`mcpmeter reconcile`: what it says to people, programs and spreadsheets, and by its exit code."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import pty
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import COMMAND, Finished

from mcpmeter.cli._group import run
from mcpmeter.ledger.sqlite import SqliteStore
from mcpmeter.records import Call, Charge, LlmTarget, Settlement, Usage

GOLDEN = Path(__file__).parents[1] / "golden" / "bills"
DAY_NS = 86_400 * 10**9
NOVEMBER_NS = int(datetime(2025, 11, 1, 9, tzinfo=UTC).timestamp()) * 10**9

OPENAI = (
    *({"provider": "openai", "model": "gpt-4.1", "tokens": (5920, 1064), "nanousd": 19_000_000} for _ in range(9)),
    {"provider": "openai", "model": "gpt-4.1", "tokens": (5920, 1070), "nanousd": 23_928_000},
)
"""Ten calls that are the golden bill of gpt-4.1."""
OPENROUTER = (
    {
        "provider": "openrouter", "model": "openai/gpt-4.1", "tokens": (10_389, 137), "nanousd": 12_300_000,
        "request_id": "gen-1762000417-NEpXKqXYIDjS7TmNrT9j", "reported": 12_300_000,
    },
    {
        "provider": "openrouter", "model": "openai/gpt-4.1", "tokens": (0, 0), "nanousd": 0,
        "request_id": "gen-1762000420-bQ2vU0m3cWvRk9yFh1Ls",
    },
)  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def write(ledger: Path) -> Callable[..., None]:
    """Settled calls, on the first of November if no `day` is given."""

    async def write_all(calls: tuple[dict[str, Any], ...]) -> None:
        store = SqliteStore(ledger)
        await store.start()
        for place, told in enumerate(calls):
            call = Call(
                id=f"call_{place}", started_at_ns=NOVEMBER_NS + told.get("day", 0) * DAY_NS, endpoint="/v1",
                method="POST", llm=LlmTarget(provider=told["provider"], model=told["model"]),
            )  # fmt: skip
            await store.open(call)
            prompt, completion = told["tokens"]
            usage = Usage(prompt_tokens=prompt, completion_tokens=completion, source=told.get("source", "reported"))
            charge = Charge(nanousd=told["nanousd"], source="listed", reported_nanousd=told.get("reported"))
            await store.settle(
                Settlement(
                    call=call, ended_at_ns=1, duration_ns=1, status="200", usage=usage, charge=charge,
                    upstream_request_id=told.get("request_id", ""),
                )
            )  # fmt: skip
        await store.close()

    return lambda *calls: asyncio.run(write_all(calls))


@pytest.fixture
def reconcile(ledger: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command in this process; tests/e2e runs it as it is installed."""
    monkeypatch.chdir(ledger.parent)
    monkeypatch.delenv("MCPMETER_CONFIG", raising=False)

    def in_process(*words: object) -> Finished:
        code = run(["reconcile", "--ledger", str(ledger), *map(str, words)])
        said = capsys.readouterr()
        return Finished(code, said.out, said.err)

    return in_process


@pytest.fixture
def report(reconcile) -> Callable[..., tuple[int, dict[str, Any]]]:
    def asked(*words: object) -> tuple[int, dict[str, Any]]:
        finished = reconcile(*words, "--json")
        assert finished.stderr == ""
        return finished.code, json.loads(finished.stdout)

    return asked


EXACT = ("--tolerance", "0", "--floor-usd", "0")


class TestAgreement:
    def test_tokens_and_dollars_of_two_exports_agree_with_the_same_calls(self, write, report, tmp_path) -> None:
        write(*OPENAI)
        usage, costs = tmp_path / "usage.csv", tmp_path / "costs.csv"
        usage.write_text("".join(line for line in lines("openai_usage.csv") if "mini" not in line))
        costs.write_text("".join(line for line in lines("openai_costs.csv") if "credit" not in line))
        code, told = report(usage, costs, *EXACT)
        assert (code, told["ok"], told["differences_total"]) == (0, True, 0)
        by_usage, by_costs = told["bills"]
        assert (by_usage["format"], by_usage["billed_tokens"], by_usage["ledger_tokens"]) == (
            "openai-usage", 69_846, 69_846,
        )  # fmt: skip
        assert (by_costs["format"], by_costs["billed_usd"], by_costs["ledger_usd"]) == (
            "openai-costs", "0.194928", "0.194928",
        )  # fmt: skip
        assert by_costs["found"]["matched"]["ledger_calls"] == 10

    def test_a_table_says_so_to_a_person(self, write, reconcile) -> None:
        write(*OPENROUTER)
        finished = reconcile(GOLDEN / "openrouter.csv")
        assert (finished.code, finished.stderr) == (0, "")
        cells = finished.stdout.splitlines()[1].split()
        assert cells == [
            "openrouter",
            "openrouter",
            "2",
            *["0"] * 5,
            "0.0123",
            "0.0123",
            "0.00",
            "+0.000",
            "%",
            "0",
            "within",
        ]
        assert "tolerance 1 % of the bill, or $0.01" in finished.stdout

    def test_another_name_of_the_provider_is_taken_from_the_option_or_the_bill(self, write, report) -> None:
        write(*({**call, "provider": "router-eu"} for call in OPENROUTER))
        bill = GOLDEN / "openrouter.csv"
        assert report(f"router-eu={bill}", *EXACT)[0] == 0
        assert report(bill, "--provider", "router-eu", *EXACT)[0] == 0
        code, told = report(bill, *EXACT)
        assert (code, told["bills"][0]["found"]["missing_in_ledger"]["findings"]) == (1, 2)


class TestDifferences:
    def test_each_is_named_with_its_place_and_what_is_known(self, write, reconcile, report, tmp_path) -> None:
        write({**OPENROUTER[0], "tokens": (10_389, 130), "source": "partial", "nanousd": 12_000_000}, OPENROUTER[1])
        written = tmp_path / "differences.csv"
        code, told = report(GOLDEN / "openrouter.csv", "--csv", written, *EXACT)
        assert code == 1
        (difference,) = told["differences"]
        assert difference["verdict"] == "tokens"
        assert difference["request_id"] == "gen-1762000417-NEpXKqXYIDjS7TmNrT9j"
        assert difference["where"] == f"{GOLDEN / 'openrouter.csv'}, line 2"
        assert (difference["difference_usd"], difference["note"]) == ("0.0003", "tokens partial")
        with written.open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert row == {name: "" if value is None else str(value) for name, value in difference.items()}
        shown = reconcile(GOLDEN / "openrouter.csv", *EXACT).stdout
        assert "1 of 1 differences" in shown
        assert "10,389 + 137" in shown
        assert "BEYOND" in shown

    def test_tolerance_and_floor_decide(self, write, report) -> None:
        write({**OPENROUTER[0], "nanousd": 12_200_000}, OPENROUTER[1])
        bill = GOLDEN / "openrouter.csv"
        assert report(bill)[0] == 0
        assert report(bill, *EXACT)[0] == 1
        assert report(bill, "--floor-usd", "0", "--tolerance", "0.82%")[0] == 0
        assert report(bill, "--floor-usd", "0", "--tolerance", "0.81%")[0] == 1

    def test_the_limit_is_one_on_what_is_shown_and_not_on_the_file(self, write, report, tmp_path) -> None:
        write(*({**OPENROUTER[0], "request_id": f"gen-{place}"} for place in range(5)))
        code, told = report(GOLDEN / "openrouter.csv", "--limit", "2", "--csv", tmp_path / "all.csv")
        assert (code, len(told["differences"]), told["differences_total"]) == (1, 2, 7)
        assert len((tmp_path / "all.csv").read_text().splitlines()) == 8
        assert told["bills"][0]["notes"] == [
            "No request id of the bill is in the ledger. Compare by model and day: --by day."
        ]

    def test_by_day_ids_do_not_matter(self, write, report) -> None:
        write({**OPENROUTER[0], "request_id": "another"}, OPENROUTER[1])
        assert report(GOLDEN / "openrouter.csv", *EXACT)[0] == 1
        assert report(GOLDEN / "openrouter.csv", "--by", "day", *EXACT)[0] == 0

    def test_a_name_that_a_spreadsheet_would_run_is_defused(self, write, report, tmp_path) -> None:
        write({**OPENROUTER[0], "model": "=1+1", "request_id": "gen-0"})
        report(GOLDEN / "openrouter.csv", "--csv", tmp_path / "all.csv")
        assert ",'=1+1," in (tmp_path / "all.csv").read_text()


class TestPeriod:
    def test_it_is_the_bills_whole_days_unless_told(self, write, report) -> None:
        write(*OPENROUTER, {**OPENROUTER[0], "day": 1, "request_id": "gen-later"})
        code, told = report(GOLDEN / "openrouter.csv", *EXACT)
        assert (code, told["bills"][0]["since"], told["bills"][0]["until"]) == (
            0, "2025-11-01T00:00:00Z", "2025-11-02T00:00:00Z",
        )  # fmt: skip
        code, told = report(GOLDEN / "openrouter.csv", "--until", "2025-11-04", *EXACT)
        assert (code, told["differences"][0]["verdict"]) == (1, "missing_in_bill")

    def test_lines_outside_are_counted_and_not_compared(self, write, report) -> None:
        write(*OPENROUTER)
        _, told = report(GOLDEN / "openrouter.csv", "--since", "2025-12-01")
        assert (told["ok"], told["bills"][0]["lines_outside"], told["differences_total"]) == (True, 2, 0)
        assert told["bills"][0]["notes"] == ["2 lines are before --since or after --until and were not compared."]


class TestInline:
    def test_what_answers_said_is_held_against_the_price_list(self, write, report) -> None:
        listed = 4_000_000 * 2 + 1_000_000 * 8  # gpt-4.1 at $2 and $8 for a million
        call = {"provider": "openai", "model": "gpt-4.1", "tokens": (4000, 1000), "nanousd": 0}
        write(*({**call, "reported": reported} for reported in (listed, listed + 500_000)), call)
        code, told = report("--inline", *EXACT)
        (difference,) = told["differences"]
        assert (code, difference["verdict"], difference["difference_usd"]) == (1, "price", "0.0005")
        assert told["bills"][0]["found"]["matched"]["findings"] == 1
        assert report("--inline", "--tolerance", "4%")[0] == 0

    def test_a_model_without_price_is_told_and_not_judged(self, write, report) -> None:
        write({"provider": "openai", "model": "no-such-model", "tokens": (1, 1), "nanousd": 5, "reported": 5})
        code, told = report("--inline", *EXACT)
        assert code == 0
        assert told["bills"][0]["notes"] == [
            "1 calls told their cost ($0.000000005) and no price list knows their model."
        ]

    def test_nothing_told_is_a_sentence(self, write, reconcile) -> None:
        write(OPENAI[0])
        finished = reconcile("--inline")
        assert (finished.code, finished.stdout) == (0, "")
        assert finished.stderr == "No answer in this period told its cost.\n"


class TestFaults:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((), "Give a bill, or --inline"),
            (("--inline", "bill.csv"), "one of the two"),
            (("bill.csv", "--format", "paper"), "No format 'paper'. There is: auto, anthropic-costs"),
            (("bill.csv", "--format", "openrouter", "--mapping", "m.toml"), "Choose one of"),
            (("bill.csv", "--tolerance", "1"), "'1' is no share"),
            (("bill.csv", "--floor-usd", "-1"), "'-1' is no amount"),
            (("bill.csv", "--since", "2025-11-02", "--until", "2025-11-02"), "--since must be before"),
        ],
    )
    def test_wrong_usage_is_told_with_exit_code_2(self, reconcile, words: tuple[str, ...], said: str) -> None:
        finished = reconcile(*words)
        assert (finished.code, finished.stdout) == (2, "")
        assert said in " ".join(finished.stderr.split())

    def test_a_bill_given_twice_is_not_counted_twice(self, reconcile) -> None:
        finished = reconcile(GOLDEN / "openrouter.csv", GOLDEN / ".." / "bills" / "openrouter.csv")
        assert finished.code == 2
        assert "is given twice" in finished.stderr

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("a,b\n1,2\n", "has the columns of none that is known"),
            ("generation_id,created_at,cost_total,tokens_prompt,tokens_completion\n", "'model_permaslug'"),
            ("", "is empty"),
        ],
    )
    def test_what_is_no_bill_is_one_line_and_nothing_is_written(self, write, reconcile, tmp_path, text, said) -> None:
        write(*OPENROUTER)
        (tmp_path / "bill.csv").write_text(text)
        finished = reconcile(tmp_path / "bill.csv")
        assert (finished.code, finished.stdout, finished.stderr.count("\n")) == (1, "", 1)
        assert said in finished.stderr

    def test_a_broken_line_is_named(self, write, reconcile, tmp_path) -> None:
        write(*OPENROUTER)
        (tmp_path / "bill.csv").write_text((GOLDEN / "openrouter.csv").read_text().replace("10389", "many"))
        finished = reconcile(tmp_path / "bill.csv")
        assert (finished.code, finished.stdout) == (1, "")
        assert f"{tmp_path / 'bill.csv'}, line 2: 'many' is no whole number." in finished.stderr

    def test_no_ledger_is_told(self, reconcile) -> None:
        finished = reconcile(GOLDEN / "openrouter.csv")
        assert (finished.code, finished.stdout) == (1, "")
        assert "There is no ledger at" in finished.stderr

    def test_a_page_that_another_follows_is_told(self, write, reconcile) -> None:
        write(*OPENAI)
        finished = reconcile(GOLDEN / "openai_usage.json")
        assert "fetch it and give all pages" in finished.stderr


def test_the_installed_command_says_the_same(write, run, ledger: Path) -> None:
    write({**OPENROUTER[0], "nanousd": 12_200_000}, OPENROUTER[1])
    words = ("reconcile", GOLDEN / "openrouter.csv", "--ledger", ledger)
    within, beyond = run(*words), run(*words, *EXACT)
    assert (within.code, beyond.code) == (0, 1)
    assert (within.stderr, beyond.stderr) == ("", "")
    assert "1 of 1 differences" in within.stdout
    assert "BEYOND" in beyond.stdout


def test_a_terminal_sees_a_bar_that_leaves_nothing_behind(write, ledger: Path, tmp_path: Path) -> None:
    write(*OPENROUTER)
    head, first, _ = lines("openrouter.csv")
    bill = tmp_path / "bill.csv"
    bill.write_text(head + "".join(first.replace("NEpX", f"{place:06d}") for place in range(20_001)))
    ours, its = pty.openpty()
    arguments = [COMMAND, "reconcile", bill, "--ledger", ledger, "--json"]
    working = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=its, env={**os.environ, "TERM": "xterm"})
    os.close(its)
    answer = json.load(working.stdout)  # type: ignore[arg-type]
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    os.close(ours)
    working.stdout.close()  # type: ignore[union-attr]
    assert working.wait(20) == 1
    assert answer["bills"][0]["lines"] == 20_001
    assert b"bill.csv: 20,000 lines" in shown or b"comparing with openrouter" in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux tells the end of a terminal so
        return b""


def lines(name: str) -> list[str]:
    return (GOLDEN / name).read_text().splitlines(keepends=True)
