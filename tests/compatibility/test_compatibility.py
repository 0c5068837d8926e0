"""Every case converts, is what it is expected to be, and stands so in docs/compatibility.md."""

from __future__ import annotations

import pytest

from tests.compatibility.case import Case, examine
from tests.compatibility.page import CASES, PAGE, line, missing


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")
def test_case(case: Case) -> None:
    if missing(case):
        pytest.skip(f"{case.library} is not installed")
    row = examine(case)
    assert row.differing == 0
    assert row.active > 0.02, "a silent net shows nothing"
    assert row.merged == (not case.stepped and case.kept is None)
    if case.kept is None:
        assert row.found != "operators", row.reason
    else:
        assert case.kept in row.reason
    assert line(case, row) in PAGE.read_text(encoding="utf-8"), "run python -m tests.compatibility"


def test_the_page_has_no_other_lines() -> None:
    lines = [text for text in PAGE.read_text(encoding="utf-8").splitlines() if text.startswith("| ") and "| Style |" not in text]
    assert len(lines) == len(CASES)
