"""Comparisons that strangers wrote: read, never run; bad ones get a sentence; each prompt stands on one side."""

import contextlib
import csv
import functools
import json
import random
import re
import time
import zlib

import datasets
import pytest
from conftest import refusal
from data_files import assert_says, jsonl, never, on_the_hub
from datasets import Dataset, DatasetDict, load_dataset

from utils import errors
from utils.data import preferences

COLUMNS = ["id", *preferences.TEXTS, *preferences.WINNERS]
A, B, TIE = (1, 0, 0), (0, 1, 0), (0, 0, 1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_cache"))


def row(number, prompt='["Where is it?"]', a='["Here."]', b='["There."]', winners=A):
    """A row as a dict; its prompt tells its number, so that no two rows are repeats."""
    texts = (prompt.replace("?", f" {number}?"), a, b)
    return dict(zip(COLUMNS, (number, *texts, *winners), strict=True))


def rows(count, first=0):
    return [row(number, winners=(A, B, TIE)[number % 3]) for number in range(first, first + count)]


def write(folder, name="train.csv", content=(), columns=COLUMNS):
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(content)
    return folder


def write_held_out(folder):
    """A validation and a test file of three good rows, so that no row of train is held out."""
    write(folder, "validation.csv", rows(3, first=5000))
    return write(folder, "test.csv", rows(3, first=6000))


def load(place, load_dataset=never, **settings):
    return preferences.load(place, load_dataset, **settings)


def load_from_hub(train, bad_rows="refuse", **splits):
    """The comparisons of a set on the hub with these rows in train, and three good ones in validation and test."""
    splits = {"validation": rows(3, first=5000), "test": rows(3, first=6000), **splits, "train": train}
    dataset = DatasetDict()
    for split, of_split in splits.items():
        columns = {name: [one[name] for one in of_split] for name in of_split[0]}
        dataset[split] = Dataset.from_dict(columns, on_mixed_types="use_json")
    return load("some/set", on_the_hub(dataset), bad_rows=bad_rows)


def in_order(frame):
    """The rows of a frame as dicts, by their id."""
    return frame.sort_values("id").to_dict("records")


# ---- turns: text that looks like a list, and nothing else


def test_turns_are_texts_and_null_is_an_empty_one():
    assert preferences.turns('["Where?", null, "NA", "null", ""]') == ["Where?", "", "NA", "null", ""]
    assert preferences.turns(" [] ") == []
    assert preferences.turns(r'["a\ud800b", "\udc00", "\ud83d\ude00"]') == ["a\ufffdb", "\ufffd", "😀"]
    assert preferences.turns('["\ud800"]') == ["\ufffd"]


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ("Where is the horn?", "is not JSON"),
        ("", "is not JSON"),
        ("['Where?', None]", "is not JSON"),
        ('["Where?"', "is not JSON"),
        ('["Where?",\n]', "is not JSON"),
        ('["Where?"] ["there"]', "is not JSON"),
        (f"[{'9' * 5000}]", "is not JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ('["Where?", 7]', "is not a list of texts"),
        ('["Where?", ["there"]]', "is not a list of texts"),
        ("[NaN]", "is not a list of texts"),
        ('{"Where": "there"}', "is not a list of texts"),
        ('"Where?"', "is not a list of texts"),
        ("null", "is not a list of texts"),
        (r'["nul\u0000"]', "holds a NUL"),
        (json.dumps(["x" * 10 * 2**20]), "10,485,764 characters long"),
        (None, "None is not text"),
        (float("nan"), "nan is not text"),
        (["Where?"], "is not text"),
    ],
)
def test_what_is_no_list_of_texts_gets_one_short_sentence(cell, fault):
    started = time.process_time()
    message = refusal(preferences.turns, cell)
    assert fault in message
    assert len(message) < 250
    assert time.process_time() - started < 1


def test_any_text_comes_back_or_is_refused():
    rng = random.Random(0)
    alphabet = [*'"\\[],aé😀\n\r\0\x85\u2028\ud800\udfff', "null"]
    refused = 0
    for _ in range(3000):
        texts = ["".join(rng.choices(alphabet, k=rng.randrange(8))) for _ in range(rng.randrange(4))]
        texts += [chr(rng.randrange(0x110000))]
        cell = json.dumps(texts, ensure_ascii=rng.random() < 0.5)
        if "\0" in "".join(texts):
            assert "holds a NUL" in refusal(preferences.turns, cell)
            refused += 1
            continue
        found = preferences.turns(cell)
        for text, turn in zip(json.loads(cell), found, strict=True):
            assert turn == "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
        "".join(found).encode()
    assert 100 < refused < 2900
    for _ in range(3000):  # no list at all, mostly: nothing but a CourseError may come out
        with contextlib.suppress(errors.CourseError):
            assert preferences.turns("".join(rng.choices(alphabet, k=rng.randrange(12)))) is not None


@pytest.mark.parametrize("column", preferences.TEXTS)
def test_a_cell_is_never_executed(tmp_path, column):
    canary = tmp_path / "canary"
    hostile = f"__import__('os').system('touch {canary}')"
    train = [*rows(200), row(900) | {column: hostile}]
    with pytest.raises(errors.CourseError, match="is not JSON"):
        preferences.turns(hostile)
    folder = write_held_out(write(tmp_path / "set", content=train))
    assert f"train.csv, row 202, column {column!r}" in refusal(load, folder)
    assert len(load(folder, bad_rows="drop")["train"]) == 200
    assert f"row 200, column {column!r}" in refusal(load_from_hub, train)
    assert len(load_from_hub(train, "drop")["train"]) == 200
    assert not canary.exists()
    eval(hostile)  # what it would have done
    assert canary.exists()


# ---- rows


BAD = {
    "empty prompt": (dict(prompt='["  "]'), "'prompt'", "write a question"),
    "no prompt": (dict(prompt="[]", a="[]", b="[]"), "'prompt'", "write a question"),
    "both empty": (dict(a="[null]", b='[" "]'), "'response_a'", "are both empty"),
    "too few turns": (dict(prompt='["Where?", "Why?"]'), "'response_a'", "'prompt': 2"),
    "too many turns": (dict(b='["There.", "So."]'), "'response_a'", "'response_b': 2"),
    "no winner": (dict(winners=(0, 0, 0)), "'winner_model_a'", "are 0, 0, 0; write 1 in one"),
    "two winners": (dict(winners=(1, 0, 1)), "'winner_model_a'", "are 1, 0, 1; write 1 in one"),
    "a word": (dict(winners=("yes", 0, 0)), "'winner_model_a'", "are yes, 0, 0; write 1 in one"),
    "half a win": (dict(winners=(0.5, 0.5, 0)), "'winner_model_a'", "are 0.5, 0.5, 0; write 1 in one"),
    "nothing": (dict(winners=(None, 0, 1)), "'winner_model_a'", "; write 1 in one"),
    "a long cell": (dict(a=json.dumps(["x" * 10 * 2**20])), "'response_a'", "10,485,764 characters long"),
    "deep": (dict(a="[" * 100_000), "'response_a'", "nested too deep"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_refused_or_dropped_and_counted(tmp_path, capsys, name):
    changes, column, fault = BAD[name]
    train = [*rows(150), row(900, **changes)]
    folder = write_held_out(write(tmp_path / "set", content=train))
    assert_says(refusal(load, folder), f"train.csv, row 152, column {column}", fault)
    kept = load(folder, bad_rows="drop")["train"]
    assert "split 'train': 150 comparisons, 0 repeats and 1 bad rows were dropped" in capsys.readouterr().out
    assert in_order(kept) == rows(150)
    assert {str(kind) for kind in kept[[*preferences.WINNERS]].dtypes} == {"int64"}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_of_loaded_data_is_named_refused_or_dropped(name):
    changes, column, fault = BAD[name]
    train = [*rows(150), row(900, **changes)]
    if name in ("a word", "half a win"):  # a column of the hub has one type
        train = [one | {winner: str(one[winner]) for winner in preferences.WINNERS} for one in train]
    assert_says(refusal(load_from_hub, train), f"split 'train' (rows count from 0), row 150, column {column}", fault)
    kept = load_from_hub(train, "drop")["train"]
    assert in_order(kept) == rows(150)
    assert {str(kind) for kind in kept[[*preferences.WINNERS]].dtypes} == {"int64"}


def test_good_rows_pass_as_they_are(tmp_path):
    train = [*rows(5), row(7, a="[null]"), row(8, a='["", null]', b='["x", "y"]', prompt='["NA", "null?"]')]
    folder = write_held_out(write(tmp_path / "set", content=train))
    assert in_order(load(folder)["train"]) == train
    assert in_order(load_from_hub(train)["train"]) == train


@pytest.mark.parametrize("empty", [None, float("nan")])
def test_an_id_must_be_there(empty):
    message = refusal(load_from_hub, [*rows(3), row(5) | {"id": empty}])
    assert "row 3, column 'id': is empty" in message


def test_an_id_of_spaces_is_empty(tmp_path):
    folder = write(tmp_path / "set", content=[*rows(3), row(5) | {"id": " "}])
    assert "row 5, column 'id': is empty" in refusal(load, folder)


def test_at_most_one_percent_is_dropped_but_one_row_always_may_be(tmp_path, capsys):
    bad = [row(900 + number, winners=(0, 0, 0)) for number in range(3)]
    assert len(load_from_hub([*rows(198), *bad[:2]], "drop")["train"]) == 198
    assert "and 2 bad rows" in capsys.readouterr().out
    message = refusal(load_from_hub, [*rows(197), *bad], "drop")
    assert "(3 of 200 rows are bad; at most 1 % may be dropped)" in message
    assert "row 197" in message
    assert len(load_from_hub([*rows(2), *bad[:1]], "drop")["train"]) == 2
    assert "(2 of 4 rows are bad" in refusal(load_from_hub, [*rows(2), *bad[:2]], "drop")
    assert "(1 of 1 rows are bad" in refusal(load_from_hub, bad[:1], "drop")
    folder = write_held_out(write(tmp_path / "set", content=[*rows(99), bad[0]]))
    write(folder, "train_more.csv", content=[*rows(97, first=300), *bad[1:]])
    refuse_drop = refusal(lambda place: load(place, bad_rows="drop"), folder)
    assert "(3 of 199 rows are bad; at most 1 % may be dropped)" in refuse_drop, "all files of a split count together"
    assert "train.csv, row 101, " in refuse_drop


def test_repeats_are_dropped_and_counted_with_the_same_id_or_another(capsys):
    train = rows(20)
    renamed = train[3] | {"id": 5003}
    kept = load_from_hub([*train, train[2], train[2], renamed])["train"]
    assert in_order(kept) == train
    assert "20 comparisons, 3 repeats and 0 bad rows were dropped" in capsys.readouterr().out
    swapped = train[4] | {"id": 5004, "response_a": train[4]["response_b"], "response_b": train[4]["response_a"]}
    assert len(load_from_hub([*train, swapped])["train"]) == 21, "the other order is no repeat"


def test_an_id_stands_for_one_comparison():
    message = refusal(load_from_hub, [*rows(20), row(900) | {"id": 7}])
    assert "column 'id': 7 stands for two comparisons; give each" in message


# ---- columns and files


def test_a_missing_column_is_named_with_the_closest(tmp_path):
    folder = write(tmp_path / "set", content=rows(3), columns=["id", "prompt", "respons_a", *COLUMNS[3:]])
    assert "no column 'response_a'" in refusal(load, folder)
    assert "rename the column 'respons_a' to 'response_a'" in refusal(load, folder)
    renamed = [{name.replace("winner_tie", "winner_ties"): value for name, value in one.items()} for one in rows(3)]
    assert "rename the column 'winner_ties' to 'winner_tie'" in refusal(load_from_hub, renamed)
    message = refusal(load, write(tmp_path / "other", columns=["text", "label"], content=[{"text": "x"}]))
    assert "no column 'id' among 'text', 'label'" in message


@pytest.mark.parametrize("split", ["train", "validation"])
def test_only_a_test_may_lack_the_winners_and_then_all_three(tmp_path, split):
    for name, columns in ((split, COLUMNS[:4]), ("test", COLUMNS[:5])):
        folder = write_held_out(write(tmp_path / name, content=rows(3)))
        write(folder, f"{name}.csv", rows(3), columns)
        assert "no column 'winner_" in refusal(load, folder)
        splits = {"train": rows(9), name: [{column: one[column] for column in columns} for one in rows(3)]}
        assert "no column 'winner_" in refusal(functools.partial(load_from_hub, **splits))


def test_a_test_without_winners_is_left_out_and_another_is_made_of_train(tmp_path, capsys):
    """As in the folder of the competition, which also holds an example of what to hand in."""
    folder = write(tmp_path / "set", content=rows(60))
    write(folder, "test.csv", rows(3, first=900), COLUMNS[:4])
    write(folder, "sample_submission.csv", rows(3), ["id", *preferences.WINNERS])
    frames = load(folder, n_folds=4)
    assert "split 'test': 3 comparisons" in capsys.readouterr().out
    assert sum(map(len, frames.values())) == 60
    assert all(len(frame) > 5 for frame in frames.values())
    empty = [one | dict.fromkeys(preferences.WINNERS) for one in rows(3, first=900)]
    assert not {*range(900, 903)} & {*load_from_hub(rows(200), test=empty)["test"]["id"]}, "empty columns are none"
    assert "are None, None, None" in refusal(lambda: load_from_hub(rows(9), validation=empty))


def test_rows_of_jsonl_are_numbered_by_line(tmp_path):
    lines = [json.dumps(one) for one in [*rows(2), row(9, winners=(1, True, 0))]]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    assert "train.jsonl, row 3, column 'winner_model_a'" in refusal(load, tmp_path)
    assert "correct dataset_id" in refusal(load, tmp_path / "nothing.csv")


def test_a_parquet_file_is_read_by_load_dataset(tmp_path):
    path = tmp_path / "a.parquet"
    Dataset.from_list(rows(60)).to_parquet(path)
    assert sum(map(len, load(path, load_dataset, n_folds=4).values())) == 60


# ---- splits


def test_a_prompt_stands_on_one_side_whatever_the_seed(tmp_path):
    prompts = [row(number)["prompt"] for number in range(120)]
    again = [
        row(number + 500) | {"prompt": prompt, "response_a": '["Elsewhere."]'} for number, prompt in enumerate(prompts)
    ]
    folder = write(tmp_path / "set", content=[*rows(120), *again])
    first, second = load(folder, n_folds=4, seed=0), load(folder, n_folds=4, seed=1)
    assert list(first) == ["train", "validation", "test"]
    for split, frame in first.items():
        assert sorted(frame["id"]) == sorted(second[split]["id"]), "the fold is a checksum of the prompt"
        assert frame["id"].tolist() != second[split]["id"].tolist(), "the order is drawn with the seed"
        assert frame.index.tolist() == list(range(len(frame)))
    folds = {split: {zlib.crc32(prompt.encode()) % 4 for prompt in frame["prompt"]} for split, frame in first.items()}
    assert folds == {"train": {2, 3}, "validation": {0}, "test": {1}}


def test_prompts_on_both_sides_give_one_line_with_counts(capsys):
    twice = [row(2) | {"id": 77, "response_a": '["Elsewhere."]'}, *rows(3, first=6000)]
    load_from_hub(rows(5), test=twice)
    assert "Warning: 1 of 4 texts of 'test' also stand in 'train'" in capsys.readouterr().out


# ---- other forms, doubtful winners, few prompts


@pytest.mark.parametrize("names", [("chosen", "rejected"), ("prompt", "winner"), ("prompt", "label")])
def test_other_forms_of_preferences_are_told_how_to_write(tmp_path, names):
    path = jsonl(tmp_path / "a.jsonl", dict.fromkeys(("id", *names), "x"))
    assert_says(refusal(load, path), f"comparisons with {names[0]!r} and {names[1]!r} are not read; write response_a")


@pytest.mark.parametrize("spelling", [(True, False), ("True", "false"), (" 1", "0"), (1.0, 0.0)])
def test_winners_may_be_spelt_in_several_ways(tmp_path, spelling):
    won, lost = spelling
    content = [
        row(n, f'["q{n}"]') | {name: won if place == n % 3 else lost for place, name in enumerate(preferences.WINNERS)}
        for n in range(3)
    ]
    frame = load(jsonl(tmp_path / "a.jsonl", *content), n_folds=None)["train"]
    assert frame[[*preferences.WINNERS]].to_numpy().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_cells_may_be_lists_and_have_one_spelling(tmp_path):
    texts = {"prompt": ["wo ü?"], "response_a": ["a"], "response_b": [None]}
    path = jsonl(
        tmp_path / "a.jsonl", row(1) | texts, row(2) | {name: json.dumps(cell) for name, cell in texts.items()}
    )
    frame = load(path, n_folds=None)["train"]
    assert frame[[*preferences.TEXTS]].to_numpy().tolist() == [['["wo ü?"]', '["a"]', "[null]"]]
    assert preferences.text_of('["a", null, "b"]') == "a\n\nb"


def test_winners_that_may_not_be_meant_are_counted(capsys):
    content = [row(1, '["q"]'), row(2, '["q"]', winners=B), row(3, '["r"]', '["x"]', '["x"]')]
    load_from_hub(content)
    out = capsys.readouterr().out
    assert "1 comparisons of equal answers have a winner; a tie may be meant" in out
    assert "1 of the repeats name another winner than the row that was kept" in out
    assert "every comparison is a tie" in refusal(lambda: load_from_hub([row(1, winners=TIE)]))


def test_a_prompt_in_other_case_and_punctuation_is_the_same_prompt(tmp_path):
    content = [row(n, json.dumps([f"Where is part {n % 20}{',!. '[n // 20]}"]), f'["{n}"]') for n in range(80)]
    splits = load(jsonl(tmp_path / "a.jsonl", *content), n_folds=8)
    prompts = {split: {text.strip('[]"?!., ') for text in frame["prompt"]} for split, frame in splits.items()}
    assert not prompts["train"] & (prompts["validation"] | prompts["test"])


def test_too_few_prompts_for_the_folds(tmp_path):
    content = [row(n, json.dumps([f"Question {n % 6} "]), f'["{n}"]') for n in range(12)]
    numbers = {zlib.crc32(one["prompt"].encode()) for one in content}
    count = next(count for count in range(8, 99) if not {0, 1} <= {number % count for number in numbers})
    path = jsonl(tmp_path / "a.jsonl", *content)
    message = refusal(lambda: load(path, n_folds=count))
    fits = re.search(rf"6 different prompts do not fill .* by n_folds {count}; set n_folds to (\d+), or add", message)
    assert min(map(len, load(path, n_folds=int(fits[1])).values())) > 0
    for count in (0, 1, 2):
        assert_says(refusal(lambda count=count: load(path, n_folds=count)), f"n_folds = {count} leaves nothing", "3 or")
