"""A table of rows on their way from a file to a data set."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Table:
    """Rows of one file, or of one split that `load_dataset` has read."""

    place: str
    """How a message names it: the path of the file, or "split 'train' (rows count from 0)"."""

    split: str
    """train, validation or test."""

    numbers: Any
    """The number of each row as `place` counts: its line in a file, from 0 in a split."""

    columns: dict
    """{name: values, one a row}; a row of a .jsonl file that lacks the name has None."""

    features: dict
    """{column: feature} that are declared: in README.md, or by what `load_dataset` has read."""

    is_csv: bool = False
    """Whether every value was written as text, so that "7" may mean the number."""

    dataset: Any = None
    """The `datasets.Dataset` of a split that `load_dataset` has read; None for a file."""

    def __len__(self):
        """The number of rows."""
        return len(self.numbers)

    def column(self, name):
        """The values of a column, a list."""
        return self.columns[name][:]

    def rows(self, names):
        """(number, {name: value}) of each row, with the columns `names` only."""
        columns = [self.column(name) for name in names]
        for number, *values in zip(self.numbers, *columns, strict=True):
            yield number, dict(zip(names, values, strict=True))

    def without(self, dropped):
        """A Table without the rows of the numbers `dropped`."""
        if not dropped:
            return self
        places = [place for place, number in enumerate(self.numbers) if number not in dropped]
        numbers = [self.numbers[place] for place in places]
        if self.dataset is not None:
            dataset = self.dataset.select(places)
            columns = {name: dataset[name] for name in self.columns}
            return Table(self.place, self.split, numbers, columns, self.features, dataset=dataset)
        columns = {name: [values[place] for place in places] for name, values in self.columns.items()}
        return Table(self.place, self.split, numbers, columns, self.features, self.is_csv)

    def without_column(self, name):
        """A Table without the column `name`."""
        columns = {other: values for other, values in self.columns.items() if other != name}
        features = {other: feature for other, feature in self.features.items() if other != name}
        dataset = self.dataset
        if dataset is not None:
            dataset = dataset.remove_columns(name)
        return Table(self.place, self.split, self.numbers, columns, features, self.is_csv, dataset)
