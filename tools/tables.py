"""Tables from rows: Markdown for the pages, aligned columns for a terminal."""

import re

from utils import paths


def cell_text(value):
    """What stands in a cell: nothing for None."""
    return "" if value is None else str(value)


def markdown_table(rows):
    """A Markdown table of dicts, as one text without a line break at its end.

    The keys of the first row are the columns, in its order; a row that lacks one has an empty cell there. Values are
    shown as `str` does, so a number must be formatted before. Raises ValueError if there is no row, and for a row with
    a key that the first has not.
    """
    if not rows:
        raise ValueError("a table needs at least one row, whose keys are its columns.")
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        unknown = sorted(set(row) - set(columns))
        if unknown:
            raise ValueError(f"a row has {unknown}, which the first row has not.")
        lines.append("| " + " | ".join(cell_text(row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def aligned_table(rows):
    """Dicts with the same keys as lines with aligned columns, below a line with the keys."""
    columns = list(rows[0])
    table = [columns]
    for row in rows:
        table.append([cell_text(row[column]) for column in columns])
    widths = [max(len(line[number]) for line in table) for number in range(len(columns))]
    lines = []
    for line in table:
        padded = [text.ljust(width) for text, width in zip(line, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def put_into_page(page, mark, table):
    """Puts a table between the comments `<!-- mark:begin … -->` and `<!-- mark:end … -->` of a page.

    page: its path relative to the repository's root, such as "docs/benchmarks.md". Links in the table are relative to
    the page. Raises ValueError if the page does not hold both comments exactly once.
    """
    path = paths.ROOT / page
    between = re.compile(rf"(<!-- {mark}:begin.*?-->\n).*?(<!-- {mark}:end)", re.DOTALL)
    text, replacements = between.subn(lambda match: match[1] + table + "\n" + match[2], path.read_text("utf-8"))
    if replacements != 1:
        raise ValueError(
            f"{page}: the comments <!-- {mark}:begin … --> and <!-- {mark}:end … --> must stand there once"
        )
    path.write_text(text, "utf-8")
