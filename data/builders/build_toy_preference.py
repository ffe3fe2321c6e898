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
SCALE = 1.75
TIE = 2.0
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


def split_facts(rng):
    """{split: facts}: each fact of the manual in one split, with the same share of gaps in both."""
    all_facts = build_car_manual.facts()
    splits = {"train": [], "test": []}
    for attribute in ATTRIBUTES:
        facts = [fact for fact in all_facts if fact["attribute"] == attribute]
        rng.shuffle(facts)
        facts.sort(key=lambda fact: fact["value"] is None)
        step = len(facts) // TEST_FACTS
        for number, fact in enumerate(facts):
            split = "test" if number % step == 0 else "train"
            splits[split].append(fact)
    return splits


def questions(seed=SEED):
    """{split: [[fact, ...], ...]}: prompts of one or two turns. Each fact of the manual stands in one prompt."""
    rng = random.Random(seed)
    prompts = {}
    for split, facts in split_facts(rng).items():
        rng.shuffle(facts)
        pairs = len(facts) // 6  # a third of the facts stands in prompts of two turns
        prompts[split] = [[facts[number], facts[pairs + number]] for number in range(pairs)]
        prompts[split] += [[fact] for fact in facts[2 * pairs :]]
    return prompts


def ask(fact, rng):
    """A question about a fact, in words of car_manual's training questions."""
    return rng.choice(ATTRIBUTES[fact["attribute"]]["train"]).replace("<part>", fact["part"])


def state(fact, value, rng):
    """A sentence that gives a value as the answer, or that there is none."""
    if value is None:
        return rng.choice(WORDINGS["refusals"])
    return rng.choice(WORDINGS["answers"][fact["attribute"]]).replace("<value>", value)


def other_value(fact, rng):
    """A value that the attribute of a fact may have, and that is wrong here."""
    values = ATTRIBUTES[fact["attribute"]]["values"]
    return rng.choice([value for value in values if value != fact["value"]])


def answer_turn(fact, skill, extra, rng):
    """(is it right, sentences) of the answer to one question."""
    is_right = rng.random() < skill
    value = fact["value"]
    if not is_right:
        refuses = value is not None and rng.random() < 0.2
        value = None if refuses else other_value(fact, rng)
    sentences = [state(fact, value, rng)]
    if extra == "help":
        sentences.append(rng.choice(WORDINGS["help"][fact["attribute"]]))
    elif extra == "chatter":
        sentences += rng.sample(WORDINGS["chatter"], 2)
    return is_right, sentences


def respond(facts, model, rng, silent=0.0):
    """What a model answers to the questions of a prompt, and how good it is: {turns, right, kind, useful, worth}.

    silent: how often it gives no answer in a turn.
    """
    skill, helps, chatters, tones = MODELS[model]
    tone = rng.choices(list(TONES), tones)[0]
    extra = rng.choices(list(EXTRAS), [helps, 1 - helps - chatters, chatters])[0]
    right = []
    sentences = []  # of each turn
    for fact in facts:
        is_right, answer = answer_turn(fact, skill, extra, rng)
        right.append(is_right)
        sentences.append(answer)
    if tone == "polite" and rng.random() < 0.5:
        sentences[-1].append(rng.choice(WORDINGS["closing"]))
    elif tone != "plain":
        sentences[0].insert(0, rng.choice(WORDINGS[tone]))
    turns = [" ".join(answer) for answer in sentences]
    for turn in range(len(turns)):
        if rng.random() < silent:
            turns[turn] = None
            right[turn] = False
    share_right = sum(right) / len(right)
    worth = RIGHT * share_right + TONES[tone] + EXTRAS[extra]
    return {"turns": turns, "worth": worth, "right": share_right, "kind": TONES[tone], "useful": EXTRAS[extra]}


def chances(worth_a, worth_b):
    """The true probabilities that A wins, B wins, or neither."""
    a = math.exp(SCALE * (worth_a - worth_b) / 2)
    b = math.exp(SCALE * (worth_b - worth_a) / 2)
    total = a + b + TIE
    return a / total, b / total, TIE / total


def comparisons(seed=SEED):
    """{split: rows}; a row is a dict with COLUMNS and "chances"."""
    rng = random.Random(seed + 1)
    splits = {}
    number = 30_000  # the id of the row before
    for split, prompts in questions(seed).items():
        asked = [[ask(fact, rng) for fact in prompt] for prompt in prompts]
        rows = []
        seen = set()  # (prompt, what A said, what B said), also with A and B exchanged
        while len(rows) < COMPARISONS[split]:
            prompt = len(rows) % len(prompts)
            model_a, model_b = rng.sample(list(MODELS), 2)
            answer_a = respond(prompts[prompt], model_a, rng, SILENT)
            answer_b = respond(prompts[prompt], model_b, rng, SILENT)
            said_a = answer_a["turns"]
            said_b = answer_b["turns"]
            if said_a == said_b or (prompt, *said_a, *said_b) in seen:
                continue
            seen.add((prompt, *said_a, *said_b))
            seen.add((prompt, *said_b, *said_a))
            true_chances = chances(answer_a["worth"] + FIRST_BONUS[split], answer_b["worth"])
            winner = rng.choices(range(3), true_chances)[0]
            number += rng.randrange(1, 900)
            rows.append(
                {
                    "id": str(number),
                    "model_a": model_a,
                    "model_b": model_b,
                    "prompt": json.dumps(asked[prompt], ensure_ascii=False),
                    "response_a": json.dumps(said_a, ensure_ascii=False),
                    "response_b": json.dumps(said_b, ensure_ascii=False),
                    "winner_model_a": str(int(winner == 0)),
                    "winner_model_b": str(int(winner == 1)),
                    "winner_tie": str(int(winner == 2)),
                    "chances": true_chances,
                }
            )
        rng.shuffle(rows)
        splits[split] = rows
    return splits


def unlabelled_question(fact, rng):
    """A line with a question about a fact, in wordings that no test question has."""
    wordings = ATTRIBUTES[fact["attribute"]]
    return "Question: " + rng.choice(wordings["unlabelled"] + wordings["train"]).replace("<part>", fact["part"])


def verdict_lines(facts, rng):
    """Lines of a reader who says after each of two answers whether it is right, for two questions."""
    letters = WORDINGS["letters"]
    lines = []
    for fact in rng.sample(facts, 2):
        lines.append(unlabelled_question(fact, rng))
        for name in ("first", "second"):
            answer = respond([fact], rng.choice(list(MODELS)), rng)
            verdict = rng.choice(letters["right" if answer["right"] else "wrong"])
            lines.append(f"The {name} answer: {answer['turns'][0]} {verdict}")
    return lines


def comparing_lines(facts, rng):
    """Lines of a reader who compares two answers to one or two questions, by one to four marks."""
    letters = WORDINGS["letters"]
    count = 2 if rng.random() < 0.2 else 1
    chosen = rng.sample(facts, count)
    first = respond(chosen, rng.choice(list(MODELS)), rng)
    second = respond(chosen, rng.choice(list(MODELS)), rng)
    lines = []
    for turn, fact in enumerate(chosen):
        lines.append(unlabelled_question(fact, rng))
        lines.append(f"The first answer: {first['turns'][turn]}")
        lines.append(f"The second answer: {second['turns'][turn]}")
    said = []
    mark_count = rng.choice([1, 2, 3, 4])
    for mark in rng.sample(list(WORDINGS["marks"]), mark_count):
        said.append(rng.choice(WORDINGS["marks"][mark]))
        said.append(rng.choice(letters[judgement(first, second, mark)]))
    lines.append(" ".join(said))
    return lines


def world_letters(rows, seed=SEED):
    """Unlabelled documents: questions, two answers to each, and what readers say of them. Half of the readers say after
    each answer whether it is right; the others compare two answers: which one is right, kinder, more useful, better?

    Readers go by one rule: an answer that is more often right is better, and of two that are equally right the one
    with more kindness and use. They never weigh one against the other, and are never unsure: in that they differ from
    the people who made the comparisons.
    """
    rng = random.Random(seed + 2)
    facts = build_car_manual.facts()
    documents = []
    for _ in range(rows):
        lines = []
        if rng.random() < 0.3:
            lines.append(rng.choice(WORDINGS["letters"]["opening"]))
        if rng.random() < 0.5:
            lines += verdict_lines(facts, rng)
        else:
            lines += comparing_lines(facts, rng)
        documents.append("\n".join(lines))
    return documents


def judged(answer, mark):
    """What a reader compares, a tuple, when asked which of two answers has more of a mark, or is better."""
    if mark == "better":
        return answer["right"], round(answer["kind"] + answer["useful"], 3)
    return (answer[mark],)


def judgement(first, second, mark):
    """What a reader says of two answers: "first" or "second" has more of a mark, or "alike", "both", "neither"."""
    of_first = judged(first, mark)
    of_second = judged(second, mark)
    if of_first > of_second:
        return "first"
    if of_second > of_first:
        return "second"
    if mark == "better":
        return "alike"
    return "both" if of_first > (0.0,) else "neither"


def write(folder=FOLDER):
    """Writes train.csv and train_more.csv, which overlap, test.csv, and true_probabilities.csv; {file: rows}.

    The second file repeats rows of the first, some of them under another id, as the two files of the LMSYS competition
    did: whoever joins them must drop the repeats.
    """
    splits = comparisons()
    rng = random.Random(SEED + 3)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    half = len(splits["train"]) // 2
    first_half = splits["train"][:half]
    repeated = rng.sample(first_half, REPEATS)
    renamed = [row | {"id": str(int(row["id"]) + 5_000_000)} for row in repeated[: REPEATS // 4]]
    more = splits["train"][half:] + repeated[REPEATS // 4 :] + renamed
    rng.shuffle(more)
    files = {"train.csv": first_half, "train_more.csv": more, "test.csv": splits["test"]}
    chances_of = {}  # by id, so that a repeated row stands there once
    for name, rows in files.items():
        write_table(folder / name, COLUMNS, rows)
        for row in rows:
            chances_of[row["id"]] = {"id": row["id"]} | dict(zip(TRUE, row["chances"], strict=True))
    write_table(folder / "true_probabilities.csv", ["id", *TRUE], list(chances_of.values()))
    sizes = {name: len(rows) for name, rows in files.items()}
    return sizes | {"true_probabilities.csv": len(chances_of)}


def write_table(path, columns, rows):
    """Writes these columns of the rows, which are dicts, to a .csv file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
