import json
import os
import time

import datasets
import pytest
from conftest import refusal
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset

from utils import session
from utils.data import classification

NAMES = ["call", "music", "navigate"]
README = (
    "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n"
    "      class_label:\n        names:\n"
    + "".join(f"          '{number}': {name}\n" for number, name in enumerate(NAMES))
    + "---\n# Intents\n"
)
GOOD = '{"text": "ring mum", "label": "call"}\n{"text": "play jazz", "label": "music"}\n'
GOOD += '{"text": "go home", "label": "navigate"}\n'


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def write(folder, readme=None, **files):
    """Write a data folder; a file name is spelt with _ for its dot."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("_", ".")).write_bytes(content)
    if readme:
        (folder / "README.md").write_text(readme)
    return folder


def assert_says(message, *parts):
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"


def as_dataset(features=None, **splits):
    """A DatasetDict with the given labels; every text is different."""
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"text": [f"{split} {n}" for n in range(len(labels))], "label": labels}, features=features
            )
            for split, labels in splits.items()
        }
    )


DECLARED = Features({"text": Value("string"), "label": ClassLabel(names=NAMES)})


# ---- good data passes, and is loaded as it was written


@pytest.mark.parametrize(
    "train",
    [
        {"train_jsonl": GOOD},
        {"train_jsonl": GOOD.replace('"call"', "0").replace('"music"', "1").replace('"navigate"', "2")},
        {"train_jsonl": GOOD.replace('"call"', '"0"').replace('"music"', '"1"').replace('"navigate"', '"2"')},
        {"train_csv": "text,label\nring mum,call\nplay jazz,music\ngo home,navigate\n"},
        {"train_csv": "text,label\nring mum,0\nplay jazz,1\ngo home,2\n"},
    ],
    ids=["jsonl names", "jsonl numbers", "jsonl digits", "csv names", "csv numbers"],
)
def test_the_readme_of_a_folder_declares_the_classes(tmp_path, train):
    dataset = load_dataset(**classification.data_source(write(tmp_path / "intents", README, **train)))
    assert dataset["train"].features["label"] == ClassLabel(names=NAMES)
    assert dataset["train"]["text"][:] == ["ring mum", "play jazz", "go home"]
    assert dataset["train"]["label"][:] == [0, 1, 2]
    assert classification.check_dataset(dataset) == NAMES


def test_a_folder_keeps_its_splits(tmp_path):
    other = GOOD.replace('"text": "', '"text": "please ')
    folder = write(tmp_path / "test data", README, train_jsonl=GOOD, validation_jsonl=other, test_jsonl=other)
    dataset = load_dataset(**classification.data_source(str(folder)))
    assert dataset.num_rows == {"train": 3, "validation": 3, "test": 3}
    assert classification.check_dataset(dataset) == NAMES


@pytest.mark.parametrize("spelling", ["csv", "./csv/", "~/csv"])
def test_a_folder_may_be_relative_to_here_or_to_home(tmp_path, monkeypatch, spelling):
    write(tmp_path / "csv", README, train_jsonl=GOOD)  # "csv" alone means a file format to load_dataset
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_dataset(**classification.data_source(spelling)).num_rows == {"train": 3}


CSV = "text,label\nNA,null\nnull,nan\nNone,null\nnan,nan\n"


@pytest.mark.parametrize("name", ["train.csv", "mine (1).csv"])
def test_csv_keeps_words_that_pandas_takes_for_missing(tmp_path, name):
    (tmp_path / name).write_text(CSV if name.endswith("csv") else CSV.replace(",", "\t"))
    dataset = load_dataset(**classification.data_source(tmp_path / name))
    assert dataset["train"]["text"][:] == ["NA", "null", "None", "nan"]
    assert dataset["train"]["label"][:] == ["null", "nan", "null", "nan"]
    assert classification.check_dataset(dataset) == ["nan", "null"]


def test_csv_in_a_folder_with_a_readme_keeps_them_too(tmp_path):
    readme = README.replace("music", "'null'")
    folder = write(tmp_path / "a", readme, train_csv="text,label\nNA,call\nnull,null\nnan,navigate\n")
    dataset = load_dataset(**classification.data_source(folder))
    assert dataset["train"]["text"][:] == ["NA", "null", "nan"]
    assert dataset["train"]["label"][:] == [0, 1, 2]


def test_csv_numbers_stay_text_and_labels_come_out_as_strings(tmp_path):
    rows = "".join(f"{number},{number % 12}\n" for number in range(24))
    folder = write(tmp_path / "a", train_csv="text,label\n" + rows)
    dataset = load_dataset(**classification.data_source(folder))
    assert dataset["train"]["text"][:3] == ["0", "1", "2"]
    assert dataset["train"]["label"][:3] == ["0", "1", "2"]
    assert classification.check_dataset(dataset) == [str(number) for number in range(12)]  # 10 after 9, not after 1


@pytest.mark.parametrize("name", ["a.jsonl"])
def test_json_numbers_stay_numbers_and_need_no_names(tmp_path, name):
    rows = [json.dumps({"text": f"row {n}", "label": n % 150, "more": [n]}) for n in range(300)]
    (tmp_path / name).write_text(f"[{','.join(rows)}]" if name == "a.json" else "\n\n".join(rows))
    dataset = load_dataset(**classification.data_source(tmp_path / name))
    assert dataset["train"]["label"][:3] == [0, 1, 2]
    assert classification.check_dataset(dataset) == [str(number) for number in range(150)]


def test_class_names_fit_the_cast_of_the_notebook():
    dataset = as_dataset(train=[7, 10, 7], test=[10])
    names = classification.check_dataset(dataset)
    cast = dataset.cast_column("label", Value("string")).cast_column("label", ClassLabel(names=names))
    assert names == ["7", "10"]
    assert (cast["train"]["label"][:], cast["test"]["label"][:]) == ([0, 1, 0], [1])


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    table = "\ufefftext,label\r\nring mum,call\r\nplay jazz,music\r\n".encode()
    folder = write(tmp_path / "a", a_csv=table, b_jsonl=b"\xef\xbb\xbf" + GOOD.encode())
    for name in ("a.csv", "b.jsonl"):
        dataset = load_dataset(**classification.data_source(folder / name))
        assert dataset["train"].column_names == ["text", "label"]
        assert dataset["train"][0] == {"text": "ring mum", "label": "call"}


def test_quoted_csv_and_very_long_texts_are_accepted(tmp_path):
    long = "long " * 200_000
    path = tmp_path / "a.csv"
    path.write_text(f'text,label\n"two\nlines, ""quoted""",call\n\n{long},music\n')
    dataset = load_dataset(**classification.data_source(path))
    assert dataset["train"]["text"][0] == 'two\nlines, "quoted"'
    assert dataset["train"]["text"][1] == long


def test_a_parquet_file_is_checked_after_loading(tmp_path):
    path = tmp_path / "a.parquet"
    as_dataset(train=["call", ""])["train"].to_parquet(path)
    dataset = load_dataset(**classification.data_source(path))
    assert_says(
        refusal(classification.check_dataset, dataset), "split 'train'", "row 1", "'label'", "empty label", "delete"
    )


@pytest.mark.parametrize("hub_id", ["fancyzhx/ag_news", "imdb", "stanfordnlp/sst2"])
def test_a_hub_id_is_left_alone(hub_id):
    assert classification.data_source(hub_id) == {"path": hub_id}


def test_large_files_are_cheap(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"text": "this is the text of row {n}", "label": {n % 5}}}\n' for n in range(20_000))
    start = time.perf_counter()
    classification.data_source(path)
    assert time.perf_counter() - start < 10  # about 0.2 s; a check that reads the file again and again takes minutes


# ---- a path that is none


@pytest.mark.parametrize(
    "dataset_id",
    ["./nowhere", "~/nowhere", "/no/where", "nowhere/", "a/b/c", "../x", "my.csv", "x/my.jsonl", " ", ""],
)
def test_a_path_that_does_not_exist(dataset_id):
    assert_says(refusal(classification.data_source, dataset_id), repr(dataset_id), "no such file", "correct dataset_id")


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "a.xlsx"
    path.write_bytes(b"PK")
    assert_says(refusal(classification.data_source, path), "a.xlsx", ".csv", ".parquet")


def test_a_bracket_in_the_path_would_be_a_pattern_to_load_dataset(tmp_path):
    path = tmp_path / "a[1].jsonl"
    path.write_text(GOOD)
    assert_says(refusal(classification.data_source, path), "a[1].jsonl", "without '['")


@pytest.mark.parametrize(
    "files", [{}, {"train_csv": CSV, "test_jsonl": GOOD}], ids=["empty folder", "two kinds of files"]
)
def test_a_folder_that_load_dataset_cannot_read(tmp_path, files):
    folder = write(tmp_path / "a", **files)
    assert_says(refusal(classification.data_source, folder), str(folder), "name the files train, validation and test")


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
        ["'label'", "'1.5' in row 3", "1 in row 2", "numbers only"],
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
    assert_says(refusal(classification.data_source, folder), str(folder / name), *parts)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_file_of_a_folder_is_checked(tmp_path, split):
    bad = '{"text": "a", "label": "radio"}\n'
    folder = write(tmp_path / "a", README, train_jsonl=GOOD, **{f"{split}_jsonl": GOOD + bad})
    assert_says(refusal(classification.data_source, folder), f"{split}.jsonl, row 4", "'label'", "'radio'")


@pytest.mark.parametrize("bad", ["{}", '{"text": "", "label": "call"}', '{"text": "a", "label": ""}'])
def test_of_many_bad_rows_ten_are_named_and_all_are_counted(tmp_path, bad):
    folder = write(tmp_path / "a", train_jsonl=GOOD + f"{bad}\n" * 25)
    message = refusal(classification.data_source, folder)
    assert_says(message, "rows 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, … (25 in all)")


def test_the_columns_may_have_other_names(tmp_path):
    folder = write(tmp_path / "a", train_csv="question,intent\na,call\n,music\n")
    assert_says(refusal(classification.data_source, folder, "question", "intent"), "row 3", "'question'", "empty")


# ---- loaded data


def test_bad_rows_of_loaded_data_name_split_and_index():
    dataset = as_dataset(train=["call", None, "music"])
    assert_says(refusal(classification.check_dataset, dataset), "split 'train'", "row 1,", "'label'", "empty", "delete")
    dataset = as_dataset(train=[0.0, 1.0])
    assert_says(
        refusal(classification.check_dataset, dataset), "split 'train'", "rows 0, 1,", "'label'", "whole number"
    )


@pytest.mark.parametrize(("label", "remedy"), [(9, "correct it"), (-1, "whole number")])
def test_load_dataset_lets_wrong_numbers_pass_but_check_dataset_does_not(tmp_path, label, remedy):
    bad = GOOD + json.dumps({"text": "a", "label": label}) + "\n" + GOOD
    numbers = bad.replace('"call"', "0").replace('"music"', "1").replace('"navigate"', "2")
    folder = write(tmp_path / "a", README, train_jsonl=numbers)
    dataset = load_dataset(str(folder))
    assert dataset["train"]["label"][:4] == [0, 1, 2, label]
    assert_says(
        refusal(classification.check_dataset, dataset), "split 'train'", "row 3,", "'label'", str(label), remedy
    )


def test_a_missing_column_of_loaded_data():
    dataset = as_dataset(train=[0, 1]).rename_column("text", "content")
    assert_says(
        refusal(classification.check_dataset, dataset), "split 'train'", "'text'", "'content', 'label'", "rename"
    )


def test_the_training_split_must_be_there():
    assert_says(refusal(classification.check_dataset, as_dataset(test=[0, 1])), "no split 'train'", "train.jsonl")
    assert_says(refusal(classification.check_dataset, as_dataset(train=[0, 1])["train"]), "no split 'train'")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split(split):
    dataset = as_dataset(DECLARED, **({"train": [0, 1, 2], "test": [0]} | {split: []}))
    assert_says(refusal(classification.check_dataset, dataset), f"split '{split}'", "no rows", "add")


@pytest.mark.parametrize("labels", [["call"], ["call", "call"]])
def test_one_class_only(labels):
    dataset = as_dataset(train=labels, test=["call"])
    assert_says(
        refusal(classification.check_dataset, dataset), "'train'", "'label'", "one class only", "call", "add rows"
    )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_training_never_shows(split):
    dataset = as_dataset(**{"train": ["call", "music"], split: ["call", "radio"]})
    assert_says(refusal(classification.check_dataset, dataset), "'train'", "'label'", "radio", split, "add rows of it")


def test_a_declared_class_that_training_never_shows():
    dataset = as_dataset(DECLARED, train=[0, 2, 0], test=[0])
    assert_says(
        refusal(classification.check_dataset, dataset), "'train'", "'label'", "music", "declar", "add rows of it"
    )


def test_other_splits_are_left_alone():
    assert classification.check_dataset(as_dataset(train=[0, 1], unsupervised=[-1, -1])) == ["0", "1"]


def test_a_text_on_both_sides_gives_one_line_with_counts(capsys):
    dataset = as_dataset(train=[0, 1, 0], validation=[0], test=[0, 1])
    classification.check_dataset(dataset)
    assert capsys.readouterr().out == ""
    dataset["test"] = Dataset.from_dict({"text": ["  TRAIN\n 1", "new", "train 2"], "label": [0, 1, 0]})
    classification.check_dataset(dataset)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert_says(out, "Warning", "2 of 3 texts", "'test'", "'train'", "remove")


# ---- the output folder


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    folder = session.writable_folder(str(tmp_path / "outputs" / "tiny"))
    assert folder == tmp_path / "outputs" / "tiny"
    assert list(folder.iterdir()) == []
    assert session.writable_folder(folder) == folder


@pytest.mark.parametrize("path", ["file", "file/below", "/proc/x"])
def test_a_folder_that_cannot_be_written(tmp_path, path):
    (tmp_path / "file").write_text("in the way")
    if path.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("there is no /proc here")
    message = refusal(session.writable_folder, tmp_path / path)
    assert_says(message, path, "cannot write", "OUTPUT_DIR")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("declared", [True, False])
def test_an_edited_file_is_read_again(declared, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    if declared:
        files = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.jsonl\n"
        (folder / "README.md").write_text(f"---\n{files}---\n")
    for number, text in enumerate(("first", "second")):
        (folder / "train.jsonl").write_text(f'{{"text": "{text}", "label": 1}}\n')
        os.utime(folder / "train.jsonl", (10**9 + number, 10**9 + number))
        loaded = load_dataset(**classification.data_source(folder), cache_dir=str(tmp_path / "cache"))
        assert loaded["train"]["text"][:] == [text]
