"""Texts with their summaries: what is refused, with which sentence, and what passes."""

import time

import datasets
import pytest
from conftest import refusal
from data_files import assert_says, jsonl, never, on_the_hub, splits_of
from datasets import Dataset, DatasetDict

from utils import data


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_cache"))


def bill(text="a law", summary="law", **more):
    return {"text": text, "summary": summary, **more}


def load(place, load_dataset=never, **settings):
    return data.summaries.load(place, load_dataset, **settings)


def load_from_hub(dataset, **settings):
    return load("some/set", on_the_hub(dataset), **settings)


# ---- files


def test_good_files_pass_and_are_loaded_as_they_were_written(tmp_path):
    for split in ("train", "validation", "test"):
        jsonl(tmp_path / f"{split}.jsonl", bill(title="T", id=1), bill("b", "NA", title="U", id=None))
    dataset = load(tmp_path)
    assert dataset["train"]["summary"][:] == ["law", "NA"]
    assert dataset["train"].column_names == ["text", "summary", "title", "id"]


def test_csv_keeps_words_that_pandas_takes_for_missing_and_texts_that_look_like_numbers(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text('text,summary\nNA,null\n"two\nlines",007\nNone,nan\n')
    dataset = load(tmp_path)
    assert dataset["train"]["text"][:] == ["NA", "two\nlines", "None"]
    assert dataset["train"]["summary"][:] == ["null", "007", "nan"]


def test_a_parquet_file_is_checked(tmp_path):
    path = tmp_path / "a.parquet"
    Dataset.from_list([bill(), bill(summary=" ")]).to_parquet(path)
    assert_says(refusal(load, path), "a.parquet", "row 1, column 'summary'", "empty text")


def test_missing_splits_are_cut_out_of_train():
    rows = [bill(f"law {number}") for number in range(100)]
    dataset = load_from_hub(splits_of(train=rows), seed=3)
    assert dataset.num_rows == {"train": 72, "test": 20, "validation": 8}
    assert sorted(text for part in dataset.values() for text in part["text"]) == sorted(row["text"] for row in rows)
    assert load_from_hub(splits_of(train=rows), seed=3)["test"]["text"][:] == dataset["test"]["text"][:]
    assert load_from_hub(splits_of(train=rows), seed=4)["test"]["text"][:] != dataset["test"]["text"][:]


BIG = "x" * 10_000_000
BAD = {  # second line of the file, parts of the sentence
    "another name": ({"text": "a", "sumary": "b"}, ["row 2", "'summary'", "empty text"]),
    "empty": (bill(summary="  "), ["row 2, column 'summary'", "is an empty text; write one, or delete"]),
    "null": (bill(None), ["row 2, column 'text'", "None is an empty text"]),
    "number": (bill(summary=7), ["row 2, column 'summary'", "7 is not text", "double quotes"]),
    "NUL": (bill("a\0b"), ["row 2, column 'text'", "a NUL or a broken character; retype it"]),
    "half a character": (bill("\ud83d x"), ["row 2, column 'text'", "broken character"]),
    "10 MB": (bill(BIG), ["row 2, column 'text'", "too long (up to 10,000,000 characters", "shorten it"]),
    "not JSON": ("{'text': 1}", ["row 2: this is not a JSON object"]),
    "deep JSON": ("[" * 100_000, ["row 2: this is not a JSON object"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_gets_one_sentence(tmp_path, case):
    row, parts = BAD[case]
    path = jsonl(tmp_path / "train.jsonl", bill(), row)
    assert_says(refusal(load, path), str(path), *parts)
    jsonl(path, *[bill(f"law {n}") for n in range(10)])
    assert load(path).num_rows == {"train": 7, "test": 2, "validation": 1}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("text,sumary\na,b\n", ["no column 'summary'", "rename the column 'sumary' to 'summary'"]),
        ("text;summary\na;b\n", ["'text;summary'", "put a comma between the columns"]),
        ("text,summary\na,b\nc\n", ["row 3: not as many fields as the header"]),
        ('text,summary\n"a,b\n', ["a double quote is not closed"]),
        ("text,summary\n", ["it has no rows"]),
    ],
)
def test_a_bad_csv_gets_one_sentence(tmp_path, content, parts):
    (tmp_path / "train.csv").write_text(content)
    assert_says(refusal(load, tmp_path), "train.csv", *parts)


def test_a_path_that_does_not_exist():
    assert_says(refusal(load, "./nowhere"), "'./nowhere': no such file", "correct dataset_id")


# ---- loaded data


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([bill(), bill(summary="")], ["split 'train' (rows count from 0), row 1, column 'summary': '' is an empty"]),
        ([bill(None), bill()], ["row 0, column 'text'", "empty text"]),
        ([bill(summary=1)], ["row 0, column 'summary'", "1 is not text"]),
        ([bill(["a"])], ["row 0, column 'text'", "is not text"]),
        ([bill("a\0")], ["row 0, column 'text'", "NUL"]),
        ([bill("x" * 1_000_001)], ["row 0, column 'text'", "up to 1,000,001 characters"]),
        ([{"text": "a", "abstract": "b"}], ["no column 'summary'", "or set summary_column to its name"]),
    ],
)
def test_bad_rows_of_loaded_data_name_split_and_row(rows, parts):
    assert_says(refusal(load_from_hub, splits_of(train=rows)), *parts)
    longest = bill("x" * 1_000_000)
    load_from_hub(splits_of(train=[longest], validation=[longest], test=[longest]))


def test_splits_that_are_missing_or_empty_or_not_asked_for(capsys):
    good, bad = [bill(f"law {n}") for n in range(10)], [bill(summary="")]
    assert_says(refusal(load_from_hub, splits_of(test=good)), "no split 'train'", "train.jsonl")
    assert_says(refusal(load_from_hub, splits_of(train=good)["train"]), "no split 'train'")
    with_empty = DatasetDict(splits_of(train=good) | {"validation": Dataset.from_dict({"text": [], "summary": []})})
    assert_says(refusal(load_from_hub, with_empty), "split 'validation'", "no rows")
    dataset = load_from_hub(splits_of(train=good, ca_test=bad))
    assert set(dataset) == {"train", "validation", "test"}
    assert "Not used: split 'ca_test'" in capsys.readouterr().out


def test_texts_on_both_sides_give_one_line_with_counts(capsys):
    more = {"validation": [bill("one more")]}
    load_from_hub(splits_of(train=[bill("a law", "x")], test=[bill("another", "x")], **more))
    assert capsys.readouterr().out == ""
    load_from_hub(splits_of(train=[bill("a law", "x")], test=[bill(" A\nLAW ", "y"), bill("b", "x")], **more))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert_says(out, "Warning: 1 of 2 texts of 'test' also stand in 'train'")


def test_hub_data_of_many_long_rows_is_quick():
    text = "the law of roads, " * 555
    part = Dataset.from_dict({"text": [f"{n} {text}" for n in range(20_000)], "summary": ["s"] * 20_000})
    start = time.perf_counter()
    load_from_hub(DatasetDict(train=part, test=part.select(range(100))))
    assert time.perf_counter() - start < 30  # about 6 s
    bad = DatasetDict(train=Dataset.from_dict({"text": ["a"] * 20_000, "summary": [""] * 20_000}))
    assert_says(refusal(load_from_hub, bad), "rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … (20000 in all)")


# ---- facts, and columns that may not be meant


@pytest.mark.parametrize(
    ("facts", "bad"), [("$5", "'$5'"), ([5], "[5]"), (["", "a"], "['', 'a']"), ({"a": 1}, "{'a': 1}"), (5, "5")]
)
def test_facts_are_a_list_of_texts(tmp_path, facts, bad):
    path = jsonl(tmp_path / "a.jsonl", bill(facts=["a"]), bill(facts=facts))
    assert_says(refusal(load, path), f"row 2, column 'facts': {bad} is not a list of texts; write one, such as")


def test_facts_of_a_csv_file_become_lists(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text('text,summary,facts\na,b,"[""$5""]"\nc,d,\n')
    assert load(tmp_path)["train"]["facts"][:] == [["$5"], None]


def test_columns_that_seem_to_have_changed_places_are_named(tmp_path, capsys):
    rows = [bill(f"law {n}", f"a summary that is longer than law {n}") for n in range(9)]
    load(jsonl(tmp_path / "a.jsonl", *rows))
    assert_says(capsys.readouterr().out, "9 of 9 summaries of 'train' are longer", "summary_column 'summary'")
    assert "both 'text'; name a column" in refusal(lambda: load(tmp_path, summary_column="text"))


def test_repeats_of_a_text_stay_on_one_side(tmp_path):
    rows = [bill(f"Law {n % 12}{'.! '[n // 12]}", f"s{n}") for n in range(36)]
    found = load(jsonl(tmp_path / "a.jsonl", *rows))
    laws = {split: {text.strip(".! ") for text in part["text"]} for split, part in found.items()}
    assert not laws["train"] & (laws["test"] | laws["validation"])
