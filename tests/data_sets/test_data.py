"""The data set rebuilds byte for byte, its splits are disjoint, and it is neither easy nor hopeless."""

import sys

import numpy as np
import pytest
from conftest import ROOT
from datasets import ClassLabel, load_dataset
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(ROOT / "data" / "builders"))
import build_datasets

FOLDER = ROOT / "data" / "driver_intent"


@pytest.fixture(scope="module")
def splits():
    return build_datasets.driver_intent()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(str(FOLDER), cache_dir=str(tmp_path_factory.mktemp("cache")))


def word_overlap(left, right):
    """Highest share of common words (Jaccard) of each text in `left` with any text in `right`."""
    vectorizer = CountVectorizer(binary=True, token_pattern=r"\w+").fit([*left, *right])
    a, b = vectorizer.transform(left).astype(float), vectorizer.transform(right).astype(float)
    common = (a @ b.T).toarray()
    sizes = np.asarray(a.sum(axis=1)).reshape(-1, 1) + np.asarray(b.sum(axis=1)).reshape(1, -1)
    return (common / (sizes - common)).max(axis=1)


def tfidf_score(train, test):
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=2000))
    return model.fit(train["text"][:], train["label"][:]).score(test["text"][:], test["label"][:])


def test_it_rebuilds_byte_for_byte(tmp_path, monkeypatch):
    for name in ("train", "validation", "test"):
        assert b"\r" not in (FOLDER / f"{name}.jsonl").read_bytes()
    (tmp_path / "driver_intent").mkdir()
    monkeypatch.setattr(build_datasets, "DATA", tmp_path)
    build_datasets.main()
    for name in ("train", "validation", "test"):
        built = (tmp_path / "driver_intent" / f"{name}.jsonl").read_bytes()
        assert built == (FOLDER / f"{name}.jsonl").read_bytes(), name


def test_another_seed_gives_other_rows(splits):
    assert build_datasets.driver_intent(seed=1)["train"] != splits["train"]


def test_sizes_classes_and_balance(dataset):
    assert {split: rows.num_rows for split, rows in dataset.items()} == {"train": 800, "validation": 100, "test": 200}
    for rows in dataset.values():
        assert rows.features["label"] == ClassLabel(names=build_datasets.LABELS)
        assert len(set(np.bincount(rows["label"][:]))) == 1


def test_no_family_and_no_template_is_in_two_splits():
    wordings = build_datasets.WORDINGS
    seen = {}
    for split in ("train", "validation", "test", "unlabelled"):
        for label in build_datasets.LABELS:
            for templates in wordings[split][label].values():
                for template in templates:
                    assert seen.setdefault(template, split) == split, template


def test_rows_come_from_families_of_their_split(splits):
    for split, rows in splits.items():
        for row in rows:
            assert row["template"] in build_datasets.WORDINGS[split][row["label"]][row["family"]]


def test_the_column_family_names_them_and_no_two_splits_share_one(dataset):
    families = {split: set(rows["family"]) for split, rows in dataset.items()}
    assert {split: len(names) for split, names in families.items()} == {"train": 52, "validation": 20, "test": 45}
    for split, rows in dataset.items():
        for label, family in zip(rows["label"], rows["family"], strict=True):
            assert family.startswith(build_datasets.LABELS[label] + "/"), (split, family)


def test_no_near_duplicates_between_splits_or_in_the_unlabelled_text(splits):
    texts = {split: [row["text"].lower() for row in rows] for split, rows in splits.items()}
    unlabelled = sorted({line.lower() for line, _ in build_datasets.world_dialogues(30_000)})
    assert word_overlap(texts["validation"], texts["train"]).max() < 0.8
    assert word_overlap(texts["test"], texts["train"] + texts["validation"]).max() < 0.8
    assert word_overlap(texts["test"] + texts["validation"], unlabelled).max() < 0.8


def test_the_measure_of_near_duplicates_finds_one():
    assert word_overlap(["please open my window"], ["Open my window, please!".lower(), "play jazz"]) == [1.0]
    assert word_overlap(["open my window now"], ["open my window right now"]) == [0.8]


def test_a_word_counter_is_neither_lost_nor_enough(dataset):
    assert 0.60 <= tfidf_score(dataset["train"], dataset["test"]) <= 0.90


def test_with_wordings_mixed_between_the_splits_it_would_be_enough(dataset):
    mixed = dataset["train"].train_test_split(0.2, seed=0, stratify_by_column="label")
    assert tfidf_score(mixed["train"], mixed["test"]) > 0.90


@pytest.mark.parametrize("word", ["no wait", "don't", "not ", "window", "over there"])
def test_hard_kinds_are_in_it(dataset, word):
    texts = [text.lower() for rows in dataset.values() for text in rows["text"]]
    assert sum(word in text for text in texts) >= 5


def test_other_mentions_windows_and_cold_air(dataset):
    test = dataset["train"].filter(lambda row: row["label"] == build_datasets.LABELS.index("other"))
    texts = " ".join(test["text"]).lower()
    assert texts.count("window") >= 20
    assert texts.count("cold") >= 5


def test_the_dialogues_of_the_world_are_built_and_unread():
    """What a model has forgotten is asked on dialogues that its pre-training has not read."""
    rows = load_dataset("json", data_files=str(ROOT / "data" / "driver_world" / "dialogues.jsonl"), split="train")
    pairs = list(zip(rows["driver"][:], rows["car"][:], strict=True))
    assert pairs == build_datasets.unread_dialogues()
    assert len(set(pairs)) == 300
    assert not set(pairs) & set(build_datasets.world_dialogues(30_000))
