"""Data of lesson 03: a long text and its summary."""

from utils.data import reading, rules, splitting


def load(dataset_id, load_dataset, text_column="text", summary_column="summary", seed=0):
    """Reads and checks texts with a summary each; returns a `datasets.DatasetDict` of train, validation and test.

    Columns: text_column and summary_column, texts that are not empty, of a million characters at most. Others may be
    there and are kept.

    dataset_id says where the data is:
    * a folder with files train, validation and test, all .csv, all .jsonl or all .parquet. Validation and test may be
      missing: they are cut out of train at random;
    * a .csv, .jsonl or .parquet file, which is cut likewise;
    * a name on the hub, such as "FiscalNote/billsum".

    load_dataset is the function of the `datasets` library, which reads a name on the hub or Parquet; or one with more
    settings: functools.partial(load_dataset, name="3.0.0") for "abisee/cnn_dailymail". seed: of the cuts.

    In CSV, the words NA, null, None and nan are texts as any other. Prints a line for a split that repeats texts of
    train, and for splits that are not used. Each file is read once, and what was checked is what comes back.
    Raises CourseError for a wrong path and for rows that cannot be trained on, with file, row, column and remedy.
    """
    columns = (text_column, summary_column)
    tables = reading.read(dataset_id, load_dataset, columns)
    for table in tables:
        check(table, text_column, summary_column)
    dataset = reading.to_datasets(tables, columns)
    rules.warn_of_repeats({split: part[text_column][:] for split, part in dataset.items()})
    return splitting.add_missing_splits(dataset, seed)


def check(table, text_column, summary_column):
    """Raises CourseError for the first kind of bad row in a Table."""
    rules.check_columns(table, (text_column, summary_column))
    for column in (summary_column, text_column):
        values = table.column(column)
        rules.refuse_texts(table, column, values)
        rules.refuse_long_texts(table, column, values)
