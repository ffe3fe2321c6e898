"""Tables: every column where it belongs, and a row that does not fit is refused."""

import pytest

from tools.tables import aligned_table, markdown_table


def test_a_markdown_table_has_the_columns_of_its_first_row():
    rows = [{"lesson": "01", "n": 5}, {"n": None, "lesson": "02"}, {"lesson": "03"}]
    assert markdown_table(rows).splitlines() == ["| lesson | n |", "|---|---|", "| 01 | 5 |", "| 02 |  |", "| 03 |  |"]


@pytest.mark.parametrize("rows", [[], [{"a": 1}, {"b": 2}]])
def test_rows_that_are_no_table_are_refused(rows):
    with pytest.raises(ValueError, match="row"):
        markdown_table(rows)


def test_columns_of_a_terminal_table_stand_below_each_other():
    assert aligned_table([{"a": "long", "b": 1}, {"a": "x", "b": "y"}]) == "a     b\nlong  1\nx     y"
