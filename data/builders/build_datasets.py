"""Builds the course's data sets, and the unlabelled text of its world, from hand-written wordings.

    python data/builders/build_datasets.py          writes data/<set>/{train,validation,test}.jsonl

Seeded: a second run writes the same bytes.
"""

import json
import random
import re
import tomllib
from pathlib import Path

DATA = Path(__file__).resolve().parents[1]
SEED = 7
LABELS = ["driver_window_down", "passenger_window_down", "ac_on", "defrost_on", "other"]
PRONOUNS = {"he|she", "his|her", "him|her", "his|hers"}
ROWS = {"train": 800, "validation": 100, "test": 200}
WORDINGS = tomllib.loads((DATA / "driver_intent" / "wordings.toml").read_text(encoding="utf-8"))


def expand(template, rng):
    """One sentence from a template: `{a|b}` picks one, `<name>` takes a phrase from [slots]."""
    pattern = re.compile(r"\{([^{}]*)\}|<(\w+)>")
    gender = rng.randrange(2)
    while match := pattern.search(template):
        if match[1] in PRONOUNS:
            options = [match[1].split("|")[gender]]
        elif match[1] is not None:
            options = match[1].split("|")
        else:
            options = WORDINGS["slots"][("he", "she")[gender] if match[2] == "friend" else match[2]]
        template = template[: match.start()] + rng.choice(options) + template[match.end() :]
    return " ".join(template.split())


def with_typo(text, rng):
    """Drops, doubles or swaps one letter inside one word of four letters or more."""
    places = [m.start() for m in re.finditer(r"(?<=[a-z])[a-z](?=[a-z]{2})", text)]
    if not places:
        return text
    at = rng.choice(places)
    return rng.choice(
        [
            text[:at] + text[at + 1 :],
            text[:at] + text[at] + text[at:],
            text[:at] + text[at + 1] + text[at] + text[at + 2 :],
        ]
    )


def say(core, rng):
    """What a driver would type or say: an opener, a tail, a typo, capitals and a full stop, each now and then."""
    text = core
    if rng.random() < 0.30:
        text = f"{rng.choice(WORDINGS['openers']['any'])} {text}"
    if rng.random() < 0.20:
        text = f"{text} {rng.choice(WORDINGS['tails']['any'])}"
    text = re.sub(r" ([,?])", r"\1", text)
    if rng.random() < 0.12:
        text = with_typo(text, rng)
    if rng.random() < 0.15:
        text = text.replace("'", "")
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.3 and not text.endswith("?"):
        text += "."
    return text


def driver_intent(seed=SEED):
    """Rows of every split: {split: [{text, label, family, template}]}, labels balanced, no text twice."""
    rng = random.Random(seed)
    splits, seen = {}, set()
    for split, size in ROWS.items():
        rows = []
        for label in LABELS:
            families = WORDINGS[split][label]
            for number in range(size // len(LABELS)):
                family = list(families)[number % len(families)]
                for attempt in range(1000):
                    template = rng.choice(families[family])
                    core = expand(template, rng)
                    text = say(core, rng)
                    key = core if attempt < 50 else text  # a new wording if the family has one left
                    if key not in seen and text not in seen:
                        break
                else:
                    raise ValueError(f"{split}/{label}/{family}: too few wordings, add templates")
                seen.update({core, text})
                rows.append({"text": text, "label": label, "family": family, "template": template})
        rng.shuffle(rows)
        splits[split] = rows
    return splits


def world_dialogues(rows, seed=SEED):
    """Unlabelled pairs (what a driver says, what the car answers) for the pre-training of the tiny models.

    Driver lines come from the "unlabelled" and "train" families alone: no wording family of the validation
    or test split is used.
    """
    rng = random.Random(seed)
    families = [
        (label, templates)
        for split in ("unlabelled", "train")
        for label in LABELS
        for templates in WORDINGS[split][label].values()
    ]
    pairs = []
    for number in range(rows):
        label, templates = families[number % len(families)]
        line = say(expand(rng.choice(templates), rng), rng)
        pairs.append((line, rng.choice(WORDINGS["replies"][label])))
    rng.shuffle(pairs)
    return pairs


def main():
    import build_car_manual  # not above: each builder can be imported alone
    import build_toy_bills
    import build_toy_preference

    for split, rows in driver_intent().items():
        path = DATA / "driver_intent" / f"{split}.jsonl"
        lines = [json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
        print(f"{path.relative_to(DATA.parent)}: {len(rows)} rows")
    for split, rows in build_toy_bills.write(DATA / "toy_bills").items():
        print(f"data/toy_bills/{split}.jsonl: {rows} rows")
    for split, rows in build_car_manual.write(DATA / "car_manual").items():
        print(f"data/car_manual/{split}.jsonl: {rows} rows")
    for name, rows in build_toy_preference.write(DATA / "toy_preference").items():
        print(f"data/toy_preference/{name}: {rows} rows")


if __name__ == "__main__":
    main()
