"""Rehearsals: the whole path on a CPU with tiny shapes, and each promise: ids, lengths, hours, refusals, no traces."""

import csv
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import psutil
import pytest
import torch
import transformers
from conftest import ROOT, refusal
from safetensors import safe_open

from tools.random_checkpoint import random_checkpoint
from tools.rehearse import fake_hub, lesson, preparation, probe, projection, report, rows
from utils import data, memory
from utils.planner import settings

REAL = json.loads((ROOT / "data" / "models" / "full_size.json").read_text())
LESSONS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("0[1-9]*.ipynb"))}
SMALLER = {  # the same architectures, small enough for seconds on a CPU; four layers, so that two are copies
    "bert": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128},
    "t5": {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 4, "num_decoder_layers": 3, "num_heads": 2},
    "opt": {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "ffn_dim": 128,
    },
    "gemma2": {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "intermediate_size": 128,
    },
}
SMALL = {name: {**shape, **SMALLER[shape["model_type"]], "vocab_size": 3000} for name, shape in REAL.items()}


def needs_tokenizer(kind):
    if not (fake_hub.MODELS / fake_hub.KINDS[kind].tiny).exists():
        pytest.skip(f"the tiny model of {kind} is not built yet")


# ---- models and tokenizers


@pytest.mark.parametrize("model_id", REAL)
def test_the_tokenizer_has_the_real_size_and_reads_as_the_tiny_one(model_id, tmp_path):
    shape = REAL[model_id]
    needs_tokenizer(shape["model_type"])
    fake_hub.write_tokenizer(shape, fake_hub.snapshot(tmp_path, model_id))
    made = transformers.AutoTokenizer.from_pretrained(model_id, cache_dir=tmp_path, local_files_only=True)
    tiny = transformers.AutoTokenizer.from_pretrained(fake_hub.MODELS / fake_hub.KINDS[shape["model_type"]].tiny)
    assert len(made) == shape["vocab_size"] > len(tiny)
    assert type(made) is type(tiny)
    text = "Please open the left window, and say 12 [unk] things.\n\nAnswer: no!"
    assert made(text)["input_ids"] == tiny(text)["input_ids"]
    config = transformers.AutoConfig.from_pretrained(model_id, cache_dir=tmp_path, local_files_only=True)
    for name in ("pad", "bos", "eos"):
        mine, models = getattr(made, f"{name}_token_id"), getattr(config, f"{name}_token_id", None)
        assert models is None or mine == models < shape["vocab_size"]
    assert made.decode([shape["vocab_size"] - 1]).strip(), "the last piece is a piece"


def test_a_vocabulary_smaller_than_the_tiny_one_is_refused(tmp_path):
    folder = fake_hub.snapshot(tmp_path, "a/b")
    assert "more than the real 50" in refusal(
        fake_hub.write_tokenizer, {"model_type": "bert", "vocab_size": 50}, folder
    )


@pytest.mark.parametrize("kind", fake_hub.KINDS)
def test_a_random_checkpoint_holds_what_save_pretrained_would(kind, tmp_path):
    shape = next(shape for shape in SMALL.values() if shape["model_type"] == kind)
    auto = getattr(transformers, fake_hub.KINDS[kind].model_class)
    config = transformers.AutoConfig.for_model(**shape, pad_token_id=0)
    random_checkpoint(auto, config, tmp_path / "made", "cpu")
    auto.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "saved")

    def tensors(folder):
        shapes = {}
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    tensor = file.get_slice(name)
                    shapes[name] = tuple(tensor.get_shape()), tensor.get_dtype()
        return shapes

    assert tensors(tmp_path / "made") == tensors(tmp_path / "saved")
    made, info = auto.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not any(info.values()), info
    values = [p.float().std() for name, p in made.named_parameters() if p.ndim > 1]
    assert min(values) > 0.001, "random, not empty"
    assert made.dtype == torch.bfloat16


# ---- rows


def lengths_of(kind, examples, tokenizer):
    """Words of the texts of a kind, as far as tokens tell."""
    if kind in ("text", "summary"):
        texts = [row[kind] for row in examples]
    else:
        turn = {"question": 0, "answer": 1}[kind]
        texts = [row["conversations"][turn] for row in examples]
    return [len(ids) / rows.TOKENS_A_WORD for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def off(kind, words):
    """What is wrong with the lengths of a kind of text, in words of the real set; "" if nothing is."""
    mean, spread = {"text": (1800, 0.5), "summary": (200, 0.5), "question": (100, 0.6), "answer": (450, 0.485)}[kind]
    measured_mean = statistics.mean(words)
    measured_spread = statistics.stdev(math.log(count) for count in words)
    faults = []
    if abs(measured_mean / mean - 1) > 0.12:
        faults.append(f"mean {measured_mean:.0f}")
    if abs(measured_spread - spread) > 0.12:
        faults.append(f"spread {measured_spread:.2f}")
    return " ".join(faults)


@pytest.mark.parametrize(
    ("dataset_id", "tiny", "toy", "columns"),
    [
        ("FiscalNote/billsum", "tiny-t5", "toy_bills", ("text", "summary")),
        ("GAIR/lima", "tiny-opt", "car_manual", ("conversations",)),
    ],
)
def test_rows_have_columns_and_lengths_of_the_real_set(dataset_id, tiny, toy, columns, tmp_path):
    from datasets import load_dataset

    tokenizer = transformers.AutoTokenizer.from_pretrained(fake_hub.MODELS / tiny)
    made = rows.DATA[dataset_id].make(tokenizer)
    train = made.files["train"]
    for kind in made.lengths:
        assert not off(kind, lengths_of(kind, train[:500], tokenizer)), kind
        assert off(kind, lengths_of(kind, rows.read_rows(toy, "train"), tokenizer)), "the toy rows would not do"
    assert len(made.inputs) >= len(train)
    run = SimpleNamespace(dataset_id=dataset_id, max_length=300, max_target_length=100)
    known = rows.write_rows(run, tokenizer, tmp_path / "rows")
    assert known["overrides"]["dataset_id"] == str(tmp_path / "rows")
    assert known["longest"] == 300
    assert 250 < known["mean"] <= 300
    first, *_ = data.reading.read(tmp_path / "rows", load_dataset)
    assert first.split == "train"
    assert first.column(columns[0]) == [row[columns[0]] for row in train], "seeded"
    if columns == ("conversations",):
        data.conversations.load(tmp_path / "rows", load_dataset)
    else:
        data.summaries.load(tmp_path / "rows", load_dataset)


def test_comparisons_are_those_of_the_arena_in_columns_and_lengths(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(fake_hub.MODELS / "tiny-opt")
    made = rows.comparisons(tokenizer)
    rows.write_file(tmp_path / "train.csv", made.files["train.csv"])
    with (tmp_path / "train.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    with (ROOT / "data" / "toy_preference" / "train.csv").open(encoding="utf-8", newline="") as file:
        assert list(table[0]) == next(csv.reader(file))
    talks = [[json.loads(row[name]) for name in ("prompt", "response_a", "response_b")] for row in table[:500]]
    assert all(len({*map(len, talk)}) == 1 for talk in talks), "as many answers as questions"
    texts = [" ".join([*questions, *first, *second]) for questions, first, second in talks]
    tokens = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert statistics.mean(tokens) == pytest.approx(statistics.mean(made.inputs[:500]), rel=0.05)
    assert 560 < statistics.median(tokens) < 760
    assert 0.86 < statistics.mean(count < 2048 for count in tokens) < 0.97
    assert {sum(int(row[name]) for name in rows.WINNERS) for row in table} == {1}


def test_unknown_data_and_models_are_named(tmp_path):
    run = SimpleNamespace(dataset_id="somebody/something", max_length=8)
    assert "somebody/something" in refusal(rows.write_rows, run, None, tmp_path)


# ---- overrides and plans


@pytest.mark.parametrize(("nb", "profile"), [*itertools.product(LESSONS, ["colab", "full"]), ("04", "cpu")])
def test_only_counts_are_cut_and_the_plan_is_that_of_the_notebook(nb, profile):
    path = LESSONS[nb]
    run = lesson.profile_of(path, profile, {})
    cut = lesson.cuts(run, 16)
    rows = "eval_rows validation_rows unquantized_rows compare_rows"
    counts = f"max_steps eval_steps logging_steps compare_steps compare_seeds {rows}"
    assert set(cut) <= set(counts.split())
    assert all(value <= getattr(run, name) or getattr(run, name) < 0 for name, value in cut.items())
    assert cut["max_steps"] == 16
    assert vars(lesson.profile_of(path, profile, cut)) == vars(run) | cut, "the notebook accepts them"
    lengths = {"longest": run.max_length, "target": getattr(run, "max_target_length", 0), "classes": 5}
    planned = lesson.plan_of(path, run, lengths)
    run.per_device_train_batch_size *= 16
    if hasattr(run, "tokens_at_once"):
        run.tokens_at_once *= 16
    larger = lesson.plan_of(path, run, lengths)
    assert larger["total"] > 1.5 * planned["total"]
    assert larger["weights"] == planned["weights"] > 0.1 * memory.GIB
    assert bool(planned["adapters"]) == (nb != "01")


def test_a_lesson_without_the_profile_cpu_says_so():
    assert "PROFILE 'cpu' is not known" in refusal(lesson.profile_of, LESSONS["02"], "cpu", {})


def test_the_profile_cpu_is_refused_if_the_ram_is_too_small():
    planned = {"total": 10**15, "CUDA libraries": 0}
    args = SimpleNamespace(profile="cpu", nb="04", anyway=False)
    message = refusal(preparation.refuse_small_ram, args, planned)
    assert "GiB of RAM" in message
    for given in ({"anyway": True}, {"profile": "full"}):
        preparation.refuse_small_ram(SimpleNamespace(**{**vars(args), **given}), planned)


class Plan(dict):
    """A plan that needs so many GiB on the card, and of which so many rows at once would fit."""

    def __init__(self, gib, fitting=3):
        super().__init__(total=(gib * memory.GIB - settings.CONTEXT) / (1 + settings.SLACK))
        self.fitting = fitting

    def largest_batch(self, gib):
        return self.fitting


CARD = {"name": "a card", "total": 16 * memory.GIB, "others": 0, "has": 16 * memory.GIB}
SHARED = CARD | {"others": 4 * memory.GIB, "has": 12 * memory.GIB}


@pytest.mark.parametrize(
    ("card", "needs", "given", "free", "of_run", "parts"),
    [
        (CARD, Plan(5), {}, 9e9, {}, ("10.0 GB of disk", "9.0 GB", "TMPDIR")),
        (CARD, Plan(5), {"gpu_memory": 20}, 11e9, {}, ("GPU_MEMORY=20", "17.2 GB of this card")),
        (CARD, Plan(17), {}, 11e9, {}, ("17.0 GiB", "16.0 GiB", '"per_device_train_batch_size": 3', "--anyway")),
        (CARD, Plan(17), {}, 11e9, {"tokens_at_once": 800}, ('{"tokens_at_once": 300}',)),
        (CARD, Plan(17, fitting=0), {}, 11e9, {}, ("PROFILE=colab",)),
        (SHARED, Plan(13), {}, 11e9, {}, ("12.0 GiB (other programs use 4.0)",)),
        (CARD, Plan(15.9), {}, 11e9, {}, ()),
        (CARD, Plan(17), {"anyway": True}, 11e9, {}, ()),
        (None, Plan(17), {}, 11e9, {}, ()),
    ],
    ids=["disk", "more than the card", "memory", "by tokens", "not one row", "shared", "fits", "anyway", "no card"],
)
def test_what_does_not_fit_is_refused(card, needs, given, free, of_run, parts):
    options = {"gpu_memory": 0, "anyway": False, "nb": "03", "profile": "full", **given}
    args = SimpleNamespace(**options)

    def check():
        preparation.refuse_full_disk(args, 10e9, free)
        preparation.refuse_small_card(args, card, needs, SimpleNamespace(**of_run), length=100)

    if not parts:
        check()
    else:
        message = refusal(check)
        assert all(part in message for part in parts), message


def test_the_disk_holds_weights_checkpoints_and_whole_models(tmp_path):
    path, planned = tmp_path / "04.ipynb", {"weights": 2e9, "adapters": 1e8, "optimizer states": 2e8}

    def need(*lines, **changes):
        cell = {"cell_type": "code", "source": list(lines), "metadata": {}}
        path.write_text(json.dumps({"cells": [cell]}))
        return preparation.disk_need(path, {"a/b": 10**9, "c/d": 10**8}, planned | changes) - 2 * (10**9 + 10**8)

    assert need("trainer.save_model(folder)", "tokenizer.save_pretrained(folder)") == 4 * 3e8 + 3e9
    assert need("merged.save_pretrained(folder)") == 4 * 3e8 + 4e9 + 3e9
    assert need("", adapters=0) == 4 * 2.2e9 + 3e9, "all weights learn"


# ---- hours


def ends(*seconds):
    return list(itertools.accumulate(seconds, initial=100.0))


def test_the_whole_run_is_projected_from_its_parts():
    training = {"begin": 100.0, "end": 130.0, "ends": ends(2.0, 2.0, 2.0, 2.0, 2.0), "undisturbed": [True] * 5}
    training |= {"evaluations": [[8, 7.0], [8, 4.0]], "saves": 2, "save_seconds": 3.0}
    later = training | {"begin": 200.0, "end": 212.0, "evaluations": [], "saves": 0, "save_seconds": 0}
    record = {"trainings": [training, later], "generate_seconds": 7.0, "cells": [{"seconds": 60.0}, {"seconds": 5.0}]}
    run = SimpleNamespace(train_rows=989, eval_rows=248, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    vars(run).update(max_steps=-1, num_train_epochs=4, eval_steps=100, compare_steps=20)
    cut = {"eval_rows": 8, "compare_steps": 5}
    found, steps = projection.project(run, cut, {"train": 18949, "test": 3269}, record, lengths=0.5)
    assert steps == 4 * 124  # 989 rows are 248 batches of 4, and 124 steps of two batches
    assert found == {
        "steps": 496 * 2.0 * 0.5,
        "compilation": 7.0 - 8 * 0.5,
        "evaluations": 4 * 248 * 0.5,  # after 100, 200, 300, 400 steps; the first of two compiled
        "checkpoints": 4 * 1.5,
        "generation": 7.0 * 248 / 8,
        "comparisons": 12.0 - 5 * 2.0 + 20 * 2.0 * 0.5,  # loading, then its steps
        "the rest": 65.0 - 7.0 - 30.0 - 12.0,
    }
    run.max_steps = -1
    assert projection.project(run, cut, {"train": 18949, "test": 3269}, record, copies=2)[1] == 4 * 248
    run.max_steps = 50
    assert projection.project(run, cut, {"train": 18949, "test": 3269}, record)[0]["steps"] == 100.0
    training["ends"] = ends(9.0, 1.0, 1.0, 1.5, 1.5, 4.0, 1.5, 1.4, 1.5)  # the first three are warm-up
    training["undisturbed"] = [True] * 7 + [False, True]
    assert projection.step_times(training).mean == pytest.approx(6 / 4)
    found, _ = projection.project(run, cut, {"train": 18949, "test": 3269}, record)
    assert (found["steps"], found["compilation"]) == (pytest.approx(50 * 1.5), pytest.approx(2.5 + 3))


def test_splits_are_counted_as_the_lessons_cut_them():
    assert projection.split_sizes(SimpleNamespace(), {"train": 1030}) == {"train": 741, "test": 206, "validation": 83}
    folds = projection.split_sizes(SimpleNamespace(n_folds=20), {"train": 2000})
    assert folds == {"train": 1805, "test": 100, "validation": 95}


# ---- the probe, with a card that is not there


def test_the_probe_caps_the_card_and_sees_peaks_before_they_are_reset(monkeypatch, tmp_path):
    calls, peak, hooks = [], {"allocated": 5}, {}
    card = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_device_properties=lambda device: SimpleNamespace(total_memory=100),
        set_per_process_memory_fraction=calls.append,
        reset_peak_memory_stats=lambda: peak.update(allocated=1),
        max_memory_allocated=lambda: peak["allocated"],
        max_memory_reserved=lambda: 9,
        synchronize=lambda: None,
    )
    events = SimpleNamespace(register=lambda name, hook: hooks.setdefault(name, hook))
    shell = SimpleNamespace(events=events, user_ns={})
    monkeypatch.setenv("REHEARSAL_RECORD", str(tmp_path / "record.json"))
    monkeypatch.setenv("REHEARSAL_LIMIT", "25")
    for name in ("transformers.trainer", "transformers.generation.utils"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=card))
    probe.watch(shell)
    hooks["pre_run_cell"](None)
    assert calls == [0.25]
    peak["allocated"] = 7
    card.reset_peak_memory_stats()  # as the Meter does
    peak["allocated"] = 3
    hooks["post_run_cell"](SimpleNamespace(execution_count=4))
    cell = json.loads((tmp_path / "record.json").read_text())["cells"][0]
    assert (cell["number"], cell["allocated"], cell["reserved"]) == (4, 7, 9)


# ---- the whole path


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    path = tmp_path_factory.mktemp("sizes") / "small.json"
    path.write_text(json.dumps(SMALL))
    return path


@pytest.fixture
def start(offline, tmp_path):
    """A function that starts a rehearsal from another folder, with a TMPDIR and a cache of the hub of its own."""
    place = tmp_path / "tmp"
    place.mkdir()
    cache = tmp_path / "own"
    environment = {**offline, "TMPDIR": str(place), "HF_HUB_CACHE": str(cache), "HF_HOME": str(cache)}

    def run(*options):
        command = [sys.executable, "-m", "tools.rehearse", *map(str, options)]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        process.place = place
        process.cache = cache
        return process

    return run


def left(process):
    """What a rehearsal has left behind."""
    return [path.name for path in process.place.glob("rehearsal-*")] + [p.name for p in process.cache.glob("*")]


def test_lesson_01_is_rehearsed_unmodified_and_leaves_no_trace(start, sizes, tmp_path):
    overrides = {"learning_rate": 3e-5, "bf16": False}  # no GPU, no bfloat16
    options = ["--nb", "01", "--cpu", "--sizes", sizes, "--steps", 6, "--overrides", json.dumps(overrides)]
    process = start(*options, "--keep", tmp_path / "kept")
    text, _ = process.communicate()
    assert process.returncode == 0, text
    assert left(process) == []
    for part in ("means nothing", "2 steps after 3 of warm-up", "the whole run: at most"):
        assert part in text, part
    record = json.loads((tmp_path / "kept" / "01_full.json").read_text())
    found = record["metrics"]["rehearsal"]
    assert (record["model_id"], record["dataset_id"]) == ("google-bert/bert-base-uncased", "data/driver_intent")
    assert (record["metrics"]["steps"], found["measured_steps"]) == (6, 2)
    assert found["overrides"] == {**overrides, "max_steps": 6, "eval_steps": 3, "compare_steps": 4}
    assert record.get("overrides", found["overrides"]) == found["overrides"], "as any results.json has them"
    assert found["rows_per_second"] == pytest.approx(32 / found["step_seconds"], rel=0.1)
    assert found["projected_steps"] == 150  # 800 rows, batch 32, 6 epochs
    assert found["projected_seconds"]["steps"] == pytest.approx(150 * found["step_seconds"], rel=0.1)
    assert record["planned_peak_bytes"] == found["planned_before"], "the notebook's own plan, before it ran"
    assert record["total_parameters"] < 1e6
    executed = nbformat.read(tmp_path / "kept" / "01_full.ipynb", as_version=4)
    source = nbformat.read(LESSONS["01"], as_version=4)
    given = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    assert [cell.source for cell in given] == [cell.source for cell in source.cells]
    assert str(tmp_path) not in (tmp_path / "kept" / "01_full.json").read_text()


HANG = [
    ("PROFILE = 'tiny'\nOVERRIDES = {}\nOUTPUT_DIR = ''", ["parameters"]),
    (
        "from utils import memory, profiles\nfrom utils.paths import ROOT\n"
        "row = dict(model_id='google-bert/bert-base-uncased', dataset_id=f'{ROOT}/data/driver_intent', max_length=9,\n"
        "    text_column='text', label_column='label', per_device_train_batch_size=2, max_steps=-1)\n"
        "SETTINGS = {name: (value,) * 3 for name, value in row.items()}\n"
        "run = profiles.select(SETTINGS, PROFILE, OVERRIDES)",
        [],
    ),
    ("planned = memory.plan(run.model_id, batch=run.per_device_train_batch_size, length=9)\ntrainer = None", []),
    ("import time\ntime.sleep(600)", []),
]


def assert_stopped(process, number):
    family = psutil.Process(process.pid).children(recursive=True)
    assert left(process), "there is something to remove"
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, rest
    assert f"Stopped by {number.name}" in rest
    assert left(process) == []
    deadline = time.monotonic() + 10
    while any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.1)
    return family


def test_sigterm_ends_the_lesson_with_all_its_processes(start, sizes, tmp_path):
    cells = [nbformat.v4.new_code_cell(code, metadata={"tags": tags}) for code, tags in HANG]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "hang.ipynb")
    process = start("--nb", tmp_path / "hang.ipynb", "--cpu", "--sizes", sizes)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "code cell 4" in line:
            break
    assert "code cell 4" in lines[-1], "".join(lines)
    assert len(assert_stopped(process, signal.SIGTERM)) >= 3, "the runner, its watcher and the kernel"


def test_sigint_ends_the_preparation(start, sizes):
    process = start("--nb", "01", "--cpu", "--sizes", sizes)
    while not psutil.Process(process.pid).children():
        assert process.poll() is None
        time.sleep(0.1)
    assert len(assert_stopped(process, signal.SIGINT)) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_would_do(start):
    process = start("--nb", "02", "--profile", "colab", "--gpu-memory", "15")
    text, _ = process.communicate()
    assert process.returncode == 0, text
    parts = ("google-bert/bert-large-uncased", "0.7 GB on disk", "1.3 GB", "data/driver_intent", '"max_steps": 16')
    for part in (*parts, "weights 0.26", "No GPU is here", "make rehearse NB=02 PROFILE=colab GPU_MEMORY=15"):
        assert part in text, part
    assert left(process) == []


def test_a_lesson_that_is_not_there_is_refused(start):
    process = start("--nb", "00")
    text, _ = process.communicate()
    assert process.returncode == 2
    assert "Refused: there is no lesson '00' to rehearse; choose NB from 01" in text


def test_make_hands_its_values_on():
    shown = subprocess.run(
        ["make", "-n", "rehearse", "NB=04", "GPU_MEMORY=15", "OUT=x"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert '--nb="$NB"  ' in shown
    assert '--gpu-memory="$GPU_MEMORY"  --keep="$OUT"' in shown
    shown = subprocess.run(["make", "-n", "rehearse", "PROFILE=colab"], cwd=ROOT, capture_output=True, text=True).stdout
    assert '--profile="$PROFILE"' in shown


@pytest.mark.slow
def test_the_course_arm_of_a_benchmark_runs_the_lesson_up_to_its_training(sizes, tmp_path):
    command = [sys.executable, "-m", "benchmarks.bench", "--nb", "01", "--cpu"]
    command += ["--sizes", sizes, "--steps", "8", "--keep", tmp_path / "kept", "--arms", "batches of 8,course"]
    command = [str(part) for part in command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "kept" / "01_course.json").read_text())
    assert (record["arm"], record["steps"]) == ("course", 8)
    assert 1 <= record["steady_steps"] <= 5, "3 are warm-up"
    assert record["real_tokens_per_second"] > record["rows_per_second"] > 0
    assert "code cell 20" in done.stdout
    assert "code cell 21" not in done.stdout, "what comes after the training does not run"
    lever = json.loads((tmp_path / "kept" / "01_batches_of_8.json").read_text())
    assert lever["beside"] == record["real_tokens_per_second"] != lever["real_tokens_per_second"]
    assert lever["overrides"] == {"per_device_train_batch_size": 8}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("step 1: out of memory with 6 rows at once, so it is repeated with 3 at once", "out of memory with 6 rows"),
        ("Out of memory in an evaluation of 8 rows at once, so it is repeated", "Out of memory in an evaluation of 8"),
        ("there is memory for 8 rows at once", None),
    ],
)
def test_what_was_repeated_for_lack_of_memory_is_reported(said, shown, tmp_path, capsys):
    path = lesson.lesson_of("03")
    folder = tmp_path / "out" / "full" / path.stem
    folder.mkdir(parents=True)
    output = {"output_type": "stream", "name": "stdout", "text": [said]}
    cell = {"cell_type": "code", "source": ["x"], "metadata": {}, "execution_count": 1, "outputs": [output]}
    (folder / path.name).write_text(json.dumps({"cells": [cell]}))
    args = SimpleNamespace(profile="full", overrides={}, gpu_memory=24)
    ready = {"cut": {}, "rows": {}, "planned": {"total": 2**30}}
    summary = report.report(args, SimpleNamespace(), ready, report.Measured(tmp_path))
    assert ("halved" in summary) == bool(shown)
    assert (f"Tight: in code cell 1 (start), {shown}" in capsys.readouterr().out) == bool(shown)


@pytest.mark.parametrize("complete", [True, False])
def test_a_receipt_says_with_which_settings_it_was_made(complete, tmp_path):
    path = lesson.lesson_of("03")
    folder = tmp_path / "rehearsal"
    run_folder = folder / "out" / "full" / path.stem
    run_folder.mkdir(parents=True)
    data_folder = str(folder / "rows")
    overrides = {"learning_rate": 0.5, "dataset_id": data_folder}
    if complete:
        results = {"metrics": {}, "dataset_id": data_folder, "overrides": overrides, "wall_seconds": 12.5}
        results["settings"] = {"max_length": 1024, **overrides}
        (run_folder / "results.json").write_text(json.dumps(results))
    args = SimpleNamespace(profile="full", gpu_memory=24, keep=tmp_path / "kept")
    summary = {"overrides": dict(overrides)}
    report.keep(args, path, folder, "ten synthetic rows", report.Measured(folder), summary)
    receipt = json.loads((tmp_path / "kept" / "03_full_24gb.json").read_text())
    assert receipt["overrides"] == {"learning_rate": 0.5, "dataset_id": "ten synthetic rows"}
    assert receipt["metrics"]["rehearsal"]["overrides"] == receipt["overrides"]
    if complete:
        assert receipt["settings"] == {"max_length": 1024, **receipt["overrides"]}
        assert receipt["wall_seconds"] == 12.5
