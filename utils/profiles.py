"""One notebook, several sizes: choose a profile, then change single values."""

from pathlib import Path
from types import SimpleNamespace

from utils.errors import CourseError, closest

NAMES = ("tiny", "colab", "full")  # the columns of a table of settings
NAMES_WITH_CPU = ("tiny", "cpu", "colab", "full")  # those of a table of four columns
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
    float. Raises CourseError, in one sentence, for unequal settings, an unknown name or a type that cannot be right.
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
        setattr(run, name, value)
    return run


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
    """Raises CourseError, with the closest name, unless `name` is one of `names`; `what` says whose name it is."""
    if name not in names:
        hint = f"(closest: {closest(name, names)!r}); choose from: {', '.join(names)}"
        raise CourseError(f"{what} {name!r} is not known {hint}.")


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
