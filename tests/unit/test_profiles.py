import subprocess
import sys
from pathlib import Path

import pytest

from utils import profiles
from utils.errors import CourseError

PROFILES = {
    "tiny": {
        "model_id": "data/models/tiny",
        "batch_size": 8,
        "learning_rate": 1e-3,
        "bf16": False,
        "attention": None,
    },
    "full": {
        "model_id": "bert-large",
        "batch_size": 32,
        "learning_rate": 1e-4,
        "bf16": True,
        "attention": "sdpa",
    },
}


def test_the_chosen_profile_comes_back_as_attributes():
    run = profiles.select(PROFILES, "tiny", {})
    assert vars(run) == PROFILES["tiny"]


def test_overrides_replace_values_and_leave_the_table_alone():
    run = profiles.select(PROFILES, "tiny", {"batch_size": 2, "model_id": "mine"})
    assert (run.batch_size, run.model_id, run.learning_rate) == (2, "mine", 1e-3)
    assert PROFILES["tiny"]["batch_size"] == 8


@pytest.mark.parametrize(
    "overrides",
    [
        {"learning_rate": 0},
        {"attention": "eager"},
        {"attention": None},
        {"bf16": True},
        {"learning_rate": 2e-5},
    ],
)
def test_a_value_of_a_type_that_some_profile_uses_is_accepted(overrides):
    run = profiles.select(PROFILES, "tiny", overrides)
    assert vars(run) == PROFILES["tiny"] | overrides


def test_a_setting_that_is_none_everywhere_takes_any_value():
    assert profiles.select({"a": {"limit": None}, "b": {"limit": None}}, "a", {"limit": 5}).limit == 5


@pytest.mark.parametrize(
    ("profile", "overrides", "parts"),
    [
        ("tinny", {}, ["'tinny'", "(closest: 'tiny')", "tiny, full"]),
        ("tiny", "learning_rate=1", ["OVERRIDES", "'learning_rate=1'", "not a dict"]),
        ("tiny", None, ["OVERRIDES", "None", "not a dict"]),
        ("tiny", {"learn_rate": 1}, ["'learn_rate'", "closest: 'learning_rate'", "model_id, batch_size"]),
        ("tiny", {7: 1}, ["OVERRIDES", "7", "choose from"]),
        ("tiny", {"learning_rate": "2e-5"}, ["learning_rate", "'2e-5'", "type str", "type float"]),
        ("tiny", {"batch_size": "4"}, ["batch_size", "'4'", "type int"]),
        ("tiny", {"batch_size": 4.5}, ["batch_size", "4.5", "type int"]),
        ("tiny", {"batch_size": True}, ["batch_size", "True", "type int"]),
        ("tiny", {"learning_rate": False}, ["learning_rate", "False", "type float"]),
        ("tiny", {"bf16": 1}, ["bf16", "type bool"]),
        ("tiny", {"batch_size": None}, ["batch_size", "None", "type int"]),
        ("tiny", {"model_id": 3}, ["model_id", "3", "type str"]),
        ("tiny", {"attention": 3}, ["attention", "3", "NoneType or str"]),
        ("tiny", {"batch_size": 0}, ["batch_size = 0 leaves nothing", "from 1 on"]),
        ("tiny", {"batch_size": -4}, ["batch_size = -4 is below 0"]),
        ("tiny", {"learning_rate": -1e-3}, ["learning_rate = -0.001 is below 0"]),
        ("tiny", {"learning_rate": float("nan")}, ["learning_rate = nan is not a finite number"]),
        ("tiny", {"learning_rate": float("-inf")}, ["learning_rate = -inf is not a finite number"]),
        ("tiny", {"learning_rate": {"a": 1}}, ["type dict", "type float"]),
        ("tiny", {"model_id": ""}, ["model_id = '' is empty", "'data/models/tiny'"]),
    ],
)
def test_a_wrong_choice_gets_one_sentence(profile, overrides, parts):
    with pytest.raises(CourseError) as error:
        profiles.select(PROFILES, profile, overrides)
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_a_name_is_suggested_only_if_it_is_alike():
    with pytest.raises(CourseError) as error:
        profiles.select(PROFILES, "tiny", {"target": 1})
    assert str(error.value).startswith("OVERRIDES: 'target' is not known; choose from: model_id")
    with pytest.raises(CourseError, match=r"'Batch_Size' is not known \(closest: 'batch_size'\)"):
        profiles.select(PROFILES, "tiny", {"Batch_Size": 1})


STEPS = {
    # setting           tiny               colab        full
    "max_steps":        (300,              -1,          -1),
    "num_train_epochs": (8,                3,           3),
    "eval_steps":       (50,               32,          32),
    "warmup_steps":     (10,               5,           20),
    "compare_steps":    (100,              0,           0),
    "lora_dropout":     (0.1,              0.1,         0.1),
    "dtype":            ("float32",        "auto",      "bfloat16"),
    "columns":          (["messages"],     ["a", "b"],  ["a"]),
    "test_group":       ("never",          "",          ""),
}  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "steps", "said"),
    [
        ({}, (300, 8, 50), ""),
        ({"max_steps": 75}, (75, 8, 50), ""),
        ({"max_steps": -1}, (-1, 8, 50), ""),
        (
            {"num_train_epochs": 1},
            (-1, 1, 50),
            "num_train_epochs = 1 counts, so the profile's max_steps = 300 does not.\n",
        ),
        ({"num_train_epochs": 1, "max_steps": -1}, (-1, 1, 50), ""),
        (
            {"num_train_epochs": 1, "max_steps": 60},
            (60, 1, 50),
            "Both are set, and max_steps = 60 counts: num_train_epochs changes nothing.\n",
        ),
    ],
)
def test_no_setting_undoes_an_override_in_silence(overrides, steps, said, capsys):
    run = profiles.select(STEPS, "tiny", overrides)
    assert (run.max_steps, run.num_train_epochs, run.eval_steps) == steps
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    "overrides", [{"warmup_steps": 0}, {"compare_steps": 0}, {"test_group": ""}, {"dtype": "auto"}]
)
def test_nothing_is_a_value_where_a_profile_has_it(overrides):
    assert vars(profiles.select(STEPS, "tiny", overrides)) == vars(profiles.select(STEPS, "tiny", {})) | overrides


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ({"max_steps": 0}, "write -1 for no limit, or a number from 1 on"),
        ({"max_steps": -5}, "write -1 for no limit"),
        ({"num_train_epochs": 0}, "leaves nothing"),
        ({"eval_steps": 0}, "leaves nothing"),
        ({"warmup_steps": -1}, "is below 0"),
        ({"lora_dropout": 1}, "drops everything"),
        ({"dtype": "bf16"}, "choose from: auto, bfloat16, float16, float32"),
        ({"columns": []}, "write at least one name"),
        ({"columns": ["a", 3]}, "write texts in quotes"),
    ],
)
def test_a_value_out_of_its_range_is_refused(overrides, fault):
    with pytest.raises(CourseError) as error:
        profiles.select(STEPS, "tiny", overrides)
    assert fault in str(error.value)


def test_a_path_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert profiles.select(PROFILES, "tiny", {"model_id": "~/model"}).model_id == "/somewhere/model"


def test_profiles_with_unequal_keys_are_refused():
    unequal = {"tiny": {"steps": 1, "seed": 1}, "full": {"steps": 2, "epochs": 3}}
    with pytest.raises(CourseError, match="epochs, seed"):
        profiles.select(unequal, "tiny", {})


SETTINGS = {
    # setting        tiny                 colab            full
    "model_id":     ("data/models/tiny",  "bert-large",   "bert-large"),
    "batch_size":   (8,                   16,             32),
    "lora_dropout": (None,                0.05,           0.1),
    "modules":      (["q"],               ["q", "v"],     ["q", "v"]),
}  # fmt: skip


def test_a_table_with_a_row_a_setting_is_the_same_as_three_profiles():
    assert profiles.table(SETTINGS)["tiny"] == {
        "model_id": "data/models/tiny",
        "batch_size": 8,
        "lora_dropout": None,
        "modules": ["q"],
    }
    assert list(profiles.table(SETTINGS)) == ["tiny", "colab", "full"]
    for profile in ("tiny", "colab", "full"):
        overrides = {"batch_size": 4, "lora_dropout": None}
        wide = profiles.select(SETTINGS, profile, overrides)
        assert wide == profiles.select(profiles.table(SETTINGS), profile, overrides)
        assert (wide.batch_size, wide.lora_dropout, wide.modules) == (
            4,
            None,
            profiles.table(SETTINGS)[profile]["modules"],
        )


def test_a_table_of_four_columns_has_the_profile_cpu():
    table = {"batch_size": (8, 4, 16, 32), "device": ("auto", "cpu", "auto", "auto")}
    assert list(profiles.table(table)) == ["tiny", "cpu", "colab", "full"]
    assert vars(profiles.select(table, "cpu", {})) == {"batch_size": 4, "device": "cpu"}
    with pytest.raises(CourseError, match="write four values in parentheses, for tiny, cpu, colab, full"):
        profiles.table({**table, "max_length": (1, 2, 3)})
    with pytest.raises(CourseError, match="PROFILE 'cpu' is not known"):
        profiles.select(SETTINGS, "cpu", {})


@pytest.mark.parametrize("overrides", [{"lora_dropout": "0.1"}, {"batch_size": None}, {"modules": "q"}, {"rank": 4}])
def test_overrides_of_a_table_are_checked_as_well(overrides):
    with pytest.raises(CourseError, match=f"OVERRIDES: .*{next(iter(overrides))}"):
        profiles.select(SETTINGS, "tiny", overrides)


@pytest.mark.parametrize("row", [(8, 16), (8, 16, 32, 64), 8, "abc"])
def test_a_row_that_is_not_three_values_is_refused(row):
    with pytest.raises(CourseError, match=r"'batch_size': .* is not a row of the table; write three values"):
        profiles.select(SETTINGS | {"batch_size": row}, "tiny", {})


def test_importing_it_stays_light():
    code = "import sys, utils.profiles; sys.exit(bool({'torch', 'datasets', 'transformers'} & set(sys.modules)))"
    root = Path(profiles.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_settings_of_the_courses_data_are_empty_with_other_data(capsys):
    settings = {
        "dataset_id": ("data/toy", "some/set", "some/set"),
        "truth_file": ("data/toy/truth.csv", "", ""),
        "refusal": ("no", "", ""),
    }
    for own, overrides, truth, refusal in (
        ("data/toy", {}, "data/toy/truth.csv", "no"),
        (str(Path("data/toy").absolute()), {}, "data/toy/truth.csv", "no"),
        ("mine.csv", {}, "", ""),
        ("mine.csv", {"refusal": "I do not know"}, "", "I do not know"),
    ):
        overrides = overrides | {"dataset_id": own}
        run = profiles.select(settings, "tiny", overrides)
        profiles.for_own_data(run, settings, overrides, ["truth_file", "refusal"])
        assert (run.truth_file, run.refusal) == (truth, refusal)
        said = capsys.readouterr().out
        assert ("Not used with other data: truth_file" in said) == (own == "mine.csv")
