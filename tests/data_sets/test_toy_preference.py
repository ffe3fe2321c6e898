"""The comparisons rebuild byte for byte, are drawn from the chances that stand beside them, and leak nowhere."""

import csv
import json
import re
import sys
from collections import Counter

import datasets
import numpy as np
import pytest
from conftest import ROOT
from datasets import load_dataset
from sklearn.metrics import log_loss
from test_car_manual import pattern, wordings

from utils.data import preferences, reading

sys.path.insert(0, str(ROOT / "data" / "builders"))
import build_car_manual
import build_toy_preference as builder

FOLDER = ROOT / "data" / "toy_preference"
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
FILES = ("train.csv", "train_more.csv", "test.csv", "true_probabilities.csv")
WINNERS = [*preferences.WINNERS]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def read(name):
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


TRUTH = {row["id"]: [float(row[name]) for name in builder.TRUE] for row in read("true_probabilities.csv")}
FIRST = read("train.csv")
ROWS = {"train": FIRST + read("train_more.csv"), "test": read("test.csv")}
ROWS["train"] = list({tuple(row[text] for text in preferences.TEXTS): row for row in ROWS["train"]}.values())


def texts(row):
    return [json.loads(row[name]) for name in preferences.TEXTS]


def truth(rows):
    return np.array([TRUTH[row["id"]] for row in rows])


def winners(rows):
    return np.array([[int(row[name]) for name in WINNERS] for row in rows]).argmax(axis=1)


def facts_asked(questions):
    """{(part, attribute)} that questions ask for, found by their words."""
    found = set()
    for question in questions:
        part = next(p for p in sorted(build_car_manual.PARTS, key=len, reverse=True) if p in question)
        wording = question.replace(part, "<part>")
        found |= {(part, name) for name, known in build_car_manual.ATTRIBUTES.items() if wording in known["train"]}
    return found


# ---- files


def test_it_rebuilds_byte_for_byte(tmp_path):
    assert builder.write(tmp_path) == {name: len(read(name)) for name in FILES}
    for name in FILES:
        built = (tmp_path / name).read_bytes()
        assert b"\r" not in built
        assert built == (FOLDER / name).read_bytes(), name
    assert builder.comparisons(seed=1)["test"] != builder.comparisons()["test"]


@pytest.mark.parametrize("card", [True, False], ids=["card", "no card"])
def test_it_loads_with_and_without_its_card_and_true_chances_stay_outside(tmp_path, capsys, card):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in (*FILES, *["README.md"] * card):
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    tables = reading.read(folder, load_dataset)
    dataset = reading.to_datasets(tables, preferences.TEXTS)
    assert {split: part.num_rows for split, part in dataset.items()} == {"train": 2420, "test": 600}
    assert {tuple(part.column_names) for part in dataset.values()} == {tuple(builder.COLUMNS)}
    frames = preferences.load(folder, load_dataset)
    assert len(frames["train"]) + len(frames["validation"]) == 2300
    assert len(frames["test"]) == 600
    assert "2300 comparisons, 120 repeats and 0 bad rows" in capsys.readouterr().out
    kinds = {str(part.features[name].dtype) for part in dataset.values() for name in ("id", *WINNERS)}
    assert kinds == {"int64"}
    assert dataset["test"].to_pandas().astype(str).to_dict("records") == ROWS["test"], "as the file has them"


def test_the_columns_are_those_of_the_arena_and_the_cells_lists_with_nulls():
    arena = "id,model_a,model_b,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie"
    for name in FILES[:3]:
        assert (FOLDER / name).read_text(encoding="utf-8").split("\n")[0] == arena
    for split, rows in ROWS.items():
        nulls = 0
        for row in rows:
            prompt, a, b = texts(row)
            assert len(prompt) == len(a) == len(b)
            assert len(prompt) in (1, 2)
            assert all(isinstance(turn, str) and turn for turn in prompt)
            assert all(turn is None or (isinstance(turn, str) and turn) for turn in a + b)
            assert sorted(row[name] for name in WINNERS) == ["0", "0", "1"]
            assert row["model_a"] != row["model_b"]
            nulls += None in a + b
        assert f"{nulls} {'training' if split == 'train' else 'test'}" in CARD
        assert nulls > 30


def test_the_second_file_repeats_rows_of_the_first_some_under_another_id():
    known = {tuple(row[text] for text in preferences.TEXTS): row for row in FIRST}
    assert len(known) == len(FIRST) == 1150
    more = read("train_more.csv")
    again = [row for row in more if tuple(row[text] for text in preferences.TEXTS) in known]
    renamed = [row for row in again if row["id"] != known[tuple(row[text] for text in preferences.TEXTS)]["id"]]
    assert (len(more), len(again), len(renamed)) == (1270, 120, 30)
    for row in again:
        first = known[tuple(row[text] for text in preferences.TEXTS)]
        assert row | {"id": ""} == first | {"id": ""}, "the winner, too"
        assert TRUTH[row["id"]] == TRUTH[first["id"]]
    assert not {row["id"] for row in ROWS["test"]} & {row["id"] for row in FIRST + more}


# ---- what is held out


def test_no_fact_of_a_test_prompt_is_asked_for_in_training():
    asked = {split: [facts_asked(json.loads(row["prompt"])) for row in rows] for split, rows in ROWS.items()}
    for split, rows in ROWS.items():
        for row, found in zip(rows, asked[split], strict=True):
            assert len(found) == len(json.loads(row["prompt"])), row
    train, test = (set().union(*asked[split]) for split in ("train", "test"))
    assert (len(train), len(test)) == (288, 72)
    assert not train & test
    assert not {row["prompt"] for row in ROWS["train"]} & {row["prompt"] for row in ROWS["test"]}


def test_the_text_of_pre_training_holds_no_row_and_no_held_out_wording():
    documents = builder.world_letters(40_000)  # as many as tiny-gemma-2 has read
    text = "\n".join(documents)
    for split in ("validation", "test"):
        assert not [wording for wording in wordings(split) if _start(wording) in text and pattern(wording).search(text)]
    some = "\n".join(documents[:4000])
    assert [w for w in wordings("train") if pattern(w).search(some)] == wordings("train"), "the search must find some"
    assert not [name for name in builder.MODELS if name in text]
    assert "null" not in text
    lines = [line for document in documents for line in document.split("\n")]
    seen = {(q[10:], *sorted((a[18:], b[19:]))) for q, a, b in zip(lines, lines[1:], lines[2:], strict=False)}
    for split, most in (("train", 0.005), ("test", 0.005)):  # short answers meet by chance
        met = sum(
            any((q, *sorted((a or "", b or ""))) in seen for q, a, b in zip(*texts(row), strict=True))
            for row in ROWS[split]
        )
        assert met <= most * len(ROWS[split]), split
        assert re.search(rf"\b{met} of (?:the )?{len(ROWS[split]):,} {split}", CARD), (met, split)
    compared = [d for d in documents if re.search(r"\nThe first answer: .*\nThe second answer: .*\n(?:W|Q)", d)]
    question, first, second = compared[0].split("Question: ")[1].split("\n")[:3]
    assert (question, *sorted((first[18:], second[19:]))) in seen, "the search must find what is there"


def _start(wording):
    """The longest piece of a wording without a name in it, to look for before the slow search."""
    return max(re.split("<part>|<value>", wording), key=len)


# ---- the known preferences


def test_the_true_chances_are_chances_and_the_winners_were_drawn_from_them():
    assert np.array([*TRUTH.values()]).sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert np.array([*TRUTH.values()]).min() > 0
    for split, rows in ROWS.items():
        chances, won = truth(rows), np.eye(3)[winners(rows)]
        error = np.sqrt((chances * (1 - chances)).sum(axis=0)) / len(rows)
        assert (abs(won.mean(axis=0) - chances.mean(axis=0)) < 3 * error).all(), split
        others = np.roll(chances, 1, axis=0)  # those of another row
        assert log_loss(winners(rows), others) > log_loss(winners(rows), chances) + 0.2
        for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 1)):
            inside = (chances >= low) & (chances < high)
            assert abs(won[inside].mean() - chances[inside].mean()) < 3 * (0.25 / inside.sum()) ** 0.5 + 0.005
    wrong = [np.eye(3)[winners(ROWS["test"])].mean(axis=0), truth(ROWS["train"]).mean(axis=0)]
    assert abs(wrong[0] - wrong[1]).max() > 0.1, "chances of the other split must fail"


def test_the_best_possible_scores_are_those_of_the_card():
    for split, rows in ROWS.items():
        chances, won = truth(rows), winners(rows)
        found = [log_loss(won, chances), np.mean(chances.argmax(axis=1) == won), *np.bincount(won) / len(won)]
        assert f"| {split} | {len(rows):,} | " in CARD
        line = next(line for line in CARD.splitlines() if line.startswith(f"| {split} | {len(rows):,} | "))
        prompts = Counter(row["prompt"] for row in rows)
        assert line.split(" | ")[2:4] == [str(len(prompts)), str(sum(len(json.loads(p)) == 2 for p in prompts))]
        assert re.findall(r"\d\.\d{3}", line) == [f"{number:.3f}" for number in found]
    assert log_loss(winners(ROWS["test"]), np.full((600, 3), 1 / 3)) == pytest.approx(np.log(3))


def test_the_first_place_counts_in_training_and_not_in_the_test():
    gaps = {split: truth(rows)[:, 0] - truth(rows)[:, 1] for split, rows in ROWS.items()}
    assert gaps["train"].mean() > 0.15
    assert abs(gaps["test"].mean()) < 3 * gaps["test"].std() / len(gaps["test"]) ** 0.5
    assert gaps["train"].mean() > 10 * gaps["train"].std() / len(gaps["train"]) ** 0.5, "the measure must find it there"
    same = builder.chances(1.0, 1.0)
    assert same == (0.25, 0.25, 0.5)
    assert builder.chances(2.0, 0.5) == pytest.approx([builder.chances(0.5, 2.0)[place] for place in (1, 0, 2)])
    assert builder.FIRST_BONUS["train"] > builder.FIRST_BONUS["test"] == 0
    a, b, tie = builder.chances(1.0 + builder.FIRST_BONUS["train"], 1.0)
    assert f"{builder.FIRST_BONUS['train']} more worth there" in CARD
    assert f"{a:.2f}, {b:.2f} and {tie:.2f}" in CARD
    models = {split: Counter(row["model_a"] for row in rows) for split, rows in ROWS.items()}
    for split, rows in ROWS.items():
        for count in models[split].values():
            assert abs(count / len(rows) - 1 / 4) < 3 * (3 / 16 / len(rows)) ** 0.5, "no model stands first more often"


def test_a_right_answer_counts_most_and_readers_differ_from_people():
    for marks in (builder.EXTRAS, builder.TONES):
        assert max(marks.values()) - min(marks.values()) < builder.RIGHT
    silent = {"right": 0.0, "kind": 0.4, "useful": 0.8, "worth": 1.2}
    rude = {"right": 1.0, "kind": -0.8, "useful": -0.2, "worth": 1.4}
    assert builder.judged(rude, "better") > builder.judged(silent, "better"), "a reader looks at what is right first"
    half = {"right": 0.5, "kind": 0.4, "useful": 0.8, "worth": 2.4}
    assert builder.judged(rude, "better") > builder.judged(half, "better")
    a, b, _ = builder.chances(half["worth"], rude["worth"])
    assert a > 4 * b, "a person weighs"
    for number in (builder.RIGHT, *builder.EXTRAS.values(), *builder.TONES.values(), builder.SCALE, builder.TIE):
        assert str(number).replace("-", "−") in CARD, number
    for name, (right, helps, chatters, tones) in builder.MODELS.items():
        shares = f"{right:.2f} | {helps:.2f} | {chatters:.2f} | {' : '.join(map(str, tones))}"
        assert f"| `{name}` | {shares} |" in CARD
