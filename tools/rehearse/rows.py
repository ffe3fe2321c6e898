"""Rows that a lesson takes for the real data set: its columns and the lengths of its texts, with no sense in them."""

import csv
import json
import math
import os
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import CourseError
from utils.paths import ROOT

TOKENS_A_WORD = 1.3  # English prose in the vocabularies of these models
LONGEST_TEXT = 4000  # words
SOURCES = ("stackexchange", "wikihow", "authors")  # of LIMA's rows with one answer
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")


class Writer:
    """Texts of a wanted number of tokens, from sentences that the tokenizer knows.

    lengths: {kind of text: tokens of each text that was written}.
    """

    def __init__(self, tokenizer, sentences, seed=0):
        sentences = sorted(set(sentences))
        inside = [f" {sentence}" for sentence in sentences]  # as in a text, behind another
        counts = [len(ids) for ids in tokenizer(inside, add_special_tokens=False)["input_ids"]]
        self.sentences = list(zip(sentences, counts, strict=True))
        self.random = random.Random(seed)
        self.lengths = {}

    def text(self, kind, words, spread):
        """A text whose length is log-normal: its median in words, the spread of the logarithm."""
        words = min(LONGEST_TEXT, words * math.exp(self.random.gauss(0, spread)))
        wanted_tokens = words * TOKENS_A_WORD
        sentences = []
        tokens = 0
        while not sentences or tokens < wanted_tokens:
            sentence, count = self.random.choice(self.sentences)
            sentences.append(sentence)
            tokens += count
        self.lengths.setdefault(kind, []).append(tokens)
        return " ".join(sentences)


@dataclass
class SyntheticRows:
    """The rows of a data set, and what is known of their lengths."""

    files: dict[str, list[dict]]  # rows by the name of a split, or of a file
    inputs: list[int]  # tokens of each row that a model reads
    lengths: dict[str, list[int]]  # tokens of each text, by kind
    overrides: dict = field(default_factory=dict)  # that a lesson needs to read these files


# ---- a function a data set: each takes a tokenizer and returns SyntheticRows -------------------------------------


def read_rows(name, split):
    """The rows of a data set of this repository."""
    lines = (ROOT / "data" / name / f"{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def manual_turns():
    """All questions and answers of the car manual, whose sentences the tiny tokenizers know."""
    turns = []
    for row in read_rows("car_manual", "train"):
        turns.extend(row["conversations"])
    return turns


def bills(tokenizer):
    """BillSum: a mean of about 1,800 words, summaries of about 200."""
    toy = read_rows("toy_bills", "train")
    sentences = []
    for row in toy:
        sentences.extend(row["text"].splitlines())
    writer = Writer(tokenizer, sentences)

    def bill():
        text = writer.text("text", 1590, 0.5)
        summary = writer.text("summary", 177, 0.5)
        return {"text": text, "summary": summary, "title": writer.random.choice(toy)["title"]}

    files = {"train": [bill() for _ in range(1100)], "test": [bill() for _ in range(260)]}
    return SyntheticRows(files, writer.lengths["text"], writer.lengths)


def talks(tokenizer):
    """LIMA: a question of about 100 words, an answer of about 450, sometimes two of each; no answers in its test."""
    writer = Writer(tokenizer, manual_turns())
    inputs = []

    def pair():
        """A question with its answer, and their tokens."""
        question = writer.text("question", 83, 0.6)
        answer = writer.text("answer", 400, 0.485)
        return [question, answer], writer.lengths["question"][-1] + writer.lengths["answer"][-1]

    def answered_talk():
        has_two_turns = writer.random.random() < 0.03
        conversation, tokens = pair()
        source = "multi_turn"
        if has_two_turns:
            second, more_tokens = pair()
            conversation += second
            tokens += more_tokens
        inputs.append(tokens)
        if not has_two_turns:
            source = writer.random.choice(SOURCES)
        return {"conversations": conversation, "source": source}

    def question():
        return {"conversations": [writer.text("question", 83, 0.6)], "source": writer.random.choice(SOURCES)}

    files = {"train": [answered_talk() for _ in range(1030)], "test": [question() for _ in range(300)]}
    return SyntheticRows(files, inputs, writer.lengths)


def comparisons(tokenizer):
    """The LMSYS arena: question and two answers of 500 words in all (650 tokens), as JSON lists, sometimes of two."""
    shares = {"prompt": 0.12, "response_a": 0.44, "response_b": 0.44}  # of the words
    writer = Writer(tokenizer, manual_turns())
    rows = []
    inputs = []
    for number in range(2000):
        turns = 2 if writer.random.random() < 0.15 else 1
        words = 500 * math.exp(writer.random.gauss(0, 0.85)) / turns
        row = {"id": number, "model_a": None, "model_b": None}
        tokens = 0
        for kind, share in shares.items():
            texts = [writer.text(kind, words * share, 0) for _ in range(turns)]
            tokens += sum(writer.lengths[kind][-turns:])
            row[kind] = json.dumps(texts)
        winner = writer.random.choice(WINNERS)
        row["model_a"], row["model_b"] = writer.random.sample(["one", "two", "three"], 2)
        for name in WINNERS:
            row[name] = int(name == winner)
        rows.append(row)
        inputs.append(tokens)
    return SyntheticRows({"train.csv": rows}, inputs, writer.lengths)


@dataclass
class DataSet:
    """A data set of the hub: how its rows are made up, and what is known of the real one."""

    make: Callable  # of the functions above
    sizes: dict[str, int]  # rows with answers of each split
    classes: int | None = None
    copies: int = 1  # how often an epoch trains on a row


DATA = {
    "FiscalNote/billsum": DataSet(bills, {"train": 18949, "test": 3269}),
    "GAIR/lima": DataSet(talks, {"train": 1030}),
    "lmsys/lmsys-arena-human-preference-55k": DataSet(
        comparisons, {"train": 57477}, classes=3, copies=2
    ),  # both orders
}


# ---- rows on the disk --------------------------------------------------------------------------------------------


def write_file(path, rows):
    """Write rows as .csv or, by default, .jsonl."""
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.with_suffix(".jsonl").write_text(text, encoding="utf-8")


def write_rows(run, tokenizer, folder):
    """Prepare the data of a rehearsal; return what is known of it, as a dict:

    "overrides" that name it; "sizes", the rows of each split of the real set; "classes" and "copies" as in DataSet;
    "described", in words; and lengths in tokens as the lesson cuts them: "longest" and "mean" input, longest "target".

    A data set that lies on this machine is used as it is; another is replaced by synthetic rows in `folder`. Raises
    CourseError if none are known for it.
    """
    if Path(run.dataset_id).exists():
        known, inputs, targets = local_rows(run, tokenizer)
    elif run.dataset_id in DATA:
        known, inputs, targets = synthetic_rows(run.dataset_id, tokenizer, folder)
    else:
        raise CourseError(f"{run.dataset_id}: no synthetic rows are known for this data set; add them to DATA.")
    inputs = [min(length, run.max_length) for length in inputs]
    known["longest"] = max(inputs)
    known["mean"] = statistics.mean(inputs)
    known["target"] = min(max(targets), getattr(run, "max_target_length", 0))
    return known


def local_rows(run, tokenizer):
    """(what write_rows returns but for lengths, tokens of the inputs, of the targets) of a folder with .jsonl files."""
    folder = Path(run.dataset_id)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text("utf-8").splitlines()]
    known = {
        "overrides": {},
        "sizes": {file.stem: len(file.read_text("utf-8").splitlines()) for file in folder.glob("*.jsonl")},
        "classes": len({row[run.label_column] for row in rows}),
        "copies": 1,
        "described": str(folder).replace(f"{ROOT}{os.sep}", ""),
    }
    inputs = [len(ids) for ids in tokenizer([row[run.text_column] for row in rows])["input_ids"]]
    return known, inputs, [0]


def synthetic_rows(dataset_id, tokenizer, folder):
    """(what write_rows returns but for lengths, tokens of the inputs, of the targets) of rows written to a folder."""
    dataset = DATA[dataset_id]
    made = dataset.make(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in made.files.items():
        write_file(folder / name, rows)
    counts = " + ".join(f"{len(rows):,}" for rows in made.files.values())
    medians = ", ".join(f"{kind} {statistics.median(tokens):,.0f}" for kind, tokens in made.lengths.items())
    known = {
        "overrides": {"dataset_id": str(folder), **made.overrides},
        "sizes": dataset.sizes,
        "classes": dataset.classes,
        "copies": dataset.copies,
        "described": f"{counts} synthetic rows in the columns of {dataset_id}; median tokens: {medians}",
    }
    return known, made.inputs, made.lengths.get("summary", [0])
