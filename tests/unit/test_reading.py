"""How a data set is found and read: each file once, line by line, and what was checked is what comes back."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import zipfile
from pathlib import Path

import datasets
import pandas as pd
import pytest
from conftest import ROOT, refusal
from data_files import assert_says, jsonl, never, splits_of, write
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError

from utils import data, errors
from utils.data import files, reading

README = "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: n\n    dtype: {}\n---\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_cache"))


def read(place, load_dataset=never, text_columns=("text",)):
    return reading.to_datasets(reading.read(place, load_dataset), text_columns)


# ---- once


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_each_file_is_read_once_and_what_was_checked_is_trained(tmp_path, monkeypatch, suffix):
    opened = []
    usual = Path.read_bytes

    def read_bytes(path):
        """Reads the file, and then another process changes it: nothing of that must come back."""
        content = usual(path)
        opened.append(path.name)
        path.write_text("text,label\n,\n")
        return content

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    content = {
        "csv": "text,label\nopen it,a\nclose it,b\n",
        "jsonl": '{"text": "open it", "label": "a"}\n{"text": "close it", "label": "b"}\n',
    }[suffix]
    files = {f"{split}_{suffix}": content for split in ("train", "validation", "test")}
    dataset = data.classification.load(write(tmp_path / "a", **files), never)
    assert opened == [f"{split}.{suffix}" for split in ("train", "validation", "test")]
    assert dataset["test"].to_list() == [{"text": "open it", "label": 0}, {"text": "close it", "label": 1}]


@pytest.mark.parametrize("kind", ["classification", "summaries", "conversations", "preferences"])
def test_every_kind_is_found_and_read_by_one_function(monkeypatch, kind):
    def found(dataset_id, load_dataset):
        raise errors.CourseError(f"{dataset_id} was read.")

    monkeypatch.setattr(reading, "read", found)
    assert refusal(getattr(data, kind).load, "x", load_dataset) == "x was read."


@pytest.mark.parametrize("declared", [True, False])
def test_an_edited_file_is_read_again(declared, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    if declared:
        files = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.jsonl\n"
        (folder / "README.md").write_text(f"---\n{files}---\n")
    for number, text in enumerate(("first", "second")):
        jsonl(folder / "train.jsonl", {"text": text, "label": 1})
        os.utime(folder / "train.jsonl", (10**9 + number, 10**9 + number))
        assert read(folder)["train"]["text"][:] == [text]


def test_an_edited_parquet_file_is_read_again(tmp_path):
    files = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.parquet\n"
    (tmp_path / "README.md").write_text(f"---\n{files}---\n")
    for number, text in enumerate(("first", "second")):
        Dataset.from_dict({"text": [text]}).to_parquet(tmp_path / "train.parquet")
        os.utime(tmp_path / "train.parquet", (10**9 + number, 10**9 + number))
        assert read(tmp_path, load_dataset)["train"]["text"][:] == [text]


# ---- as load_dataset


@pytest.mark.parametrize("name", ["driver_intent", "toy_bills", "car_manual", "toy_preference"])
def test_committed_data_is_what_load_dataset_makes_of_it(name):
    folder = ROOT / "data" / name
    text_columns = ("prompt", "response_a", "response_b") if name == "toy_preference" else ("text",)
    found, expected = read(folder, text_columns=text_columns), load_dataset(str(folder))
    assert list(found) == list(expected)
    for split, part in expected.items():
        assert found[split].to_list() == part.to_list()
        if name != "toy_preference":  # pandas calls the texts of a CSV file large strings
            assert found[split].features == part.features


def test_several_files_of_a_split_are_joined_and_splits_have_the_same_columns(tmp_path):
    jsonl(tmp_path / "train.jsonl", {"text": "a", "n": 1}, {"text": "b"})
    jsonl(tmp_path / "train_more.jsonl", {"n": 2.5, "text": "c", "more": ["x"]})
    jsonl(tmp_path / "test.jsonl", {"text": "d"})
    dataset = read(tmp_path)
    assert dataset["train"].to_list() == [
        {"text": "a", "n": 1.0, "more": None},
        {"text": "b", "n": None, "more": None},
        {"text": "c", "n": 2.5, "more": ["x"]},
    ]
    assert dataset["test"].to_list() == [{"text": "d", "n": None, "more": None}]
    assert dataset["test"].features == dataset["train"].features


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1", "-2", "+3", "007"], [1, -2, 3, 7]),
        (["1", "2.5", ".5", "1e3"], [1.0, 2.5, 0.5, 1000.0]),
        (["True", "false", "TRUE"], [True, False, True]),
        (["1", "two"], ["1", "two"]),
        (["1", ""], ["1", ""]),
        (["1", "nan"], ["1", "nan"]),
        (["1_0", "2"], ["1_0", "2"]),
        (["9" * 30, "1"], [1e30, 1.0]),
    ],
)
def test_a_csv_column_of_numbers_becomes_numbers_unless_it_is_a_text(tmp_path, texts, values):
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "other"), *zip(texts, texts, strict=True)])
    dataset = read(tmp_path)
    assert dataset["train"]["other"][:] == values
    assert dataset["train"]["text"][:] == texts


def test_declared_types_are_kept_and_what_does_not_fit_is_a_sentence(tmp_path):
    for kind, values in (("int64", [1, 2]), ("string", ["1", "2"]), ("float64", [1.0, 2.0])):
        folder = write(tmp_path / kind, README.format(kind), train_csv="n,text\n1,a\n2,b\n")
        part = read(folder)["train"]
        assert part.column_names == ["text", "n"], "the declared order"
        assert part["n"][:] == values
    (folder / "train.csv").write_text("n,text\n1,a\nx,b\n")
    assert_says(refusal(read, folder), "train.csv", "'x'", "README.md")
    (folder / "train.csv").unlink()
    jsonl(folder / "train.jsonl", {"text": "a", "n": "\ud800"})
    assert_says(refusal(read, folder), "train.jsonl", "surrogates", "README.md")


def test_a_json_column_of_mixed_values_is_no_obstacle(tmp_path):
    jsonl(tmp_path / "train.jsonl", {"text": "a", "id": 1}, {"text": "b", "id": "two"})
    assert read(tmp_path)["train"]["id"][:] == [1, "two"]
    jsonl(tmp_path / "train.jsonl", {"text": 2**70})
    assert_says(refusal(read, tmp_path), "train.jsonl", "too large", "write values of one kind")


def test_files_of_two_kinds_are_refused(tmp_path):
    jsonl(tmp_path / "train.jsonl", {"text": "a"})
    (tmp_path / "test.json").write_text('[{"text": "b"}]')
    assert_says(refusal(read, tmp_path), "files of several kinds (.json, .jsonl)", "as one kind")


def test_too_much_text_is_refused_before_it_is_read(tmp_path, monkeypatch):
    jsonl(tmp_path / "train.jsonl", {"text": "a"})
    monkeypatch.setattr(files, "LARGEST", 5)
    monkeypatch.setattr(Path, "read_bytes", never)
    assert_says(refusal(read, tmp_path), "GiB of text", "save the rows as .parquet")


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    table = "\ufefftext,label\r\nring mum,call\r\nplay jazz,music\r\n".encode()
    rows = b'\xef\xbb\xbf{"text": "ring mum", "label": "call"}\r\n{"text": "play jazz", "label": "music"}\r\n'
    folder = write(tmp_path / "a", a_csv=table, b_jsonl=rows)
    for name in ("a.csv", "b.jsonl"):
        dataset = read(folder / name)
        assert dataset["train"].column_names == ["text", "label"]
        assert dataset["train"][0] == {"text": "ring mum", "label": "call"}


def test_quoted_csv_and_very_long_texts_are_accepted(tmp_path):
    long = "long " * 200_000  # Python's csv stops at 131,072 characters
    path = tmp_path / "a.csv"
    path.write_text(f'text,label\n"two\nlines, ""quoted""",call\n\n{long},music\n')
    dataset = read(path)
    assert dataset["train"]["text"][0] == 'two\nlines, "quoted"'
    assert dataset["train"]["text"][1] == long


def zipped(data, name="train.csv"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, data)
        archive.writestr(f"__MACOSX/._{name}", "what macOS adds")
    return file.getvalue()


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zip": zipped}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("alone", [True, False])
def test_a_compressed_file_is_read_as_the_file_in_it(tmp_path, compression, alone):
    path = tmp_path / f"TRAIN.CSV.{compression}"
    path.write_bytes(COMPRESS[compression](b"text,n\nNA,1\n007,2\n"))
    rows = [{"text": "NA", "n": 1}, {"text": "007", "n": 2}]
    assert read(path if alone else tmp_path)["train"].to_list() == rows
    path.write_bytes(path.read_bytes()[:-20])
    assert_says(refusal(read, path), "TRAIN.CSV", "no longer whole", "fetch it again")


# ---- the hub


GATED = DatasetNotFoundError("Dataset 'some/set' is a gated dataset on the Hub.")


@pytest.mark.parametrize(
    ("problem", "offline", "parts"),
    [
        (GATED, False, ["gated", "https://huggingface.co/datasets/some/set", "accept its terms"]),
        (DatasetNotFoundError("Dataset 'some/set' doesn't exist"), False, ["no file or folder", "correct dataset_id"]),
        (ConnectionError("no route\nto host"), False, ["the hub does not answer (no route)", "try again"]),
        (ConnectionError("line"), True, ["the hub is switched off", "profile tiny", "PROFILE=colab"]),
        (PermissionError(13, "Permission denied", "/cache"), False, ["/cache", "HF_HOME"]),
        (ValueError("Config name is missing.\nPick one of: ['a', 'b']"), False, ["['a', 'b']", "functools.partial"]),
        (RuntimeError("Dataset scripts are no longer supported"), False, ["scripts are no longer", ".parquet"]),
    ],
)
def test_a_set_that_cannot_be_read_gets_one_sentence(problem, offline, parts, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)

    def reads(problem):
        def load_dataset(name):
            raise problem

        return reading.read("some/set", load_dataset)

    message = refusal(reads, problem)
    assert_says(message, "some/set: ", *parts)
    assert "\n" not in message
    if problem is not GATED:
        assert "gated" not in message
    assert refusal(reads, errors.CourseError("Mine stays.")) == "Mine stays."
    with pytest.raises(KeyError):
        reads(KeyError("a fault of the program is not hidden"))


def test_the_function_may_be_one_with_more_settings():
    found = []

    def load_dataset(name, revision=None):
        found.append((name, revision))
        return splits_of(train=[{"text": "a", "summary": "b"}] * 20)

    def read_the_first_version(name):
        return load_dataset(name, revision="1.0")

    data.summaries.load("some/set", read_the_first_version)
    assert found == [("some/set", "1.0")]


# ---- formats that people have


ROWS = [{"text": "ring mum, now", "label": "call"}, {"text": "play jazz", "label": "music"}]
AS_JSON = json.dumps(ROWS, indent=1).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("DATA.CSV", b'text,label\n"ring mum, now",call\nplay jazz,music\n'),
        ("a.tsv", b"text\tlabel\nring mum, now\tcall\nplay jazz\tmusic\n"),
        ("index.csv", b',text,label\n0,"ring mum, now",call\n1,play jazz,music\n'),
        ("commas.csv", b'text, label,\n"ring mum, now",call,\nplay jazz,music,\n'),
        ("mac.csv", b'text,label\r"ring mum, now",call\rplay jazz,music\r'),
        ("a.json", AS_JSON),
        ("array.jsonl", AS_JSON),
        ("lines.json", b"\n".join(json.dumps(row).encode() for row in ROWS)),
        ("a.ndjson", b"\n".join(json.dumps(row).encode() for row in ROWS)),
    ],
)
def test_a_file_as_people_have_it(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert read(path)["train"].to_list() == ROWS


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", b"text;label\nring mum, now;call\n", ["row 1", "'text;label'", "comma"]),
        ("a.csv", b"text\tlabel\nring mum, now\tcall\n", ["row 1", "comma"]),
        ("a.tsv", b"text,label\na,b\n", ["row 1", "'text,label'", "tab"]),
        ("a.csv", b"sep=;\ntext;label\n", ["row 1", "'sep=;'", "delete this line"]),
        ("a.tsv", b'text\tlabel\na\tx\n"b\tx\nc\tx\nd"\tx\n', ["row 3", "'text'", "3 lines", "quote"]),
        ("a.tsv", b'text\tlabel\na\tx\n"b\tx\nc" d\tx\n', ["row 3", "double quote is not closed"]),
        ("a.csv", b'text,label\na,x\n"b,x\nc,x\nd",x\n', ["row 3", "'text'", "3 lines", "quote"]),
        ("a.csv", gzip.compress(b"text", mtime=0), ["compressed with gzip"]),
        ("a.csv", b"PK\x03\x04 and more", ["Excel"]),
        ("a.csv", "text".encode("utf-16-le"), ["UTF-16", "save the file as UTF-8"]),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS", "git lfs pull"]),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS", "git lfs pull"]),
        ("a.parquet", b"PAR1 and no more", ["whole Parquet file", "again"]),
        ("a.parquet", b"", ["whole Parquet file", "again"]),
        ("a.csv", b"<!DOCTYPE html><html>", ["web page"]),
        ("a.json", AS_JSON[:-30], ["after object 1"]),
        ("a.json", AS_JSON[:-2] + b', {"text": "a", "text": "b"}]', ["row 3", "'text' stands twice"]),
        ("a.json", b'{"data": [\n{"text": "a"}]}', ["row 1", "one object a line"]),
        ("a.zip", zipped(b"text,label\n", "a.txt"), [".csv", ".parquet"]),
        ("a.tar.gz", b"", [".csv", ".parquet"]),
    ],
)
def test_a_file_that_is_not_what_its_name_says_gets_one_sentence(tmp_path, name, content, parts):
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(read, path)
    assert_says(message, str(path), *parts)
    assert "\n" not in message


def test_a_quoted_text_of_several_lines_is_no_fault(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"Dear all,\nmany thanks",x\n"one, two\nthree, four\nfive",y\n')
    assert read(path)["train"]["text"][:] == ["Dear all,\nmany thanks", "one, two\nthree, four\nfive"]


def test_parquet_of_pandas_is_read_without_a_cache(tmp_path, monkeypatch):
    path = tmp_path / "A.PARQUET"
    frame = pd.DataFrame({"text": pd.Categorical(["a", "b", "a"]), "day": pd.period_range("2020", periods=3, freq="D")})
    frame["nested"] = [{"x": [1]}] * 3
    frame.to_parquet(path)
    stamp = path.stat().st_mtime_ns
    assert read(path)["train"]["text"][:] == ["a", "b", "a"]
    frame.assign(text=["c", "d", "e"]).to_parquet(path)
    os.utime(path, ns=(stamp, stamp))
    assert read(path)["train"]["text"][:] == ["c", "d", "e"]


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def read_bytes(path):
        raise PermissionError(13, "Permission denied", str(path))

    jsonl(tmp_path / "train.jsonl", *ROWS)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    message = refusal(read, tmp_path)
    assert_says(message, "train.jsonl", "may not read", "chmod")
    assert "gated" not in message


# ---- which file is which split


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Train.csv", "TEST.csv"], {"train": 1, "test": 1}),
        (["train.csv", "dev.csv", "eval.csv"], {"train": 1, "validation": 1, "test": 1}),
        (["data/train/a.csv", "data/val/a.csv"], {"train": 1, "validation": 1}),
        (["train-00000-of-00002.csv", "train-00001-of-00002.csv"], {"train": 2}),
        (["one.csv", "two.csv"], {"train": 2}),
        (["train.csv", "._train.csv", ".ipynb_checkpoints/train-checkpoint.csv", "__MACOSX/train.csv"], {"train": 1}),
        (["training_set/test_rows.csv", "train.csv"], {"train": 1, "test": 1}),
    ],
)
def test_the_split_stands_in_the_name(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text\na\n")
    assert read(tmp_path).num_rows == expected


def test_a_file_that_names_no_split_is_left_out_and_that_is_said(tmp_path, capsys):
    for name in ("train.csv", "holdout.csv"):
        (tmp_path / name).write_text("text\na\n")
    assert read(tmp_path).num_rows == {"train": 1}
    assert_says(capsys.readouterr().out, "Not used: holdout.csv", "to use it")


def test_several_files_of_a_split_are_named(tmp_path, capsys):
    for name in ("train.csv", "train (copy).csv"):
        (tmp_path / name).write_text("text\na\n")
    read(tmp_path)
    assert_says(capsys.readouterr().out, "split 'train': the rows of 2 files, train (copy).csv, train.csv")


def test_a_file_of_two_splits_is_refused(tmp_path):
    (tmp_path / "train_test.csv").write_text("text\na\n")
    assert_says(refusal(read, tmp_path), "train_test.csv", "both 'train' and 'test'", "rename")


def test_a_folder_of_save_to_disk_is_refused_with_what_to_write(tmp_path):
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    assert_says(refusal(read, tmp_path / "saved"), "save_to_disk", "to_parquet")


def test_a_readme_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path, "---\n: : [\n---\n", train_csv="text\na\n")
    assert_says(refusal(read, tmp_path), "README.md", "cannot be read", "---")


def test_a_split_dev_of_a_readme_stands_in_for_validation(tmp_path, capsys):
    files = "configs:\n- config_name: default\n  data_files:\n"
    files += "  - split: train\n    path: train.csv\n  - split: dev\n    path: d.csv\n"
    write(tmp_path, f"---\n{files}---\n", train_csv="text\na\n", d_csv="text\nb\n")
    assert read(tmp_path)["validation"]["text"][:] == ["b"]
    assert "split 'dev' is used as 'validation'" in capsys.readouterr().out


def test_parquet_files_with_other_columns_and_types_go_together(tmp_path, capsys):
    Dataset.from_dict({"text": ["a"], "n": [1], "odd": [1]}).to_parquet(tmp_path / "train.parquet")
    more = {"text": ["b"], "n": [2.5], "odd": [{"x": 1}], "more": ["y"]}
    Dataset.from_dict(more).to_parquet(tmp_path / "train-2.parquet")
    Dataset.from_dict({"text": ["c"], "n": [3]}).to_parquet(tmp_path / "test.parquet")
    dataset = read(tmp_path)
    assert dataset["train"].to_list() == [{"text": "b", "n": 2.5, "more": "y"}, {"text": "a", "n": 1.0, "more": None}]
    assert dataset["test"].to_list() == [{"text": "c", "n": 3.0, "more": None}]
    assert "Left out: column 'odd'" in capsys.readouterr().out
