"""Comparisons of two answers to a question about the car, and the letters that a tiny Gemma-2 reads before.

Who wins is drawn from a known model of preference, so that the best possible log loss is known. An answer has a worth:
is it right, does it help, is it polite? Two worths give the chances of A, B and a tie (Davidson, 1970). Questions,
facts and gaps are those of car_manual. No fact of a test question occurs in the training comparisons.
"""

import csv
import json
import math
import random
import tomllib
from pathlib import Path

import build_car_manual
from build_car_manual import ATTRIBUTES

FOLDER = Path(__file__).resolve().parents[1] / "toy_preference"
WORDINGS = tomllib.loads((FOLDER / "wordings.toml").read_text(encoding="utf-8"))
SEED = 47
COLUMNS = "id model_a model_b prompt response_a response_b winner_model_a winner_model_b winner_tie".split()
COMPARISONS = {"train": 2300, "test": 600}
TEST_FACTS = 12  # of each attribute's 60
RIGHT = 2.4  # the worth of a right answer; a wrong one, or a refusal where there is an answer, has none
EXTRAS = {"help": 0.8, "": 0.0, "chatter": -0.2}
TONES = {"polite": 0.4, "plain": 0.0, "rude": -0.8}
SCALE, TIE = 1.75, 2.0
# how often a model is right, helps, chatters; and the weights of its tones
MODELS = {
    "larkin-chat": (0.75, 0.45, 0.15, (5, 4, 1)),
    "old-larkin-chat": (0.45, 0.25, 0.30, (2, 4, 2)),
    "parrot": (0.55, 0.35, 0.40, (6, 2, 0)),
    "grumpy-expert": (0.85, 0.20, 0.05, (0, 3, 4)),
}
TRUE = ["true_model_a", "true_model_b", "true_tie"]
REPEATS = 120
SILENT = 0.02  # how often a model gave no answer in a turn: null
# what stands first is worth so much more to the people of the training logs, who saw every pair in one order only; the
# test shows each pair to people in both orders, so there it counts for nothing
FIRST_BONUS = {"train": 1.1, "test": 0.0}


def questions(seed=SEED):
    """{split: [[fact, ...], ...]}: prompts of one or two turns. Each fact of the manual stands in one prompt."""
    rng = random.Random(seed)
    every = build_car_manual.facts()
    found = {"train": [], "test": []}
    for attribute in ATTRIBUTES:
        own = [fact for fact in every if fact["attribute"] == attribute]
        rng.shuffle(own)
        own.sort(key=lambda fact: fact["value"] is None)  # the same share of gaps in both splits
        step = len(own) // TEST_FACTS
        found["test"] += own[::step]
        found["train"] += [fact for number, fact in enumerate(own) if number % step]
    for split, facts in found.items():
        rng.shuffle(facts)
        turns = len(facts) // 6  # a third of the facts stands in prompts of two turns
        found[split] = [list(pair) for pair in zip(facts[:turns], facts[turns : 2 * turns], strict=True)]
        found[split] += [[fact] for fact in facts[2 * turns :]]
    return found


def ask(fact, rng):
    return rng.choice(ATTRIBUTES[fact["attribute"]]["train"]).replace("<part>", fact["part"])


def state(fact, value, rng):
    """A sentence that gives a value as the answer, or that there is none."""
    if value is None:
        return rng.choice(WORDINGS["refusals"])
    return rng.choice(WORDINGS["answers"][fact["attribute"]]).replace("<value>", value)


def other_value(fact, rng):
    return rng.choice([value for value in ATTRIBUTES[fact["attribute"]]["values"] if value != fact["value"]])


def respond(facts, model, rng, silent=0.0):
    """What a model answers to the questions of a prompt, and how good it is: {turns, right, kind, useful, worth}.
    silent: how often it gives no answer in a turn."""
    skill, helps, chatters, tones = MODELS[model]
    tone = rng.choices([*TONES], tones)[0]
    extra = rng.choices([*EXTRAS], [helps, 1 - helps - chatters, chatters])[0]
    turns, right = [], []
    for fact in facts:
        right.append(rng.random() < skill)
        value = fact["value"]
        if not right[-1]:
            refuses = value is not None and rng.random() < 0.2
            value = None if refuses else other_value(fact, rng)
        turns.append([state(fact, value, rng)])
        if extra == "help":
            turns[-1].append(rng.choice(WORDINGS["help"][fact["attribute"]]))
        elif extra == "chatter":
            turns[-1] += rng.sample(WORDINGS["chatter"], 2)
    if tone == "polite" and rng.random() < 0.5:
        turns[-1].append(rng.choice(WORDINGS["closing"]))
    elif tone != "plain":
        turns[0].insert(0, rng.choice(WORDINGS[tone]))
    turns = [" ".join(parts) for parts in turns]
    for turn in range(len(facts)):
        if rng.random() < silent:
            turns[turn], right[turn] = None, False
    marks = {"right": sum(right) / len(right), "kind": TONES[tone], "useful": EXTRAS[extra]}
    worth = RIGHT * marks["right"] + marks["kind"] + marks["useful"]
    return {"turns": turns, "worth": worth} | marks


def chances(worth_a, worth_b):
    """The true probabilities that A wins, B wins, or neither."""
    a, b = math.exp(SCALE * (worth_a - worth_b) / 2), math.exp(SCALE * (worth_b - worth_a) / 2)
    total = a + b + TIE
    return a / total, b / total, TIE / total


def comparisons(seed=SEED):
    """{split: rows}; a row is a dict with COLUMNS and "chances"."""
    rng = random.Random(seed + 1)
    splits, number = {}, 30_000
    for split, prompts in questions(seed).items():
        asked = [[ask(fact, rng) for fact in prompt] for prompt in prompts]
        rows, seen = [], set()
        while len(rows) < COMPARISONS[split]:
            at = len(rows) % len(prompts)
            a, b = rng.sample([*MODELS], 2)
            first, second = (respond(prompts[at], model, rng, SILENT) for model in (a, b))
            said_a, said_b = first["turns"], second["turns"]
            if said_a == said_b or (at, *said_a, *said_b) in seen:
                continue
            seen |= {(at, *said_a, *said_b), (at, *said_b, *said_a)}
            true = chances(first["worth"] + FIRST_BONUS[split], second["worth"])
            winner = rng.choices(range(3), true)[0]
            number += rng.randrange(1, 900)
            texts = [json.dumps(turns, ensure_ascii=False) for turns in (asked[at], said_a, said_b)]
            values = [str(number), a, b, *texts, *(str(int(winner == place)) for place in range(3))]
            rows.append(dict(zip(COLUMNS, values, strict=True)) | {"chances": true})
        rng.shuffle(rows)
        splits[split] = rows
    return splits


def world_letters(rows, seed=SEED):
    """Unlabelled documents: questions, two answers to each, and what readers say of them. Half of the readers say after
    each answer whether it is right; the others compare two answers: which one is right, kinder, more useful, better?

    Readers go by one rule: an answer that is more often right is better, and of two that are equally right the one
    with more kindness and use. They never weigh one against the other, and are never unsure: in that they differ from
    the people who made the comparisons.
    """
    rng = random.Random(seed + 2)
    facts, letters, documents = build_car_manual.facts(), WORDINGS["letters"], []

    def question(fact):
        known = ATTRIBUTES[fact["attribute"]]
        return "Question: " + rng.choice(known["unlabelled"] + known["train"]).replace("<part>", fact["part"])

    for _ in range(rows):
        lines = [rng.choice(letters["opening"])] if rng.random() < 0.3 else []
        if rng.random() < 0.5:
            for fact in rng.sample(facts, 2):
                lines.append(question(fact))
                for name in ("first", "second"):
                    answer = respond([fact], rng.choice([*MODELS]), rng)
                    verdict = rng.choice(letters["right" if answer["right"] else "wrong"])
                    lines.append(f"The {name} answer: {answer['turns'][0]} {verdict}")
        else:
            chosen = rng.sample(facts, 1 + (rng.random() < 0.2))
            a, b = (respond(chosen, rng.choice([*MODELS]), rng) for _ in range(2))
            for turn, fact in enumerate(chosen):
                lines += [
                    question(fact),
                    f"The first answer: {a['turns'][turn]}",
                    f"The second answer: {b['turns'][turn]}",
                ]
            said = []
            for mark in rng.sample([*WORDINGS["marks"]], rng.choice([1, 2, 3, 4])):
                ours, theirs = (_judged(answer, mark) for answer in (a, b))
                same = "alike" if mark == "better" else "both" if ours > (0.0,) else "neither"
                winner = "first" if ours > theirs else "second" if theirs > ours else same
                said += [rng.choice(WORDINGS["marks"][mark]), rng.choice(letters[winner])]
            lines.append(" ".join(said))
        documents.append("\n".join(lines))
    return documents


def _judged(answer, mark):
    """What a reader compares, a tuple, when asked which of two answers has more of a mark, or is better."""
    return (answer["right"], round(answer["kind"] + answer["useful"], 3)) if mark == "better" else (answer[mark],)


def write(folder=FOLDER):
    """Writes train.csv and train_more.csv, which overlap, test.csv, and true_probabilities.csv; {file: rows}.

    The second file repeats rows of the first, some of them under another id, as the two files of the LMSYS competition
    did: whoever joins them must drop the repeats.
    """
    splits, rng = comparisons(), random.Random(SEED + 3)
    Path(folder).mkdir(parents=True, exist_ok=True)
    half = len(splits["train"]) // 2
    again = rng.sample(splits["train"][:half], REPEATS)
    renamed = [row | {"id": str(int(row["id"]) + 5_000_000)} for row in again[: REPEATS // 4]]
    more = splits["train"][half:] + again[REPEATS // 4 :] + renamed
    rng.shuffle(more)
    files = {"train.csv": splits["train"][:half], "train_more.csv": more, "test.csv": splits["test"]}
    every = {row["id"]: row for rows in files.values() for row in rows}.values()
    chances_of = [{"id": row["id"]} | dict(zip(TRUE, row["chances"], strict=True)) for row in every]
    tables = {name: (COLUMNS, rows) for name, rows in files.items()} | {
        "true_probabilities.csv": (["id", *TRUE], chances_of)
    }
    for name, (columns, rows) in tables.items():
        with (Path(folder) / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return {name: len(rows) for name, (_, rows) in tables.items()}
