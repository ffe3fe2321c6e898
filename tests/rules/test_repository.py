"""What a stranger meets first: commands, versions, links, and no trace of the machine it was made on."""

import importlib
import json
import re
import subprocess
import sys

import matplotlib
import pytest
import yaml
from conftest import ROOT, notebooks
from packaging.requirements import Requirement

from utils import results
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


def test_every_page_of_the_documentation_has_one_title_and_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    for path in sorted((ROOT / "docs").glob("*.md")):
        prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1, path.name
        assert path.name == "index.md" or f"]({path.name})" in index, path.name


def names_missing_from_their_readme(folder):
    """The Python files below a folder that no README between them and the folder names."""
    missing = []
    for path in sorted(folder.rglob("*.py")):
        readmes = [parent / "README.md" for parent in path.parents if folder in (parent, *parent.parents)]
        texts = "".join(readme.read_text() for readme in readmes if readme.exists())
        if path.name != "__init__.py" and f"{path.name}`" not in texts:
            missing.append(path.relative_to(folder).as_posix())
    return missing


@pytest.mark.parametrize("folder", ["utils", "tools", "benchmarks"])
def test_a_folders_readme_has_a_line_for_each_file(folder):
    assert names_missing_from_their_readme(ROOT / folder) == []


def test_a_file_that_no_readme_names_is_found(tmp_path):
    (tmp_path / "README.md").write_text("| `named.py` | does this |")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "README.md").write_text("| `inside.py` | does that |")
    for name in ("named.py", "inner/inside.py", "inner/unnamed.py", "__init__.py"):
        (tmp_path / name).write_text("")
    assert names_missing_from_their_readme(tmp_path) == ["inner/unnamed.py"]


def test_a_table_goes_between_its_marks_only():
    with pytest.raises(ValueError, match="docs/index.md: the comments <!-- nowhere:begin"):
        results.put_into_page("docs/index.md", "nowhere", "| a |")


def cards_of_the_receipts(profile, smallest=False):
    """{lesson: GB of the card that it needs}: of a profile as it stands, or with the overrides that need least."""
    bench = script("bench")
    sizes = {}
    for _, record in bench.whole_lessons():
        is_changed = bool(bench.settings_of(record["metrics"]["rehearsal"]))
        if record["profile"] == profile and (smallest or not is_changed):
            sizes.setdefault(record["lesson"][:2], []).append(bench.needed(record))
    return {lesson: min(of_lesson) for lesson, of_lesson in sizes.items()}


def test_the_front_page_promises_the_cards_that_the_receipts_hold():
    lines = (ROOT / "README.md").read_text().splitlines()
    colab = next(line for line in lines if "| `colab` |" in line)
    for lesson, size in cards_of_the_receipts("colab").items():
        written = re.search(rf"{lesson} in (\d+) GB" if lesson > "03" else r"lessons 01 to 03 in (\d+) GB", colab)
        assert int(written[1]) == size, lesson
    full = next(line for line in lines if "| `full` |" in line)
    sizes = cards_of_the_receipts("full").values()
    assert f"{min(sizes)} to {max(sizes)} GB" in full
    assert f"{max(cards_of_the_receipts('full', smallest=True).values())} GB is enough for each" in full


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
    return importlib.import_module("tools.rehearse" if name == "rehearse" else f"benchmarks.{name}")


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
    page, made = (ROOT / "docs" / "which-card.md").read_text(), bench.rehearsals()
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
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    every_run = (ROOT / "docs" / "benchmarks-full.md").read_text()
    assert bench.table(records) in every_run
    assert bench.summary(records) in page
    assert bench.levers(records) in page
    assert bench.caps() in page
    for record in records:
        slower = [r | {"real_tokens_per_second": 1.0} if r is record else r for r in records]
        both = bench.table(slower) in every_run, bench.levers(slower) in page
        assert both in {(False, True), (True, False)}, "another number is another table"
        if record["arm"] in bench.ARMS:
            assert bench.summary(slower) not in page, "another number is another table"
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
    assert bands.table(record) in (ROOT / "docs" / "faster-not-different.md").read_text()
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
    assert clock.table(record) in (ROOT / "docs" / "faster-not-different.md").read_text()
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
    page = (ROOT / "docs" / "will-it-fit.md").read_text()
    for receipt in json.loads((ROOT / "benchmarks" / "receipts" / "memory.json").read_text())["receipts"]:
        planned, measured = (receipt[f"{name}_bytes"] / 2**30 for name in ("planned", "measured"))
        row = next(line for line in page.splitlines() if re.match(rf"\| {re.escape(receipt['name'])}( \*)? \|", line))
        assert f"| {planned:.2f} | {measured:.2f} |" in row
        assert (" * |" in row) == receipt["held_out"]


def test_the_table_of_methods_is_that_of_its_receipt():
    compare_methods = script("compare_methods")
    record = json.loads(compare_methods.RECEIPT.read_text())
    assert [len(rows) for rows in record["metrics"]["methods"].values()] == [3, 3, 3]
    assert compare_methods.table(record) in (ROOT / "docs" / "benchmarks.md").read_text()


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
