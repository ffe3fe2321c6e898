"""Command-line options that several tools have."""

import json


def json_object(text):
    """The JSON object in a text, as a dict; ValueError if it is something else. argparse shows this function's name."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"{text} is no JSON object, such as {{}}.")
    return value
