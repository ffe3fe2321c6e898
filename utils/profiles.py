"""One notebook, several sizes: choose a profile, then change single values."""

import os
from types import SimpleNamespace

from utils.checks import CourseError, closest


def select(PROFILES: dict, PROFILE: str, OVERRIDES: dict) -> SimpleNamespace:
    """Return the chosen profile, with the overrides applied, as `run.name` attributes.

    PROFILES maps a profile name to a dict of settings; all these dicts have the same keys. OVERRIDES maps
    a setting to its new value, of a type that some profile uses for it. A whole number may stand for a float.
    Raises CourseError, in one sentence, for unequal keys, an unknown name or a type that cannot be right.
    """
    keys = [set(settings) for settings in PROFILES.values()]
    if unequal := sorted(set().union(*keys) - set.intersection(*keys)):
        raise CourseError(f"PROFILES: these keys do not stand in every profile: {', '.join(unequal)}; add them.")
    if PROFILE not in PROFILES:
        raise CourseError(
            f"PROFILE = {PROFILE!r} is not known (closest: {closest(PROFILE, PROFILES)!r}); "
            f"choose one of: {', '.join(PROFILES)}."
        )
    if not isinstance(OVERRIDES, dict):
        raise CourseError(f'OVERRIDES = {OVERRIDES!r} is not a dict; write for example {{"learning_rate": 1e-4}}.')
    for name, value in OVERRIDES.items():
        if name not in PROFILES[PROFILE]:
            raise CourseError(
                f"OVERRIDES: {name!r} is not known (closest: {closest(name, PROFILES[PROFILE])!r}); "
                f"choose from: {', '.join(PROFILES[PROFILE])}."
            )
        types = {type(settings[name]) for settings in PROFILES.values()}
        fits = type(value) in types or types == {type(None)} or (type(value) is int and float in types)
        if not fits and not (str in types and isinstance(value, os.PathLike)):
            wanted = " or ".join(sorted(kind.__name__ for kind in types))
            raise CourseError(
                f"OVERRIDES: {name} = {value!r} is of type {type(value).__name__}; write a value of type "
                f"{wanted}, such as {PROFILES[PROFILE][name]!r}."
            )
    return SimpleNamespace(**{**PROFILES[PROFILE], **OVERRIDES})
