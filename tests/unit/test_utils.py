"""The planner, the meter, results.json, the environment line and the figures, each against a number of its own."""

import gc
import json
import math

import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import AutoConfig, AutoModelForSequenceClassification

from utils import meter, plots, results, session


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


def test_the_meter_counts_training_rows_and_tokens_only(model):
    with meter.measure(model) as cost:
        model.train()(**batch_of(4, 10))
        model.eval()(**batch_of(4, 10))
    assert (cost.rows, cost.real_tokens, cost.padded_tokens) == (4, 35, 40)
    assert cost.seconds > 0
    assert cost.peak_bytes is None or torch.cuda.is_available()
    model.train()(**batch_of(4, 10))
    assert cost.rows == 4, "the meter must stop with the block"


def record(**changes):
    values = dict.fromkeys(set(results.KEYS) - {"device", "versions", "commit"}, 1)
    return values | {"model_id": f"{ROOT}/data/x", "dataset_id": "hub/name", "metrics": {}} | changes


def test_results_are_written_whole(tmp_path):
    written = results.write(tmp_path, **record())
    assert json.loads((tmp_path / "results.json").read_text()) == written
    assert list(written) == results.KEYS
    assert (written["model_id"], written["dataset_id"]) == ("./data/x", "hub/name")
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("changes", [{"unknown": 1}, {"after": math.nan}])
def test_results_refuse_what_is_not_in_the_contract(tmp_path, changes):
    with pytest.raises(ValueError, match="unknown|JSON compliant"):
        results.write(tmp_path, **record(**changes))
    assert list(tmp_path.iterdir()) == []


def test_results_refuse_a_missing_key(tmp_path):
    values = record()
    del values["baseline"]
    with pytest.raises(ValueError, match="baseline"):
        results.write(tmp_path, **values)


def test_the_environment_in_one_line(capsys, monkeypatch):
    session.report()
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert f"torch {torch.__version__}" in line
    session.check_versions()
    assert capsys.readouterr().out == "Ready: all packages are here.\n"
    monkeypatch.setattr(session.metadata, "version", lambda name: "0.1")
    session.check_versions()
    line = capsys.readouterr().out
    assert line.startswith("Not ready: torch 0.1 (needs ")
    assert "pip install -r requirements.txt" in line


@pytest.mark.parametrize(
    ("package", "module"), [("2.13.0", "2.13.0+cu130"), ("2.13.0+cpu", "2.13.0+cpu"), ("2.13.0", "2.13.0")]
)
def test_any_build_of_a_release_is_ready_and_is_named(capsys, monkeypatch, package, module):
    """PyPI's build for CUDA, where package and module differ, PyTorch's for the CPU, and PyPI's for macOS."""
    real = session.metadata.version
    monkeypatch.setattr(session.metadata, "version", lambda name: package if name == "torch" else real(name))
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(module))
    session.report()
    assert f" · torch {module} · " in capsys.readouterr().out
    session.check_versions()
    assert capsys.readouterr().out == "Ready: all packages are here.\n"
    assert session.facts()["versions"]["torch"] == module
    monkeypatch.setattr(session.metadata, "version", lambda name: "2.5.9+cu130" if name == "torch" else real(name))
    session.check_versions()
    assert capsys.readouterr().out.startswith("Not ready: torch 2.5.9+cu130 (needs "), "the control"


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
    assert session.public_version(version) == public


def test_figures_are_saved(tmp_path):
    plots.length_histogram([3, 4, 4, 9], 8, tmp_path / "a.png")
    history = [{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 1.9, "eval_accuracy": 0.5}]
    plots.learning_curve(history, "accuracy", tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        image = plots.plt.imread(tmp_path / name)
        assert np.unique(image[..., :3].reshape(-1, 3), axis=0).shape[0] > 20, "an empty picture has few colours"
