"""A charge-back statement adds up, to the nano-dollar and to the cent, and runs nothing that a caller wrote."""

from __future__ import annotations

import csv
import io
import re
from decimal import Decimal
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.ledger.queries.reader import open_writer
from mcpmeter.ledger.queries.totals import totals
from mcpmeter.usage import Currency, Span
from mcpmeter.usage.statement import shares, statement_of
from mcpmeter.usage.statement_files import statement_csv, statement_html

TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td"}
LIST_TAGS = {"ul", "li"}
COLUMNS = ("team", "project", "model", "token_source", "cost_nanousd", "cost_source")
ALL = Span(0, 2**63 - 1)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "team": st.sampled_from(["search", "support", ""]),
            "project": st.sampled_from(["", "ranking"]),
            "model": st.sampled_from(["gpt-4.1", "<script>alert(1)</script>", "=1+1"]),
            "token_source": st.sampled_from(["reported", "estimated", "partial", "missing"]),
            "cost_nanousd": st.integers(0, 10**12),
            "cost_source": st.sampled_from(["listed", "reported"]),
        }
    ),
    min_size=1,
    max_size=25,
)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    return tmp_path_factory.mktemp("statement") / "ledger.db"


def write(ledger, calls) -> None:
    insert = (
        "INSERT INTO calls (id, state, started_at_ns, ended_at_ns, endpoint, method, team, project, key_id, parent_id,"
        " trace_id, provider, model, operation, stream, prompt_tokens_estimate, outcome, token_source, cost_nanousd,"
        " cost_source) VALUES"
        " (?1, 'settled', 1, 1, '', '', ?2, ?3, '', '', '', 'p', ?4, 'chat', 0, 0, 'ok', ?5, ?6, ?7)"
    )
    with open_writer(ledger) as writer:
        writer.execute("DELETE FROM calls")
        for place, call in enumerate(calls):
            writer.execute(insert, (f"call_{place}", *(call[name] for name in COLUMNS)))


class Cells(HTMLParser):
    """The text of every cell, row by row, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append((dict(attrs).get("class") or "", []))
        elif tag == "td":
            self.rows[-1][1].append("")

    def handle_data(self, data):
        if self.lasttag == "td" and self.rows[-1][1] and data.strip():
            self.rows[-1][1][-1] += data


@settings(deadline=None, max_examples=40)
@given(calls=CALLS, rate=st.decimals("0.0001", "10000", places=4))
def test_lines_and_subtotals_add_up_to_the_ledgers_total(ledger, calls, rate):
    write(ledger, calls)
    made = statement_of(ledger, title="AI usage", span=ALL, zone="UTC", currency=Currency("EUR", rate))
    (books,) = totals(ledger, by=[])
    assert sum(line.figures.cost_nanousd for line in made.lines) == made.total.cost_nanousd == books.cost_nanousd
    assert sum(line.amount for line in made.lines) == made.total_amount
    exact = Decimal(books.cost_nanousd).scaleb(-9) * rate
    assert abs(made.total_amount - exact) <= Decimal("0.005")

    rows = list(csv.DictReader(io.StringIO(statement_csv(made))))
    *lines, total = rows
    assert [row["kind"] for row in rows] == ["line"] * len(lines) + ["total"]
    assert sum(int(row["cost_nanousd"]) for row in lines) == int(total["cost_nanousd"]) == books.cost_nanousd
    for name in ("cost_usd", "amount_eur"):
        assert sum(Decimal(row[name]) for row in lines) == Decimal(total[name])
    assert all(not row["model"].startswith("=") for row in lines)

    page = Cells(statement_html(made))
    assert page.tags <= TAGS | LIST_TAGS
    printed = [(kind, cells) for kind, cells in page.rows if cells]
    amounts = lambda cells: [Decimal(cell.replace(",", "")) for cell in cells[-2:]]  # noqa: E731
    (grand,) = [amounts(cells) for kind, cells in printed if kind == "total"]
    of_teams = [amounts(cells) for kind, cells in printed if cells[0].startswith("team ") and kind == "sum"]
    assert [sum(column) for column in zip(*of_teams, strict=True)] == grand
    single = [amounts(cells) for kind, cells in printed if kind == "" and cells[1]]
    assert [sum(column) for column in zip(*single, strict=True)] == grand
    assert grand[0] == Decimal(books.cost_nanousd).scaleb(-9)


@given(st.lists(st.decimals("0", "100000", places=9), max_size=40))
def test_shares_are_hundredths_that_add_up_to_the_rounded_total(amounts):
    found = shares(amounts)
    assert sum(found) == sum(amounts, Decimal(0)).quantize(Decimal("0.01"))
    assert all(abs(share - amount) < Decimal("0.01") for share, amount in zip(found, amounts, strict=True))


def test_doubtful_calls_are_noted_and_one_team_can_be_selected(ledger):
    call = {"team": "a", "project": "", "model": "m", "token_source": "estimated", "cost_nanousd": 5}
    write(
        ledger, [call | {"cost_source": "listed"}, call | {"team": "b", "cost_nanousd": 0, "cost_source": "unpriced"}]
    )
    everything = statement_html(statement_of(ledger, title="AI usage", span=ALL, zone="UTC"))
    assert "2 calls whose tokens the relay estimated" in everything
    assert "1 calls of models without a price" in everything
    assert re.search(r"<td>0.000000005</td>", everything)
    alone = statement_of(ledger, title="AI usage", span=ALL, zone="UTC", team="b")
    assert {line.team for line in alone.lines} == {"b"}
    assert alone.total.unpriced_calls == 1
    assert "EUR" not in statement_html(alone)


def test_names_are_escaped_and_nothing_is_loaded_or_run(ledger):
    evil = "</title><script src=//x></script>\"'&"
    write(
        ledger,
        [
            {
                "team": evil,
                "project": evil,
                "model": evil,
                "token_source": "reported",
                "cost_nanousd": 1,
                "cost_source": "listed",
            }
        ],
    )
    page = statement_html(statement_of(ledger, title=evil, span=ALL, zone="UTC", team=evil))
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "http" not in re.sub(r"http-equiv", "", page)
