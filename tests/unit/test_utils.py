"""The planner, the meter, results.json, the environment line and the figures, each against a number of its own."""

import gc
import inspect
import json
import math
import re
import time
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from transformers import AutoConfig, AutoModelForSequenceClassification

from utils import meter, plots, profiles, results, session, versions


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert", vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return AutoModelForSequenceClassification.from_config(config)


def batch_of(rows, length):
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, length // 2 :] = 0
    return {"input_ids": torch.ones_like(mask), "attention_mask": mask, "labels": torch.zeros(rows, dtype=torch.long)}


def test_saved_bytes_are_counted_exactly():
    layer = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh())
    layer.device = torch.device("cpu")
    saved = meter.saved_bytes(layer, {"input": torch.ones(4, 8, requires_grad=True)})
    assert saved == 4 * (4 * 8 + 4 * 16)  # the input of Linear, the output of Tanh, in float32


def test_counting_saved_bytes_leaves_nothing_behind():
    class Model(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input):
            return (input * 2).relu()  # which keeps its own result

    def alive():
        gc.collect()
        return sum(isinstance(one, torch.Tensor) and one.shape == (3, 77) for one in gc.get_objects())

    meter.saved_bytes(Model(), {"input": torch.ones(3, 77, requires_grad=True)})
    assert alive() == 0


def test_optimizer_states_are_counted(model):
    optimizer = torch.optim.AdamW(model.parameters())
    model(**batch_of(2, 8)).loss.backward()
    assert meter.optimizer_bytes(optimizer) == 0
    optimizer.step()
    steps = 4 * len(list(model.parameters()))  # AdamW also keeps one step counter a tensor
    assert meter.optimizer_bytes(optimizer) == 8 * model.num_parameters() + steps


def test_a_tied_weight_counts_once():
    weight = torch.nn.Parameter(torch.zeros(10, 10))
    assert meter.tensor_bytes([weight, weight.T, torch.zeros(5)]) == 420


def record(**changes):
    """The arguments of results.write of a run without training."""
    values = {
        "lesson": "01_lesson",
        "profile": "tiny",
        "seed": 0,
        "settings": profiles.select(PROFILES, "tiny", {"learning_rate": 0}),
        "overrides": {"learning_rate": 0},
        "model_id": f"{ROOT}/data/x",
        "dataset_id": "hub/name",
        "metric": "accuracy",
        "higher_is_better": True,
        "n_train": 10,
        "n_eval": 5,
        "baseline": 0.4,
        "before": 0.2,
        "after": 0.8,
        "metrics": {"steps": 3},
    }
    return values | changes


PROFILES = {"tiny": {"learning_rate": 0.1, "model_id": f"{ROOT}/data/x", "data": {"test": [f"{ROOT}/a", 3]}}}


def test_results_are_written_whole(tmp_path):
    written = results.write(tmp_path, **record())
    assert json.loads((tmp_path / "results.json").read_text()) == written
    assert list(written) == results.KEYS
    assert (written["model_id"], written["dataset_id"]) == ("./data/x", "hub/name")
    assert {written[name] for name in results.COSTS} == {None}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_results_hold_settings_overrides_and_the_time_of_the_whole_lesson(tmp_path):
    before = time.time() - psutil.Process().create_time()
    written = results.write(tmp_path, **record())
    assert written["settings"] == {"learning_rate": 0, "model_id": "./data/x", "data": {"test": ["./a", 3]}}
    assert written["overrides"] == {"learning_rate": 0}
    assert before <= written["wall_seconds"] <= before + 60


LESSON = """
from utils import profiles, results
PROFILES = {"tiny": {"learning_rate": 0.1, "steps": 3}}
run = profiles.select(PROFILES, PROFILE, OVERRIDES)
results.write(
    OUTPUT_DIR,
    lesson="lesson",
    profile=PROFILE,
    seed=0,
    settings=run,
    overrides=OVERRIDES,
    model_id=None,
    dataset_id=None,
    metric="accuracy",
    higher_is_better=True,
    n_train=0,
    n_eval=1,
    baseline=0.5,
    before=0.5,
    after=0.5,
    metrics={},
)
print("Lesson complete.")
"""


def test_overrides_of_the_command_line_show_in_the_results(run_notebook, tmp_path):
    parameters = nbformat.v4.new_code_cell('PROFILE = "tiny"\nOVERRIDES = {}\nOUTPUT_DIR = ""')
    parameters.metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(LESSON)])
    nbformat.write(notebook, tmp_path / "lesson.ipynb")
    done = run_notebook(tmp_path / "lesson.ipynb", "--overrides", '{"learning_rate": 0}')
    assert done.code == 0, done.text
    assert done.results["settings"] == {"learning_rate": 0, "steps": 3}
    assert done.results["overrides"] == {"learning_rate": 0}
    assert 0 < done.results["wall_seconds"] < 600


def test_every_key_of_the_results_is_explained():
    source = inspect.getsource(results.RunRecord)
    assert len(re.findall(r'^    \w+: .*\n    """', source, re.MULTILINE)) == len(results.KEYS)


def test_the_cost_of_a_training(model, tmp_path):
    cost = SimpleNamespace(rows=20, real_tokens=300, padded_tokens=400, seconds=10.0, peak_bytes=None)
    numbers = results.costs(model, {"total": 7}, cost)
    assert list(numbers) == results.COSTS
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert numbers["total_parameters"] == numbers["trainable_parameters"] == parameters
    assert (numbers["weights_bytes"], numbers["planned_peak_bytes"]) == (4 * parameters, 7)
    rates = [numbers[f"{name}_per_second"] for name in ("rows", "real_tokens", "padded_tokens")]
    assert rates == [2.0, 30.0, 40.0]
    with_adapter = SimpleNamespace(parameters=model.parameters, get_nb_trainable_parameters=lambda: (5, 50))
    assert results.costs(with_adapter, {"total": 7}, cost)["total_parameters"] == 50, "as PEFT counts 4 bits"
    written = results.write(tmp_path, **record(model=model, planned={"total": 7}, cost=cost))
    assert {name: written[name] for name in results.COSTS} == numbers


def test_results_refuse_what_is_not_in_the_contract(tmp_path):
    with pytest.raises(TypeError, match="unknown"):
        results.write(tmp_path, **record(unknown=1))
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_was_not_measured_is_none_and_named(tmp_path, capsys):
    measured = {"loss": [1.0, math.nan], "by": {"a": np.float64("inf")}}
    written = results.write(tmp_path, **record(after=math.nan, metrics=measured))
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["after"] is None
    assert content["metrics"] == {"loss": [1.0, None], "by": {"a": None}}
    assert f"{written['after']:.3f}" == "nan", "a lesson prints it as a number"
    said = "Not a finite number, so None in results.json: after, metrics.loss.1, metrics.by.a."
    assert said in capsys.readouterr().out


def test_results_end_the_run_of_a_notebook(tmp_path, monkeypatch):
    monkeypatch.delenv(session.CLAIMS, raising=False)
    (tmp_path / "results.json").write_text("of an earlier run")
    session.own_folder(tmp_path)
    assert [path.name for path in (tmp_path / "earlier").iterdir()] == ["results.json"]
    results.write(tmp_path, **record())
    assert not (tmp_path / "earlier").exists()


@pytest.mark.parametrize(
    ("path", "written"),
    [
        (f"{ROOT}/data/x", "./data/x"),
        (f"{ROOT}", "."),
        (f"{ROOT}-data/x.csv", f"{ROOT}-data/x.csv"),
        (f"/mnt{ROOT}/x", f"/mnt{ROOT}/x"),
        ("hub/name", "hub/name"),
    ],
)
def test_only_the_folder_of_the_course_is_written_as_a_dot(tmp_path, path, written):
    assert results.write(tmp_path, **record(dataset_id=path))["dataset_id"] == written


@pytest.mark.parametrize("problem", [FileNotFoundError(2, "git"), PermissionError(13, "git")])
def test_a_machine_without_git_has_no_commit(monkeypatch, problem):
    def no_git(*args, **kwargs):
        raise problem

    monkeypatch.setattr(session.subprocess, "run", no_git)
    assert session.facts()["commit"] is None


def test_results_refuse_a_missing_key(tmp_path):
    values = record()
    del values["baseline"]
    with pytest.raises(TypeError, match="baseline"):
        results.write(tmp_path, **values)


def test_the_environment_in_one_line(capsys, monkeypatch):
    session.report()
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert f"torch {torch.__version__}" in line
    versions.check()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(versions.metadata, "version", lambda name: "0.1")
    versions.check()
    line = capsys.readouterr().err
    assert line.startswith("Not ready: torch 0.1 (needs ")
    assert "pip install -r requirements.txt" in line


def test_a_line_that_tells_which_gpu_was_chosen(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("COURSE_ALL_GPUS", "0,1")
    session.report()
    assert " · GPU 0 of 2 · torch " in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    session.report()
    assert "2 GPUs at once, because torch was at work before `utils`: restart the kernel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("package", "module"), [("2.13.0", "2.13.0+cu130"), ("2.13.0+cpu", "2.13.0+cpu"), ("2.13.0", "2.13.0")]
)
def test_any_build_of_a_release_is_ready_and_is_named(capsys, monkeypatch, package, module):
    """PyPI's build for CUDA, where package and module differ, PyTorch's for the CPU, and PyPI's for macOS."""
    real = versions.metadata.version
    monkeypatch.setattr(versions.metadata, "version", lambda name: package if name == "torch" else real(name))
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(module))
    session.report()
    assert f" · torch {module} · " in capsys.readouterr().out
    versions.check()
    assert capsys.readouterr().err == ""
    assert session.facts()["versions"]["torch"] == module
    monkeypatch.setattr(versions.metadata, "version", lambda name: "2.5.9+cu130" if name == "torch" else real(name))
    versions.check()
    assert capsys.readouterr().err.startswith("Not ready: torch 2.5.9+cu130 (needs "), "the control"


@pytest.mark.parametrize(
    ("version", "public"),
    [
        ("2.13.0", "2.13.0"),
        ("2.13.0+cpu", "2.13.0"),
        ("2.13.0+cu130", "2.13.0"),
        ("2.14.0.dev20261101+cu130", "2.14.0.dev20261101"),
        ("4.0.0b1", "4.0.0b1"),
        ("no version", "no version"),
        (None, None),
    ],
)
def test_a_version_without_its_build(version, public):
    assert versions.public_version(version) == public


def test_a_figure_in_the_style_of_the_course_is_saved(tmp_path):
    with plt.style.context(ROOT / "utils" / "course.mplstyle"):
        figure, axes = plt.subplots()
        axes.plot([1, 2], [3, 4], label="a line")
        axes.legend()
        figure.savefig(tmp_path / "a.png")
        plt.close(figure)
    image = plt.imread(tmp_path / "a.png")
    assert np.unique(image[..., :3].reshape(-1, 3), axis=0).shape[0] > 20, "an empty picture has few colours"


def test_one_very_long_text_does_not_ask_for_a_bar_for_each_length():
    assert plots.length_bins([5, 7, 9]).tolist() == [4.5, 5.5, 6.5, 7.5, 8.5, 9.5]
    for lengths in ([7], [1, 500], [1, 501], [3, 300_000], [5, 1_000_000]):
        edges = plots.length_bins(lengths)
        assert edges[0] < min(lengths)
        assert edges[-1] > max(lengths)
        assert len(edges) <= 502
        assert set(np.diff(edges) % 1) == {0}, "a whole number of lengths in each bar"


def test_names_of_classes_are_drawn_letter_by_letter(tmp_path):
    names = ["$a$%", "50% $", "\\bad{$x$", "two\nlines", "long " * 20, "$"]
    shown = plots.literal(names)
    assert shown[0] == r"\$a\$%"
    assert shown[3] == "two lines"
    assert len(shown[4]) == 40
    figure, axes = plots.plt.subplots()
    axes.set_xticks(range(len(names)), shown)
    figure.savefig(tmp_path / "a.png")
    drawn = axes.get_xticklabels()[0]
    assert drawn._preprocess_math(drawn.get_text()) == ("$a$%", False)
    plots.plt.close(figure)
