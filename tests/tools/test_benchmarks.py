"""The benchmarks: every table and the figure are those of their receipts, and what can run without a GPU does."""

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from conftest import ROOT

from benchmarks import (
    arms,
    bench,
    check_cap,
    compare_methods,
    loss_bands,
    pages,
    receipts,
    run_recipe,
    time_to_accuracy,
)
from benchmarks.memory import measure
from benchmarks.rates import steady_rates
from benchmarks.recipes import rows as encoded_rows
from tools import rehearse, tables
from utils import memory, speed

MODELS = ROOT / "data" / "models"
MADE_FASTER = 23_891.2  # real tokens/s


def page(name):
    """The text of a page of docs."""
    return (ROOT / "docs" / name).read_text()


# ---- pages


def test_a_table_goes_between_its_marks_only(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"docs/index\.md: the comments <!-- nowhere:begin"):
        tables.put_into_page("docs/index.md", "nowhere", "| a |")
    monkeypatch.setattr(tables.paths, "ROOT", tmp_path)
    text = "above\n<!-- here:begin (a program) -->\n{}<!-- here:end -->\nbelow\n"
    (tmp_path / "page.md").write_text(text.format("| old |\n"))
    tables.put_into_page("page.md", "here", "| \\1 |\n| new |")
    assert (tmp_path / "page.md").read_text() == text.format("| \\1 |\n| new |\n")


def test_the_tables_and_the_figure_of_the_benchmarks_are_those_of_their_receipts(tmp_path):
    of_arms = receipts.read_receipts()
    assert len(of_arms) >= 8
    assert pages.every_run_text(of_arms) in page("benchmarks-full.md")
    assert pages.speed_table(of_arms) in page("benchmarks.md")
    assert pages.levers_table(of_arms) in page("benchmarks.md")
    assert pages.attention_cap_table() in page("benchmarks.md")
    with matplotlib.rc_context({"axes.titlesize": 30, "axes.linewidth": 5}):  # of other tests
        pages.draw_rates(of_arms, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == (receipts.BENCH / "rates.svg").read_text()


def with_changes(of_arms, name, **changes):
    """The receipts, that of one arm changed. name: "05 course"."""
    changed = []
    for receipt in of_arms:
        if f"{receipt.lesson} {receipt.arm}" == name:
            receipt = dataclasses.replace(receipt, **changes)
        changed.append(receipt)
    assert changed != of_arms
    return changed


@pytest.mark.parametrize("receipt", receipts.read_receipts(), ids=lambda receipt: f"{receipt.lesson} {receipt.arm}")
def test_another_number_is_another_table(receipt):
    slower = with_changes(receipts.read_receipts(), f"{receipt.lesson} {receipt.arm}", real_tokens_per_second=1.0)
    in_every_run = pages.every_run_text(slower) in page("benchmarks-full.md")
    in_levers = pages.levers_table(slower) in page("benchmarks.md")
    assert in_every_run == pages.is_lever(receipt)
    assert in_levers != pages.is_lever(receipt)
    if receipt.arm in pages.COMPARED:
        assert pages.speed_table(slower) not in page("benchmarks.md")
    if pages.is_lever(receipt):
        beside = with_changes(receipts.read_receipts(), f"{receipt.lesson} {receipt.arm}", beside=1.0)
        assert pages.levers_table(beside) not in page("benchmarks.md")


def test_a_recipe_is_compared_with_the_course_on_the_same_card_or_beside_it():
    of_arms = receipts.read_receipts()
    twice = with_changes(of_arms, "05 course on H200", real_tokens_per_second=MADE_FASTER)
    assert "2.0 times Unsloth's with the cap" in pages.every_run_text(twice), "it ran on an H200, too"
    unsloth = next(receipt for receipt in of_arms if receipt.arm == "unsloth")
    beside = with_changes(of_arms, "05 unsloth", beside=2 * unsloth.real_tokens_per_second)
    assert "2.0 times Unsloth's" in pages.every_run_text(beside)
    assert pages.speedups([unsloth]) == {}, "without a receipt of the course"


def test_the_tables_of_whole_lessons_are_those_of_their_receipts(tmp_path):
    whole_lessons = receipts.read_whole_lessons()
    assert len(whole_lessons) > 4
    assert pages.whole_lessons_table(whole_lessons) in page("which-card.md")
    assert pages.cards_table(whole_lessons) in page("which-card.md")
    others = []
    for lesson in whole_lessons:
        twice = 2 * lesson.measured_peak_bytes
        others.append(dataclasses.replace(lesson, measured_peak_bytes=twice, capped_gb=11))
    assert pages.whole_lessons_table(others) not in page("which-card.md")
    assert pages.cards_table(others) not in page("which-card.md")


def test_what_only_shortens_a_rehearsal_is_no_change_of_a_profile():
    assert set(rehearse.COUNTS) <= receipts.SETTINGS_OF_LENGTH
    lesson = receipts.read_whole_lessons()[0]
    assert dataclasses.replace(lesson, overrides={"max_steps": 4, "eval_rows": 8}).changes == ""
    assert dataclasses.replace(lesson, overrides={"max_steps": 4, "optim": "sgd"}).changes == "`optim` sgd"


def test_the_card_that_a_lesson_needs():
    lesson = receipts.read_whole_lessons()[0]
    assert dataclasses.replace(lesson, capped_gb=24).needed_gb == 24
    assert dataclasses.replace(lesson, capped_gb=None, highest_reserved_bytes=23 * 10**9).needed_gb == 24
    assert dataclasses.replace(lesson, capped_gb=None, highest_reserved_bytes=24 * 10**9).needed_gb == 32


def test_the_table_of_memory_receipts_is_that_of_the_file():
    record = json.loads(measure.RECEIPT.read_text())
    assert measure.table(record) in page("will-it-fit.md")
    for receipt in record["receipts"]:
        planned, measured = (receipt[f"{name}_bytes"] / 2**30 for name in ("planned", "measured"))
        name = re.escape(receipt["name"])
        row = next(line for line in page("will-it-fit.md").splitlines() if re.match(rf"\| {name}( \*)? \|", line))
        assert f"| {planned:.2f} | {measured:.2f} |" in row
        assert (" * |" in row) == receipt["held_out"]


def test_the_set_ups_are_those_of_the_memory_receipts():
    setups = measure.read_setups()
    measured = {receipt["name"]: receipt for receipt in json.loads(measure.RECEIPT.read_text())["receipts"]}
    assert setups.keys() == measured.keys()
    for name, setup in setups.items():
        receipt = measured[name]
        assert (setup.model_id, setup.method, setup.held_out) == (
            receipt["model_id"],
            receipt["method"],
            receipt["held_out"],
        )
        assert setup.settings == receipt["settings"], name
        _, model_class = measure.configuration_of(setup)
        assert ("num_labels" in setup.settings) == ("Classification" in model_class.__name__)
        rows = measure.synthetic_rows(setup, 2)
        assert [len(row["input_ids"]) for row in rows] == 2 * [setup.settings["length"]]
        assert int(rows[0]["attention_mask"].sum()) == setup.settings["length"] // 2


def test_the_table_of_methods_is_that_of_its_receipt():
    assert compare_methods.table(compare_methods.read()) in page("benchmarks.md")


# ---- receipts


@pytest.mark.parametrize("path", sorted(receipts.BENCH.glob("*.json")), ids=lambda path: path.stem)
def test_a_receipt_is_read_and_written_whole(path, tmp_path):
    receipt = receipts.read_receipt(path)
    receipt.write(tmp_path / path.name)
    assert json.loads((tmp_path / path.name).read_text()) == json.loads(path.read_text())
    assert receipt.arm in {"course", *arms.RECIPES[receipt.lesson], *arms.levers_of(receipt.lesson)} or (
        receipt.arm.startswith("course ")
    )
    for name in receipts.RATES_OF_A_RUN:
        assert receipts.medians(receipt.runs)[name] == getattr(receipt, name)


def test_a_reference_says_what_was_changed():
    of_references = [receipt for receipt in receipts.read_receipts() if receipt.arm == "reference"]
    assert len(of_references) == 5
    for receipt in of_references:
        recipe = importlib.import_module(f"benchmarks.recipes.published_{receipt.lesson}")
        assert set(receipt.changed) == set(recipe.CHANGED)


MEASURED = {
    "steps": 4,
    "steady_steps": 1,
    "step_seconds": 1.0,
    "rows_per_second": 2.0,
    "real_tokens_per_second": 20.0,
    "padding": 0.0,
    "tokens_a_row": 10.0,
    "first_steps_seconds": 3.0,
    "slow_steps": 0,
    "slow_seconds": 0,
    "all_seconds": 4.0,
    "settings": {"optim": "sgd"},
    "wall_seconds": 60.0,
}


def measured_with(rate):
    """A measurement with so many real tokens/s."""
    measurement = dict(MEASURED)
    measurement["real_tokens_per_second"] = rate
    return measurement


def test_receipts_hold_the_medians_of_all_runs_and_the_course_beside_them(tmp_path):
    call = bench.ReceiptsOfCall("05", tmp_path, add_to_earlier_runs=False)
    call.add("peer", measured_with(20.0))
    assert "beside" not in json.loads((tmp_path / "05_peer.json").read_text()), "the course did not run yet"
    for rate in (40.0, 50.0, 90.0):
        call.course_rates.append(rate)
        call.add("course", measured_with(rate))
    peer = receipts.read_receipt(tmp_path / "05_peer.json")
    course = receipts.read_receipt(tmp_path / "05_course.json")
    assert (peer.beside, peer.settings, peer.wall_seconds) == (50.0, {"optim": "sgd"}, 60.0)
    assert (course.beside, course.real_tokens_per_second, len(course.runs)) == (None, 50.0, 3)
    assert course.device
    assert list(json.loads((tmp_path / "05_course.json").read_text()))[:2] == ["arm", "lesson"]

    again = bench.ReceiptsOfCall("05", tmp_path, add_to_earlier_runs=True)
    assert again.add("course", measured_with(10.0)).real_tokens_per_second == 45.0
    assert len(again.add("course", measured_with(10.0)).runs) == 5
    anew = bench.ReceiptsOfCall("05", tmp_path, add_to_earlier_runs=False)
    assert len(anew.add("course", measured_with(10.0)).runs) == 1


# ---- rates


def test_rates_leave_out_warm_up_compilation_and_what_lies_between_steps():
    times, undisturbed = [9.0, 1.0, 1.0, 1.0, 2.0, 50.0, 1.0, 8.0], [True] * 7 + [False]
    ends = [0.0]
    for seconds in times:
        ends.append(ends[-1] + seconds)
    counts = [[4, 80, 100]] * 4 + [[8, 160, 200]] + [[4, 80, 100]] * 3
    rates = steady_rates(ends, counts, undisturbed, warm_up_steps=3)
    assert (rates.steps, rates.steady_steps, rates.slow_steps, rates.slow_seconds) == (8, 3, 1, 50.0)
    assert rates.rows_per_second == pytest.approx(16 / 4)
    assert rates.real_tokens_per_second == pytest.approx(320 / 4)
    assert rates.step_seconds == pytest.approx(4 / 3)
    assert (rates.padding, rates.tokens_a_row) == (pytest.approx(0.2), pytest.approx(20))
    assert (rates.first_steps_seconds, rates.all_seconds) == (11.0, 73.0)


def test_the_counts_of_steps_are_differences_of_totals():
    assert bench.counts_of_steps([[2, 10, 12], [4, 25, 30]]) == [[2, 10, 12], [2, 15, 18]]


# ---- arms and recipes


def options(**changes):
    """Options of the command line, as far as the functions below read them."""
    values = {"nb": "02", "arms": "reference,course", "levers": False, "steps": 64}
    values.update(changes)
    return SimpleNamespace(**values)


def test_arms_are_run_in_the_order_of_the_command_line_and_unknown_ones_are_named():
    assert bench.chosen_arms(options(arms="course,without CUDA graphs,peer")) == [
        "course",
        "without CUDA graphs",
        "peer",
    ]
    assert bench.chosen_arms(options(levers=True)) == ["course", *arms.LEVERS["02"], "course"]
    with pytest.raises(ValueError, match="lesson 02 has no arm 'unsloth'; choose from course, reference, peer"):
        bench.chosen_arms(options(arms="unsloth"))


@pytest.mark.parametrize("lesson", arms.LESSONS)
def test_the_course_runs_its_profile_but_for_steps_and_the_arms_own_overrides(lesson):
    path = rehearse.lesson_of(lesson)
    run = rehearse.profile_of(path, "full", {})
    steps = arms.COURSE_STEPS[lesson] + arms.WARM_UP_STEPS[lesson]
    cut = {name: 4 for name in ("eval_steps", "logging_steps", "eval_rows") if hasattr(run, name)}
    cut["max_steps"] = steps
    prepared = {"run": vars(run), "cut": cut, "rows": {"described": "synthetic rows"}}
    for arm_overrides in ({}, *arms.levers_of(lesson).values()):
        overrides = bench.overrides_of_course(options(steps=steps), prepared, arm_overrides)
        assert overrides["max_steps"] == steps
        assert arm_overrides.items() <= overrides.items()
        assert overrides.get("eval_steps", steps) == overrides.get("logging_steps", steps) == steps
        settings = bench.settings_of_course(path, overrides, prepared)
        assert overrides.items() <= settings.items()
        assert settings.keys() == vars(run).keys()
        assert str(ROOT) not in json.dumps(settings)


@pytest.mark.parametrize("lesson", arms.LESSONS)
def test_every_recipe_is_a_file_and_every_file_is_a_recipe(lesson):
    files = {path.stem for path in (ROOT / "benchmarks" / "recipes").glob(f"*_{lesson}.py")}
    assert files == {recipe.module for recipe in arms.RECIPES[lesson].values()}
    assert all(recipe.description for arm, recipe in arms.RECIPES[lesson].items() if arm != "reference")


INTENTS = [{"text": f"Please open window {number}.", "label": "abcde"[number % 5]} for number in range(64)]
BILLS = [{"text": "A law about roads. " * 20, "summary": "About roads."}] * 8
TALKS = [{"conversations": ["Where is the jack?", "It lies below the spare wheel. " * 9], "source": "a"}] * 300
COMPARISONS = [
    {
        "prompt": '["Where is the jack?", "And the horn?"]',
        "response_a": '["In the boot.", "In front."]',
        "response_b": '["No idea.", "None."]',
        "winner_model_a": "0",
        "winner_model_b": "1",
        "winner_tie": "0",
    }
] * 16
# recipe; the tiny model in place of its own; rows; rows and tokens of its batches (tokens None: as long as the longest)
RECIPES = [
    ("published_01", "tiny-bert", INTENTS, (8, 512)),
    ("published_02", "tiny-bert", INTENTS, (8, 512)),
    ("published_03", "tiny-t5", BILLS, (4, None)),
    ("published_04", "tiny-opt", TALKS, (8, 1024)),
    ("published_05", "tiny-gemma-2", COMPARISONS, (2, None)),
    ("peer_01", "tiny-bert", INTENTS, (64, 32)),
    ("peer_02", "tiny-bert", INTENTS, (64, 32)),
    ("peer_03", "tiny-t5", BILLS, (8, None)),
    ("peer_04", "tiny-opt", TALKS, (8, 1024)),
    ("peer_05", "tiny-gemma-2", COMPARISONS, (8, 128)),
]


def made_for_a_cpu(original, **changes):
    """A function that calls `original` with its own arguments, but for the changes; None leaves an argument out."""

    def call(*args, **settings):
        for name, value in changes.items():
            if value is None:
                settings.pop(name, None)
            elif name in settings or name == "use_cpu":
                settings[name] = value
        return original(*args, **settings)

    return call


def recipe_for_a_cpu(name, tiny, monkeypatch):
    """A recipe with a tiny model, and without what needs a GPU or a package that the course does without."""
    recipe = importlib.import_module(f"benchmarks.recipes.{name}")
    monkeypatch.setattr(recipe, "MODEL_ID", str(MODELS / tiny))
    for attribute, value in list(vars(recipe).items()):
        if attribute.endswith(("TrainingArguments", "SFTConfig")):
            changes = {"use_cpu": True, "torch_compile": None, "use_liger_kernel": None, "liger_kernel_config": None}
            monkeypatch.setattr(recipe, attribute, made_for_a_cpu(value, **changes))
        elif attribute.startswith(("AutoModel", "Bert", "Gemma2")):
            loading = made_for_a_cpu(value.from_pretrained, device_map="cpu")
            monkeypatch.setattr(recipe, attribute, SimpleNamespace(from_pretrained=loading))
    return recipe


@pytest.mark.parametrize(("name", "tiny", "rows", "shape"), RECIPES, ids=[recipe[0] for recipe in RECIPES])
def test_a_recipe_builds_its_trainer(name, tiny, rows, shape, monkeypatch, tmp_path):
    trainer = recipe_for_a_cpu(name, tiny, monkeypatch).build_trainer(rows, tmp_path)
    counting = run_recipe.CountingCollator(trainer.data_collator)
    batch = counting(list(trainer.train_dataset)[: trainer.args.per_device_train_batch_size])
    assert batch["input_ids"].shape[0] == shape[0]
    assert shape[1] in (None, batch["input_ids"].shape[1])
    assert counting.counts[0][2] == batch["input_ids"].numel() >= counting.counts[0][1] > 0
    trainable, total = 0, 0
    for parameter in trainer.model.parameters():
        total += parameter.numel()
        trainable += parameter.numel() * parameter.requires_grad
    assert (trainable == total) == name.endswith("01"), "the others train adapters"
    settings = run_recipe.changed_arguments(trainer.args)
    assert settings["learning_rate"] == trainer.args.learning_rate
    assert "output_dir" not in settings
    assert json.loads(json.dumps(settings)) == settings


def test_counts_of_steps_are_sums_of_their_batches():
    counting = run_recipe.CountingCollator(lambda examples: {"input_ids": torch.zeros(len(examples), 3)})
    for rows in (2, 2, 2, 1):
        counting([{}] * rows)
    assert counting.counts_of_steps(2, 2) == [[4, 12, 12], [3, 9, 9]]


def test_rows_are_read_from_both_kinds_of_file(tmp_path):
    (tmp_path / "rows.csv").write_text('text,label\n"Stop, now!",stop\n')
    (tmp_path / "rows.jsonl").write_text('{"text": "Stop, now!", "label": "stop"}\n')
    for name in ("rows.csv", "rows.jsonl"):
        assert run_recipe.read_rows(tmp_path / name) == [{"text": "Stop, now!", "label": "stop"}]


def test_the_rows_of_a_comparison_are_what_was_published():
    def tokenizer(texts, **settings):
        return {"input_ids": texts}

    examples = encoded_rows.comparisons(tokenizer, COMPARISONS[:1])
    text = "<prompt>: Where is the jack? And the horn?\n\n<response_a>: In the boot. In front.\n\n<response_b>: "
    assert examples == [{"input_ids": text + "No idea. None.", "labels": 1}]
    assert encoded_rows.questions_and_answers(TALKS[:1])[0].startswith(
        "Question: Where is the jack?\n\nAnswer: It lies"
    )


def test_only_the_copy_up_to_the_first_training_is_run(tmp_path):
    path = rehearse.lesson_of("01")
    bench.write_up_to_training(path, tmp_path / path.name)
    cells = json.loads((tmp_path / path.name).read_text())["cells"]
    assert cells == json.loads(path.read_text())["cells"][: len(cells)]
    trainings = ["trainer.train(" in "".join(cell["source"]) for cell in cells]
    assert trainings == [False] * (len(cells) - 1) + [True]


# ---- what a GPU took, and what the lessons plan today

WITH_FLASH = {"tokens_at_once": 11_264}  # where FlashAttention runs; the lesson asks the machine
# The lesson's float32 adapters on all layers of OPT keep more under compiled graphs than the planner knows of.
OFF_BY = {"04_full_h200": (0.7, 0.85)}  # planned / measured, from and to


@pytest.mark.parametrize("path", sorted(receipts.FOLDER.glob("[0-9]*.json")), ids=lambda path: path.stem)
def test_a_rehearsed_lesson_ran_whole_on_its_card_as_planned(path):
    assert json.loads(path.read_text())["metrics"]["rehearsal"]["complete"]
    lesson = receipts.read_whole_lesson(path)
    whole_card = (131 if "H200" in lesson.card else 79.2) * memory.GIB
    limit = lesson.capped_gb * 1e9 if lesson.capped_gb else whole_card
    assert lesson.highest_reserved_bytes < limit
    lowest, highest = OFF_BY.get(path.stem, (0.85, 1.15))
    assert lowest < lesson.planned_peak_bytes / lesson.measured_peak_bytes < highest


@pytest.mark.parametrize(
    ("lesson", "overrides", "has_flash", "receipt", "key"),
    [
        ("03", {}, False, "03_full_h200.json", "measured_peak_bytes"),
        ("03", {"per_device_train_batch_size": 2}, False, "03_batch_2_24gb_h200.json", "measured_peak_bytes"),
        ("05", {}, False, "05_full_h100.json", "measured_peak_bytes"),
        ("05", WITH_FLASH, True, "05_full_flash_h100.json", "measured_peak_bytes"),
        ("05", WITH_FLASH, True, "bench/05_course.json", "peak_allocated_bytes"),
    ],
)
def test_a_lesson_plans_today_what_a_gpu_took(lesson, overrides, has_flash, receipt, key, monkeypatch):
    monkeypatch.setattr(speed, "has_flash_attention", lambda: has_flash)
    measured = json.loads((receipts.FOLDER / receipt).read_text())[key]
    path = rehearse.lesson_of(lesson)
    run = rehearse.profile_of(path, "full", overrides)
    rows = {"longest": run.max_length, "target": getattr(run, "max_target_length", 0), "classes": 3}
    assert rehearse.plan_of(path, run, rows)["total"] == pytest.approx(measured, rel=0.15)
    run.activation_checkpointing = not run.activation_checkpointing
    other = rehearse.plan_of(path, run, rows)["total"]
    assert other != pytest.approx(measured, rel=0.15), "another way must be off"


# ---- the same is learned


def test_the_fast_way_and_the_published_way_have_the_same_losses():
    record = json.loads(loss_bands.RECEIPT.read_text())
    assert loss_bands.table(record) in page("faster-not-different.md")
    assert record["lessons"].keys() == loss_bands.PUBLISHED_WAYS.keys()
    for lesson, comparison in record["lessons"].items():
        again = loss_bands.compare(comparison["losses"])
        assert again == {key: comparison[key] for key in again}
        assert again["apart"] < again["between_seeds"] / 20
        published = comparison["losses"]["published"]
        assert {len(curve) for curve in published} == {loss_bands.PUBLISHED_WAYS[lesson].steps}
        other = loss_bands.compare({"course": published[1:] + published[:1], "published": published})
        assert other["apart"] > other["between_seeds"] / 2, "another seed must be seen"


@pytest.mark.slow
def test_the_losses_of_the_published_way_can_be_had_again(tmp_path):
    command = [sys.executable, "-m", "benchmarks.loss_bands", "--keep", str(tmp_path / "losses.json")]
    subprocess.run([*command, "--child", "01", "published", "0"], check=True, capture_output=True, cwd=ROOT)
    measured = json.loads(loss_bands.RECEIPT.read_text())["lessons"]["01"]["losses"]["published"]
    again = json.loads((tmp_path / "losses.json").read_text())
    assert again == pytest.approx(measured[0], abs=1e-3)
    assert again != pytest.approx(measured[1], abs=1e-3)


def test_the_time_until_the_course_is_as_right_is_that_of_the_receipt_and_a_fifth_at_most():
    record = json.loads(time_to_accuracy.RECEIPT.read_text())
    assert time_to_accuracy.table(record) in page("faster-not-different.md")
    curves = list(zip(record["published"], record["course"], strict=True))
    assert len(curves) == len(time_to_accuracy.SEEDS)
    for published, course in curves:
        comparison = time_to_accuracy.compare(published, course)
        assert comparison["reached"] >= comparison["accuracy"] > 0.5
        assert comparison["seconds"] <= comparison["published_seconds"] / 5
    slow = [[100, 25, 0.5], [200, 50, 0.7]]
    assert time_to_accuracy.compare(slow, [[1, 25, 0.6], [3, 50, 0.7], [4, 75, 0.9]])["seconds"] == 3
    assert time_to_accuracy.compare(slow, [[1, 25, 0.6]])["seconds"] is None
    assert "never" in time_to_accuracy.table({"published": [slow], "course": [[[1, 25, 0.6]]]})


def test_the_published_recipe_of_lesson_01_has_its_ten_epochs():
    overrides = time_to_accuracy.published_overrides()
    assert (overrides["max_steps"], overrides["eval_steps"]) == (1000, 100)
    published = json.loads(time_to_accuracy.RECEIPT.read_text())["published"][0]
    assert [steps for _, steps, _ in published] == list(range(100, 1001, 100))


# ---- who caps


def test_distances_of_logits_are_shares_of_their_size():
    logits = {
        "with the cap": [2.0, -2.0],
        "without it": [4.0, -2.0],
        "in bfloat16": [2.0, -2.0],
        "unsloth": [4.0, -2.0],
        "unsloth, flex": [2.0, -2.0],
        "unsloth, eager": [2.0, -1.0],
    }
    distances = check_cap.distances(logits)
    assert distances["with the cap | unsloth"] == 0.5
    assert distances["without it | unsloth"] == 0
    assert distances["with the cap | unsloth, flex"] == 0
    assert distances["with the cap | unsloth, eager"] == 0.25
    receipt = json.loads(pages.CAP_RECEIPT.read_text())
    assert distances.keys() == receipt.keys() - {"attention"}
    assert receipt["attention"].keys() == check_cap.UNSLOTHS.keys()
