"""What a stranger meets first: commands, versions, links, and no trace of the machine it was made on."""

import json
import re
import subprocess
import tomllib

import pytest
import yaml
from conftest import ROOT, notebooks
from packaging.requirements import Requirement

from benchmarks import receipts

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
    hooks.pop("local")
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


def cards_of_the_receipts(profile, smallest=False):
    """{lesson: GB of the card that it needs}: of a profile as it stands, or with the overrides that need least."""
    sizes = {}
    for lesson in receipts.read_whole_lessons():
        if lesson.profile == profile and (smallest or not lesson.changes):
            sizes.setdefault(lesson.lesson, []).append(lesson.needed_gb)
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
    assert f"each fits {max(cards_of_the_receipts('full', smallest=True).values())} GB" in full


def test_the_results_of_the_readme_are_those_of_the_rendered_copies():
    table = (ROOT / "README.md").read_text().split("results:begin")[1].split("results:end")[0]
    for path in LESSONS:
        last = json.loads((ROOT / "notebooks" / "rendered" / path.name).read_text())["cells"][-1]
        numbers = re.findall(r"\d\.\d{3}", "".join(last["outputs"][0]["text"]))
        row = next(line for line in table.splitlines() if line.startswith(f"| {path.stem[:2]} "))
        assert len(numbers) == 3
        assert re.findall(r"\d\.\d{3}", row) == numbers


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
