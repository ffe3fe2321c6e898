"""What a stranger meets first: commands, versions, links, and no trace of the machine it was made on."""

import importlib
import json
import re
import subprocess
import sys
import tomllib

import matplotlib
import pytest
import yaml
from conftest import ROOT, notebooks
from packaging.requirements import Requirement

from utils.speed import flash

TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")[:-1]
LESSONS = [path for path in notebooks("[0-9]*.ipynb") if path.parent.name == "notebooks"]
PAGES = [name for name in TRACKED if name.endswith(".md")]


def requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def test_every_requirement_has_a_range_and_a_reason():
    for line in requirements():
        wanted, _, reason = line.partition("#")
        assert re.search(r">=.*,<", wanted), line
        assert len(reason.split()) >= 3, line


def test_constraints_pin_every_requirement_within_its_range():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for line in requirements():
        wanted = Requirement(line.partition("#")[0])
        assert wanted.specifier.contains(pins[wanted.name.lower()]), line
    assert all(re.fullmatch(r"[\d.]+(post\d+)?", version) for version in pins.values()), "no local builds"


def test_conda_installs_the_same_list():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {"pip": ["-r requirements.txt"]} in packages
    assert [name for name in packages if isinstance(name, str)] == ["python>=3.11,<3.14", "pip"]


def test_ci_runs_the_command_of_the_readme():
    assert (ROOT / ".ci" / "run").read_text().split("\n")[-2] == "make test"
    readme = (ROOT / "README.md").read_text()
    assert "make run" in readme
    assert "make test" in readme


def workflow_steps(job):
    """The commands of a job of the workflow, in order."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    return [step["run"] for step in workflow["jobs"][job]["steps"] if "run" in step]


def test_the_weekly_job_lifts_the_bound_of_torch_and_no_other(tmp_path):
    lift, *others = workflow_steps("newest")
    (tmp_path / "requirements.txt").write_text((ROOT / "requirements.txt").read_text())
    before = requirements()
    subprocess.run(["bash", "-c", lift], cwd=tmp_path, check=True)
    after = [line for line in (tmp_path / "requirements.txt").read_text().splitlines() if line in before]
    (old,) = [line for line in before if line not in after]
    (new,) = [line for line in (tmp_path / "requirements.txt").read_text().splitlines() if line.startswith("torch>")]
    assert old.startswith("torch>")
    assert not Requirement(old.partition("#")[0]).specifier.contains("2.99.0")
    assert Requirement(new.partition("#")[0]).specifier.contains("2.99.0")
    assert others == ["make test CONSTRAINTS=", "make newest CONSTRAINTS="]


def test_a_push_runs_the_tests_on_linux_and_the_lessons_on_macos():
    assert workflow_steps("test") == [".ci/run"]
    assert workflow_steps("macos") == ["make run"]


def test_the_hooks_are_pinned_and_run_the_ruff_of_the_constraints():
    hooks = {repo["repo"]: repo for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]}
    assert all(re.fullmatch(r"v?\d+\.\d+\.\d+", repo["rev"]) for repo in hooks.values())
    ruff = hooks["https://github.com/astral-sh/ruff-pre-commit"]["rev"].removeprefix("v")
    assert f"ruff=={ruff}" in (ROOT / "constraints.txt").read_text().split()


def test_the_citation_names_this_repository():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["repository-code"] == project["urls"]["repository"]
    assert citation["license"] == project["license"]["text"]


def test_make_lists_every_command():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True).stdout
    for target in ("run", "test", "lab", "render", "assets", "lock", "clean"):
        assert re.search(rf"make {target}\s+\w+", listed), target


def test_every_notebook_is_in_the_tables():
    tables = (ROOT / "README.md").read_text(), (ROOT / "notebooks" / "README.md").read_text()
    for path in notebooks("[0-9]*.ipynb"):
        assert all(path.name in table for table in tables), path.name


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_results_of_the_readme_are_those_of_the_rendered_copies():
    table = (ROOT / "README.md").read_text().split("results:begin")[1].split("results:end")[0]
    for path in LESSONS:
        last = json.loads((ROOT / "notebooks" / "rendered" / path.name).read_text())["cells"][-1]
        numbers = re.findall(r"\d\.\d{3}", "".join(last["outputs"][0]["text"]))
        row = next(line for line in table.splitlines() if line.startswith(f"| {path.stem[:2]} "))
        assert len(numbers) == 3
        assert re.findall(r"\d\.\d{3}", row) == numbers


EAGER = {"attn_implementation": "eager"}
FLASH = {"attn_implementation": flash.FLASH, "tokens_at_once": 11_264}  # as the profile is where it runs
CHECKPOINTING = {"per_device_train_batch_size": 4, "activation_checkpointing": True, "target_modules": []}


def script(name):
    """A script of benchmarks/, as a module."""
    return importlib.import_module("tools.rehearse.__main__" if name == "rehearse" else f"benchmarks.{name}")


@pytest.mark.parametrize(
    "receipt", sorted((ROOT / "benchmarks" / "receipts").glob("[0-9]*.json")), ids=lambda path: path.stem
)
def test_a_rehearsed_lesson_ran_whole_on_its_card_as_planned(receipt):
    record = json.loads(receipt.read_text())
    found = record["metrics"]["rehearsal"]
    assert found["complete"]
    assert found["highest_reserved_bytes"] < (found["capped_gb"] * 1e9 if found["capped_gb"] else 79.2 * 2**30)
    assert abs(record["planned_peak_bytes"] / record["measured_peak_bytes"] - 1) < 0.15


def test_the_table_of_rehearsals_is_that_of_their_receipts(monkeypatch, tmp_path):
    bench = script("bench")
    page, made = (ROOT / "README.md").read_text(), bench.rehearsals()
    assert made in page
    assert bench.cards() in page
    assert len(made.splitlines()) > 6
    for path in bench.RECEIPTS.parent.glob("[0-9]*.json"):
        record = json.loads(path.read_text())
        record["measured_peak_bytes"] *= 2
        record["metrics"]["rehearsal"] |= {"capped_gb": 11}
        (tmp_path / path.name).write_text(json.dumps(record))
    monkeypatch.setattr(bench, "RECEIPTS", tmp_path / "bench")
    assert bench.rehearsals() not in page, "other numbers are another table"
    assert bench.cards() not in page


@pytest.mark.parametrize(
    ("lesson", "overrides", "receipt", "key"),
    [
        ("03", CHECKPOINTING, "03_checkpointing_h100.json", "measured_peak_bytes"),
        *((lesson, {}, f"bench/{lesson}_course.json", "peak_allocated_bytes") for lesson in ("03", "04")),
        ("03", {"per_device_train_batch_size": 4}, "03_batch_4_24gb_h200.json", "measured_peak_bytes"),
        ("04", {"per_device_train_batch_size": 4}, "04_batch_4_16gb_h200.json", "measured_peak_bytes"),
        ("05", EAGER | {"activation_checkpointing": True}, "05_checkpointing_16gb_h200.json", "measured_peak_bytes"),
        ("05", FLASH, "bench/05_course.json", "peak_allocated_bytes"),
        ("05", FLASH, "05_full_flash_h100.json", "measured_peak_bytes"),
        ("05", EAGER, "05_full_h100.json", "measured_peak_bytes"),
    ],
)
def test_a_lesson_plans_today_what_a_gpu_took(lesson, overrides, receipt, key):
    measured = json.loads((ROOT / "benchmarks" / "receipts" / receipt).read_text())[key]
    rehearse = script("rehearse")
    path = rehearse.lesson_of(lesson)
    run = rehearse.profile_of(path, "full", overrides)
    rows = {"longest": run.max_length, "target": getattr(run, "max_target_length", 0), "classes": 3}
    assert rehearse.plan_of(path, run, rows)["total"] == pytest.approx(measured, rel=0.15)
    run.activation_checkpointing = not run.activation_checkpointing
    other = rehearse.plan_of(path, run, rows)["total"]
    assert other != pytest.approx(measured, rel=0.15), "another way must be off"


def test_table_and_figure_of_the_benchmarks_are_those_of_their_receipts(tmp_path):
    bench = script("bench")
    records = [json.loads(path.read_text()) for path in bench.RECEIPTS.glob("*.json")]
    assert len(records) >= 8
    page = (ROOT / "README.md").read_text()
    assert bench.table(records) in page
    assert bench.levers(records) in page
    assert bench.caps() in page
    for record in records:
        slower = [r | {"real_tokens_per_second": 1.0} if r is record else r for r in records]
        both = bench.table(slower) in page, bench.levers(slower) in page
        assert both in {(False, True), (True, False)}, "another number is another table"
    lever = next(r for r in records if r["arm"] in bench.LEVERS["02"])
    assert bench.levers([r | {"beside": 1.0} if r is lever else r for r in records]) not in page
    twice = [r | {"real_tokens_per_second": 23_891.2} if r["arm"] == "course on H200" else r for r in records]
    assert "2.0 times Unsloth's with the cap" in bench.table(twice), "it ran on an H200, too"
    assert "2.0 times Unsloth's" in bench.table([r | {"beside": 2 * r["real_tokens_per_second"]} for r in records])
    assert all(set(r["changed"]) == set(bench.CHANGED[r["lesson"]]) for r in records if r["arm"] == "reference")
    with matplotlib.rc_context({"axes.titlesize": 30, "axes.linewidth": 5}):  # of other tests
        bench.draw(records, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == (bench.RECEIPTS / "rates.svg").read_text()


def test_the_fast_way_and_the_published_way_have_the_same_losses():
    bands = script("loss_bands")
    record = json.loads(bands.RECEIPT.read_text())
    assert bands.table(record) in (ROOT / "README.md").read_text()
    assert record["lessons"].keys() == bands.WAYS.keys()
    for found in record["lessons"].values():
        again = bands.compare(found["losses"])
        assert again == {key: found[key] for key in again}
        assert again["apart"] < again["between_seeds"] / 20
        published = found["losses"]["published"]
        other = bands.compare({"course": published[1:] + published[:1], "published": published})
        assert other["apart"] > other["between_seeds"] / 2, "another seed must be seen"


@pytest.mark.slow
def test_the_losses_of_the_published_way_can_be_had_again(tmp_path):
    bands = script("loss_bands")
    command = [sys.executable, "-m", "benchmarks.loss_bands", "--keep", tmp_path / "losses.json"]
    subprocess.run([*map(str, command), "--child", "01", "published", "0"], check=True, capture_output=True)
    known = json.loads(bands.RECEIPT.read_text())["lessons"]["01"]["losses"]
    again = json.loads((tmp_path / "losses.json").read_text())
    assert again == pytest.approx(known["published"][0], abs=1e-3)
    assert again != pytest.approx(known["published"][1], abs=1e-3)


def test_the_time_until_the_course_is_as_right_is_that_of_the_receipt_and_a_fifth_at_most():
    clock = script("time_to_accuracy")
    record = json.loads(clock.RECEIPT.read_text())
    assert clock.table(record) in (ROOT / "README.md").read_text()
    pairs = [clock.compare(*curves) for curves in zip(record["published"], record["course"], strict=True)]
    assert len(pairs) == len(clock.SEEDS)
    assert all(r["reached"] >= r["accuracy"] > 0.5 and r["seconds"] <= r["published_seconds"] / 5 for r in pairs)
    slow = [[100, 25, 0.5], [200, 50, 0.7]]
    assert clock.compare(slow, [[1, 25, 0.6], [3, 50, 0.7], [4, 75, 0.9]])["seconds"] == 3
    assert clock.compare(slow, [[1, 25, 0.6]])["seconds"] is None
    assert "never" in clock.table({"published": [slow], "course": [[[1, 25, 0.6]]]})


def test_rates_leave_out_warm_up_compilation_and_what_lies_between_steps():
    bench = script("bench")
    times, undisturbed = [9.0, 1.0, 1.0, 1.0, 2.0, 50.0, 1.0, 8.0], [True] * 7 + [False]
    ends = [0.0]
    for seconds in times:
        ends.append(ends[-1] + seconds)
    counts = [[4, 80, 100]] * 4 + [[8, 160, 200]] + [[4, 80, 100]] * 3
    found = bench.rates(ends, counts, undisturbed, 3)
    assert (found["steady_steps"], found["slow_steps"], found["slow_seconds"]) == (3, 1, 50.0)
    assert found["rows_per_second"] == pytest.approx(16 / 4)
    assert found["real_tokens_per_second"] == pytest.approx(320 / 4)
    assert (found["padding"], found["first_steps_seconds"], found["all_seconds"]) == (pytest.approx(0.2), 11.0, 73.0)


def test_the_table_of_memory_receipts_is_that_of_the_file():
    page = (ROOT / "README.md").read_text()
    for receipt in json.loads((ROOT / "benchmarks" / "receipts" / "memory.json").read_text())["receipts"]:
        planned, measured = (receipt[f"{name}_bytes"] / 2**30 for name in ("planned", "measured"))
        row = next(line for line in page.splitlines() if re.match(rf"\| {re.escape(receipt['name'])}( \*)? \|", line))
        assert f"| {planned:.2f} | {measured:.2f} |" in row
        assert (" * |" in row) == receipt["held_out"]


def test_the_table_of_methods_is_that_of_its_receipt():
    compare_methods = script("compare_methods")
    record = json.loads(compare_methods.RECEIPT.read_text())
    assert [len(rows) for rows in record["metrics"]["methods"].values()] == [3, 3, 3]
    assert compare_methods.table(record) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_each_lesson_has_a_stamped_rendered_copy(path):
    text = (ROOT / "notebooks" / "rendered" / path.name).read_text()
    for word in ("Executed: profile tiny", "commit ", "device ", "torch "):
        assert word in text, word
    assert "widgets" not in text


def test_no_trace_of_a_machine():
    own = "|".join(["/" + folder + "/" for folder in ("root", "home", "work", "Users")])
    for name in TRACKED:
        if not name.endswith((".png", ".safetensors")):
            found = re.search(rf"(?<![\w.])({own})\w", (ROOT / name).read_text(encoding="utf-8"))
            assert not found, f"{name}: {found[0]}"
