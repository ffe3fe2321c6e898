"""Command-line options that several tools have."""

import argparse
import json

EXAMPLE = """write for example '{"learning_rate": 1e-4}'"""


def json_object(text):
    """The JSON object in a text, as a dict; argparse.ArgumentTypeError, one sentence, if it is something else.

    Also for a name that stands twice, of which JSON would take the last, and for NaN and Infinity, which are not JSON.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        problem = f"{text} is not JSON ({error.msg}, character {error.pos + 1})"
        raise argparse.ArgumentTypeError(f"{problem}; {EXAMPLE}.") from None
    except RecursionError:
        raise argparse.ArgumentTypeError(f"the text is nested too deep; {EXAMPLE}.") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object of names and values; {EXAMPLE}.")
    return value


def _without_doubles(pairs):
    """The dict of an object's pairs; argparse.ArgumentTypeError for a name that stands twice."""
    values = {}
    for name, value in pairs:
        if name in values:
            raise argparse.ArgumentTypeError(f"{name!r} stands twice; delete one of the two.")
        values[name] = value
    return values


def _refuse_constant(name):
    raise argparse.ArgumentTypeError(f"{name} is no number that a setting can have; write a finite one.")


def seed(text):
    """The seed in a text, a number that numpy and torch take; argparse.ArgumentTypeError if it is something else."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; write a whole number from 0 to {2**32 - 1}.")
    return int(text)
