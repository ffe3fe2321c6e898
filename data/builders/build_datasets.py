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
GENDERS = ("he", "she")
PRONOUNS = {"he|she", "his|her", "him|her", "his|hers"}
ROWS = {"train": 800, "validation": 100, "test": 200}
WORDINGS = tomllib.loads((DATA / "driver_intent" / "wordings.toml").read_text(encoding="utf-8"))


def expand(template, rng):
    """One sentence from a template: `{a|b}` picks one, `<name>` takes a phrase from [slots]."""
    pattern = re.compile(r"\{([^{}]*)\}|<(\w+)>")
    gender = rng.randrange(2)  # of the one friend in a sentence: "he", "his" and so on go together
    match = pattern.search(template)
    while match:
        alternatives, slot = match.groups()
        if alternatives in PRONOUNS:
            options = [alternatives.split("|")[gender]]
        elif alternatives is not None:
            options = alternatives.split("|")
        elif slot == "friend":
            options = WORDINGS["slots"][GENDERS[gender]]
        else:
            options = WORDINGS["slots"][slot]
        template = template[: match.start()] + rng.choice(options) + template[match.end() :]
        match = pattern.search(template)
    return " ".join(template.split())


def with_typo(text, rng):
    """Drops, doubles or swaps one letter inside one word of four letters or more."""
    places = [match.start() for match in re.finditer(r"(?<=[a-z])[a-z](?=[a-z]{2})", text)]
    if not places:
        return text
    place = rng.choice(places)
    before, letter, next_letter, after = text[:place], text[place], text[place + 1], text[place + 2 :]
    dropped = before + next_letter + after
    doubled = before + letter + letter + next_letter + after
    swapped = before + next_letter + letter + after
    return rng.choice([dropped, doubled, swapped])


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


def new_sentence(templates, seen, rng):
    """(template, wording, text) of a sentence that is not in `seen`; ValueError if the templates give no other.

    The wording is the text without typos and politeness. The first attempts look for a new one.
    """
    for attempt in range(1000):
        template = rng.choice(templates)
        wording = expand(template, rng)
        text = say(wording, rng)
        is_new_wording = wording not in seen or attempt >= 50  # then the family has none left
        if is_new_wording and text not in seen:
            return template, wording, text
    raise ValueError("too few wordings, add templates")


def driver_intent(seed=SEED):
    """Rows of every split: {split: [{text, label, family, template}]}, labels balanced, no text twice."""
    rng = random.Random(seed)
    splits = {}
    seen = set()
    for split, size in ROWS.items():
        rows = []
        for label in LABELS:
            families = WORDINGS[split][label]
            for number in range(size // len(LABELS)):
                family = list(families)[number % len(families)]
                try:
                    template, wording, text = new_sentence(families[family], seen, rng)
                except ValueError as error:
                    raise ValueError(f"{split}/{label}/{family}: {error}") from error
                seen.update({wording, text})
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
    families = []
    for split in ("unlabelled", "train"):
        for label in LABELS:
            for templates in WORDINGS[split][label].values():
                families.append((label, templates))
    pairs = []
    for number in range(rows):
        label, templates = families[number % len(families)]
        line = say(expand(rng.choice(templates), rng), rng)
        pairs.append((line, rng.choice(WORDINGS["replies"][label])))
    rng.shuffle(pairs)
    return pairs


def unread_dialogues(rows=300):
    """Pairs of the same world that no pre-training has read: for measuring what a model has forgotten."""
    read = set(world_dialogues(30_000))
    unread = [pair for pair in world_dialogues(2 * rows, seed=SEED + 1) if pair not in read]
    return list(dict.fromkeys(unread))[:rows]


def main():
    """Writes all data sets and prints their sizes."""
    import build_car_manual  # not above: each builder can be imported alone
    import build_toy_bills
    import build_toy_preference

    for split, rows in driver_intent().items():
        path = DATA / "driver_intent" / f"{split}.jsonl"
        lines = []
        for row in rows:
            family = f"{row['label']}/{row['family']}"  # two classes may have a family of the same name
            lines.append(json.dumps({"text": row["text"], "label": row["label"], "family": family}) + "\n")
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
        print(f"{path.relative_to(DATA.parent)}: {len(rows)} rows")
    path = DATA / "driver_world" / "dialogues.jsonl"
    path.parent.mkdir(exist_ok=True)
    pairs = unread_dialogues()
    lines = [json.dumps({"driver": line, "car": answer}) + "\n" for line, answer in pairs]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"{path.relative_to(DATA.parent)}: {len(pairs)} rows")
    for split, rows in build_toy_bills.write(DATA / "toy_bills").items():
        print(f"data/toy_bills/{split}.jsonl: {rows} rows")
    for split, rows in build_car_manual.write(DATA / "car_manual").items():
        print(f"data/car_manual/{split}.jsonl: {rows} rows")
    for name, rows in build_toy_preference.write(DATA / "toy_preference").items():
        print(f"data/toy_preference/{name}: {rows} rows")


if __name__ == "__main__":
    main()
