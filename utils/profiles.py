"""One notebook, several sizes: choose a profile, then change single values."""

from types import SimpleNamespace

from utils.errors import CourseError, closest


def _need(name, known, what):
    if name not in known:
        hint = f"(closest: {closest(name, known)!r}); choose from: {', '.join(known)}"
        raise CourseError(f"{what} {name!r} is not known {hint}.")


def select(PROFILES, PROFILE, OVERRIDES):
    """The chosen profile with the overrides applied, as `run.name` attributes.

    PROFILES maps a profile name to a dict of settings; all these dicts have the same keys. OVERRIDES maps a setting to
    its new value, of a type that some profile uses for it; a whole number may stand for a float. Raises CourseError,
    in one sentence, for unequal keys, an unknown name or a type that cannot be right.
    """
    keys = [set(settings) for settings in PROFILES.values()]
    if unequal := sorted(set().union(*keys) - set.intersection(*keys)):
        raise CourseError(f"PROFILES: these keys do not stand in every profile: {', '.join(unequal)}; add them.")
    _need(PROFILE, PROFILES, "PROFILE")
    if not isinstance(OVERRIDES, dict):
        raise CourseError(f'OVERRIDES = {OVERRIDES!r} is not a dict; write for example {{"learning_rate": 1e-4}}.')
    for name, value in OVERRIDES.items():
        _need(name, PROFILES[PROFILE], "OVERRIDES:")
        types = {type(settings[name]) for settings in PROFILES.values()}
        if type(value) not in types and types != {type(None)} and not (type(value) is int and float in types):
            kinds = " or ".join(sorted(kind.__name__ for kind in types))
            fault = f"{name} = {value!r} is of type {type(value).__name__}"
            wanted = f"write a value of type {kinds}, such as {PROFILES[PROFILE][name]!r}"
            raise CourseError(f"OVERRIDES: {fault}; {wanted}.")
    return SimpleNamespace(**{**PROFILES[PROFILE], **OVERRIDES})
