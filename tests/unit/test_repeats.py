"""Texts that repeat each other stay on one side of a cut, and every class is on all sides."""

import random

import pytest
from conftest import refusal
from data_files import assert_says
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from utils.data import repeats, rules, splitting

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("aro", "enti", "olu", "isk", "uma")]
PARTS = ("train", "validation", "test")


def sentences(count, words, seed=0):
    chosen = random.Random(seed)
    return [" ".join(chosen.sample(WORDS, words)) for _ in range(count)]


def train_of(texts, labels):
    names = sorted(set(labels))
    rows = {"text": texts, "label": [names.index(label) for label in labels]}
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return DatasetDict(train=Dataset.from_dict(rows, features=features))


def cut(texts, labels, seed=0):
    return splitting.add_missing_splits(train_of(texts, labels), seed, stratify_by_column="label", group_by=texts)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Open it!", "open  it", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("open\u200bit", "open it", True),
        ("“Open it”", '"open it"', True),
        ("😀", "😡", False),
        ("?!", "!!", False),
        ("3 + 2", "3 - 2", False),
        ("एक", "एका", False),
    ],
)
def test_what_makes_no_other_text(first, second, same):
    assert (repeats.as_compared(first) == repeats.as_compared(second)) is same


def test_near_repeats_are_found_in_long_texts_and_in_those_without_spaces_but_not_in_short_ones():
    long = sentences(50, 30)
    changed = [text.replace(text.split()[7], "changed") for text in long]
    numbers = repeats.groups(long + changed)
    assert numbers[:50] == numbers[50:]
    assert len(set(numbers)) == 50
    assert len(set(repeats.groups(long + changed, near=False))) == 100
    unspaced = ["".join(chr(0x4E00 + int(word, 36) % 4000) for word in text.split()) * 4 for text in long]
    assert len(set(repeats.groups([*unspaced, *(text + "了" for text in unspaced)]))) == 50
    assert len(set(repeats.groups(["open the left window", "open the right window"]))) == 2


@pytest.mark.parametrize("copies", [3, "near"])
def test_copies_of_a_text_stay_on_one_side(copies):
    texts = sentences(100, 30)
    versions = 2 if copies == "near" else copies
    rows = [f"{text} {'again' * (number if copies == 'near' else 0)}" for text in texts for number in range(versions)]
    labels = [random.Random(row // versions).choice("ab") for row in range(len(rows))]
    dataset = cut(rows, labels)
    bases = {split: {" ".join(text.split()[:30]) for text in dataset[split]["text"]} for split in PARTS}
    assert sum(map(len, bases.values())) == 100, "each text is in one split"
    assert 0.15 < len(dataset["test"]) / len(rows) < 0.25
    assert all(set(dataset[split]["label"][:]) == {0, 1} for split in PARTS)
    assert sorted(text for split in PARTS for text in dataset[split]["text"]) == sorted(rows)


def test_many_classes_of_few_rows_are_all_in_each_part():
    labels = [f"class {number % 77:02}" for number in range(770)]
    dataset = cut(sentences(770, 8), labels)
    assert dataset.num_rows == {"train": 539, "test": 154, "validation": 77}
    assert all(len(set(dataset[split]["label"][:])) == 77 for split in PARTS)


def test_a_class_of_few_rows_is_named_with_what_it_needs():
    def load():
        return cut(sentences(22, 8), ["usual"] * 20 + ["rare"] * 2)

    assert_says(refusal(load), "column 'label'", "class 'rare' has 2 rows only, and 3 are needed", "add rows")


def test_a_class_of_one_text_is_cut_by_rows_and_that_is_said(capsys):
    dataset = cut(["😡", "😀"] * 30, ["no", "yes"] * 30)
    assert dataset.num_rows == {"train": 44, "test": 12, "validation": 4}
    assert_says(capsys.readouterr().out, "Warning", "'no', 'yes'", "too good")


def test_near_repeats_in_given_splits_are_counted(capsys):
    texts = sentences(10, 30)
    rules.warn_of_repeats({"train": texts, "test": [texts[0], f"{texts[1]} again", *sentences(3, 30, seed=9)]})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert_says(out, "1 of 5 texts of 'test'", "and 1 nearly do")
