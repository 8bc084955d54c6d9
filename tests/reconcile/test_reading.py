"""What a file is, and how it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reconcile.conftest import GOLDEN, at, items_of, lines_of

from mcpmeter.reconcile import reading
from mcpmeter.reconcile.bills import formats
from mcpmeter.reconcile.bills.base import BillInvalid, Unreadable, count, nanousd
from mcpmeter.reconcile.lines import Period
from mcpmeter.reconcile.reading import has_more, read, recognise

BILLS = sorted(path.name for path in GOLDEN.iterdir() if path.suffix in {".csv", ".json"} and path.stem != "mapped")
OPENROUTER = (GOLDEN / "openrouter.csv").read_text()


@pytest.mark.parametrize("name", BILLS)
def test_every_golden_bill_is_recognized(name: str) -> None:
    assert name.replace("_", "-").startswith(recognise(GOLDEN / name, formats()).format.name)


def test_every_format_has_a_golden_bill_of_each_form() -> None:
    for name in formats():
        assert {f"{name.replace('-', '_')}{form}" for form in (".csv", ".json")} <= set(BILLS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("{}", "is JSON in no known format"),
        ('{"data": []}', "or nothing is billed in it"),
        ("a,b,c\n1,2,3\n", r"the columns of no known format \(.*openrouter.*\); it has: 'a', 'b', 'c'"),
        (OPENROUTER.replace("cost_total", "price", 1), "lacks columns of openrouter: 'cost_total'"),
        (OPENROUTER.replace("cost_cache", "cost_total", 1), "'cost_total' exists twice"),
        (OPENROUTER.replace("generation_id", "\xff", 1).encode("latin-1"), "line 1: not UTF-8"),
        (OPENROUTER + "x\n", "line 4: 1 cells under 24 columns"),
        (OPENROUTER + "y" * 3_000_000, "line 4: too long"),
        (OPENROUTER + "y" * 200_000, "line 4: field larger than field limit"),
    ],
    ids=range(11),
)
def test_a_malformed_bill_is_refused_with_file_and_line(read_text, text: str | bytes, message: str) -> None:
    with pytest.raises(BillInvalid, match=message):
        read_text(text)


def test_byte_order_mark_line_ends_and_blank_lines_are_accepted(read_text, golden) -> None:
    content = ("﻿" + OPENROUTER.replace("\n", "\r\n") + "\r\n").encode()
    assert read_text(content) == golden("openrouter.csv")[1]


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.csv", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(BillInvalid, match=message):
            recognise(path, formats())


def test_a_page_with_a_next_one_is_recognized() -> None:
    pages = {name: has_more(recognise(GOLDEN / name, formats())) for name in ("openai_usage.json", "openai_costs.json")}
    assert pages == {"openai_usage.json": True, "openai_costs.json": False}


def test_next_page_without_has_more_counts_as_well(tmp_path: Path) -> None:
    page = tmp_path / "page.json"
    page.write_bytes((GOLDEN / "anthropic_usage.json").read_bytes().replace(b'"next_page": null', b'"next_page": "p2"'))
    assert has_more(recognise(page, formats()))


NOV = [at(f"2025-11-{day:02}") for day in range(1, 5)]


@pytest.mark.parametrize(
    ("name", "periods"),
    [
        ("openai_usage.json", [(NOV[0], NOV[1]), (NOV[1], NOV[2]), (NOV[2], NOV[3])]),
        ("openai_usage.csv", [(NOV[0], NOV[1]), (NOV[1], NOV[2])]),
        ("openai_costs.json", [(NOV[0], NOV[1]), (NOV[1], NOV[2])]),
        ("openai_costs.csv", [(at("2025-10-31"), NOV[0]), (NOV[0], NOV[1]), (NOV[1], NOV[2])]),
        ("anthropic_usage.json", [(NOV[0], NOV[1])]),
        ("anthropic_usage.csv", [(NOV[0], 0)]),
        ("anthropic_costs.json", [(NOV[0], NOV[1])]),
        ("anthropic_costs.csv", [(NOV[0], 0), (NOV[1], 0)]),
        ("openrouter.csv", []),
        ("openrouter.json", []),
    ],
)
def test_every_bucket_and_day_is_named_once(name: str, periods: list[tuple[int, int]]) -> None:
    items = items_of(recognise(GOLDEN / name, formats()))
    assert [(item.since_ns, item.until_ns) for item in items if isinstance(item, Period)] == periods


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("openai_costs.json", b'"end_time": 1762041600', b'"end_time": 1761955200'),
        ("openai_costs.csv", b"1761868800,1761955200", b"1761868800,1761868800"),
        ("anthropic_costs.json", b"2025-11-02T00:00:00Z", b"2025-10-31T00:00:00Z"),
    ],
)
def test_a_bucket_that_ends_before_it_starts_is_refused(read_text, name: str, start: bytes, end: bytes) -> None:
    text = (GOLDEN / name).read_bytes()
    assert start in text
    with pytest.raises(BillInvalid, match="a bucket ends before it starts"):
        read_text(text.replace(start, end, 1))


@pytest.mark.parametrize(
    ("text", "provider"),
    [
        ('{"data": [{"object": "bucket", "start_time": 1761955200, "end_time": 1762041600, "results": []}]}', "openai"),
        ('{"data": [{"starting_at": "2025-11-01T00:00:00Z", "results": []}]}', "anthropic"),
    ],
)
def test_a_page_of_empty_buckets_is_recognized(tmp_path: Path, text: str, provider: str) -> None:
    (tmp_path / "page.json").write_text(text)
    bill = recognise(tmp_path / "page.json", formats())
    assert (bill.format.provider, bill.is_empty, len(items_of(bill))) == (provider, True, 1)


def test_buckets_of_unknown_results_are_not_read_as_empty(read_text) -> None:
    bucket = '{"object": "bucket", "start_time": 1761955200, "results": [{"object": "organization.seats.result"}]}'
    with pytest.raises(BillInvalid, match="results of no known format"):
        read_text(f'{{"data": [{bucket}]}}')


def test_a_json_page_has_a_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_JSON_BYTES", 100)
    bill = recognise(GOLDEN / "openrouter.json", formats())
    with pytest.raises(BillInvalid, match="give the CSV export"):
        list(read(bill, lambda what, done, total: None))


def test_progress_reports_bytes_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PROGRESS_LINES", 2)
    reports: list[tuple[str, int, int]] = []
    size = (GOLDEN / "openrouter.csv").stat().st_size
    list(read(recognise(GOLDEN / "openrouter.csv", formats()), lambda *news: reports.append(news)))
    assert [(what, total) for what, _, total in reports] == [("openrouter.csv: 2 lines", size)]
    assert 0 < reports[0][1] < size


@given(st.sampled_from(BILLS), st.data())
def test_a_damaged_bill_is_read_or_refused(tmp_path_factory, name: str, data: st.DataObject) -> None:
    bill = bytearray((GOLDEN / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(bill) - 1))
        bill[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(bill)
    lines, refusal = [], str(path)
    try:
        lines = lines_of(recognise(path, formats()))
    except BillInvalid as refused:
        refusal = str(refused)
    assert str(path) in refusal
    assert all(line.at_ns >= 0 and abs(line.nanousd or 0) < 2**63 for line in lines)


@given(st.text(max_size=30) | st.decimals().map(str))
def test_an_amount_is_exact_to_half_a_nano_dollar_or_refused(text: str) -> None:
    from decimal import Decimal, localcontext

    try:
        found = nanousd(text)
    except Unreadable:
        return
    with localcontext(prec=300):
        assert abs(Decimal(text.strip()) * 10**9 - found) <= Decimal("0.5")


@pytest.mark.parametrize(("text", "number"), [("12", 12), ("59200.0", 59_200), (" 7 ", 7), ("", 0), ("0", 0)])
def test_a_count_is_whole(text: str, number: int) -> None:
    assert count(text) == number


@pytest.mark.parametrize("text", ["1.5", "-1", "1e3", "1,000", "٣", "²", "x", "9" * 17, "1_000"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        count(text)
