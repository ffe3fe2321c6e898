"""The toy bills: facts that a summary is right or wrong about, distractors in every bill, wordings apart."""

import importlib
import json
import re
import sys

import numpy as np
from conftest import ROOT

from utils.metrics import fact_hits

sys.path.insert(0, str(ROOT / "data" / "builders"))
bills = importlib.import_module("build_toy_bills")
FOLDER = ROOT / "data" / "toy_bills"
SPLITS = bills.toy_bills()


def test_the_files_are_those_of_the_builder(tmp_path):
    assert bills.write(tmp_path) == {"train": 600, "validation": 100, "test": 200}
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (FOLDER / f"{split}.jsonl").read_bytes()
    assert set(json.loads((FOLDER / "test.jsonl").read_text().split("\n")[0])) == {"text", "summary", "title", "facts"}


def test_no_text_occurs_twice_and_no_wording_in_two_splits():
    texts = [row["text"] for rows in SPLITS.values() for row in rows]
    assert len(texts) == len(set(texts)) == 900
    used = {split: {tuple(t) for row in rows for t in row["templates"]} for split, rows in SPLITS.items()}
    assert not used["train"] & used["test"]
    assert not used["train"] & used["validation"]
    assert not used["validation"] & used["test"]
    for role, wordings in bills.WORDINGS.items():
        if "test" in wordings:
            held_out = {*wordings["test"], *wordings["validation"]}
            assert not held_out & {*wordings["train"], *wordings["unlabelled"]}, role
            assert all((role, wording) in used["test"] for wording in wordings["test"]), "a wording that is never used"


def test_every_bill_holds_three_facts_of_each_kind_and_the_summary_those_of_the_rule():
    for row in [row for rows in SPLITS.values() for row in rows]:
        assert fact_hits(row["summary"], row["facts"]) == [1.0] * 5
        assert fact_hits(row["text"], row["facts"]) == [1.0] * 5
        body = "\n".join(row["text"].splitlines()[1:-1])  # without findings and report
        assert len(re.findall(r"\$\d+", body)) == 3
        assert len(re.findall(r"[A-Z]\w+ \d+, 20\d\d", body)) == 3
        assert len({p for p in re.findall(rf"[A-Z]\w+ (?:{'|'.join(bills.FACTS['kind'])})\b", body)}) == 3
        assert sum(actor in body.lower() for actor in bills.FACTS["actor"]) >= 3
        assert sum(f"{duty}" in body for duty in bills.FACTS["duty"]) >= 3


def test_the_rule_stands_anywhere_and_its_heading_does_not_give_it_away():
    places = [
        next(n for n, line in enumerate(row["text"].splitlines()) if row["facts"][1] in line) for row in SPLITS["test"]
    ]
    assert set(np.bincount(places) > 40) == {False, True}
    assert (np.bincount(places)[1:4] > 40).all()
    plain = [place for place, row in zip(places, SPLITS["test"], strict=True) if "GENERAL" in row["text"]]
    assert len(plain) > 60


def test_the_world_text_holds_no_held_out_wording_and_no_summary():
    documents = bills.world_bills(3000)
    text = "\n".join(documents)
    start = re.escape(bills.WORDINGS["summary"]["text"].split("<")[0])
    assert not re.search(rf"{start}\w+.*Sets a fine of", text)
    for role in ("rule", "trial", "repeal", "rule_penalty", "trial_terms", "repeal_terms"):
        for split in ("validation", "test"):
            for template in bills.WORDINGS[role][split]:
                pattern = re.sub(r"<\w+>", ".{2,40}", re.sub(r"\{.*?\}", ".{1,20}", template.replace("?", r"\?")))
                assert not re.search(pattern, text), template
    assert all("NEWS." in document for document in documents)


def test_the_words_of_all_splits_are_known_from_the_world_text():
    known = set(re.findall(r"\w+", " ".join(bills.world_bills(8000))))
    unknown = {word for rows in SPLITS.values() for row in rows for word in re.findall(r"\w+", row["text"])} - known
    assert not unknown
