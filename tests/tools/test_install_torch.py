"""Which build of PyTorch the set-up takes: with a fake index, a fake torch, and a virtual environment of its own."""

import http.server
import importlib.util
import os
import shutil
import socket
import subprocess
import threading
import time
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "install_torch.py"
FAKE_METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
FAKE_WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def load_script():
    """tools/install_torch.py as a module."""
    specification = importlib.util.spec_from_file_location("install_torch", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def write_wheel(folder, version, cuda):
    """A wheel of a package that is called torch and holds its version.py alone."""
    info = f"torch-{version}.dist-info"
    files = {
        "torch/version.py": f"__version__ = {version!r}\ncuda = {cuda!r}\n",
        f"{info}/METADATA": FAKE_METADATA.format(name="torch", version=version),
        f"{info}/WHEEL": FAKE_WHEEL,
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", record)


class Index:
    """A package index on this machine: the folders below `folder` are its packages. Answers wait `delay` seconds."""

    def __init__(self, folder):
        self.delay = 0
        self.asked = []
        index = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                index.asked.append(self.path)
                time.sleep(index.delay)
                super().do_GET()

            def log_message(self, *args):
                pass

        def make_handler(*args):
            return Handler(*args, directory=str(folder))

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), make_handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Two indexes: PyTorch's for the CPU, and the one that pip asks by itself, whose torch is a build for CUDA."""
    folder = tmp_path_factory.mktemp("indexes")
    write_wheel(folder / "cpu" / "torch", "2.13.0+cpu", None)
    write_wheel(folder / "cpu" / "torch", "2.12.0+cpu", None)
    write_wheel(folder / "pypi" / "torch", "2.13.0", "13.0")
    write_wheel(folder / "pypi without CUDA" / "torch", "2.13.0", None)
    (folder / "cpu without files" / "torch").mkdir(parents=True)
    write_wheel(folder / "cpu of another time" / "torch", "1.0.0+cpu", None)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The Python of a virtual environment with pip."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


WITHOUT_A_GPU = """
import importlib.util
import sys

specification = importlib.util.spec_from_file_location("install_torch", sys.argv[0])
script = importlib.util.module_from_spec(specification)
specification.loader.exec_module(script)
script.has_nvidia_gpu = lambda: False  # so that the test asks for the same on every machine
script.main()
"""


class SetUp:
    """The set-up's two commands for torch, in a virtual environment, on a machine without an NVIDIA GPU."""

    def __init__(self, python, pages, home):
        self.python = python
        self.home = home
        self.cpu = Index(pages / "cpu")
        self.pypi = Index(pages / "pypi")
        self.constraint = home / "constraints.txt"
        self.constraint.write_text("torch==2.13.0\n")

    def environment(self, **variables):
        """Environment variables under which pip knows the index `pypi` alone."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORCH_"))}
        kept |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        return kept | {"PIP_INDEX_URL": self.pypi.url, "TORCH_CPU_INDEX": self.cpu.url} | variables

    def choose(self, **variables):
        """Runs the script, the first command; returns the finished process."""
        program = WITHOUT_A_GPU.replace("sys.argv[0]", repr(str(SCRIPT)))
        command = [self.python, "-c", program, "--constraint", self.constraint]
        return subprocess.run(command, env=self.environment(**variables), capture_output=True, text=True)

    def install_the_rest(self, constraint=None):
        """Runs pip for what requirements.txt says of torch, as the second command does; returns torch's version."""
        command = [self.python, "-m", "pip", "install", "torch>=2.6,<2.14", "-c", constraint or self.constraint]
        subprocess.run(command, env=self.environment(), check=True, capture_output=True)
        return self.version()

    def version(self):
        """The version of torch in the virtual environment, None if it has none."""
        names = [path.name for path in self.python.parents[1].glob("lib/*/site-packages/torch-*.dist-info")]
        assert len(names) < 2
        return names[0].removeprefix("torch-").removesuffix(".dist-info") if names else None

    def remove(self):
        for path in self.python.parents[1].glob("lib/*/site-packages/torch*"):
            shutil.rmtree(path)


@pytest.fixture
def setup(environment, pages, tmp_path):
    made = SetUp(environment, pages, tmp_path)
    yield made
    made.remove()


def the_line(done):
    """The one line that the script itself prints."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("torch: ")]
    assert len(lines) == 1, done.stdout + done.stderr
    return lines[0]


def test_without_a_gpu_the_build_for_the_cpu_is_taken_and_stays(setup):
    done = setup.choose()
    assert the_line(done) == f"torch: the build for the CPU from {setup.cpu.url}, as this machine has no NVIDIA GPU."
    assert setup.version() == "2.13.0+cpu", "the version of the constraints, in the build of that index"
    assert setup.install_the_rest() == "2.13.0+cpu"
    assert not [path for path in setup.pypi.asked if path.endswith(".whl")], "nothing of the large build was fetched"
    asked = len(setup.cpu.asked)
    done = setup.choose()
    assert the_line(done) == "torch: 2.13.0+cpu is installed already and stays."
    assert len(setup.cpu.asked) == asked


def test_a_torch_of_another_release_does_not_stay(setup):
    setup.constraint.write_text("torch==2.12.0\n")
    setup.choose()
    assert setup.version() == "2.12.0+cpu"
    setup.constraint.write_text("torch==2.13.0\n")
    setup.choose()
    assert setup.version() == "2.13.0+cpu"


@pytest.mark.parametrize("fault", ["refuses", "is slow", "has no such page", "has no files"])
def test_an_index_that_does_not_answer_costs_seconds_and_pip_decides(setup, pages, fault):
    if fault == "refuses":
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            setup.cpu.url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    elif fault == "is slow":
        setup.cpu.delay = 60
    elif fault == "has no such page":
        setup.cpu.url += "/nowhere"
    else:
        setup.cpu = Index(pages / "cpu without files")
    began = time.monotonic()
    done = setup.choose()
    assert time.monotonic() - began < 20
    reason = f"as this machine has no NVIDIA GPU, but {setup.cpu.url} does not answer"
    assert the_line(done) == f"torch: what pip finds, {reason}."
    assert setup.version() is None
    if fault == "refuses":
        assert setup.install_the_rest() == "2.13.0"


def test_an_index_without_a_torch_for_this_machine_is_passed_over(setup, pages):
    setup.cpu = Index(pages / "cpu of another time")
    done = setup.choose()
    assert done.returncode == 0
    assert f"torch: what pip finds, as {setup.cpu.url} has no torch for this machine after all." in done.stdout
    assert setup.version() is None


def test_torch_build_cpu_insists(setup, pages):
    assert the_line(setup.choose(TORCH_BUILD="cpu")).endswith("as TORCH_BUILD=cpu says.")
    assert setup.version() == "2.13.0+cpu"
    setup.remove()
    setup.cpu = Index(pages / "cpu of another time")
    done = setup.choose(TORCH_BUILD="cpu")
    assert done.returncode == 1
    last = f"TORCH_BUILD=cpu: pip could not install torch>=2.6,<2.14 from {setup.cpu.url}; see its words above."
    assert done.stderr.splitlines()[-1] == last
    assert setup.version() is None


def test_torch_build_cuda_takes_what_pip_finds_and_looks_at_it(setup, pages):
    setup.choose()
    assert setup.version() == "2.13.0+cpu"
    done = setup.choose(TORCH_BUILD="cuda")  # although another build of the same release is there
    assert the_line(done) == "torch: what pip finds, as TORCH_BUILD=cuda says."
    assert setup.version() == "2.13.0"
    assert the_line(setup.choose(TORCH_BUILD="cuda")) == "torch: 2.13.0 is installed already and stays."
    setup.choose(TORCH_BUILD="cpu")
    assert setup.version() == "2.13.0+cpu", "and back"
    setup.pypi = Index(pages / "pypi without CUDA")
    done = setup.choose(TORCH_BUILD="cuda")
    assert done.returncode == 1
    last = "TORCH_BUILD=cuda: pip found torch 2.13.0 for this machine, a build without CUDA."
    assert done.stderr.splitlines()[-1] == last


def test_torch_build_pip_asks_no_other_index(setup):
    assert the_line(setup.choose(TORCH_BUILD="pip")) == "torch: what pip finds, as TORCH_BUILD=pip says."
    assert setup.version() is None
    assert setup.cpu.asked == []


def test_an_unknown_build_is_refused_in_one_sentence(setup):
    done = setup.choose(TORCH_BUILD="gpu")
    assert done.returncode == 1
    assert done.stderr == "TORCH_BUILD=gpu is not known; choose cpu, cuda or pip, or leave it out.\n"


def test_a_gpu_and_another_system_leave_it_to_pip(monkeypatch):
    script = load_script()
    monkeypatch.setattr(script, "answers", lambda index: True)
    monkeypatch.setattr(script.sys, "platform", "linux")
    for gpu, chosen in ((True, "pip"), (False, "cpu")):
        monkeypatch.setattr(script, "has_nvidia_gpu", lambda gpu=gpu: gpu)
        assert script.choose("", "index")[0] == chosen
    monkeypatch.setattr(script.sys, "platform", "darwin")
    assert script.choose("", "index") == ("pip", "as only on Linux pip finds a build that is larger than needed")


@pytest.mark.parametrize(
    ("files", "program", "expected"),
    [
        (["dev/nvidia0"], None, True),
        (["dev/nvidia3"], None, True),
        (["proc/driver/nvidia/gpus/0000:01:00.0"], None, True),
        (["dev/nvidiactl"], None, False),
        ([], "echo 'GPU 0: NVIDIA T4 (UUID: x)'", True),
        ([], "echo 'NVIDIA-SMI has failed'; exit 9", False),
        ([], "echo 'No devices were found'", False),
        ([], None, False),
    ],
)
def test_a_gpu_is_seen_by_its_driver(monkeypatch, tmp_path, files, program, expected):
    script = load_script()
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "bin").mkdir()
    if program:
        (tmp_path / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(script, "Path", lambda name: tmp_path / name.lstrip("/"))
    assert script.has_nvidia_gpu() is expected


def test_the_makefile_calls_it_before_the_rest():
    rule = (ROOT / "Makefile").read_text().split("\n$(READY):")[1]
    assert rule.index("tools/install_torch.py") < rule.index("pip install -r")
    assert load_script().wanted_torch() in (ROOT / "requirements.txt").read_text()


@pytest.mark.parametrize("installed", ["2.13.0", "2.13.0+cpu"])
def test_colab_keeps_the_torch_it_has(setup, pages, installed):
    """The notebooks' Colab cell: torch's own version may name a build that its package does not name."""
    folder = pages / ("cpu" if "+" in installed else "pypi") / "torch"
    wheel = folder / f"torch-{installed}-py3-none-any.whl"
    subprocess.run([setup.python, "-m", "pip", "install", "-q", "--no-index", wheel], check=True)
    (package,) = setup.python.parents[1].glob("lib/*/site-packages/torch")
    (package / "__init__.py").write_text("__version__ = '2.13.0+cu130'\n")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        (line,) = [line for line in path.read_text("utf-8").replace('\\"', '"').split("\\n") if "> keep.txt" in line]
        command = line[line.index("python -c") :].replace("python", str(setup.python), 1)
        subprocess.run(["bash", "-c", command], check=True, cwd=setup.home)
        assert (setup.home / "keep.txt").read_text() == "torch==2.13.0\n", path.name
    setup.pypi = setup.cpu  # where pip finds another build of the same release
    assert setup.install_the_rest(setup.home / "keep.txt") == installed
    if installed == "2.13.0":
        (setup.home / "keep.txt").write_text("torch==2.13.0+cu130\n")  # the control
        with pytest.raises(subprocess.CalledProcessError):
            setup.install_the_rest(setup.home / "keep.txt")
