"""Traffic bills with summaries, and the unlabelled text that tiny-t5 is pre-trained on, from hand-written wordings.

A bill makes one rule (who must do what, where, from when, at what fine). It also tells of a trial that is voluntary
and of an old rule that ends, with facts of the same kinds. The summary states the five facts of the rule alone.
"""

import json
import random
import re
import tomllib
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "toy_bills"
WORDINGS = tomllib.loads((FOLDER / "wordings.toml").read_text(encoding="utf-8"))
FACTS = WORDINGS["facts"]
SEED = 23
DAYS_A_MONTH = 28  # in this small world
ROWS = {"train": 600, "validation": 100, "test": 200}
KINDS = ("actor", "duty", "place", "date", "amount")


def date_of(day):
    """The date of a day that is counted in years of 12 months of 28 days, such as "March 3, 2026"."""
    year = FACTS["year"][day // (12 * DAYS_A_MONTH)]
    month = FACTS["month"][day // DAYS_A_MONTH % 12]
    return f"{month} {day % DAYS_A_MONTH + 1}, {year}"


def draw_place(rng):
    """A place, such as a name and "Bridge", that may be drawn again."""
    return f"{rng.choice(FACTS['name'])} {rng.choice(FACTS['kind'])}"


def draw_facts(rng):
    """Three sets of facts {actor, duty, place, date, amount}, of the rule, the trial and the repeal, all different."""
    columns = {}
    for kind in ("actor", "duty", "amount"):
        columns[kind] = rng.sample(FACTS[kind], 3)
    names = rng.sample(FACTS["name"], 3)
    columns["place"] = [f"{name} {rng.choice(FACTS['kind'])}" for name in names]
    days = rng.sample(range(len(FACTS["year"]) * 12 * DAYS_A_MONTH), 3)
    oldest, *later = [date_of(day) for day in sorted(days)]
    rng.shuffle(later)
    columns["date"] = [*later, oldest]  # the rule that ends is older than the one that begins
    return [{kind: columns[kind][number] for kind in KINDS} for number in range(3)]


def fill(template, facts, rng):
    """The template as a sentence: {a|b} picks one, <kind> takes a fact, <Kind> the same with a capital letter."""

    def pick(match):
        return rng.choice(match[1].split("|"))

    def insert(match):
        slot = match[1]
        fact = facts[slot.lower()]
        if slot[0].islower():
            return fact
        return fact[0].upper() + fact[1:]

    template = re.sub(r"\{([^{}]*)\}", pick, template)
    return re.sub(r"<(\w+)>", insert, template)


def bill(facts, families, rng):
    """(text, used): the sections of a bill in order, and the templates that were used, as (role, template).

    facts: of the rule, the trial and the repeal. families(role) gives the templates that may be used.
    """
    rule, trial, repeal = facts
    used = []  # filled by `say`

    def say(role, values):
        template = rng.choice(families(role))
        used.append((role, template))
        return fill(template, values, rng)

    def background():
        return say("findings", {"place": draw_place(rng), "year": str(rng.randint(2010, 2025))})

    after = [say("rule_date", rule), say("rule_penalty", rule)]
    rng.shuffle(after)
    middle = [
        ("rule", [say("rule", rule), *after]),
        ("trial", [say("trial", trial), say("trial_terms", trial)]),
        ("repeal", [say("repeal", repeal), say("repeal_terms", repeal)]),
    ]
    rng.shuffle(middle)
    sections = [("findings", [background(), background()]), *middle, ("report", [say("report", {})])]
    lines = [
        f"SECTION {number}. {rng.choice(WORDINGS['headings'][role])}. {' '.join(sentences)}"
        for number, (role, sentences) in enumerate(sections, 1)
    ]
    return "\n".join(lines), used


def toy_bills(seed=SEED):
    """{split: [{text, summary, title, facts, templates}]}: wordings of one split occur in no other, no text twice."""
    rng = random.Random(seed)
    splits = {}
    for split, size in ROWS.items():
        rows = []
        for _ in range(size):
            facts = draw_facts(rng)
            text, used = bill(facts, lambda role, split=split: WORDINGS[role][split], rng)
            title_facts = {name: rng.choice(FACTS[name]) for name in ("sponsor", "topic", "year")}
            rows.append(
                {
                    "text": text,
                    "summary": fill(WORDINGS["summary"]["text"], facts[0], rng),
                    "title": fill(WORDINGS["title"]["text"], title_facts, rng),
                    "facts": [facts[0][kind] for kind in KINDS],
                    "templates": used,
                }
            )
        splits[split] = rows
    return splits


def notes_about(facts, wordings, rng):
    """A sentence about each of the rule, the trial and the repeal, from wordings {role: templates}."""
    notes = []
    for role, values in zip(("rule", "trial", "repeal"), facts, strict=True):
        notes.append(fill(rng.choice(wordings[role]), values, rng))
    return notes


def world_bills(rows, seed=SEED):
    """Unlabelled documents for pre-training: a bill, and the notes that a newspaper printed about it.

    Bills take wordings from "unlabelled" and "train" alone: no wording of the validation or test split is used, and no
    summary. The notes tell the same facts again, as reports about laws do.
    """
    rng = random.Random(seed)
    documents = []
    for _ in range(rows):
        facts = draw_facts(rng)
        text, _ = bill(facts, lambda role: WORDINGS[role]["unlabelled"] + WORDINGS[role]["train"], rng)
        notes = notes_about(facts, WORDINGS["notes"], rng)
        other_facts = draw_facts(rng)[0]
        other_facts["year"] = str(rng.randint(2010, 2025))
        chatter = fill(rng.choice(WORDINGS["chatter"]["unlabelled"]), other_facts, rng)
        short_notes = notes_about(facts, WORDINGS["short_notes"], rng)
        news = [notes[0], chatter, *rng.sample(notes[1:] + short_notes, 3)]
        rng.shuffle(news)
        parts = [text, "NEWS. " + " ".join(news)]
        if rng.random() < 0.3:
            parts.reverse()
        documents.append("\n".join(parts))
    return documents


def write(folder):
    """Writes {train,validation,test}.jsonl to `folder`; returns {split: rows}."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = toy_bills()
    for split, rows in splits.items():
        kept = [{key: row[key] for key in ("text", "summary", "title", "facts")} for row in rows]
        lines = [json.dumps(row) + "\n" for row in kept]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    return {split: len(rows) for split, rows in splits.items()}
