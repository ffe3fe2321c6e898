"""Rehearse a lesson on your own GPU before a large download: random weights of the real shape, synthetic rows.

make rehearse NB=03 [PROFILE=full] [GPU_MEMORY=15] [OVERRIDES='{...}'] [OUT=folder]
python -m tools.rehearse --nb 03 --profile full

The notebook runs unmodified, for a few steps, in a temporary folder with a hub cache of its own. What it measures is
memory and time; the quality of random weights means nothing. Everything is removed at the end, also if interrupted.
"""

import argparse
import ast
import contextlib
import csv
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from utils import memory  # noqa: E402  (nothing is installed where there is no .venv)
from utils.errors import CourseError  # noqa: E402
from utils.planner import settings  # noqa: E402

MODELS = ROOT / "data" / "models"
KINDS = {  # model_type: tokenizer, class and data type of the real checkpoint
    "bert": ("tiny-bert", "AutoModelForPreTraining", "float32"),
    "t5": ("tiny-t5", "AutoModelForSeq2SeqLM", "float32"),
    "opt": ("tiny-opt", "AutoModelForCausalLM", "float16"),
    "gemma2": ("tiny-gemma-2", "AutoModelForCausalLM", "bfloat16"),
}
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")  # as in the tiny tokenizer
TOKENS_A_WORD = 1.3  # English prose in the vocabularies of these models
# what a rehearsal cuts down, if the profile has it: counts only, never lengths, batches, types or the method
COUNTS = {"unquantized_rows": 8, "compare_rows": 4, "compare_steps": 4, "compare_seeds": 1}
SPLITS = (("test", 0.2), ("validation", 0.1))  # the share of train that a lesson takes if there is no such split


class Stopped(Exception):
    """A signal asked to stop; its number."""


# ---- the lesson --------------------------------------------------------------------------------------------------


def code_cells(path):
    """The code cells of a notebook, each with its source as one text and its place in words."""
    heading, found = "start", []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ (.+)", source, re.MULTILINE) or [heading])[-1]
        elif "injected-parameters" not in cell["metadata"].get("tags", []):
            found.append(cell | {"source": source, "place": f"code cell {len(found) + 1} ({heading})"})
    return found


def assignments(path):
    """{name: expression} of a notebook, and the cell that holds PROFILES."""
    found, table = {}, None
    for cell in code_cells(path):
        lines = [line for line in cell["source"].splitlines() if not line.lstrip().startswith(("!", "%"))]
        if "PROFILES = " in cell["source"]:
            table = cell["source"]
        with contextlib.suppress(SyntaxError):  # the Colab cell, once its lines of shell are gone
            for node in ast.parse("\n".join(lines)).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    found[node.targets[0].id] = node.value
    return found, table


def profile_of(path, profile, overrides):
    """The settings of a profile, from the notebook's own cell."""
    _, table = assignments(path)
    if table is None:
        raise CourseError(f"{path.name} has no PROFILES to rehearse; name a lesson from 01 on.")
    space = {"PROFILE": profile, "OVERRIDES": overrides}
    exec(table, space)  # the course's own code
    return space["run"]


def cuts(run, steps):
    """The overrides that make a run short."""
    mine = {"max_steps": steps, "eval_steps": steps // 2, "logging_steps": steps // 2} | COUNTS
    mine["eval_rows"] = max(4, getattr(run, "eval_batch", 0), getattr(run, "per_device_eval_batch_size", 0))
    have = {name: value for name, value in vars(run).items() if name in mine}
    return {name: mine[name] if value < 0 else min(value, mine[name]) for name, value in have.items()}


class Names(dict):
    """Names of a notebook's expressions: given ones, then its own assignments, then transformers and peft."""

    def __init__(self, assigned, **given):
        super().__init__(given)
        self.assigned = assigned

    def __missing__(self, name):
        import peft
        import transformers

        if name in self.assigned:
            self[name] = self.value(self.assigned[name])
            return self[name]
        for library in (transformers, peft):
            if hasattr(library, name):
                return getattr(library, name)
        raise KeyError(name)

    def value(self, expression):
        return eval(compile(ast.Expression(expression), "notebook", "eval"), {}, self)  # the course's own code


def plan_of(path, run, rows):
    """The plan of a lesson by its own call of memory.plan, for rows with these longest inputs and answers."""
    import torch

    batch = run.per_device_train_batch_size
    shapes = {"input_ids": rows["longest"], "labels": rows["target"]}
    batch_of = {name: SimpleNamespace(shape=(batch, length)) for name, length in shapes.items()}
    given = {"length": rows["longest"], "lengths": [rows["longest"]], "longest_batch": batch_of, "torch": torch}
    given |= {"math": math}
    given |= {"num_labels": rows["classes"], "linear_names": "all-linear"}  # what the lessons read off the model
    found, _ = assignments(path)
    config = json.loads((MODELS / "full_size.json").read_text("utf-8")).get(run.model_id)
    given |= {"model": SimpleNamespace(config=SimpleNamespace(**config))} if config else {}
    return Names(found, run=run, memory=memory, **given).value(found["planned"])


# ---- models and tokenizers ---------------------------------------------------------------------------------------


def snapshot(hub, model_id):
    """The folder of a model in a hub cache, made as huggingface_hub makes it."""
    from utils.training.model_files import REVISIONS  # not above: it imports torch

    revision = REVISIONS.get(model_id, "0" * 40)
    folder = hub / f"models--{model_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(revision, encoding="utf-8")
    (folder / "snapshots" / revision).mkdir(parents=True, exist_ok=True)
    return folder / "snapshots" / revision


def write_tokenizer(shape, folder):
    """The tokenizer of the tiny model, filled up to the real size of the vocabulary with pieces that no text has."""
    source = MODELS / KINDS[shape["model_type"]][0]
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    settings = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    names = [piece for piece, _ in vocabulary] if isinstance(vocabulary, list) else vocabulary
    known = {*names} | {token["content"] for token in tokenizer["added_tokens"]}
    if len(known) > shape["vocab_size"]:
        raise CourseError(f"{source.name} has {len(known)} pieces, more than the real {shape['vocab_size']}.")
    fill = [f"[unused{number}]" for number in range(len(known), shape["vocab_size"])]
    if isinstance(vocabulary, list):  # Unigram: pieces with scores
        lowest = min(score for _, score in vocabulary)
        vocabulary += [[piece, lowest] for piece in fill]
    else:
        vocabulary.update(zip(fill, range(len(known), shape["vocab_size"]), strict=True))
    settings["model_max_length"] = shape.get("max_position_embeddings", settings.get("model_max_length", 512))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    configuration(shape)[0].save_pretrained(folder)  # AutoTokenizer reads it; write_weights completes it


def configuration(shape):
    """The transformers configuration of a shape, with the special tokens of its tokenizer, and the class to save."""
    import transformers

    tiny, kind, _ = KINDS[shape["model_type"]]
    own = json.loads((MODELS / tiny / "config.json").read_text("utf-8"))
    special = {name: own[name] for name in SPECIAL if own.get(name) is not None}
    return transformers.AutoConfig.for_model(**special | shape), getattr(transformers, kind)


def parameters(shape):
    """How many parameters a shape has."""
    import torch

    config, kind = configuration(shape)
    with torch.device("meta"):
        return sum(p.numel() for p in kind.from_config(config).parameters())


def write_weights(shape, folder):
    """Random weights of a shape, and config.json as the real checkpoint has it."""
    import torch
    from measure_memory import random_checkpoint

    config, kind = configuration(shape)
    random_checkpoint(kind, config, folder, "cuda" if torch.cuda.is_available() else "cpu")
    written = json.loads((folder / "config.json").read_text("utf-8"))
    written["dtype"] = KINDS[shape["model_type"]][2]
    (folder / "config.json").write_text(json.dumps(written, indent=2), encoding="utf-8")


# ---- rows --------------------------------------------------------------------------------------------------------


class Writer:
    """Texts of a wanted number of tokens, from sentences that the tokenizer knows; `lengths` are the tokens of each."""

    def __init__(self, tokenizer, sentences, seed=0):
        sentences = sorted({*sentences})
        inside = [f" {sentence}" for sentence in sentences]  # as in a text, behind another
        counts = [len(ids) for ids in tokenizer(inside, add_special_tokens=False)["input_ids"]]
        self.pieces, self.random, self.lengths = list(zip(sentences, counts, strict=True)), random.Random(seed), {}

    def text(self, kind, words, spread, limit=4000):
        """A text whose length is log-normal: its median in words, the spread of the logarithm, at most limit words."""
        wanted = min(limit, words * math.exp(self.random.gauss(0, spread))) * TOKENS_A_WORD
        found, total = [], 0
        while not found or total < wanted:
            sentence, count = self.random.choice(self.pieces)
            found.append(sentence)
            total += count
        self.lengths.setdefault(kind, []).append(total)
        return " ".join(found)


def read_rows(name, split):
    lines = (ROOT / "data" / name / f"{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def bills(tokenizer):
    """BillSum: a mean of about 1,800 words, summaries of about 200."""
    toy = read_rows("toy_bills", "train")
    writer = Writer(tokenizer, [line for row in toy for line in row["text"].splitlines()])

    def row():
        text, summary = writer.text("text", 1590, 0.5), writer.text("summary", 177, 0.5)
        return {"text": text, "summary": summary, "title": writer.random.choice(toy)["title"]}

    rows = {"train": [row() for _ in range(1100)], "test": [row() for _ in range(260)]}
    return rows, writer.lengths["text"], writer.lengths, {}


def talks(tokenizer):
    """LIMA: a question of about 100 words, an answer of about 450, sometimes two of each; no answers in its test."""
    inputs = []
    turns = [turn for row in read_rows("car_manual", "train") for turn in row["conversations"]]
    writer = Writer(tokenizer, turns)

    def row(answered=True):
        several = answered and writer.random.random() < 0.03
        found, total = [], 0
        for _ in range(1 + several):
            found.append(writer.text("question", 83, 0.6))
            total += writer.lengths["question"][-1]
            if answered:
                found.append(writer.text("answer", 400, 0.485))
                total += writer.lengths["answer"][-1]
        inputs.extend([total] * answered)
        return {"conversations": found, "source": "multi_turn" if several else writer.random.choice(SOURCES)}

    rows = {"train": [row() for _ in range(1030)], "test": [row(answered=False) for _ in range(300)]}
    return rows, inputs, writer.lengths, {"data_files": {}}


SOURCES = ("stackexchange", "wikihow", "authors")


def comparisons(tokenizer):
    """The LMSYS arena: question and two answers of 500 words in all (650 tokens), as JSON lists, sometimes of two."""
    toy = [turn for row in read_rows("car_manual", "train") for turn in row["conversations"]]
    writer, inputs = Writer(tokenizer, toy), []

    def row(number):
        turns = 1 + (writer.random.random() < 0.15)
        words = 500 * math.exp(writer.random.gauss(0, 0.85)) / turns
        kinds = {"prompt": 0.12, "response_a": 0.44, "response_b": 0.44}
        texts = {kind: [writer.text(kind, words * share, 0) for _ in range(turns)] for kind, share in kinds.items()}
        inputs.append(sum(sum(writer.lengths[kind][-turns:]) for kind in kinds))
        won = writer.random.choice(WINNERS)
        models = dict(zip(("model_a", "model_b"), writer.random.sample(["one", "two", "three"], 2), strict=True))
        columns = {kind: json.dumps(found) for kind, found in texts.items()}
        return {"id": number, **models, **columns, **{name: int(name == won) for name in WINNERS}}

    return {"train.csv": [row(number) for number in range(2000)]}, inputs, writer.lengths, {}


WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
# dataset_id: a function of a tokenizer that returns the rows of each split or file, the input tokens of each row, the
# tokens of each kind of text and further overrides; how many rows with answers the real set has; its classes; and how
# often an epoch trains on a row
DATA = {
    "FiscalNote/billsum": (bills, {"train": 18949, "test": 3269}, None, 1),
    "GAIR/lima": (talks, {"train": 1030}, None, 1),
    "lmsys/lmsys-arena-human-preference-55k": (comparisons, {"train": 57477}, 3, 2),  # each pair in both orders
}


def write_file(path, rows):
    """Rows as .csv or, by default, .jsonl."""
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.with_suffix(".jsonl").write_text(text, encoding="utf-8")


def write_rows(run, tokenizer, folder):
    """The data of a rehearsal: overrides, sizes of the real splits, a description, and lengths in tokens as the lesson
    cuts them: the longest input, the mean input, the longest target.

    A data set that lies on this machine is used as it is; another is replaced by synthetic rows in `folder`.
    """
    found, local, targets = {"overrides": {}, "classes": None, "copies": 1}, Path(run.dataset_id), [0]
    if local.exists():
        texts = [json.loads(line) for line in (local / "train.jsonl").read_text("utf-8").splitlines()]
        found["sizes"] = {file.stem: len(file.read_text("utf-8").splitlines()) for file in local.glob("*.jsonl")}
        inputs = [len(ids) for ids in tokenizer([row[run.text_column] for row in texts])["input_ids"]]
        found["classes"] = len({row[run.label_column] for row in texts})
        found["described"] = str(local).replace(f"{ROOT}{os.sep}", "")
    elif run.dataset_id in DATA:
        make, found["sizes"], found["classes"], found["copies"] = DATA[run.dataset_id]
        rows, inputs, lengths, extra = make(tokenizer)
        folder.mkdir(parents=True, exist_ok=True)
        for name, some in rows.items():
            write_file(folder / name, some)
        medians = ", ".join(f"{kind} {statistics.median(some):,.0f}" for kind, some in lengths.items())
        counts = " + ".join(f"{len(some):,}" for some in rows.values())
        found["described"] = f"{counts} synthetic rows in the columns of {run.dataset_id}; median tokens: {medians}"
        found["overrides"] = {"dataset_id": str(folder), **extra}
        targets = lengths.get("summary", targets)
    else:
        raise CourseError(f"{run.dataset_id}: no synthetic rows are known for this data set; add them to DATA.")
    inputs = [min(length, run.max_length) for length in inputs]
    found |= {"longest": max(inputs), "mean": statistics.mean(inputs)}
    return found | {"target": min(max(targets), getattr(run, "max_target_length", 0))}


# ---- what a whole run will take ----------------------------------------------------------------------------------


def split_sizes(run, sizes):
    """Rows of train and validation as a lesson splits and selects them."""
    sizes = dict(sizes)
    for split, share in SPLITS:
        if split not in sizes:
            share = 1 / run.n_folds if hasattr(run, "n_folds") else share
            sizes[split] = math.ceil(sizes["train"] * share)
            sizes["train"] -= sizes[split]
    if hasattr(run, "train_rows"):
        sizes = {split: min(sizes[split], run.train_rows if split == "train" else run.eval_rows) for split in sizes}
    return sizes


def project(run, cut, sizes, record, lengths=1.0, copies=1):
    """Seconds of the whole run by part, from the record of a rehearsal with the overrides `cut`.

    Training: steps and evaluations of the profile at the measured rates. Generation outside of it grows with eval_rows,
    trainings for comparison with their steps; what else a lesson does took as long in the rehearsal.
    lengths: mean tokens of a row, by those of the rows in the rehearsal; rows grouped by length begin with the longest.
    copies: how often an epoch trains on a row.
    """
    rows, main, later = split_sizes(run, sizes), record["trainings"][0], record["trainings"][1:]
    batches = math.ceil(copies * rows["train"] / run.per_device_train_batch_size)
    epochs = math.ceil(batches / getattr(run, "gradient_accumulation_steps", 1)) * run.num_train_epochs
    steps = run.max_steps if run.max_steps > 0 else epochs
    evaluations = steps // getattr(run, "eval_steps", getattr(run, "logging_steps", steps))
    first = main["evaluations"][:1]  # compiles, if anything is compiled
    judged = main["evaluations"][1:] or first
    a_row = sum(seconds for _, seconds in judged) / max(1, sum(count for count, _ in judged))
    found = {"steps": steps * step_seconds(main) * lengths}
    slow = step_times(main)[2]
    found["compilation"] = sum(slow) - len(slow) * step_seconds(main)
    found["compilation"] += sum(max(0, seconds - count * a_row) for count, seconds in first)
    found["evaluations"] = evaluations * rows["validation"] * a_row
    found["checkpoints"] = evaluations * main["save_seconds"] / max(1, main["saves"])
    growth = run.eval_rows / cut["eval_rows"] if "eval_rows" in cut else 1
    found["generation"] = record["generate_seconds"] * growth
    wanted = getattr(run, "compare_steps", steps)
    seeds = 1  # of three methods with as many seeds each, one run is the lesson's own
    if "compare_seeds" in cut and cut["compare_seeds"]:
        seeds = (3 * run.compare_seeds - 1) / (3 * cut["compare_seeds"] - 1)
    fixed = [one["end"] - one["begin"] - (len(one["ends"]) - 1) * step_seconds(one) for one in later]
    each = [wanted * step_seconds(one) * lengths for one in later]
    found["comparisons"] = seeds * sum(map(sum, zip(fixed, each, strict=True)))
    elsewhere = sum(cell["seconds"] for cell in record["cells"]) - record["generate_seconds"]
    found["the rest"] = elsewhere - sum(one["end"] - one["begin"] for one in record["trainings"])
    return found, steps


def step_times(training):
    """Seconds of three kinds of steps: the first three, for warming up; those after them that no evaluation or
    checkpoint came before; and of these the ones that took more than twice as long as most, for compiling or recording.
    """
    times = [after - before for before, after in itertools.pairwise(training["ends"])]
    later = [seconds for seconds, quiet in zip(times[3:], training["undisturbed"][3:], strict=True) if quiet]
    limit = 2 * statistics.median(later) if later else 0
    return times[:3], [time for time in later if time <= limit], [time for time in later if time > limit]


def step_seconds(training):
    """Seconds a step after the warm-up, slow ones left out; with the warm-up, if there was nothing else."""
    first, steady, _ = step_times(training)
    return statistics.fmean(steady or first)


# ---- the rehearsal -----------------------------------------------------------------------------------------------


def prepare(args, folder):
    """Writes tokenizers, rows and weights, prints what the rehearsal will be, and refuses what does not fit.

    It runs in a process of its own, so that nothing of it stays on the card. Returns what `rehearse` needs, as a dict.
    """
    from transformers import AutoTokenizer  # not above: it reads the environment

    path = lesson_of(args.nb)
    run = profile_of(path, args.profile, args.overrides)
    known = json.loads(args.sizes.read_text("utf-8"))
    if run.model_id not in known:
        raise CourseError(f"{run.model_id}: its shape is not known; add its configuration to {args.sizes.name}.")
    shapes = {value: known[value] for value in vars(run).values() if isinstance(value, str) and value in known}
    folders = {model_id: snapshot(folder / "hf" / "hub", model_id) for model_id in shapes}
    for model_id, shape in shapes.items():
        write_tokenizer(shape, folders[model_id])
    rows = write_rows(run, AutoTokenizer.from_pretrained(run.model_id), folder / "rows")
    cut = cuts(run, args.steps) | rows["overrides"]
    card = find_card(run, args.gpu_memory * 1e9)
    planned = plan_of(path, run, rows)
    counts = {model_id: parameters(shape) for model_id, shape in shapes.items()}
    disk, free = disk_need(path, counts, planned), shutil.disk_usage(folder).free

    place = f"{card['name']}, {card['total'] / memory.GIB:.0f} GiB" if card else ("a GPU", "the CPU")[args.cpu]
    cap = f", as if it had {args.gpu_memory:g} GB" if args.gpu_memory else ""
    print(f"Rehearsal of {path.stem}, profile {args.profile}, on {place}{cap}.")
    print("It measures memory and time. The weights are random: what the model says and scores means nothing.")
    for model_id, count in counts.items():
        real = count * SIZES[KINDS[shapes[model_id]["model_type"]][2]]
        print(f"  {model_id}: random weights, {gb(2 * count)} on disk, instead of a download of {gb(real)}")
    print(f"  data: {rows['described']}")
    print(f"  disk: about {gb(disk)} in {tempfile.gettempdir()}, removed at the end; free: {gb(free)}")
    shown = {name: "(synthetic rows)" if name == "dataset_id" else value for name, value in cut.items()}
    print(f"  overrides: {json.dumps(args.overrides | shown)}")
    parts = ", ".join(f"{part} {size / memory.GIB:.2f}" for part, size in planned.items() if size)
    print(f"  planned GiB at the fullest instant of a step: {parts}")
    if not card and not args.cpu:
        print(f"No GPU is here, so nothing was run. On a machine with one: {command_of(args)}")
        return {"run": None}
    refuse_what_does_not_fit(args, card, planned, disk, free, run)
    started = time.perf_counter()
    for model_id, shape in shapes.items():
        write_weights(shape, folders[model_id])
    print(f"Weights written in {time.perf_counter() - started:.0f} s. The lesson runs:")
    return {"run": vars(run), "cut": cut, "rows": rows, "planned": planned}


def lesson_of(name):
    """The path of a lesson by its number, or of a notebook."""
    paths = {path.name[:2]: path for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    paths = {number: path for number, path in paths.items() if "trainer" in assignments(path)[0]}
    path = Path(name).resolve() if name.endswith(".ipynb") else paths.get(name and name.zfill(2))
    if path is None or not path.exists():
        raise CourseError(f"there is no lesson {name!r} to rehearse; choose NB from {', '.join(sorted(paths))}.")
    return path


def find_card(run, limit):
    """The card's name and bytes: total, of them used by others, and what is left or `limit`; None without a GPU."""
    import torch

    from utils import session

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    others = max(0, total - free - settings.CONTEXT)  # this process has a context, too
    for dtype in (getattr(run, "dtype", None), getattr(run, "compute_dtype", None), getattr(run, "bf16", False)):
        session.check_dtype({True: "bfloat16"}.get(dtype, dtype or "float32"))
    has = min(limit or math.inf, total - others)
    return {"name": torch.cuda.get_device_name(), "total": total, "others": others, "has": has}


def disk_need(path, counts, planned):
    """Bytes: the weights; what learns, with its optimizer, as checkpoints and saved; a copy of the largest model in
    float32 wherever the notebook saves a whole one; and room."""
    source = "\n".join(cell["source"] for cell in code_cells(path))
    whole = len(re.findall(r"(?<!tokenizer)\.save_pretrained\(", source))
    learns = (planned["adapters"] or planned["weights"]) + planned["optimizer states"]
    return int(2 * sum(counts.values()) + 4 * learns + 4 * whole * max(counts.values()) + 3e9)


def refuse_what_does_not_fit(args, card, planned, disk, free, run=None):
    """Raises CourseError if the disk or the card is too small, unless it is to be tried all the same."""
    if free < disk and not args.anyway:
        place = f"the rehearsal needs {gb(disk)} of disk, and {tempfile.gettempdir()} has {gb(free)}"
        raise CourseError(f"{place}; make room, or set TMPDIR to a folder on a larger disk.")
    if not card or args.anyway:
        return
    if args.gpu_memory * 1e9 > card["total"]:
        raise CourseError(f"GPU_MEMORY={args.gpu_memory:g} is more than the {gb(card['total'])} of this card.")
    needs, has = (planned["total"] * (1 + settings.SLACK) + settings.CONTEXT) / memory.GIB, card["has"] / memory.GIB
    if needs > has:
        remedy = "choose PROFILE=colab, or activation_checkpointing in OVERRIDES"
        if batch := planned.largest_batch(has):
            knob = {"per_device_train_batch_size": batch}
            if run and hasattr(run, "tokens_at_once"):
                knob = {"tokens_at_once": batch * planned.settings.length}
            remedy = f"OVERRIDES='{json.dumps(knob)}' fits by the plan"
        place = f"lesson {args.nb}, profile {args.profile}, is planned at {needs:.1f} GiB, and there are {has:.1f} GiB"
        place += f" (other programs use {card['others'] / memory.GIB:.1f})" * (card["others"] > memory.GIB / 2)
        raise CourseError(f"{place}; {remedy}; --anyway tries it all the same.")


def call(command, **options):
    """Runs a command in a session of its own and returns its exit code; if interrupted, nothing of it stays behind."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family = psutil.Process(process.pid).children(recursive=True)
                process.terminate()  # the runner ends its kernel in order
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(15)
                for member in [process, *family]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
                psutil.wait_procs(family, timeout=10)
                process.wait()


def enter(folder, limit):
    """Makes the temporary folder the place of the hub's cache and of IPython, for this process and the lesson."""
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "rehearse" / "probe.py", startup / "00_probe.py")
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
        del os.environ[name]  # they would lead to the reader's own cache
    own = {"HF_HOME": folder / "hf", "HF_HUB_OFFLINE": 1, "IPYTHONDIR": folder / "ipython"}
    own |= {"REHEARSAL_RECORD": folder / "record.json", "REHEARSAL_LIMIT": limit and max(1, limit - settings.CONTEXT)}
    own |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    os.environ.update({name: str(value) for name, value in own.items()})


def gb(size):
    return f"{size / 1e9:.1f} GB"


def hours(seconds):
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def command_of(args):
    """The make command of this rehearsal."""
    more = [f"GPU_MEMORY={args.gpu_memory:g}"] * bool(args.gpu_memory)
    more += [f"OVERRIDES='{json.dumps(args.overrides)}'"] * bool(args.overrides)
    return " ".join(["make rehearse", f"NB={args.nb}", f"PROFILE={args.profile}", *more])


def rehearse(args, folder):
    """Prepares, runs and reports one rehearsal in a temporary folder; the exit code."""
    path = lesson_of(args.nb)
    enter(folder, args.gpu_memory * 1e9)
    if code := call([sys.executable, "-m", "tools.rehearse", *sys.argv[1:], "--child", str(folder)]):
        return code
    ready = json.loads((folder / "ready.json").read_text("utf-8"))
    if ready["run"] is None:
        return 0
    command = [sys.executable, "-m", "tools.run_notebooks", "--nb", str(path), "--profile", args.profile]
    command += ["--overrides", json.dumps(args.overrides | ready["cut"])]
    code = call([*command, "--out", str(folder / "out"), "--timeout", str(args.timeout)], cwd=ROOT)
    found = report(args, path, SimpleNamespace(**ready["run"]), ready, folder)
    if args.keep:
        keep(args, path, folder, ready["rows"]["described"], found)
    return code


def report(args, path, run, ready, folder):
    """Prints what was measured; returns it as a dict, with what an incomplete run left."""
    results, record, cut, rows = folder / "out" / args.profile / path.stem, {}, ready["cut"], ready["rows"]
    if (folder / "record.json").exists():
        record = json.loads((folder / "record.json").read_text("utf-8"))
    executed = next(iter(results.glob("*.ipynb")), None)
    cells = code_cells(executed) if executed else []
    places = {cell.get("execution_count"): cell["place"] for cell in cells}
    found = {"overrides": args.overrides | cut, "complete": (results / "results.json").exists()}
    found |= {"capped_gb": args.gpu_memory or None, "planned_before": ready["planned"]["total"]}
    measured, planned = {}, record.get("planned", ready["planned"])
    if "ledger" in record:
        measured = {part: size and size * memory.GIB for part, size in record["ledger"]["measured GiB"].items()}
    print(f"\n{'memory, GiB':20} {'planned':>9} {'measured':>9}")
    for part, size in planned.items():
        if size or measured.get(part):
            own = f"{measured[part] / memory.GIB:9.2f}" if measured.get(part) is not None else ""
            print(f"{part:20} {size / memory.GIB:9.2f} {own}".rstrip())
    peaks = [cell for cell in record.get("cells", []) if cell.get("allocated")]
    for name in ("allocated", "reserved") if peaks else ():
        top = max(peaks, key=lambda cell, name=name: cell[name])
        found[f"highest_{name}_bytes"], found[f"highest_{name}_in"] = top[name], places.get(top["number"], "?")
        print(f"whole lesson: at most {top[name] / memory.GIB:.2f} GiB {name}, in {places.get(top['number'], '?')}")
    outputs = [(cell["place"], output) for cell in cells for output in cell.get("outputs", [])]
    for place, output in outputs:
        if "out of memory" in f"{output.get('ename')} {output.get('evalue')}".replace("OutOfMemory", "out of memory"):
            remedy = "take a smaller batch (OVERRIDES), PROFILE=colab, or a larger card"
            print(f"It does not fit: {place} ran out of memory; {remedy}.")
        said = "".join(output.get("text", ""))
        if halved := re.search(r"[Oo]ut of memory (with|in an evaluation of) \d+ \w+ at once.*", said):
            found["halved"] = halved[0]
            print(f"Tight: in {place}, {halved[0]}")
    if not record.get("trainings") or record["trainings"][0]["end"] is None:
        print("The lesson did not get through its training, so there is no speed to report.")
        return found
    main = record["trainings"][0]
    first, steady, slow = step_times(main)
    batch = run.per_device_train_batch_size * getattr(run, "gradient_accumulation_steps", 1)
    found |= {
        "step_seconds": step_seconds(main),
        "measured_steps": len(steady),
        "warm_up_seconds": sum(first),
    }
    line, lengths = f"{found['step_seconds']:.3f} s a step of {batch} rows", 1.0
    line += f" ({len(steady)} steps after {len(first)} of warm-up)"
    if slow:
        found |= {"slow_steps": len(slow), "slow_seconds": sum(slow)}
        line += f" (without {len(slow)} slow ones, {sum(slow):.0f} s in all: kernels were compiled or recorded)"
    if found["complete"]:
        lesson = json.loads((results / "results.json").read_text("utf-8"))
        tokens = lesson["real_tokens_per_second"] / lesson["rows_per_second"]
        lengths, found["tokens_a_row"] = rows["mean"] / tokens, {"here": tokens, "whole set": rows["mean"]}
        found["real_tokens_per_second"] = tokens * batch / found["step_seconds"]
        line += f", {found['real_tokens_per_second']:,.0f} real tokens/s (tokens a row: {tokens:.0f} in these steps,"
        line += f" {rows['mean']:.0f} in the whole set)"
    found["rows_per_second"] = batch / found["step_seconds"] / lengths
    print(f"training: {line}, {found['rows_per_second']:.1f} rows/s of the whole set")
    found["projected_seconds"], found["projected_steps"] = project(
        run, cut, rows["sizes"], record, lengths, rows["copies"]
    )
    total = sum(found["projected_seconds"].values())
    parts = ", ".join(f"{name} {hours(value)}" for name, value in found["projected_seconds"].items() if value >= 1)
    whole = f"at most about {hours(total)} ({total / 3600:.2f} h) for {found['projected_steps']:,} steps"
    print(f"the whole run: {whole}: {parts}; a first download comes on top")
    print("Quality was not measured: the weights were random.")
    return found


def keep(args, path, folder, data, found):
    """Copies results.json, with what the rehearsal found, and the executed notebook to the folder of --keep."""
    results = folder / "out" / args.profile / path.stem
    name = "_".join([path.name[:2], args.profile, *([f"{args.gpu_memory:g}gb"] if args.gpu_memory else [])])
    args.keep.mkdir(parents=True, exist_ok=True)
    for executed in results.glob("*.ipynb"):
        shutil.copy(executed, args.keep / f"{name}.ipynb")
    record = {"metrics": {}}
    if (results / "results.json").exists():
        record = json.loads((results / "results.json").read_text("utf-8"))
        record["dataset_id"] = data
    if "dataset_id" in found["overrides"]:
        found["overrides"]["dataset_id"] = data
    record["metrics"]["rehearsal"] = found
    text = json.dumps(record, indent=2).replace(str(folder), "(temporary)") + "\n"
    (args.keep / f"{name}.json").write_text(text, encoding="utf-8")
    print(f"kept: {args.keep / name}.json and .ipynb")


def json_object(text):
    return {**json.loads(text)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nb", default="", help="the number of the lesson, such as 03, or the path of a notebook")
    parser.add_argument("--profile", default="full", choices=["colab", "full"])
    parser.add_argument("--gpu-memory", type=float, default=0, help="act as a card with so many GB (10^9 bytes)")
    parser.add_argument("--overrides", type=json_object, default={}, help="those of your run, as for make run")
    parser.add_argument("--steps", type=int, default=16, help="training steps, an even number")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds the lesson may take")
    parser.add_argument("--keep", type=Path, help="folder for results and the executed notebook")
    parser.add_argument("--anyway", action="store_true", help="run although card or disk look too small")
    parser.add_argument("--cpu", action="store_true", help="run without a GPU")
    parser.add_argument("--sizes", type=Path, default=MODELS / "full_size.json", help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()

    def stop(number, frame):
        for known in (signal.SIGINT, signal.SIGTERM):
            signal.signal(known, signal.SIG_IGN)  # a second one must not leave half of it behind
        raise Stopped(number)

    sys.stdout.reconfigure(line_buffering=True)
    for number in () if args.child else (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    folder = args.child or Path(tempfile.mkdtemp(prefix="rehearsal-"))
    try:
        if args.child:
            (folder / "ready.json").write_text(json.dumps(prepare(args, folder), default=str), encoding="utf-8")
            return 0
        return rehearse(args, folder)
    except CourseError as problem:
        print(f"Refused: {problem}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"\nStopped by {signal.Signals(stopped.args[0]).name}; everything temporary is removed.", file=sys.stderr)
        return 128 + stopped.args[0]
    finally:
        if not args.child:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
