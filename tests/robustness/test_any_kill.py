"""kill -9 at random steps of the lessons, then the same notebook again: bit for bit what it would have been.

Slow: `make test-slow`. One kill each of lessons 01 and 02 is part of `make test`.
"""

import json
import random
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow
SHORT = {  # lesson: overrides that make it short, and the file that holds its weights
    "01": ({"max_steps": 100}, "model/model.safetensors"),
    "02": ({"max_steps": 40, "eval_steps": 8, "compare": False}, "adapter/adapter_model.safetensors"),
    "03": (
        {"max_steps": 16, "eval_steps": 4, "unquantized_rows": 0},
        "adapter/adapter_model.safetensors",
    ),
    "04": ({"max_steps": 60, "eval_steps": 12, "compare_steps": 0}, "adapter/adapter_model.safetensors"),
    "05": ({"max_steps": 20, "eval_steps": 4, "compare_steps": 0}, "adapter/adapter_model.safetensors"),
}
COUNTS = {"01": 7, "02": 7, "03": 2, "04": 6, "05": 2}
STEPS = [
    (lesson, step)
    for lesson, count in COUNTS.items()
    for step in sorted(random.Random(lesson).sample(range(1, SHORT[lesson][0]["max_steps"]), count))
]
KILLER = """
import os, sys
shell = get_ipython()
def watch(info):
    module = sys.modules.get("transformers.trainer")
    if module and not hasattr(module, "killer"):
        class Killer(module.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == int(os.environ["KILL_AT_STEP"]):
                    os.kill(os.getpid(), 9)
        module.killer = module.DEFAULT_CALLBACKS.append(Killer)
shell.events.register("pre_run_cell", watch)
"""


def run_lesson(lesson, out, environment, **more):
    """(exit code, what was printed, folder of results) of a lesson with its short settings."""
    path = next((ROOT / "notebooks").glob(f"{lesson}_*.ipynb"))
    overrides = json.dumps(SHORT[lesson][0] | more)
    command = [
        sys.executable,
        "-m",
        "tools.run_notebooks",
        "--nb",
        str(path),
        "--out",
        str(out),
        "--overrides",
        overrides,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, out / "tiny" / path.stem


def losses(folder):
    """{step: what was logged} of the newest checkpoint, without times."""
    newest = max((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    log = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    times = ("per_second", "runtime", "preparation_time", "num_tokens")  # TRL counts tokens from the resumption
    return [{key: entry[key] for key in entry if not key.endswith(times)} for entry in log]


@pytest.fixture(scope="module")
def whole(offline, tmp_path_factory):
    """A function: the folder of a lesson that ran without a kill, run once."""
    found = {}

    def run(lesson):
        if lesson not in found:
            code, text, found[lesson] = run_lesson(lesson, tmp_path_factory.mktemp("whole"), offline)
            assert code == 0, text
        return found[lesson]

    return run


@pytest.mark.parametrize(("lesson", "step"), STEPS)
def test_a_kill_at_any_step_changes_nothing(lesson, step, whole, offline, tmp_path):
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "killer.py").write_text(KILLER)
    killed = offline | {"IPYTHONDIR": str(tmp_path / "ipython"), "KILL_AT_STEP": str(step)}
    code, text, folder = run_lesson(lesson, tmp_path, killed)
    assert code == 1
    assert "the kernel died" in text
    assert not (folder / "results.json").exists()
    code, text, folder = run_lesson(lesson, tmp_path, offline, resume_from_checkpoint=True)
    assert code == 0, text
    overrides = SHORT[lesson][0]
    first = overrides.get("eval_steps") or overrides.get("logging_steps") or 25  # the first checkpoint
    notebook = (folder / f"{folder.name}.ipynb").read_text()
    assert ("Going on from checkpoint-" in notebook) == (step > first), "resumed wherever there was something"
    expected, weights = whole(lesson), SHORT[lesson][1]
    assert losses(folder) == losses(expected)
    assert (folder / weights).read_bytes() == (expected / weights).read_bytes()
