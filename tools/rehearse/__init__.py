"""Rehearse a lesson at full size with random weights and synthetic rows: `python -m tools.rehearse`, `__main__.py`.

These names are for other programs, such as those in benchmarks.
"""

from tools.options import json_object
from tools.rehearse.fake_hub import KINDS, MODELS
from tools.rehearse.lesson import COUNTS, lesson_of, plan_of, profile_of
from tools.rehearse.preparation import prepare
from tools.rehearse.processes import enter
from tools.rehearse.rows import WINNERS
from utils.paths import ROOT

__all__ = [
    "COUNTS",
    "KINDS",
    "MODELS",
    "ROOT",
    "WINNERS",
    "enter",
    "json_object",
    "lesson_of",
    "plan_of",
    "prepare",
    "profile_of",
]
