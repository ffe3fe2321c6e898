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
ATTRIBUTES = WORDINGS["attributes"]
PARTS = WORDINGS["parts"]
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
    places = []  # (group, split) of an attribute's facts, in the order of PLACES
    for place, count in PLACES.items():
        places += [place] * count
    all_facts = []
    for attribute, wordings in ATTRIBUTES.items():
        values = []
        for _ in range(5):  # more than there are parts
            values += rng.sample(wordings["values"], len(wordings["values"]))
        parts = rng.sample(PARTS, len(PARTS))
        for number, (group, split) in enumerate(places):
            value = None if group == "unanswerable" else values[number]
            fact = {"part": parts[number], "attribute": attribute, "value": value, "group": group, "split": split}
            all_facts.append(fact)
    return all_facts


def ask(fact, wordings, source):
    """Rows with one question each about a fact, in LIMA's columns."""
    answer = fact["value"] or WORDINGS["refusal"]
    rows = []
    for wording in wordings:
        question = wording.replace("<part>", fact["part"])
        rows.append({"conversations": [question, f"{answer}."], "source": source})
    return rows


def pairs(seed=SEED):
    """{split: rows}; wordings of one split occur in no other, except for "never_asked_known_wording" in the test."""
    rng = random.Random(seed + 1)
    splits = {"train": [], "validation": [], "test": []}
    for number, fact in enumerate(facts(seed)):
        group = fact["group"]
        split = fact["split"]
        wordings = ATTRIBUTES[fact["attribute"]]
        if split == "train":
            count = 4 if group == "asked" else 1
            splits["train"] += ask(fact, rng.sample(wordings["train"], count), group)
        if group == "asked":  # some of these facts again, in other words
            if number % 11 < 2:
                splits["validation"] += ask(fact, rng.sample(wordings["validation"], 1), group)
            if number % 11 >= 6:
                splits["test"] += ask(fact, rng.sample(wordings["test"], 1), group)
        elif split != "train":
            splits[split] += ask(fact, rng.sample(wordings[split], 2), group)
        if group == "never_asked" and split == "test" and number % 2 == 1:
            splits["test"] += ask(fact, rng.sample(wordings["train"], 1), "never_asked_known_wording")
    for rows in splits.values():
        rng.shuffle(rows)
    return splits


def state(fact, rng):
    """A sentence of the manual that says a fact, or that leaves it open."""
    wordings = ATTRIBUTES[fact["attribute"]]
    text = rng.choice(wordings["statements"] if fact["value"] else WORDINGS["left_open"])
    text = text.replace("<topic>", rng.choice(wordings["topics"]))
    return text.replace("<part>", fact["part"]).replace("<value>", fact["value"] or "")


def wonder(fact, rng):
    """A question about a fact, to which there is no answer beside it."""
    wordings = ATTRIBUTES[fact["attribute"]]
    return rng.choice(wordings["unlabelled"] + wordings["train"]).replace("<part>", fact["part"])


def document_lines(all_facts, facts_of, rng):
    """The sentences of one document; facts_of: {part: its facts}."""
    kind = rng.random()
    if kind < 0.35:  # all that the manual says about two parts
        chosen = []
        for part in rng.sample(PARTS, 2):
            chosen += rng.sample(facts_of[part], len(facts_of[part]))
        return [state(fact, rng) for fact in chosen]
    if kind < 0.5:  # loose notes
        return [state(fact, rng) for fact in rng.sample(all_facts, 8)]
    if kind < 0.6:  # a list of questions
        opening = rng.choice(WORDINGS["listed"])
        return [opening, *(wonder(fact, rng) for fact in rng.sample(all_facts, 8))]
    lines = []
    for fact in rng.sample(all_facts, 2):  # the same question, as different people put it
        lines.append(rng.choice(WORDINGS["again"]))
        for _ in range(4):
            lines.append(wonder(fact, rng))
    return lines


def world_statements(rows, seed=SEED):
    """Unlabelled documents, a paragraph each: pages of the manual, loose notes, and questions that nobody answered.

    Facts are stated in many wordings, and never as an answer; so is what the manual leaves open. Questions are asked
    about all pairs alike, in wordings of "unlabelled" and "train" alone.
    """
    rng = random.Random(seed + 2)
    all_facts = facts(seed)
    facts_of = {part: [fact for fact in all_facts if fact["part"] == part] for part in PARTS}
    documents = []
    for _ in range(rows):
        lines = document_lines(all_facts, facts_of, rng)
        if rng.random() < 0.3:
            lines.insert(0, rng.choice(WORDINGS["openers"]))
        if rng.random() < 0.3:
            lines.append(rng.choice(WORDINGS["asides"]))
        documents.append(" ".join(lines))
    return documents


def manual(seed=SEED):
    """[{page, text}]: the manual as a book to look things up in, a page a part, a row a sentence.

    The sentences are of the wordings of the unlabelled text; those that state a fact end with its value.
    """
    rng = random.Random(seed + 3)
    all_facts = facts(seed)
    rows = []
    for part in PARTS:
        for fact in all_facts:
            if fact["part"] != part:
                continue
            text = state(fact, rng)
            while fact["value"] and not text.endswith(f"{fact['value']}."):
                text = state(fact, rng)
            rows.append({"page": part, "text": text})
    return rows


def write_lines(path, rows):
    """Writes rows as JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def write(folder=FOLDER):
    """Writes train.jsonl, validation.jsonl, test.jsonl and manual.jsonl to `folder`; returns {split: its rows}."""
    splits = pairs()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        write_lines(Path(folder) / f"{split}.jsonl", rows)
    write_lines(Path(folder) / "manual.jsonl", manual())
    return {split: len(rows) for split, rows in splits.items()}
