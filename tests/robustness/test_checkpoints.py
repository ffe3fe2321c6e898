"""A killed run goes on as if nothing had happened; broken, foreign and occupied folders are told from good ones."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import killed_runs
import pytest
import safetensors.torch
import torch
from conftest import ROOT, refusal
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers.utils import logging

from utils.training import checkpoints, weight_files

BROKEN = "checkpoint-10 is passed over: trainer_state.json is missing or broken."


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.slow)])
def runs(request, tmp_path_factory):
    """{case of killed_runs.py: what the first run became, what its resumption became}; slow: every step and file."""
    folder = tmp_path_factory.mktemp("killed")
    every = ["--all"] if request.param == "all" else []
    command = [sys.executable, str(ROOT / "tests" / "support" / "killed_runs.py"), str(folder), *every]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


def outcome(run):
    return {key: run[key] for key in ("steps", "best", "log", "weights")}


def test_a_killed_run_goes_on_as_if_nothing_had_happened(runs):
    """Bit for bit: each loss, each evaluation and the final weights, wherever kill -9 came."""
    expected = outcome(runs["uninterrupted"][0])
    assert len([entry for entry in expected["log"] if "loss" in entry]) == killed_runs.STEPS
    cases = {name: case for name, case in runs.items() if name.split()[0] in ("step", "begin", "backward", "save")}
    assert len(cases) >= 8
    for name, (first, resumed) in cases.items():
        assert first == {"died": -signal.SIGKILL}, name
        assert outcome(resumed) == expected, name
    sources = [resumed["from"] for _, resumed in cases.values()]
    assert {None, "checkpoint-5", "checkpoint-10", "checkpoint-20"} == set(sources) - {"checkpoint-15"}


def only_that_save_is_lost(cases, expected, whole):
    """Each case goes on from the save before, as if nothing had happened; `whole` from the one that was just done."""
    for name, (first, resumed) in cases.items():
        assert first == {"died": -signal.SIGKILL}, name
        assert outcome(resumed) == expected, name
        assert resumed["from"] == ("checkpoint-10" if name == whole else "checkpoint-5"), name
        assert (BROKEN in resumed["said"]) != (name == whole), name


def test_a_kill_in_the_middle_of_a_save_loses_only_that_save(runs):
    cases = {name: case for name, case in runs.items() if name.startswith("file ")}
    assert len(cases) in (killed_runs.FILES + 1, 2 * killed_runs.FILES)
    only_that_save_is_lost(cases, outcome(runs["uninterrupted"][0]), f"file {killed_runs.FILES} whole")


def test_a_kill_in_the_middle_of_a_save_of_an_adapter_loses_only_that_save(runs):
    """Its files, those of its tokenizer, and the states: before each, also while the one before it is half there."""
    expected = outcome(runs["adapter, uninterrupted"][0])
    assert expected["weights"] != runs["uninterrupted"][0]["weights"]
    cases = {name: case for name, case in runs.items() if name.startswith("adapter, ") and "file" in name}
    last = max(int(name.split()[-1]) for name in cases)
    assert last >= 9, "adapter, its configuration and card, two of the tokenizer, arguments, three states, the end"
    assert len(cases) in (2 * (last + 1), last // 4 + 1)
    only_that_save_is_lost(cases, expected, f"adapter, before file {last + 1} of {last}")


def test_rows_grouped_by_length_come_in_the_same_order_after_a_resumption_in_any_epoch(runs):
    expected = outcome(runs["by length, uninterrupted"][0])
    assert expected["weights"] != runs["uninterrupted"][0]["weights"]
    cases = {name: case for name, case in runs.items() if name.startswith("by length, step")}
    assert len(cases) == 5
    for name, (first, resumed) in cases.items():
        assert first == {"died": -signal.SIGKILL}, name
        assert outcome(resumed) == expected, name


def test_a_training_that_had_ended_ends_in_the_same_place_again(runs):
    for name in ("uninterrupted", "stopped early"):
        first, resumed = runs[name]
        assert outcome(resumed) == outcome(first)
        assert "is the end of a training" in resumed["said"][0]
    assert runs["stopped early"][0]["steps"] == 10 < killed_runs.STEPS


def test_a_full_disk_costs_only_the_save_it_stopped(runs):
    first, resumed = runs["disk full"]
    assert "inline_container" in first["error"]
    assert outcome(resumed) == outcome(runs["uninterrupted"][0])
    assert resumed["from"] == "checkpoint-5"
    assert BROKEN in resumed["said"]


def test_a_checkpoint_without_optimizer_and_random_state_is_used_only_on_request(runs):
    refused = runs["without states"][1]["error"]
    assert "checkpoint-10: optimizer.pt, rng_state*.pth is missing, so the run cannot go on as it was" in refused
    cold = runs["without states, cold"][1]
    assert cold["steps"] == killed_runs.STEPS
    assert cold["weights"] != runs["uninterrupted"][0]["weights"], "then the states would not matter"


def test_trainer_alone_still_needs_this_help(runs):
    """If one of these fails, the library has learned it: take our part out."""
    assert "trainer_state.json" in runs["Trainer alone, broken"][1]["error"]
    assert runs["Trainer alone, ended"][1]["steps"] == killed_runs.STEPS + 1


# ------------------------------------------------------------------------------------------------ files


@pytest.fixture
def whole(tmp_path):
    """A folder with a checkpoint whose files are whole."""
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    safetensors.torch.save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, checkpoint / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(50)}, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 5, "max_steps": 9}')
    assert weight_files.why_unusable(checkpoint) == ""
    assert checkpoints.last_complete(tmp_path) == checkpoint
    return checkpoint


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_file_cut_anywhere_is_found(whole, name):
    content = (whole / name).read_bytes()
    for length in (*range(0, len(content), 97), len(content) - 2):
        (whole / name).write_bytes(content[:length])
        assert name in weight_files.why_unusable(whole), length


def test_a_changed_byte_in_an_archive_and_a_longer_weights_file_are_found(whole):
    content = bytearray((whole / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (whole / "optimizer.pt").write_bytes(content)
    with (whole / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert weight_files.why_unusable(whole) == "model.safetensors, optimizer.pt is not whole"


def test_a_missing_part_of_split_weights_is_found(whole):
    index = {"weight_map": {"a": "model.safetensors", "c": "model-00002-of-00002.safetensors"}}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files.why_unusable(whole) == "model-00002-of-00002.safetensors is not whole"


class Payload:
    """What a malicious pickle does when somebody opens it."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_a_pickled_checkpoint_is_passed_over_and_stays_closed(whole, capsys):
    canary = whole.parent / "opened"
    torch.save(Payload(canary), whole / "pytorch_model.bin")
    torch.save(Payload(canary), whole / "optimizer.pt")
    (whole / "model.safetensors").unlink()
    assert checkpoints.last_complete(whole.parent) is None
    assert "it has no weights in the safetensors format" in capsys.readouterr().out
    assert not canary.exists()
    torch.load(whole / "pytorch_model.bin", weights_only=False)  # the test could fail: the payload works
    assert canary.exists()


# ------------------------------------------------------------------------------------------------ fresh or resume


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder that a run has left after its step 10, with its checkpoints 5 and 10."""
    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("trained") / "checkpoints"
    trainer = killed_runs.make(folder)
    assert checkpoints.start(trainer) is None

    class Enough(killed_runs.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 10:
                raise KeyboardInterrupt

    trainer.add_callback(Enough())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def make(folder, model=None, **changes):
    trainer = killed_runs.make(folder, [killed_runs.EarlyStoppingCallback(9)] if "patience" in changes else [])
    for name, value in changes.items():
        if name in ("train_dataset", "eval_dataset"):
            setattr(trainer, name, value)
        elif name != "patience":
            assert hasattr(trainer.args, name)
            setattr(trainer.args, name, value)
    return trainer


def rows(change=0, count=32):
    ids = [[1, 2, 3 + i % 50] for i in range(count)]
    ids[-1][-1] += change
    return Dataset.from_dict({"input_ids": ids, "labels": [i % 2 for i in range(count)]})


def test_the_same_run_is_resumed_wherever_its_folder_was_moved_to(folder):
    assert checkpoints.start(make(folder), resume=True) == str(folder / "checkpoint-10")
    same = dict(train_dataset=rows(), eval_dataset=rows(count=32).select(range(8)), disable_tqdm=False)
    same |= dict(
        logging_steps=7,
        report_to=["tensorboard"],
        save_total_limit=9,
        dataloader_num_workers=1,
        per_device_eval_batch_size=3,
    )
    assert checkpoints.start(make(folder, **same), resume=True) == str(folder / "checkpoint-10")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"learning_rate": 2e-3},
            "learning_rate was 0.001 and is 0.002; change it back, or set resume_from_checkpoint",
        ),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps was 2 and is 4"),
        ({"max_steps": 44}, "max_steps was 22 and is 44"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last was False and is True"),
        ({"ignore_data_skip": True}, "ignore_data_skip was False and is True"),
        ({"seed": 1}, "seed was 42 and is 1"),
        ({"bf16": True}, "bf16 was False and is True"),
        ({"train_dataset": rows(1)}, "train_dataset was '32 rows, "),
        ({"eval_dataset": rows(count=9)}, "and is '9 rows, "),
        ({"patience": 9}, "EarlyStoppingCallback was None and is {'early_stopping_patience': 9"),
    ],
)
def test_another_run_is_refused_with_the_difference(folder, changes, part):
    message = refusal(lambda: checkpoints.start(make(folder, **changes), resume=True))
    assert f"{folder}: another run made these checkpoints: " in message
    assert part in message
    assert (folder / "checkpoint-10").exists()
    (folder / checkpoints.RUN).unlink()  # the way out that the message names
    assert checkpoints.start(make(folder, **changes), resume=True) == str(folder / "checkpoint-10")


def test_another_base_of_equal_shape_other_dropout_and_other_versions_are_refused(folder, monkeypatch):
    trainer = make(folder)
    with torch.no_grad():
        trainer.model.bert.embeddings.word_embeddings.weight.mul_(1.001)
    assert "model weights was" in refusal(lambda: checkpoints.start(trainer, resume=True))
    trainer = make(folder)
    with torch.no_grad():
        trainer.model.bert.encoder.layer[0].attention.self.query.weight.neg_()
    assert "model weights was" in refusal(lambda: checkpoints.start(trainer, resume=True))
    trainer = make(folder)
    trainer.model.config.hidden_dropout_prob = 0.2
    assert "model.hidden_dropout_prob was 0.1 and is 0.2" in refusal(lambda: checkpoints.start(trainer, resume=True))
    installed = {"torch": ("1.0", None), "ruff": ("0.0.1", None)}
    monkeypatch.setattr(checkpoints.versions, "installed", lambda: installed)
    message = refusal(lambda: checkpoints.start(make(folder), resume=True))
    assert "and is '1.0'" in message
    assert "ruff" not in message


BUILDS = ["2.13.0", "2.13.0+cpu", "2.13.0+cu130"]


@pytest.mark.parametrize(("then", "now"), [*itertools.permutations(BUILDS, 2), ("2.12.1+cpu", "2.13.0+cpu")])
def test_another_build_of_the_same_torch_goes_on_and_another_torch_does_not(folder, monkeypatch, then, now):
    record = json.loads((folder / checkpoints.RUN).read_text("utf-8"))
    record["torch"] = then  # as the course wrote it before it left the build out
    (folder / checkpoints.RUN).write_text(json.dumps(record), encoding="utf-8")
    installed = checkpoints.versions.installed() | {"torch": (now, None)}
    monkeypatch.setattr(checkpoints.versions, "installed", lambda: installed)
    if then.startswith("2.12"):
        message = refusal(lambda: checkpoints.start(make(folder), resume=True))
        assert "torch was '2.12.1' and is '2.13.0'" in message
    else:
        assert checkpoints.start(make(folder), resume=True) == str(folder / "checkpoint-10")
        assert json.loads((folder / checkpoints.RUN).read_text("utf-8"))["torch"] == "2.13.0"


def test_another_adapter_is_refused(folder):
    shutil.rmtree(folder / "checkpoint-5")

    def with_adapter(rank):
        trainer = make(folder)
        config = LoraConfig(task_type="SEQ_CLS", r=rank, target_modules=["query", "value"])
        trainer.model = get_peft_model(trainer.model, config)
        return trainer

    (folder / checkpoints.RUN).unlink()
    assert checkpoints.start(with_adapter(2), resume=True)
    assert checkpoints.start(with_adapter(2), resume=True)
    message = refusal(lambda: checkpoints.start(with_adapter(3), resume=True))
    assert "adapter.r was 2 and is 3" in message
    assert "trained parameters was" in message


def test_a_fresh_start_moves_the_earlier_run_aside(folder, capsys):
    shutil.copytree(folder / "checkpoint-10", folder / "checkpoint-99")  # a later one of an earlier, longer run
    earlier = folder.with_name("checkpoints-earlier")
    earlier.mkdir()
    (earlier / "of the run before that").touch()
    assert checkpoints.start(make(folder)) is None
    assert [path.name for path in folder.iterdir()] == [checkpoints.RUN]
    assert {path.name for path in earlier.iterdir()} == {"checkpoint-5", "checkpoint-10", "checkpoint-99", "run.json"}
    assert "The checkpoints of an earlier run are in checkpoints-earlier now." in capsys.readouterr().out


@pytest.mark.parametrize("resume", [True, False])
def test_a_start_without_a_whole_checkpoint_leaves_the_earlier_run_alone(folder, resume, capsys):
    earlier = folder.with_name("checkpoints-earlier")
    folder.rename(earlier)
    (folder / "checkpoint-5").mkdir(parents=True)
    assert checkpoints.start(make(folder), resume=resume) is None
    assert [path.name for path in folder.iterdir()] == [checkpoints.RUN]
    assert (earlier / "checkpoint-10").exists()
    assert ("No checkpoint to go on from: a fresh start." in capsys.readouterr().out) == resume


def test_too_small_a_disk_is_refused_before_training(folder, monkeypatch):
    trainer = make(folder)
    size = sum(p.numel() * 4 for p in trainer.model.parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9 * size - 1))
    message = refusal(lambda: checkpoints.start(trainer))
    assert "GiB are free, and checkpoints may take" in message
    assert (folder / "checkpoint-10").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9 * size))
    assert checkpoints.start(trainer) is None
