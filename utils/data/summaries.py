"""Data of lesson 03: a long text and its summary."""

import contextlib
import json

from utils.data import reading, rules, splitting
from utils.errors import CourseError

FACTS = "facts"  # a column that a set may have: the texts that a right summary must state


def load(dataset_id, load_dataset, text_column="text", summary_column="summary", seed=0):
    """Reads and checks texts with a summary each; returns a `datasets.DatasetDict` of train, validation and test.

    Columns: text_column and summary_column, texts that are not empty, of a million characters at most. Others may be
    there and are kept. A column `facts` holds a list of texts in each row, or nothing; in CSV, JSON text of it.

    dataset_id says where the data is:
    * a folder with files train, validation and test, all of one kind (`files.KINDS`). Validation and test may be
      missing: they are cut out of train at random, repeats of a text into the same part;
    * one such file, which is cut likewise;
    * a name on the hub, such as "FiscalNote/billsum".

    load_dataset is the function of the `datasets` library, which reads a name on the hub; or one with more settings:
    functools.partial(load_dataset, name="3.0.0") for "abisee/cnn_dailymail". seed: of the cuts.

    In CSV, the words NA, null, None and nan are texts as any other. Prints a line for a split that repeats texts of
    train, for summaries that are longer than their texts, and for splits that are not used. Each file is read once, and
    what was checked is what comes back. Raises CourseError for a wrong path and for rows that cannot be trained on,
    with file, row, column and remedy.
    """
    columns = (text_column, summary_column)
    if text_column == summary_column:
        raise CourseError(
            f"text_column and summary_column are both {text_column!r}; name a column of its own for each."
        )
    tables = reading.read(dataset_id, load_dataset)
    for table in tables:
        check(table, text_column, summary_column)
        check_facts(table)
    dataset = reading.to_datasets(tables, (*columns, FACTS))
    texts = {split: part[text_column][:] for split, part in dataset.items()}
    rules.warn_of_repeats(texts)
    _warn_of_long_summaries(texts["train"], dataset["train"][summary_column][:], columns)
    return splitting.add_missing_splits(dataset, seed, group_by=texts["train"])


def _warn_of_long_summaries(texts, summaries, columns):
    """Prints a line if more than half of the summaries are longer than their texts."""
    longer = sum(len(summary) > len(text) for text, summary in zip(texts, summaries, strict=True))
    if longer > len(texts) / 2:
        what = f"{longer} of {len(texts)} summaries of 'train' are longer than their texts"
        print(f"Warning: {what}; are text_column {columns[0]!r} and summary_column {columns[1]!r} the right ones?")


def check(table, text_column, summary_column):
    """Raises CourseError for the first kind of bad row in a Table."""
    rules.check_columns(table, (text_column, summary_column), settings=("text_column", "summary_column"))
    for column in (summary_column, text_column):
        values = table.column(column)
        rules.refuse_texts(table, column, values)
        rules.refuse_long_texts(table, column, values)


def check_facts(table):
    """Raises CourseError for facts that are no list of texts; those of a CSV file become lists."""
    if FACTS not in table.columns:
        return
    values = table.column(FACTS)
    if table.is_csv:
        values = [_list_of_facts(value) for value in values]
        table.columns[FACTS] = values
    what = 'is not a list of texts; write one, such as ["$250", "May 2, 2026"], or nothing'
    rules.refuse(table, FACTS, values, _are_no_facts, what)


def _list_of_facts(written):
    """What a CSV cell says: a list, None for nothing, or the text that is no list."""
    if rules.is_empty(written):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(written)
    return written


def _are_no_facts(value):
    if value is None:
        return False
    return not isinstance(value, list) or any(not isinstance(fact, str) or rules.is_empty(fact) for fact in value)
