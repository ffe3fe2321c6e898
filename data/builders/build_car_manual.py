"""Questions and answers about one fictional car, and the unlabelled text that a tiny OPT is pre-trained on.

For every part and attribute the manual holds a fact, or it does not. Questions are asked in training about some of the
facts ("asked"), about others only in validation and test ("never_asked"). The remaining pairs are "unanswerable": the
text of pre-training says no more than that they are left open.
"""

import json
import random
import tomllib
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "car_manual"
WORDINGS = tomllib.loads((FOLDER / "wordings.toml").read_text(encoding="utf-8"))
ATTRIBUTES, PARTS = WORDINGS["attributes"], WORDINGS["parts"]
SEED = 31
PLACES = {  # parts of each attribute by group, and by the split that asks about them
    ("asked", "train"): 22,
    ("never_asked", "validation"): 2,
    ("never_asked", "test"): 12,
    ("unanswerable", "train"): 16,
    ("unanswerable", "validation"): 2,
    ("unanswerable", "test"): 6,
}


def facts(seed=SEED):
    """[{part, attribute, value, group, split}] of every pair; value is None where the manual does not say.

    The values of an attribute are given in turn, so that none is frequent.
    """
    rng = random.Random(seed)
    found = []
    for attribute, wordings in ATTRIBUTES.items():
        places = [place for place, count in PLACES.items() for _ in range(count)]
        values = [value for _ in range(5) for value in rng.sample(wordings["values"], len(wordings["values"]))]
        for part, (group, split), value in zip(rng.sample(PARTS, len(PARTS)), places, values, strict=False):
            value = None if group == "unanswerable" else value
            found.append({"part": part, "attribute": attribute, "value": value, "group": group, "split": split})
    return found


def ask(fact, wordings, source):
    """Rows with one question each about a fact, in LIMA's columns."""
    answer = fact["value"] or WORDINGS["refusal"]
    questions = (wording.replace("<part>", fact["part"]) for wording in wordings)
    return [{"conversations": [question, f"{answer}."], "source": source} for question in questions]


def pairs(seed=SEED):
    """{split: rows}; wordings of one split occur in no other, except for "never_asked_known_wording" in the test."""
    rng = random.Random(seed + 1)
    splits = {"train": [], "validation": [], "test": []}
    for number, fact in enumerate(facts(seed)):
        group, own, known = fact["group"], fact["split"], ATTRIBUTES[fact["attribute"]]
        if own == "train":
            splits["train"] += ask(fact, rng.sample(known["train"], 4 if group == "asked" else 1), group)
        if group == "asked":  # the same facts again, in other words
            splits["validation"] += ask(fact, rng.sample(known["validation"], number % 11 < 2), group)
            splits["test"] += ask(fact, rng.sample(known["test"], number % 11 >= 6), group)
        elif own != "train":
            splits[own] += ask(fact, rng.sample(known[own], 2), group)
        if group == "never_asked" and own == "test" and number % 2:
            splits["test"] += ask(fact, rng.sample(known["train"], 1), "never_asked_known_wording")
    for rows in splits.values():
        rng.shuffle(rows)
    return splits


def world_statements(rows, seed=SEED):
    """Unlabelled documents, a paragraph each: pages of the manual, loose notes, and questions that nobody answered.

    Facts are stated in many wordings, and never as an answer; so is what the manual leaves open. Questions are asked
    about all pairs alike, in wordings of "unlabelled" and "train" alone.
    """
    rng = random.Random(seed + 2)
    every = facts(seed)
    pages = {part: [fact for fact in every if fact["part"] == part] for part in PARTS}

    def state(fact):
        known = ATTRIBUTES[fact["attribute"]]
        text = rng.choice(known["statements"] if fact["value"] else WORDINGS["left_open"])
        text = text.replace("<topic>", rng.choice(known["topics"]))
        return text.replace("<part>", fact["part"]).replace("<value>", fact["value"] or "")

    def wonder(fact):
        known = ATTRIBUTES[fact["attribute"]]
        return rng.choice(known["unlabelled"] + known["train"]).replace("<part>", fact["part"])

    documents = []
    for _ in range(rows):
        kind = rng.random()
        if kind < 0.35:  # all that the manual says about two parts
            chosen = [fact for part in rng.sample(PARTS, 2) for fact in rng.sample(pages[part], len(pages[part]))]
            lines = [state(fact) for fact in chosen]
        elif kind < 0.5:
            lines = [state(fact) for fact in rng.sample(every, 8)]
        elif kind < 0.6:
            lines = [rng.choice(WORDINGS["listed"]), *(wonder(fact) for fact in rng.sample(every, 8))]
        else:  # the same question, as different people put it
            lines = [
                line
                for fact in rng.sample(every, 2)
                for line in (rng.choice(WORDINGS["again"]), *(wonder(fact) for _ in range(4)))
            ]
        if rng.random() < 0.3:
            lines.insert(0, rng.choice(WORDINGS["openers"]))
        if rng.random() < 0.3:
            lines.append(rng.choice(WORDINGS["asides"]))
        documents.append(" ".join(lines))
    return documents


def write(folder=FOLDER):
    """Writes train.jsonl, validation.jsonl and test.jsonl to `folder`; returns {split: number of rows}."""
    splits = pairs()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (Path(folder) / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    return {split: len(rows) for split, rows in splits.items()}
