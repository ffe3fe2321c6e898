"""Texts with their classes: what is read and how, what is refused with which sentence, and which splits come out."""

import json
import time

import datasets
import pytest
from conftest import refusal
from data_files import assert_says, never, on_the_hub, write
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from sklearn.feature_extraction.text import TfidfVectorizer

from utils import data

NAMES = ["call", "music", "navigate"]
README = (
    "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n"
    "      class_label:\n        names:\n"
    + "".join(f"          '{number}': {name}\n" for number, name in enumerate(NAMES))
    + "---\n# Intents\n"
)
GOOD = '{"text": "ring mum", "label": "call"}\n{"text": "play jazz", "label": "music"}\n'
GOOD += '{"text": "go home", "label": "navigate"}\n'
DECLARED = Features({"text": Value("string"), "label": ClassLabel(names=NAMES)})


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_cache"))


def as_dataset(features=None, **splits):
    """A DatasetDict with the given labels; every text is different."""
    made = DatasetDict()
    for split, labels in splits.items():
        rows = {"text": [f"{split} {number}" for number in range(len(labels))], "label": labels}
        made[split] = Dataset.from_dict(rows, features=features)
    return made


def load(place, load_dataset=never, **settings):
    return data.classification.load(place, load_dataset, **settings)


def load_from_hub(dataset, **settings):
    return load("some/set", on_the_hub(dataset), **settings)


def three_splits(content, suffix="jsonl"):
    """The same rows as train, validation and test, so that nothing is cut out of train."""
    return {f"{split}_{suffix}": content for split in ("train", "validation", "test")}


def names_of(dataset):
    return dataset["train"].features["label"].names


# ---- good data passes, and is loaded as it was written


@pytest.mark.parametrize(
    "files",
    [
        three_splits(GOOD),
        three_splits(GOOD.replace('"call"', "0").replace('"music"', "1").replace('"navigate"', "2")),
        three_splits(GOOD.replace('"call"', '"0"').replace('"music"', '"1"').replace('"navigate"', '"2"')),
        three_splits("text,label\nring mum,call\nplay jazz,music\ngo home,navigate\n", "csv"),
        three_splits("text,label\nring mum,0\nplay jazz,1\ngo home,2\n", "csv"),
        three_splits("text\tlabel\nring mum\t0\nplay jazz\t1\ngo home\t2\n", "tsv"),
    ],
    ids=["jsonl names", "jsonl numbers", "jsonl digits", "csv names", "csv numbers", "tsv numbers"],
)
def test_the_readme_of_a_folder_declares_the_classes(tmp_path, files):
    dataset = load(write(tmp_path / "intents", README, **files))
    assert dataset["train"].features == DECLARED
    assert dataset["train"]["text"][:] == ["ring mum", "play jazz", "go home"]
    assert dataset["train"]["label"][:] == [0, 1, 2]


def test_a_folder_keeps_its_splits(tmp_path):
    other = GOOD.replace('"text": "', '"text": "please ')
    dataset = load(
        str(write(tmp_path / "test data", README, train_jsonl=GOOD, validation_jsonl=other, test_jsonl=other))
    )
    assert dataset.num_rows == {"train": 3, "validation": 3, "test": 3}
    assert names_of(dataset) == NAMES


@pytest.mark.parametrize("spelling", ["csv", "./csv/", "~/csv"])
def test_a_folder_may_be_relative_to_here_or_to_home(tmp_path, monkeypatch, spelling):
    write(tmp_path / "csv", README, **three_splits(GOOD))  # "csv" alone means a file format to load_dataset
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(spelling).num_rows == {"train": 3, "validation": 3, "test": 3}


CSV = "text,label\n" + "NA,null\nnull,nan\nNone,null\nnan,nan\n#N/A,null\n<NA>,nan\n" * 5


@pytest.mark.parametrize("name", ["train.csv", "mine (1).csv"])
def test_csv_keeps_words_that_pandas_takes_for_missing(tmp_path, name):
    (tmp_path / name).write_text(CSV)
    dataset = load(tmp_path / name)
    assert names_of(dataset) == ["nan", "null"]
    rows = [row for part in dataset.values() for row in part]
    labels = {"NA": "null", "null": "nan", "None": "null", "nan": "nan", "#N/A": "null", "<NA>": "nan"}
    assert sorted(row["text"] for row in rows) == sorted([*labels] * 5)
    assert all(names_of(dataset)[row["label"]] == labels[row["text"]] for row in rows)


def test_csv_in_a_folder_with_a_readme_keeps_them_too(tmp_path):
    readme = README.replace("music", "'null'")
    dataset = load(
        write(tmp_path / "a", readme, **three_splits("text,label\nNA,call\nnull,null\nnan,navigate\n", "csv"))
    )
    assert dataset["train"]["text"][:] == ["NA", "null", "nan"]
    assert dataset["train"]["label"][:] == [0, 1, 2]


def test_csv_numbers_stay_text_and_labels_come_out_as_names(tmp_path):
    rows = "".join(f"{number},{number % 12}\n" for number in range(24))
    dataset = load(write(tmp_path / "a", **three_splits("text,label\n" + rows, "csv")))
    assert dataset["train"]["text"][:3] == ["0", "1", "2"]
    assert names_of(dataset) == [str(number) for number in range(12)]  # 10 after 9, not after 1
    assert dataset["train"]["label"][9:12] == [9, 10, 11]


def test_json_numbers_need_no_names(tmp_path):
    rows = [json.dumps({"text": f"row {n}", "label": n % 150, "more": [n]}) for n in range(300)]
    dataset = load(write(tmp_path / "a", **three_splits("\n\n".join(rows))))
    assert dataset["train"]["label"][:3] == [0, 1, 2]
    assert dataset["train"]["more"][:2] == [[0], [1]]
    assert names_of(dataset) == [str(number) for number in range(150)]


def test_labels_become_numbers_in_the_order_of_their_names():
    dataset = load_from_hub(as_dataset(train=[7, 10, 7], validation=[7], test=[10]))
    assert names_of(dataset) == ["7", "10"]
    assert (dataset["train"]["label"][:], dataset["test"]["label"][:]) == ([0, 1, 0], [1])


def test_a_parquet_file_is_checked(tmp_path):
    path = tmp_path / "a.parquet"
    as_dataset(train=["call", ""])["train"].to_parquet(path)
    assert_says(refusal(load, path), "a.parquet", "row 1", "'label'", "empty label", "delete")
    as_dataset(train=["call", "music"] * 10)["train"].to_parquet(path)
    assert load(path).num_rows == {"train": 14, "test": 4, "validation": 2}


@pytest.mark.parametrize("hub_id", ["fancyzhx/ag_news", "imdb", "stanfordnlp/sst2"])
def test_a_hub_id_is_left_alone(hub_id):
    names = []

    def load_dataset(name):
        names.append(name)
        return as_dataset(train=[0, 1], validation=[0], test=[1])

    load(hub_id, load_dataset)
    assert names == [hub_id]


def test_large_files_are_cheap(tmp_path):
    rows = [f'{{"text": "this is the text of row {n}", "label": {n % 5}}}\n' for n in range(20_000)]
    folder = write(tmp_path / "a", **three_splits("".join(rows[:10])) | {"train_jsonl": "".join(rows)})
    start = time.perf_counter()
    load(folder)
    assert time.perf_counter() - start < 10  # about a second; a check that reads the file again and again takes minutes


# ---- splits


def test_missing_splits_are_cut_out_of_train_with_the_same_shares_of_each_class():
    dataset = as_dataset(DECLARED, train=[0] * 60 + [1] * 30 + [2] * 10)
    splits = load_from_hub(dataset, seed=3)
    assert splits.num_rows == {"train": 72, "test": 20, "validation": 8}
    assert sorted(splits["test"]["label"]) == [0] * 12 + [1] * 6 + [2] * 2
    texts = [text for part in splits.values() for text in part["text"]]
    assert sorted(texts) == sorted(dataset["train"]["text"])
    assert load_from_hub(dataset, seed=3)["test"]["text"][:] == splits["test"]["text"][:]
    assert load_from_hub(dataset, seed=4)["test"]["text"][:] != splits["test"]["text"][:]


def test_other_splits_are_left_out_and_that_is_said(capsys):
    dataset = load_from_hub(as_dataset(train=[0, 1], validation=[0], test=[1], unsupervised=[-1, -1]))
    assert list(dataset) == ["train", "validation", "test"]
    assert "Not used: split 'unsupervised'." in capsys.readouterr().out


# ---- a path that is none


@pytest.mark.parametrize(
    "dataset_id",
    ["./nowhere", "~/nowhere", "/no/where", "nowhere/", "a/b/c", "../x", "my.csv", "x/my.jsonl", " ", ""],
)
def test_a_path_that_does_not_exist(dataset_id):
    assert_says(refusal(load, dataset_id), repr(dataset_id), "no such file", "correct dataset_id")


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "a.xlsx"
    path.write_bytes(b"PK")
    assert_says(refusal(load, path), "a.xlsx", ".csv", ".parquet")


def test_a_bracket_in_the_path_would_be_a_pattern_to_load_dataset(tmp_path):
    path = tmp_path / "a[1].jsonl"
    path.write_text(GOOD)
    assert_says(refusal(load, path), "a[1].jsonl", "without '['")


@pytest.mark.parametrize(
    "files", [{}, {"train_csv": CSV, "test_jsonl": GOOD}], ids=["empty folder", "two kinds of files"]
)
def test_a_folder_that_load_dataset_cannot_read(tmp_path, files):
    folder = write(tmp_path / "a", **files)
    assert_says(refusal(load, folder), str(folder), "name the files train, validation and test")


# ---- bad rows: each names file, row, column and remedy


def csv_file(*rows):
    return "\n".join(["text,label", *rows]) + "\n"


BAD_FILES = {
    # name: (file name, content, README or not, parts of the message)
    "missing text column": (
        "train.csv",
        "sentence,label\na,call\n",
        0,
        ["'text'", "'sentence', 'label'", "rename"],
    ),
    "missing label column": (
        "train.jsonl",
        '{"text": "a", "lable": 1}\n',
        0,
        ["'label'", "'lable'", "rename"],
    ),
    "nothing to rename": ("train.csv", "text\na\n", 0, ["'label'", "add a column"]),
    "column of another separator": ("train.csv", "text;label\na;call\n", 0, ["'text;label'", "comma"]),
    "undeclared column": (
        "train.jsonl",
        GOOD + '{"text": "a", "label": "call", "id": 7}\n',
        1,
        ["'id'", "README.md", "remove"],
    ),
    "undeclared class": (
        "train.jsonl",
        GOOD + '{"text": "a", "label": "musik"}\n',
        1,
        ["row 4", "'label'", "'musik'", "call, music, navigate", "closest: 'music'", "README.md"],
    ),
    "undeclared class in csv": (
        "train.csv",
        csv_file("a,call", "b,musik"),
        1,
        ["row 3", "'label'", "'musik'"],
    ),
    "number beyond the classes": (
        "train.jsonl",
        '{"text": "a", "label": 2}\n{"text": "b", "label": 3}\n',
        1,
        ["row 2,", "'label'", "3 ", "not a declared class", "correct it"],
    ),
    "number beyond the classes in csv": (
        "train.csv",
        csv_file("a,2", "b,3"),
        1,
        ["row 3,", "3 ", "correct it"],
    ),
    "null label": (
        "train.jsonl",
        GOOD + '{"text": "a", "label": null}\n',
        0,
        ["row 4", "'label'", "empty", "delete"],
    ),
    "absent label": ("train.jsonl", GOOD + '{"text": "a"}\n', 1, ["row 4", "'label'", "empty", "delete"]),
    "empty csv label": ("train.csv", csv_file("a,call", "b,"), 0, ["row 3", "'label'", "empty", "delete"]),
    "empty csv number": ("train.csv", csv_file("a,1", "b,"), 0, ["row 3", "'label'", "empty", "delete"]),
    "blank csv label": ("train.csv", csv_file("a,call", "b,  "), 1, ["row 3", "'label'", "empty", "delete"]),
    "names and numbers": (
        "train.jsonl",
        GOOD + '{"text": "a", "label": 3}\n',
        0,
        ["'label'", "'call' in row 1", "3 in row 4", "only"],
    ),
    "names and numbers in csv": (
        "train.csv",
        csv_file("a,7", "b,call"),
        0,
        ["'call' in row 3", "7 in row 2", "only"],
    ),
    "negative label": (
        "train.jsonl",
        '{"text": "a", "label": -1}\n',
        0,
        ["row 1", "'label'", "-1 ", "whole number"],
    ),
    "negative csv label": (
        "train.csv",
        csv_file("a,0", "b,-100"),
        1,
        ["row 3", "'label'", "-100", "whole number"],
    ),
    "fractional label": (
        "train.jsonl",
        '{"text": "a", "label": 0.5}\n',
        0,
        ["row 1", "0.5 ", "whole number"],
    ),
    "fractional csv label": (
        "train.csv",
        csv_file("a,1", "b,1.5"),
        0,
        ["row 3", "'label'", "1.5 ", "whole number"],
    ),
    "label list": (
        "train.jsonl",
        '{"text": "a", "label": [1]}\n',
        1,
        ["row 1", "'label'", "[1] ", "class name"],
    ),
    "label true": (
        "train.jsonl",
        '{"text": "a", "label": true}\n',
        1,
        ["row 1", "'label'", "True ", "class name"],
    ),
    "empty text": (
        "train.jsonl",
        GOOD + '{"text": "", "label": "call"}\n',
        0,
        ["row 4", "'text'", "empty", "delete"],
    ),
    "blank text": (
        "train.csv",
        csv_file("a,call", ' " \t ",call'.strip()),
        0,
        ["row 3", "'text'", "empty", "delete"],
    ),
    "null text": ("train.jsonl", '{"text": null, "label": 1}\n', 0, ["row 1", "'text'", "empty", "delete"]),
    "text is a number": (
        "train.jsonl",
        '{"text": 5, "label": 1}\n',
        0,
        ["row 1", "'text'", "5 ", "double quotes"],
    ),
    "text is a list": ("train.jsonl", '{"text": ["a"], "label": 1}\n', 0, ["row 1", "'text'", "not text"]),
    "half a character": (
        "train.jsonl",
        '{"text": "\\ud800", "label": 1}\n',
        0,
        ["row 1", "'text'", "broken", "retype"],
    ),
    "NUL in csv": ("train.csv", csv_file("a,call", "b\0c,call"), 0, ["row 3", "'text'", "NUL", "retype"]),
    "NUL in json": (
        "train.jsonl",
        '{"text": "a\\u0000", "label": 1}\n',
        0,
        ["row 1", "'text'", "NUL", "retype"],
    ),
    "empty csv": ("train.csv", "", 0, ["no rows", "add"]),
    "empty jsonl": ("train.jsonl", "", 1, ["no rows", "add"]),
    "blank jsonl": ("train.jsonl", "\n \n", 1, ["no rows", "add"]),
    "header only": ("train.csv", "text,label\n", 0, ["no rows", "add"]),
    "latin-1 csv": (
        "train.csv",
        "text,label\nok,call\ncafé,call\n".encode("latin-1"),
        0,
        ["row 3", "byte 22 ", "save the file as UTF-8"],
    ),
    "latin-1 jsonl far down": (
        "train.jsonl",
        b'{"text": "\xc3\xa9", "label": 1}\n' * 5000 + b'{"text": "\xe9", "label": 1}\n',
        0,
        ["row 5001", f"byte {5000 * 27 + 10} ", "save the file as UTF-8"],
    ),
    "utf-16": (
        "train.csv",
        csv_file("a,call").encode("utf-16"),
        0,
        ["row 1", "byte 0 ", "save the file as UTF-8"],
    ),
    "invalid json": (
        "train.jsonl",
        GOOD + "{'text': 'a'}\n",
        0,
        ["row 4", "not a JSON object", "one object a line"],
    ),
    "cut json": ("train.jsonl", GOOD + '\n{"text": "a", "la', 1, ["row 5", "not a JSON object"]),
    "deep json": ("train.jsonl", GOOD + "[" * 100_000 + "\n", 0, ["row 4", "not a JSON object"]),
    "line is no object": (
        "train.jsonl",
        GOOD + '["a", "call"]\n',
        0,
        ["row 4", "not a JSON object", "one object a line"],
    ),
    "too many fields": (
        "train.csv",
        csv_file("a,call", "b, c,call"),
        0,
        ["row 3", "fields", "double quotes"],
    ),
    "too few fields": (
        "train.csv",
        csv_file("a,call", "b"),
        1,
        ["row 3", "fields", "add the missing fields"],
    ),
    "row after a text of two lines": ("train.csv", csv_file('"a\nb",call', "c"), 0, ["row 4", "fields"]),
    "unclosed quote": (
        "train.csv",
        csv_file("a,call", '"b,call', "c,call"),
        0,
        ["row 3", "is not closed", "close it"],
    ),
    "quote in a quoted text": (
        "train.csv",
        csv_file('"a "b" c",call'),
        0,
        ["row 2", "double quote", "twice"],
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_gets_one_sentence(tmp_path, case):
    name, content, readme, parts = BAD_FILES[case]
    folder = write(tmp_path / "a", README if readme else None, **{name.replace(".", "_"): content})
    assert_says(refusal(load, folder), str(folder / name), *parts)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_file_of_a_folder_is_checked(tmp_path, split):
    bad = '{"text": "a", "label": "radio"}\n'
    folder = write(tmp_path / "a", README, train_jsonl=GOOD, **{f"{split}_jsonl": GOOD + bad})
    assert_says(refusal(load, folder), f"{split}.jsonl, row 4", "'label'", "'radio'")


@pytest.mark.parametrize("bad", ["{}", '{"text": "", "label": "call"}', '{"text": "a", "label": ""}'])
def test_of_many_bad_rows_ten_are_named_and_all_are_counted(tmp_path, bad):
    folder = write(tmp_path / "a", train_jsonl=GOOD + f"{bad}\n" * 25)
    assert_says(refusal(load, folder), "rows 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, … (25 in all)")


def test_the_columns_may_have_other_names(tmp_path):
    folder = write(tmp_path / "a", train_csv="question,intent\na,call\n,music\n")

    def load_questions(place):
        return load(place, text_column="question", label_column="intent")

    assert_says(refusal(load_questions, folder), "row 3", "'question'", "empty")
    folder = write(tmp_path / "b", **three_splits("question,intent\na,call\nb,music\n", "csv"))
    assert load_questions(folder)["train"]["intent"][:] == [0, 1]


# ---- loaded data


def test_bad_rows_of_loaded_data_name_split_and_index():
    dataset = as_dataset(train=["call", None, "music"])
    assert_says(refusal(load_from_hub, dataset), "split 'train'", "row 1,", "'label'", "empty", "delete")
    dataset = as_dataset(train=[0.0, 1.0])
    assert_says(refusal(load_from_hub, dataset), "split 'train'", "rows 0, 1,", "'label'", "whole number")


@pytest.mark.parametrize(("label", "remedy"), [(9, "correct it"), (-1, "whole number")])
def test_load_dataset_lets_wrong_numbers_pass_but_load_does_not(tmp_path, label, remedy):
    bad = GOOD + json.dumps({"text": "a", "label": label}) + "\n" + GOOD
    numbers = bad.replace('"call"', "0").replace('"music"', "1").replace('"navigate"', "2")
    folder = write(tmp_path / "a", README, train_jsonl=numbers)
    dataset = load_dataset(str(folder))
    assert dataset["train"]["label"][:4] == [0, 1, 2, label]
    assert_says(refusal(load_from_hub, dataset), "split 'train'", "row 3,", "'label'", str(label), remedy)
    assert_says(refusal(load, folder), "train.jsonl", "row 4,", "'label'", str(label), remedy)


def test_a_missing_column_of_loaded_data():
    dataset = as_dataset(train=[0, 1]).rename_column("text", "content")
    assert_says(refusal(load_from_hub, dataset), "split 'train'", "'text'", "'content', 'label'", "rename")


def test_the_training_split_must_be_there(tmp_path):
    assert_says(refusal(load_from_hub, as_dataset(test=[0, 1])), "no split 'train'", "train.jsonl")
    assert_says(refusal(load_from_hub, as_dataset(train=[0, 1])["train"]), "no split 'train'")
    assert_says(refusal(load, write(tmp_path / "a", test_jsonl=GOOD)), "no split 'train'")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split(split):
    dataset = as_dataset(DECLARED, **({"train": [0, 1, 2], "test": [0]} | {split: []}))
    assert_says(refusal(load_from_hub, dataset), f"split '{split}'", "no rows", "add")


@pytest.mark.parametrize("labels", [["call"], ["call", "call"]])
def test_one_class_only(labels):
    dataset = as_dataset(train=labels, test=["call"])
    assert_says(refusal(load_from_hub, dataset), "'train'", "'label'", "one class only", "call", "add rows")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_training_never_shows(split):
    dataset = as_dataset(**{"train": ["call", "music"], split: ["call", "radio"]})
    assert_says(refusal(load_from_hub, dataset), "'train'", "'label'", "radio", split, "add rows of it")


def test_a_declared_class_that_training_never_shows():
    dataset = as_dataset(DECLARED, train=[0, 2, 0], test=[0])
    assert_says(refusal(load_from_hub, dataset), "'train'", "'label'", "music", "declar", "add rows of it")


def test_a_text_on_both_sides_gives_one_line_with_counts(capsys):
    dataset = as_dataset(train=[0, 1, 0], validation=[0], test=[0, 1])
    load_from_hub(dataset)
    assert capsys.readouterr().out == ""
    dataset["test"] = Dataset.from_dict({"text": ["  TRAIN\n 1", "new", "train 2"], "label": [0, 1, 0]})
    load_from_hub(dataset)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert_says(out, "Warning", "2 of 3 texts", "'test'", "'train'", "remove")


# ---- what a label means, in all files


def table(rows, header="text,label"):
    return header + "\n" + "".join(f"{text},{label}\n" for text, label in rows)


SIXTY = [(f"text {number} of {'cats' if number % 2 else 'dogs'}", ("no", "yes")[number % 2]) for number in range(60)]


def as_parquet(path, labels, names=None, prefix=""):
    kind = Value("string") if names is None else ClassLabel(names=names)
    rows = {"text": [f"{prefix}{number}" for number in range(len(labels))], "label": labels}
    Dataset.from_dict(rows, features=Features({"text": Value("string"), "label": kind})).to_parquet(path)


def test_classes_in_another_order_are_aligned_by_their_names(tmp_path):
    as_parquet(tmp_path / "train.parquet", [0, 1] * 10, ["neg", "pos"])
    as_parquet(tmp_path / "test.parquet", [0, 1, 1], ["pos", "neg"], "test ")
    dataset = load(tmp_path)
    assert dataset["test"].features == dataset["train"].features
    assert [names_of(dataset)[label] for label in dataset["test"]["label"]] == ["pos", "neg", "neg"]


def test_the_names_of_a_readme_reach_parquet_that_has_numbers_only(tmp_path):
    write(tmp_path, README)
    for split in ("train", "validation", "test"):
        rows = {"text": [f"{split} {number}" for number in range(3)], "label": [0, 1, 2]}
        Dataset.from_dict(rows).to_parquet(tmp_path / f"{split}.parquet")
    assert names_of(load(tmp_path)) == NAMES


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_names_in_one_file_and_numbers_in_another_are_refused_with_both(tmp_path, suffix):
    numbers = {"csv": table([("a", 0), ("b", 1)]), "jsonl": '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'}
    names = {"csv": table(SIXTY), "jsonl": GOOD}
    files = {f"train_{suffix}": names[suffix], f"test_{suffix}": numbers[suffix]}
    folder = write(tmp_path / "a", **files)
    assert_says(
        refusal(load, folder), f"test.{suffix}", "numbers (0)", f"train.{suffix}", "names (", "the same in both"
    )


def test_digits_are_the_same_numbers_in_all_files(tmp_path):
    train = "".join(json.dumps({"text": text, "label": int(label == "yes")}) + "\n" for text, label in SIXTY)
    folder = write(tmp_path / "a", train_jsonl=train, test_jsonl='{"text": "a", "label": "1"}\n')
    assert load(folder)["test"]["label"][:] == [1]
    floats = table([(text, f"{int(label == 'yes')}.0") for text, label in SIXTY])
    folder = write(tmp_path / "b", train_csv=floats, test_csv=table([("a", 1)]))
    dataset = load(folder)
    assert names_of(dataset) == ["0", "1"]
    assert dataset["test"]["label"][:] == [1]


def test_a_declared_name_of_digits_is_that_name(tmp_path):
    readme = README.replace("call", "7").replace("music", "1").replace("navigate", "0")
    files = three_splits("text,label\na,7\nb,1\nc,0\n", "csv")
    assert load(write(tmp_path / "a", readme, **files))["train"]["label"][:] == [0, 1, 2]


def test_spaces_around_a_label_do_not_count_and_that_is_said(tmp_path, capsys):
    rows = [(text, f" {label}" if number < 20 else label) for number, (text, label) in enumerate(SIXTY)]
    dataset = load(write(tmp_path / "a", train_csv=table(rows)))
    assert names_of(dataset) == ["no", "yes"]
    assert_says(capsys.readouterr().out, "train.csv", "'label'", "spaces around 20 labels")


@pytest.mark.parametrize(
    ("usual", "other"),
    [("yes", "Yes"), ("caf\u00e9", "cafe\u0301"), ("yes", "y\u200bes"), ("1", "01"), ("x y", "xy")],
)
def test_two_spellings_of_a_class_are_refused_with_both(tmp_path, usual, other):
    rows = [(text, other if number == 5 else usual if number % 2 else 2) for number, (text, _) in enumerate(SIXTY)]
    if usual != "1":
        rows = [(text, label if label != 2 else "no") for text, label in rows]
    folder = write(tmp_path / "a", train_csv=table(rows))
    assert_says(
        refusal(load, folder), "row 7, column 'label'", ascii(usual), ascii(other), "row 3", "write one of them"
    )


def test_spellings_are_compared_between_files(tmp_path):
    folder = write(tmp_path / "a", train_csv=table(SIXTY), test_csv=table([("a", "YES"), ("b", "no")]))
    assert_says(refusal(load, folder), "test.csv, row 2", "'YES'", "'yes'", "train.csv, row 3")


@pytest.mark.parametrize("label", [-1, ""])
def test_a_test_without_labels_is_left_out_and_cut_from_train(tmp_path, capsys, label):
    folder = write(tmp_path / "a", train_csv=table(SIXTY), test_csv=table([("a", label), ("b", label)]))
    assert load(folder).num_rows == {"train": 44, "test": 12, "validation": 4}
    assert_says(capsys.readouterr().out, "Not used: split 'test', which has no labels", "cut out of 'train'")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (table([(text, "a\nb") for text, _ in SIXTY]).replace("a\nb", '"a\nb"'), ["several lines"]),
        (table([(text, "long " * 50) for text, _ in SIXTY]), ["200 characters"]),
        (table([(text, number / 10) for number, (text, _) in enumerate(SIXTY)]), ["row", "0.1 is not a class"]),
        (
            table([(label, text) for text, label in SIXTY]),
            ["'text 0 of dogs' has 1 row only", "classes with too few: 60"],
        ),
    ],
    ids=["lines", "long", "fractions", "texts"],
)
def test_a_column_that_holds_no_classes(tmp_path, content, parts):
    assert_says(refusal(load, write(tmp_path / "a", train_csv=content)), "'label'", *parts)


def test_columns_are_only_guessed_where_they_are_alike(tmp_path):
    folder = write(tmp_path / "a", train_csv=table(SIXTY, "comment,target"))
    message = refusal(load, folder)
    assert_says(message, "no column 'text' among 'comment', 'target'", "set text_column to its name")
    assert "'target' to" not in message
    assert_says(refusal(load, write(tmp_path / "b", train_csv=table(SIXTY, "Text,label"))), "set text_column to 'Text'")
    folder = write(tmp_path / "c", train_csv=table(SIXTY), test_csv="id,text\n1,a\n")
    message = refusal(load, folder)
    assert_says(message, "test.csv", "set label_column")
    assert "'id' to" not in message

    def load_one_column(place):
        return load(place, text_column="label")

    assert_says(refusal(load_one_column, folder), "both 'label'", "two columns")


def test_columns_that_nobody_needs_do_not_stop_a_run(tmp_path, capsys):
    more = "".join(f"new {text},{label},x\n" for text, label in SIXTY)
    folder = write(tmp_path / "a", train_csv=table(SIXTY), test_csv="text,label,source\n" + more)
    assert load(folder).num_rows == {"train": 54, "test": 60, "validation": 6}
    huge = "".join(json.dumps({"text": text, "label": label, "id": 2**70}) + "\n" for text, label in SIXTY)
    assert "id" not in load(write(tmp_path / "b", train_jsonl=huge))["train"].features
    assert "Left out: column 'id'" in capsys.readouterr().out


def test_a_text_with_two_classes_is_counted(tmp_path, capsys):
    load(write(tmp_path / "a", train_csv=table([*SIXTY, ("Text 0 of DOGS!", "yes")])))
    assert_says(capsys.readouterr().out, "Warning: 1 of 60 different texts", "more than one class")


def test_a_text_of_more_than_a_million_characters_is_refused(tmp_path):
    folder = write(tmp_path / "a", train_csv=table([*SIXTY, ("x" * 1_000_001, "yes")]))
    assert_says(refusal(load, folder), "train.csv, row 62, column 'text'", "too long", "shorten it")


# ---- what a baseline counts


@pytest.mark.parametrize(
    ("texts", "unit"),
    [
        (["open the window", "!"], "word"),
        (["привет мир"], "word"),
        (["안녕 세상"], "word"),
        (["42 17"], "word"),
        (["😡", "😀😀"], "char"),
        (["这个产品不好第0次"], "char"),
        (["カタカナ です"], "char"),
        (["สวัสดี ครับ"], "char"),
        (["5 3 2", "x y"], "char"),
    ],
)
def test_a_baseline_counts_what_the_texts_have(texts, unit):
    assert data.classification.unit_to_count(texts) == unit
    counter = TfidfVectorizer(analyzer=unit, ngram_range=(1, 2)).fit(texts)
    assert len(counter.vocabulary_) > 0
