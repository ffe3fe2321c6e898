"""Small data sets for the tests of `utils.data`: files as a reader might write them, and sets as the hub gives them."""

import json

from datasets import Dataset, DatasetDict


def write(folder, readme=None, **files):
    """A data folder with these files; a file name is spelt with _ for its dot."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("_", ".")).write_bytes(content)
    if readme:
        (folder / "README.md").write_text(readme)
    return folder


def jsonl(path, *rows):
    """A .jsonl file of these rows; a row that is a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def splits_of(**splits):
    """A DatasetDict of lists of rows."""
    return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})


def on_the_hub(dataset):
    """A function in place of `load_dataset` that finds `dataset` under any name."""

    def load_dataset(name):
        assert name == "some/set"
        return dataset

    return load_dataset


def never(*_, **__):
    """In place of `load_dataset`, for files that are read without it."""
    raise AssertionError("load_dataset was called")


def assert_says(message, *parts):
    """Every part must stand in the message."""
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"
