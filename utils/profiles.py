"""One notebook, several sizes: choose a profile, then change single values."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

from utils.errors import CourseError, alike

NAMES = ("tiny", "colab", "full")  # the columns of a table of settings
NAMES_WITH_CPU = ("tiny", "cpu", "colab", "full")  # those of a table of four columns
NUMBER_TYPES = ("float32", "float16", "bfloat16")  # what a setting that ends in "dtype" may be, besides its profiles
NUMBERS = {3: "three", 4: "four"}


def names_of_columns(count):
    """The names of the columns of a table with so many."""
    return NAMES_WITH_CPU if count == len(NAMES_WITH_CPU) else NAMES


def table(SETTINGS):  # noqa: N803  (the name in the notebooks)
    """{profile: {setting: value}} of a table with a row a setting and a column a profile.

    SETTINGS: {setting: (value in tiny, value in colab, value in full)}, or with four values, those of NAMES_WITH_CPU.
    Raises CourseError for a row that is not values in parentheses, as many as the first row has.
    """
    first_row = next(iter(SETTINGS.values()))
    names = names_of_columns(len(first_row) if isinstance(first_row, tuple) else 0)
    for name, row in SETTINGS.items():
        if not isinstance(row, tuple) or len(row) != len(names):
            wanted = f"write {NUMBERS[len(names)]} values in parentheses, for {', '.join(names)}"
            raise CourseError(f"SETTINGS: {name!r}: {row!r} is not a row of the table; {wanted}.")
    profiles = {}
    for column, profile in enumerate(names):
        profiles[profile] = {name: row[column] for name, row in SETTINGS.items()}
    return profiles


def for_own_data(run, SETTINGS, OVERRIDES, names):  # noqa: N803  (the names in the notebooks)
    """Empties the settings `names` of a run, texts that belong to the course's own data, if it reads other data.

    run: what `select` returned of SETTINGS and OVERRIDES. A setting that stands in OVERRIDES itself stays. Prints which
    ones are empty now.
    """
    given = str(run.dataset_id)
    if any(given == value or Path(given).absolute() == Path(value).absolute() for value in SETTINGS["dataset_id"]):
        return
    emptied = [name for name in names if getattr(run, name) and name not in OVERRIDES]
    for name in emptied:
        setattr(run, name, "")
    if emptied:
        belong = "it belongs" if len(emptied) == 1 else "they belong"
        print(f"Not used with other data: {', '.join(emptied)}; {belong} to the course's own. Set what yours has.")


def select(PROFILES, PROFILE, OVERRIDES):  # noqa: N803  (the names in the notebooks)
    """The chosen profile with the overrides applied, as `run.name` attributes.

    PROFILES: a table of settings, see `table`, or {profile: {setting: value}}, where all profiles have the same
    settings. OVERRIDES: {setting: new value}, of a type that some profile uses for it; a whole number may stand for a
    float. A text that begins with "~" is taken for a path in the home folder. A setting that would undo an override is
    changed with it, and a line says so: see `_settle_length`. Raises CourseError, in one sentence, for unequal
    settings, an unknown name, a type that cannot be right, and a number out of its range.
    """
    if any(isinstance(row, tuple) for row in PROFILES.values()):
        PROFILES = table(PROFILES)  # noqa: N806
    _check_equal_settings(PROFILES)
    _check_name(PROFILE, PROFILES, "PROFILE")
    if not isinstance(OVERRIDES, dict):
        raise CourseError(f'OVERRIDES = {OVERRIDES!r} is not a dict; write for example {{"learning_rate": 1e-4}}.')
    run = SimpleNamespace(**PROFILES[PROFILE])
    for name, value in OVERRIDES.items():
        _check_name(name, PROFILES[PROFILE], "OVERRIDES:")
        _check_type(name, value, PROFILES, example=PROFILES[PROFILE][name])
        _check_value(name, value, [settings[name] for settings in PROFILES.values()])
        if isinstance(value, str) and value.startswith("~"):
            value = os.path.expanduser(value)
        setattr(run, name, value)
    _settle_length(run, OVERRIDES)
    return run


def _settle_length(run, overrides):
    """Lets epochs count where they alone are overridden; prints what it changes.

    A profile with max_steps above 0 trains so many steps, whatever the epochs are.
    """
    max_steps = getattr(run, "max_steps", -1)
    if max_steps > 0 and "num_train_epochs" in overrides:
        if "max_steps" in overrides:
            print(f"Both are set, and max_steps = {max_steps} counts: num_train_epochs changes nothing.")
        else:
            print(
                f"num_train_epochs = {run.num_train_epochs} counts, so the profile's max_steps = {max_steps} does not."
            )
            run.max_steps = -1


def _check_equal_settings(profiles):
    """Raises CourseError unless every profile has the same settings."""
    all_names = set().union(*profiles.values())
    missing_somewhere = set()
    for settings in profiles.values():
        missing_somewhere |= all_names - set(settings)
    if missing_somewhere:
        names = ", ".join(sorted(missing_somewhere))
        raise CourseError(f"PROFILES: these keys do not stand in every profile: {names}; add them.")


def _check_name(name, names, what):
    """Raises CourseError unless `name` is one of `names`; with the one that is spelt alike, if there is one."""
    if name not in names:
        closest = alike(name, names)
        hint = f" (closest: {closest!r})" if closest else ""
        raise CourseError(f"{what} {name!r} is not known{hint}; choose from: {', '.join(names)}.")


def _check_type(name, value, profiles, example):
    """Raises CourseError unless some profile has a value of this type for the setting `name`, or all have None."""
    types = {type(settings[name]) for settings in profiles.values()}
    is_whole_number_for_float = type(value) is int and float in types
    if type(value) in types or is_whole_number_for_float or types == {type(None)}:
        return
    type_names = " or ".join(sorted(kind.__name__ for kind in types))
    raise CourseError(
        f"OVERRIDES: {name} = {value!r} is of type {type(value).__name__}; "
        f"write a value of type {type_names}, such as {example!r}."
    )


def _check_value(name, value, examples):
    """Raises CourseError for a value out of range; examples: the values that the profiles have for this setting."""
    if value in examples:
        return
    if isinstance(value, list):
        fault = _fault_of_list(value, examples)
    elif isinstance(value, str):
        fault = _fault_of_text(name, value, examples)
    elif isinstance(value, int | float):
        fault = _fault_of_number(name, value, examples)
    else:
        fault = ""
    if fault:
        raise CourseError(f"OVERRIDES: {name} = {value!r} {fault}.")


def _fault_of_list(value, examples):
    """What is wrong with a list, and the remedy; "" if nothing is."""
    if not value and [] not in examples:
        return "is empty; write at least one name"
    if not all(isinstance(item, str) for item in value):
        return 'holds something else than names; write texts in quotes, such as ["one", "two"]'
    return ""


def _fault_of_text(name, value, examples):
    """What is wrong with a text, and the remedy; "" if nothing is."""
    if not value.strip() and "" not in examples:
        return f"is empty; leave it out, or write a value such as {examples[0]!r}"
    allowed = {*NUMBER_TYPES, *examples}
    if name.endswith("dtype") and value not in allowed:
        return f"is no type of numbers that is known here; choose from: {', '.join(sorted(allowed))}"
    return ""


def _fault_of_number(name, value, examples):
    """What is wrong with a number, and the remedy; "" if nothing is.

    A whole number that is above 0 in all profiles must be so; -1 in one of them means that there is no limit.
    """
    numbers = [example for example in examples if isinstance(example, int | float)]
    if not math.isfinite(value):
        return "is not a finite number; write one"
    if isinstance(value, bool) or not numbers:
        return ""
    if min(numbers) == -1 and value < 1:
        return "stands for nothing; write -1 for no limit, or a number from 1 on"
    if value < 0:
        return "is below 0; write a number from 0 on"
    if "dropout" in name and value >= 1:
        return "drops everything; write a number from 0 to below 1"
    whole = all(isinstance(number, int) for number in numbers)
    if value == 0 and whole and min(numbers) > 0 and name != "warmup_steps":
        return "leaves nothing; write a number from 1 on"
    return ""
