"""The corpus, directly: each case is served or refused as its verdict says, in one piece and byte by byte."""

from __future__ import annotations

import pytest
from tests.http.server.corpus import AFTER, Case, corpus
from tests.http.server.serving import serve

CORPUS = corpus()


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_a_request_is_what_rfc_9112_makes_of_it(case: Case) -> None:
    sent = case.sent + AFTER
    served = serve(sent)
    assert served.bodies == [*case.bodies, *([b""] if case.goes_on else [])]
    assert (served.statuses[len(case.bodies)] if case.status else 0) == case.status
    assert served.is_open is case.goes_on
    if len(sent) < 2000:
        assert serve(sent, range(len(sent))).bodies == served.bodies


def test_no_case_is_there_twice() -> None:
    assert len({case.sent for case in CORPUS}) == len(CORPUS) > 300
