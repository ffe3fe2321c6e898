"""The questions about the car rebuild byte for byte; what is held out is held out of the pre-training text, too."""

import re
import sys
from collections import Counter

import pytest
from conftest import ROOT
from datasets import load_dataset

sys.path.insert(0, str(ROOT / "data" / "builders"))
import build_car_manual

FOLDER = ROOT / "data" / "car_manual"
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def splits():
    return build_car_manual.pairs()


@pytest.fixture(scope="module")
def documents():
    return build_car_manual.world_statements(3000)


def pattern(wording):
    """Matches the wording with any part, and with any value, in it."""
    names = {"<part>": build_car_manual.PARTS, "<value>": [".+"]}
    return re.compile(
        re.sub("<part>|<value>", lambda m: f"(?:{'|'.join(names[m[0]])})", re.sub(r"([.?])", r"\\\1", wording))
    )


def wordings(split):
    return [w for attribute in build_car_manual.ATTRIBUTES.values() for w in attribute[split]]


def asked_pairs(rows):
    """{(part, attribute)} of questions, found by their wordings."""
    found = set()
    for row in rows:
        question = row["conversations"][0]
        part = next(p for p in sorted(build_car_manual.PARTS, key=len, reverse=True) if p in question)
        template = question.replace(part, "<part>")
        found.add(
            (part, next(a for a, w in build_car_manual.ATTRIBUTES.items() if any(template in v for v in w.values())))
        )
    return found


def test_it_rebuilds_byte_for_byte(tmp_path):
    build_car_manual.write(tmp_path)
    for split in SPLITS:
        built = (tmp_path / f"{split}.jsonl").read_bytes()
        assert b"\r" not in built
        assert built == (FOLDER / f"{split}.jsonl").read_bytes(), split
    assert build_car_manual.pairs(seed=1)["train"] != build_car_manual.pairs()["train"]


def test_it_loads_as_lima_does_and_has_the_rows_of_its_card(tmp_path):
    dataset = load_dataset(str(FOLDER), cache_dir=str(tmp_path))
    streamed = load_dataset(str(FOLDER), split="train", streaming=True)
    assert next(iter(streamed)) == dataset["train"][0]
    assert all(len(turns) == 2 for rows in dataset.values() for turns in rows["conversations"][:])
    card = (FOLDER / "README.md").read_text()
    counts = {split: Counter(dataset[split]["source"][:]) for split in SPLITS}
    for source in set().union(*counts.values()):
        numbers = " | ".join(str(counts[split][source] or "–") for split in SPLITS)
        assert f"| `{source}` | {numbers} |" in card
    assert f"\n{sum(map(len, dataset.values()))} questions" in card
    groups = Counter(fact["group"] for fact in build_car_manual.facts())
    assert f"{groups['asked']}, {groups['never_asked']} and {groups['unanswerable']}." in card


def test_no_question_twice_and_no_wording_in_two_splits(splits):
    questions = [row["conversations"][0] for rows in splits.values() for row in rows]
    assert len(questions) == len(set(questions))
    for attribute in build_car_manual.ATTRIBUTES.values():
        every = [w for key in ("unlabelled", *SPLITS) for w in attribute[key]]
        assert len(every) == len({w.casefold() for w in every})
    for split in SPLITS:
        own = [pattern(w) for w in wordings(split)]
        rows = [row for row in splits[split] if row["source"] != "never_asked_known_wording"]
        assert all(any(p.fullmatch(row["conversations"][0]) for p in own) for row in rows), split


def test_held_out_pairs_are_held_out(splits):
    groups = {
        (split, source): asked_pairs(row for row in splits[split] if row["source"] == source)
        for split in SPLITS
        for source in ("asked", "never_asked", "never_asked_known_wording", "unanswerable")
    }
    trained = groups["train", "asked"] | groups["train", "unanswerable"]
    assert len(trained) == 132 + 96
    for split in ("validation", "test"):
        assert groups[split, "asked"] <= trained, "asked again in other words"
        for source in ("never_asked", "never_asked_known_wording", "unanswerable"):
            assert not groups[split, source] & trained, (split, source)
    assert not groups["validation", "never_asked"] & groups["test", "never_asked"]
    assert not groups["validation", "unanswerable"] & groups["test", "unanswerable"]


def test_answers_are_the_facts_and_refusals_have_none(splits):
    facts = build_car_manual.facts()
    assert len(facts) == len({(fact["part"], fact["attribute"]) for fact in facts}) == 360
    for rows in splits.values():
        for row in rows:
            refuses = row["conversations"][1] == "the manual does not say."
            assert refuses == (row["source"] == "unanswerable"), row
    for attribute in build_car_manual.ATTRIBUTES:
        values = Counter(fact["value"] for fact in facts if fact["attribute"] == attribute and fact["value"])
        assert max(values.values()) <= 4, "a frequent value could be guessed"


def test_the_text_of_pre_training_states_every_fact_but_no_gap_and_no_held_out_wording(documents):
    text = "\n".join(documents)
    sentences = set(re.findall(r"[^.?]+[.?]", text.replace("\n", " ")))
    sentences = {sentence.strip() for sentence in sentences}
    for fact in build_car_manual.facts():
        known = build_car_manual.ATTRIBUTES[fact["attribute"]]
        about = [statement.replace("<part>", fact["part"]) for statement in known["statements"]]
        stated = {value for value in known["values"] for s in about if s.replace("<value>", value) in sentences}
        assert stated == ({fact["value"]} if fact["value"] else set()), fact
    assert "manual does not say" not in text
    assert "Answer:" not in text
    for split in ("validation", "test"):
        assert not [w for w in wordings(split) if pattern(w).search(text)]
    assert [w for w in wordings("train") if pattern(w).search(text)] == wordings("train"), "the search must find some"
