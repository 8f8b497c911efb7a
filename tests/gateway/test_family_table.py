"""docs/templates.md says what is: each cell of its table is measured on a model of the family, through the gateway."""

from __future__ import annotations

import pytest
from tests.gateway.family_table import COLUMNS, DOCUMENT, documented, measured
from tests.tokens.families import FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_table_says_of_a_family_is_what_it_does(name):
    assert dict(zip(COLUMNS, documented()[name], strict=True)) == dict(zip(COLUMNS, measured(name), strict=True))


def test_the_table_holds_every_family_and_nothing_else():
    assert list(documented()) == list(FAMILIES)
    assert f"| {' | '.join(COLUMNS)} |" in DOCUMENT.read_text()


@pytest.mark.parametrize("name", FAMILIES)
def test_all_that_a_familys_files_and_template_end_a_turn_with_ends_it(name):
    family, row = FAMILIES[name], dict(zip(COLUMNS, documented()[name], strict=True))
    assert set(row["Ends a turn"].split()) == {f"`{end}`" for end in (*family.ends, family.eos, family.end)}


def test_thinking_of_every_family_that_thinks_comes_apart():
    assert {documented()[name][COLUMNS.index("Thinking")] for name in FAMILIES} == {"apart", "–"}
