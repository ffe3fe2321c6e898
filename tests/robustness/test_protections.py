"""Without its protection a test of a fault fails: each is taken out of a copy of utils, and its test is run there."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

SECURITY = "robustness/test_security.py"
CHECKPOINTS = "robustness/test_checkpoints.py"
PROTECTIONS = {  # name: (file of utils, what to replace by "False and" it, test)
    "none": (None, None, f"{SECURITY}::test_a_pickled_model_is_refused_and_stays_closed"),
    "pickles": (
        "training/weight_files.py",
        "if pickles and not has_safe_weights",
        f"{SECURITY}::test_a_pickled_model_is_refused_and_stays_closed",
    ),
    "pickles of the hub": (
        "training/model_files.py",
        "if not (converted or ",
        f"{SECURITY}::test_a_hub_model_with_a_pickle_only_is_refused_and_it_is_not_even_fetched",
    ),
    "code of a model": (
        "training/model_files.py",
        'if "auto_map" in ',
        f"{SECURITY}::test_a_model_with_code_of_its_own_is_refused_and_it_does_not_run",
    ),
    "a damaged cache": (
        "training/model_files.py",
        "if is_named_by_hash and ",
        f"{SECURITY}::test_a_whole_cache_is_taken_in_silence_and_a_damaged_file_refused_before_it_is_loaded",
    ),
    "another run": (
        "training/checkpoints.py",
        "if before != now:",
        f"{CHECKPOINTS}::test_another_run_is_refused_with_the_difference",
    ),
    "a full disk": (
        "training/checkpoints.py",
        "if free < need:",
        f"{CHECKPOINTS}::test_too_small_a_disk_is_refused_before_training",
    ),
    "a loss that is NaN": (
        "training/nan.py",
        "if not loss.isfinite()",
        "unit/test_nan.py::test_a_planted_nan_stops_the_run_at_its_step",
    ),
    "the order of rows by length": (
        "training/checkpoints.py",
        "if epoch > 0 and ",
        f"{CHECKPOINTS}::test_rows_grouped_by_length_come_in_the_same_order_after_a_resumption_in_any_epoch",
    ),
    "another tokenizer": (
        "training/adapters.py",
        "if tokenizer != saved_tokenizer:",
        "unit/test_adapters.py::test_another_tokenizer_beside_an_adapter_is_refused",
    ),
    "a column twice": (
        "data/files.py",
        "if doubled:",
        "robustness/test_faults.py::test_a_column_that_is_there_twice_cannot_hide_the_first",
    ),
    "a mean that would be added up": (
        "training/mean_loss.py",
        "if trainer.loss_is_scaled_for_ga is None and ",
        "unit/test_mean_loss.py::test_a_mean_that_trainer_would_add_up_is_refused",
    ),
    "hooks that stay": (
        "training/hooks.py",
        "if isinstance(callback, ForwardHookCallback)",
        "unit/test_meter.py::test_a_training_that_fails_leaves_no_hook",
    ),
    "another base": (
        "training/adapters.py",
        "if not is_same_weight(",
        "unit/test_adapters.py::test_the_fingerprint_knows_its_base_in_every_type_and_refuses_others",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTECTIONS)
def test_without_its_protection_a_test_fails(name, tmp_path):
    file, condition, test = PROTECTIONS[name]
    for folder in ("utils", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if not (tmp_path / path.name).exists() and path.name not in (".git", "outputs"):
            (tmp_path / path.name).symlink_to(path)
    if file:
        source = (tmp_path / "utils" / file).read_text("utf-8")
        assert source.count(condition) == 1, condition
        without = condition.replace("if ", "if False and ", 1)
        (tmp_path / "utils" / file).write_text(source.replace(condition, without), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == (1 if file else 0), done.stdout[-2000:]
    if file:
        assert "FAILED tests/" in done.stdout
        assert "SyntaxError" not in done.stdout
