"""`mcpmeter reconcile`: what it says to people, programs and spreadsheets, and by its exit code."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import pty
import subprocess
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import COMMAND, Finished

from mcpmeter.cli._group import run
from mcpmeter.ledger.sqlite.store import SqliteStore
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
        for number, values in enumerate(calls):
            call = Call(
                id=f"call_{number}", started_at_ns=NOVEMBER_NS + values.get("day", 0) * DAY_NS, endpoint="/v1",
                method="POST", llm=LlmTarget(provider=values["provider"], model=values["model"]),
            )  # fmt: skip
            await store.open(call)
            prompt, completion = values["tokens"]
            usage = Usage(prompt_tokens=prompt, completion_tokens=completion, source=values.get("source", "reported"))
            charge = Charge(nanousd=values["nanousd"], source="listed", reported_nanousd=values.get("reported"))
            await store.settle(
                Settlement(
                    call=call, ended_at_ns=1, duration_ns=1, status="200", usage=usage, charge=charge,
                    upstream_request_id=values.get("request_id", ""),
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
        printed = capsys.readouterr()
        return Finished(code, printed.out, printed.err)

    return in_process


@pytest.fixture
def report(reconcile) -> Callable[..., tuple[int, dict[str, Any]]]:
    def run_json(*words: object) -> tuple[int, dict[str, Any]]:
        finished = reconcile(*words, "--json")
        assert finished.stderr == ""
        return finished.code, json.loads(finished.stdout)

    return run_json


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Path]:
    """A page of OpenAI's costs: buckets by days since the first of November; the one of day `costs` bills `openai`."""

    def write_page(*, buckets: Iterable[int], costs: int | None = None, has_more: bool = False) -> Path:
        first = NOVEMBER_NS // 10**9 // 86_400
        result = {
            "object": "organization.costs.result", "amount": {"value": "0.001", "currency": "usd"},
            "line_item": "gpt-4.1, input",
        }  # fmt: skip
        data = [
            {
                "object": "bucket", "start_time": (first + day) * 86_400, "end_time": (first + day + 1) * 86_400,
                "results": [result] if day == costs else [],
            }
            for day in buckets
        ]  # fmt: skip
        path = tmp_path / f"page{len(list(tmp_path.glob('page*')))}.json"
        path.write_text(json.dumps({"object": "page", "data": data, "has_more": has_more}))
        return path

    return write_page


def openai(day: int) -> dict[str, Any]:
    """A call that costs a tenth of a cent."""
    return {"provider": "openai", "model": "gpt-4.1", "tokens": (500, 0), "nanousd": 1_000_000, "day": day}


EXACT = ("--tolerance", "0", "--floor-usd", "0")


class TestAgreement:
    def test_tokens_and_dollars_of_two_exports_agree_with_the_same_calls(self, write, report, tmp_path) -> None:
        write(*OPENAI)
        usage, costs = tmp_path / "usage.csv", tmp_path / "costs.csv"
        usage.write_text("".join(line for line in lines("openai_usage.csv") if "mini" not in line))
        costs.write_text("".join(line for line in lines("openai_costs.csv") if "credit" not in line))
        code, output = report(usage, costs, *EXACT)
        assert (code, output["ok"], output["differences_total"]) == (0, True, 0)
        by_usage, by_costs = output["bills"]
        assert (by_usage["format"], by_usage["billed_tokens"], by_usage["ledger_tokens"]) == (
            "openai-usage", 69_846, 69_846,
        )  # fmt: skip
        assert (by_costs["format"], by_costs["billed_usd"], by_costs["ledger_usd"]) == (
            "openai-costs", "0.194928", "0.194928",
        )  # fmt: skip
        assert by_costs["found"]["matched"]["ledger_calls"] == 10

    def test_the_result_is_a_table(self, write, reconcile) -> None:
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

    def test_the_providers_name_may_be_an_option_or_a_prefix(self, write, report) -> None:
        write(*({**call, "provider": "router-eu"} for call in OPENROUTER))
        bill = GOLDEN / "openrouter.csv"
        assert report(f"router-eu={bill}", *EXACT)[0] == 0
        assert report(bill, "--provider", "router-eu", *EXACT)[0] == 0
        code, output = report(bill, *EXACT)
        assert (code, output["bills"][0]["found"]["missing_in_ledger"]["findings"]) == (1, 2)


class TestDifferences:
    def test_each_difference_has_its_line_and_note(self, write, reconcile, report, tmp_path) -> None:
        write({**OPENROUTER[0], "tokens": (10_389, 130), "source": "partial", "nanousd": 12_000_000}, OPENROUTER[1])
        written = tmp_path / "differences.csv"
        code, output = report(GOLDEN / "openrouter.csv", "--csv", written, *EXACT)
        assert code == 1
        (difference,) = output["differences"]
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

    def test_the_limit_applies_to_output_and_not_to_the_file(self, write, report, tmp_path) -> None:
        write(*({**OPENROUTER[0], "request_id": f"gen-{place}"} for place in range(5)))
        code, output = report(GOLDEN / "openrouter.csv", "--limit", "2", "--csv", tmp_path / "all.csv")
        assert (code, len(output["differences"]), output["differences_total"]) == (1, 2, 7)
        assert len((tmp_path / "all.csv").read_text().splitlines()) == 8
        assert output["bills"][0]["notes"] == [
            "No request id of the bill is in the ledger. Compare by model and day: --by day."
        ]

    def test_by_day_ids_do_not_matter(self, write, report) -> None:
        write({**OPENROUTER[0], "request_id": "another"}, OPENROUTER[1])
        assert report(GOLDEN / "openrouter.csv", *EXACT)[0] == 1
        assert report(GOLDEN / "openrouter.csv", "--by", "day", *EXACT)[0] == 0

    def test_formulas_are_defused_for_spreadsheets(self, write, report, tmp_path) -> None:
        write({**OPENROUTER[0], "model": "=1+1", "request_id": "gen-0"})
        report(GOLDEN / "openrouter.csv", "--csv", tmp_path / "all.csv")
        assert ",'=1+1," in (tmp_path / "all.csv").read_text()


class TestPeriod:
    def test_the_period_includes_empty_buckets(self, write, report, page) -> None:
        write(*(openai(day) for day in (0, 2, 5)))
        code, output = report(page(costs=0, buckets=range(-1, 4)), *EXACT)
        (bill,) = output["bills"]
        assert (code, bill["since"], bill["until"]) == (1, "2025-10-31T00:00:00Z", "2025-11-05T00:00:00Z")
        assert [(found["verdict"], found["day"]) for found in output["differences"]] == [
            ("missing_in_bill", "2025-11-03")
        ]
        assert (bill["calls_not_covered"], bill["calls_not_covered_usd"]) == (1, "0.001")
        assert bill["notes"] == ["1 calls ($0.001) of the ledger are outside the period and not covered."]

    def test_calls_outside_the_period_are_only_noted(self, write, reconcile, page) -> None:
        write(*(openai(day) for day in (0, 5, 9)), {**openai(7), "tokens": (0, 0), "nanousd": 0})
        finished = reconcile(page(costs=0, buckets=range(4)), *EXACT)
        assert finished.code == 0
        assert "2 calls ($0.002) of the ledger are outside the period and not covered." in finished.stderr

    def test_a_call_outside_the_period_with_a_billed_id_is_covered(self, write, report) -> None:
        write(*OPENROUTER)
        code, output = report(GOLDEN / "openrouter.csv", "--since", "2025-11-01T09:30:00", *EXACT)
        assert (code, output["bills"][0]["calls_not_covered"]) == (0, 0)

    def test_days_of_a_bill_without_buckets_are_whole(self, write, report) -> None:
        write(*({**OPENROUTER[0], "provider": "anthropic", "day": day} for day in (1, 2)))
        _, output = report(GOLDEN / "anthropic_usage.csv")
        assert (output["bills"][0]["since"], output["bills"][0]["until"]) == (
            "2025-11-01T00:00:00Z",
            "2025-11-02T00:00:00Z",
        )
        assert output["bills"][0]["calls_not_covered"] == 2

    def test_single_requests_cover_their_months(self, write, report) -> None:
        later = ({**OPENROUTER[0], "day": day, "request_id": f"gen-{day}"} for day in (26, 40))
        write(*OPENROUTER, *later)
        code, output = report(GOLDEN / "openrouter.csv", *EXACT)
        (bill,) = output["bills"]
        assert (code, bill["since"], bill["until"]) == (1, "2025-11-01T00:00:00Z", "2025-12-01T00:00:00Z")
        assert [(found["verdict"], found["request_id"]) for found in output["differences"]] == [
            ("missing_in_bill", "gen-26")
        ]
        assert bill["calls_not_covered"] == 1
        assert bill["notes"][1].startswith("1 calls are on days before the first line or after the last.")

    def test_options_override_the_period(self, write, report) -> None:
        write(*OPENROUTER, {**OPENROUTER[0], "day": 1, "request_id": "gen-later"})
        assert report(GOLDEN / "openrouter.csv", "--until", "2025-11-02", *EXACT)[0] == 0
        assert report(GOLDEN / "openrouter.csv", "--until", "2025-11-04", *EXACT)[0] == 1

    def test_lines_outside_are_counted_and_not_compared(self, write, report) -> None:
        write(*OPENROUTER)
        _, output = report(GOLDEN / "openrouter.csv", "--since", "2025-12-01")
        assert (output["ok"], output["bills"][0]["lines_outside"], output["differences_total"]) == (True, 2, 0)
        assert output["bills"][0]["notes"] == [
            "2 lines are before --since or after --until and were not compared.",
            "1 calls ($0.0123) of the ledger are outside the period and not covered.",
        ]


class TestIncomplete:
    def test_a_missing_next_page_is_a_fault(self, write, reconcile, report, page) -> None:
        write(openai(0))
        first = page(costs=0, buckets=range(4), has_more=True)
        finished = reconcile(first, *EXACT)
        assert (finished.code, "INCOMPLETE" in finished.stdout) == (1, True)
        assert f"Another page follows {first}: fetch it and give all pages." in finished.stderr
        code, output = report(first, page(buckets=range(4, 8)), *EXACT)
        assert (code, output["ok"], output["bills"][0]["faults"]) == (0, True, [])

    def test_pages_after_the_period_may_be_missing(self, write, report, page) -> None:
        write(openai(0))
        bill = page(costs=0, buckets=(0, 1, 5), has_more=True)
        assert report(bill, "--until", "2025-11-03", *EXACT)[0] == 0
        code, output = report(bill, "--until", "2025-11-04", *EXACT)
        assert (code, output["ok"], output["differences_total"]) == (1, False, 0)

    def test_a_gap_between_buckets_is_a_fault(self, write, report, page) -> None:
        write(openai(0))
        code, output = report(page(costs=0, buckets=range(2), has_more=True), page(buckets=range(4, 6)), *EXACT)
        (bill,) = output["bills"]
        assert (code, output["ok"], bill["ok"]) == (1, False, False)
        assert bill["faults"] == [
            "No bucket of the bill covers 2025-11-03T00:00:00Z to 2025-11-05T00:00:00Z: a page is missing. "
            "Fetch it and give all pages."
        ]

    def test_many_gaps_are_counted(self, write, report, page) -> None:
        write(openai(0))
        _, output = report(page(costs=0, buckets=range(0, 20, 2)))
        faults = output["bills"][0]["faults"]
        assert (len(faults), faults[-1]) == (6, "4 more times between its buckets are missing.")

    def test_an_export_without_one_of_its_days_has_a_gap(self, write, report, tmp_path) -> None:
        write(OPENAI[0])
        head, before, *_, after = lines("openai_costs.csv")
        (tmp_path / "costs.csv").write_text(head + before + after)
        code, output = report(tmp_path / "costs.csv", "--tolerance", "200%")
        assert (code, len(output["bills"][0]["faults"])) == (1, 1)


class TestBillOfNothing:
    def test_calls_in_empty_buckets_are_beyond(self, write, report, page) -> None:
        write({**openai(2), "nanousd": 0})
        code, output = report(page(buckets=range(4)))
        assert (code, output["ok"], output["differences"][0]["verdict"]) == (1, False, "missing_in_bill")
        assert output["bills"][0]["notes"] == ["Nothing is billed in it."]

    def test_nothing_against_nothing_agrees(self, write, report, page) -> None:
        write(openai(9))
        code, output = report(page(buckets=range(4)))
        assert (code, output["bills"][0]["calls_not_covered"]) == (0, 1)

    def test_a_bill_without_days_is_an_error(self, write, reconcile, report, tmp_path) -> None:
        write(openai(0))
        bill = tmp_path / "costs.csv"
        bill.write_text(lines("openai_costs.csv")[0])
        finished = reconcile(bill)
        assert (finished.code, finished.stdout, finished.stderr.count("\n")) == (1, "", 1)
        assert f"The bill {bill} names no day and bills nothing." in finished.stderr
        assert report(bill, "--since", "2025-11-01", "--until", "2025-11-02")[1]["differences_total"] == 1

    def test_an_empty_page_belongs_to_the_providers_other_bill(self, write, report, reconcile, page) -> None:
        write(*OPENAI)
        empty = page(buckets=range(-3, 0))
        _, output = report(GOLDEN / "openai_usage.csv", empty)
        (bill,) = output["bills"]
        assert (bill["format"], bill["since"], bill["faults"]) == ("openai-usage", "2025-10-29T00:00:00Z", [])
        finished = reconcile(GOLDEN / "openai_usage.csv", GOLDEN / "openai_costs.csv", empty)
        assert finished.code == 1
        assert "it may be a page of openai-usage or of openai-costs" in finished.stderr


class TestInline:
    def test_costs_reported_in_responses_are_compared(self, write, report) -> None:
        listed = 4_000_000 * 2 + 1_000_000 * 8  # gpt-4.1 at $2 and $8 for a million
        call = {"provider": "openai", "model": "gpt-4.1", "tokens": (4000, 1000), "nanousd": 0}
        write(*({**call, "reported": reported} for reported in (listed, listed + 500_000)), call)
        code, output = report("--inline", *EXACT)
        (difference,) = output["differences"]
        assert (code, difference["verdict"], difference["difference_usd"]) == (1, "price", "0.0005")
        assert output["bills"][0]["found"]["matched"]["findings"] == 1
        assert report("--inline", "--tolerance", "4%")[0] == 0

    def test_a_model_without_a_price_is_only_noted(self, write, report) -> None:
        write({"provider": "openai", "model": "no-such-model", "tokens": (1, 1), "nanousd": 5, "reported": 5})
        code, output = report("--inline", *EXACT)
        assert code == 0
        assert output["bills"][0]["notes"] == [
            "1 calls reported their cost ($0.000000005), but no price list has their model."
        ]

    def test_no_reported_cost_is_a_sentence(self, write, reconcile) -> None:
        write(OPENAI[0])
        finished = reconcile("--inline")
        assert (finished.code, finished.stdout) == (0, "")
        assert finished.stderr == "No response in this period reported its cost.\n"


class TestFaults:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ((), "Give either a bill, or --inline"),
            (("--inline", "bill.csv"), "Give either a bill"),
            (("bill.csv", "--format", "paper"), "No format 'paper'. Formats: auto, anthropic-costs"),
            (("bill.csv", "--format", "openrouter", "--mapping", "m.toml"), "Choose one of"),
            (("bill.csv", "--tolerance", "1"), "'1' is no share"),
            (("bill.csv", "--floor-usd", "-1"), "'-1' is no amount"),
            (("bill.csv", "--since", "2025-11-02", "--until", "2025-11-02"), "--since must be before"),
        ],
    )
    def test_wrong_usage_has_exit_code_2(self, reconcile, words: tuple[str, ...], message: str) -> None:
        finished = reconcile(*words)
        assert (finished.code, finished.stdout) == (2, "")
        assert message in " ".join(finished.stderr.split())

    def test_a_bill_given_twice_is_refused(self, reconcile) -> None:
        finished = reconcile(GOLDEN / "openrouter.csv", GOLDEN / ".." / "bills" / "openrouter.csv")
        assert finished.code == 2
        assert "is given twice" in finished.stderr

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a,b\n1,2\n", "has the columns of no known format"),
            ("generation_id,created_at,cost_total,tokens_prompt,tokens_completion\n", "'model_permaslug'"),
            ("", "is empty"),
        ],
    )
    def test_an_unknown_bill_is_one_line_and_writes_nothing(self, write, reconcile, tmp_path, text, message) -> None:
        write(*OPENROUTER)
        (tmp_path / "bill.csv").write_text(text)
        finished = reconcile(tmp_path / "bill.csv")
        assert (finished.code, finished.stdout, finished.stderr.count("\n")) == (1, "", 1)
        assert message in finished.stderr

    def test_a_malformed_line_is_named(self, write, reconcile, tmp_path) -> None:
        write(*OPENROUTER)
        (tmp_path / "bill.csv").write_text((GOLDEN / "openrouter.csv").read_text().replace("10389", "many"))
        finished = reconcile(tmp_path / "bill.csv")
        assert (finished.code, finished.stdout) == (1, "")
        assert f"{tmp_path / 'bill.csv'}, line 2: 'many' is no whole number." in finished.stderr

    def test_a_missing_ledger_is_one_line(self, reconcile) -> None:
        finished = reconcile(GOLDEN / "openrouter.csv")
        assert (finished.code, finished.stdout) == (1, "")
        assert "There is no ledger at" in finished.stderr


def test_the_installed_command_gives_the_same_result(write, run, ledger: Path) -> None:
    write({**OPENROUTER[0], "nanousd": 12_200_000}, OPENROUTER[1])
    words = ("reconcile", GOLDEN / "openrouter.csv", "--ledger", ledger)
    within, beyond = run(*words), run(*words, *EXACT)
    assert (within.code, beyond.code) == (0, 1)
    assert (within.stderr, beyond.stderr) == ("", "")
    assert "1 of 1 differences" in within.stdout
    assert "BEYOND" in beyond.stdout


def test_the_progress_bar_is_erased_from_the_terminal(write, ledger: Path, tmp_path: Path) -> None:
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
    assert working.wait(120) == 1
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
