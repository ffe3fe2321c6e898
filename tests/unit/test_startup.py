"""One GPU for a single process, decided before torch is imported; no GPU is needed to see the decision."""

import ast
import json
import os
import stat
import subprocess
import sys

import pytest
from conftest import ROOT, notebooks

from utils import startup

HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "trl", "bitsandbytes", "evaluate"}
TWO = {"CUDA_VISIBLE_DEVICES": "0", "COURSE_ALL_GPUS": "0,1"}


@pytest.mark.parametrize(
    ("environment", "installed", "changes"),
    [
        ({}, 0, {}),
        ({}, 1, {}),
        ({}, 2, TWO),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 0, TWO),
        ({"CUDA_VISIBLE_DEVICES": " 0, 1 "}, 8, TWO),
        ({"CUDA_VISIBLE_DEVICES": "3,1"}, 8, {"CUDA_VISIBLE_DEVICES": "3", "COURSE_ALL_GPUS": "3,1"}),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 2, {}),
        ({"CUDA_VISIBLE_DEVICES": "1,"}, 2, {}),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2, {}),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 2, {}),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 2, {}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, 2, {}),
        (
            {"CUDA_VISIBLE_DEVICES": "GPU-8932f937,GPU-05a1"},
            2,
            {"CUDA_VISIBLE_DEVICES": "GPU-8932f937", "COURSE_ALL_GPUS": "GPU-8932f937,GPU-05a1"},
        ),
        (
            {"CUDA_VISIBLE_DEVICES": "MIG-GPU-8932f937/1/0,MIG-GPU-8932f937/2/0"},
            1,
            {
                "CUDA_VISIBLE_DEVICES": "MIG-GPU-8932f937/1/0",
                "COURSE_ALL_GPUS": "MIG-GPU-8932f937/1/0,MIG-GPU-8932f937/2/0",
            },
        ),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, 2, {}),
        ({"LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": "0,1"}, 2, {}),
    ],
)
def test_a_single_process_gets_one_gpu(environment, installed, changes):
    assert startup.one_gpu(environment, installed) == changes


@pytest.mark.parametrize(
    ("environment", "seen", "words"),
    [
        ({}, 0, ""),
        ({}, 1, ""),
        (TWO, 1, "GPU 0 of 2"),
        (TWO, 0, ""),
        ({}, 2, "2 GPUs at once, because torch was at work before `utils`: restart the kernel and run all cells"),
        ({"RANK": "0"}, 2, ""),
    ],
)
def test_the_choice_is_said(environment, seen, words):
    assert startup.chosen_gpu(environment, seen) == words


def clean_environment(**changes):
    names = (*startup.LAUNCHER, startup.GPUS, startup.ALL_GPUS, startup.OUR_THREADS, "OMP_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return kept | {"PYTHONPATH": str(ROOT)} | changes


def visible_after(code, environment):
    """What CUDA_VISIBLE_DEVICES is in a process of its own after `code`."""
    code += "; import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ.get('OMP_NUM_THREADS'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_any_part_of_the_course_decides_it():
    environment = clean_environment(CUDA_VISIBLE_DEVICES="2,3")
    assert visible_after("pass", environment) == "2,3 None"
    assert visible_after("import utils.profiles", environment) == "2 1"
    assert visible_after("from utils.paths import ROOT", environment | {"LOCAL_RANK": "0"}) == "2,3 1"
    started = "import types, sys; cuda = types.SimpleNamespace(is_initialized=lambda: True)"
    started += "; sys.modules['torch'] = types.SimpleNamespace(cuda=cuda); import utils.profiles"
    assert visible_after(started, environment) == "2,3 1", "it cannot be changed any more"


@pytest.mark.skipif(startup.Path("/proc/driver/nvidia/gpus").is_dir(), reason="this machine has a driver that says it")
def test_gpus_are_counted_without_torch(tmp_path):
    """By the driver's own list, or by nvidia-smi where there is none: here by a program of that name."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'GPU 0: Tesla T4 (UUID: GPU-a)'\necho '  MIG 1g.5gb Device 0: (UUID: MIG-b)'\n"
        "echo 'GPU 1: Tesla T4 (UUID: GPU-c)'\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = clean_environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert visible_after("import sys, utils; assert 'torch' not in sys.modules", environment) == "0 1"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert visible_after("import utils", environment) == "None 1"


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: str(path.relative_to(ROOT / "notebooks")))
def test_every_notebook_imports_the_course_before_torch(path):
    imported = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        code = "".join(cell["source"])
        if cell["cell_type"] != "code" or "google.colab" in code:  # the second runs on Colab only
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                imported += [name.name.split(".")[0] for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported.append(node.module.split(".")[0])
    assert "utils" in imported
    assert HEAVY.isdisjoint(imported[: imported.index("utils")])


@pytest.mark.parametrize(
    ("model_id", "own", "threads"),
    [
        ("data/models/tiny-opt", False, 1),
        (str(ROOT / "data" / "models" / "tiny-opt"), False, 1),
        ("facebook/opt-1.3b", False, 7),
        ("facebook/opt-1.3b", True, 1),
    ],
)
def test_a_model_of_real_size_gets_all_cores_unless_the_reader_has_decided(model_id, own, threads):
    """Seen from a process of its own, as torch keeps the number."""
    code = "import os; os.sched_getaffinity = lambda pid: range(7); import psutil; psutil.cpu_count = lambda logical: 8"
    code += f"; from utils import session; import torch; session.choose_threads({model_id!r})"
    code += "; print(torch.get_num_threads())"
    environment = clean_environment(**({"OMP_NUM_THREADS": "1"} if own else {}))
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{threads}\n", done.stderr


def run_as_unknown(code, **environment):
    """Output and errors of Python code of a user for whom the system has no name and no home."""
    unknown = "import os, pwd\ndef nobody(number): raise KeyError(number)\npwd.getpwuid = nobody\n"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", unknown + code]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize("home", [{}, {"HOME": "/nonexistent"}])
def test_a_user_whom_the_system_does_not_know_gets_a_name_and_a_home(home, tmp_path):
    asks = "import getpass, pathlib; print(getpass.getuser(), pathlib.Path.home())"
    assert "KeyError" in run_as_unknown(asks, **home)[1], "the control: without the course it stops"
    number = os.getuid()
    out, err = run_as_unknown(f"import utils; {asks}", TMPDIR=str(tmp_path), **home)
    assert out == f"user{number} {tmp_path}/home-of-{number}\n", err
    assert f"caches go to {tmp_path}/home-of-{number}; set HOME." in err
    assert (tmp_path / f"home-of-{number}").stat().st_mode & 0o777 == 0o700
    assert run_as_unknown(f"import utils; {asks}", HOME=str(tmp_path))[0] == f"user{number} {tmp_path}\n"
