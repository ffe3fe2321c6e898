"""What can be timed: for each lesson its arms, of which `bench.py` runs one after the other.

An arm, as in an experiment, is one way to train the same lesson:

* `reference`: the published recipe (recipes/published_01.py to published_05.py)
* `peer`: what one would otherwise write today (recipes/peer_01.py to peer_05.py)
* `unsloth` and `unsloth with the cap`: lesson 05 with Unsloth (recipes/unsloth_05.py)
* `course`: the lesson's notebook, profile full, up to its training
* the names in levers.toml: the course without one of the things that make it fast
"""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

LESSONS = ("01", "02", "03", "04", "05")

# Steps at the begin that no rate counts. Rows of lesson 05 are grouped by length and come from long to short within a
# group. So few rows as COURSE_OVERRIDES leaves make groups of 12 steps (of 32 rows, both orders of each comparison; the
# whole set makes groups of 50). One group warms up, and the steps that count are a whole group.
WARM_UP_STEPS = {"01": 3, "02": 3, "03": 3, "04": 3, "05": 12}
REFERENCE_WARM_UP_STEPS = 3  # its rows come in no order of length
COURSE_OVERRIDES = {"01": {}, "02": {}, "03": {}, "04": {}, "05": {"train_rows": 768}}
COURSE_STEPS = {"01": 201, "02": 61, "03": 31, "04": 41, "05": 12}  # steps that are timed after the warm-up


@dataclass(frozen=True)
class Recipe:
    """A training that a file in `recipes` builds."""

    module: str
    """the file's name, without .py"""
    steps: int
    """steps of the optimizer that are timed after the warm-up"""
    description: str = ""
    """the recipe in a line, for the pages; a reference needs none"""
    options: dict = field(default_factory=dict)
    """further arguments of the file's `build_trainer`"""


# {lesson: {arm: its recipe}}
RECIPES = {
    "01": {
        "reference": Recipe("published_01", 60),
        "peer": Recipe("peer_01", 100, "Trainer, bfloat16 autocast, fused AdamW, torch_compile, 64 rows padded to 32"),
    },
    "02": {
        "reference": Recipe("published_02", 8),
        "peer": Recipe("peer_02", 40, "LoRA on a bfloat16 base (not quantized), torch_compile, 64 rows padded to 32"),
    },
    "03": {
        "reference": Recipe("published_03", 20),
        "peer": Recipe("peer_03", 20, "NF4, bfloat16 (wo too, not quantized), sdpa, 8 rows, no checkpointing"),
    },
    "04": {
        "reference": Recipe("published_04", 25),
        "peer": Recipe("peer_04", 25, "TRL's packing ('wrapped': documents leak), bfloat16, 8 rows, no checkpointing"),
    },
    "05": {
        "reference": Recipe("published_05", 4),
        "peer": Recipe(
            "peer_05",
            12,
            "NF4, bfloat16, Liger's kernels, flex attention, 8 rows x 4, no checkpointing, by length",
        ),
        "unsloth": Recipe("unsloth_05", 12, "Unsloth, NF4, bfloat16, 8 rows x 4, no checkpointing, by length"),
        "unsloth with the cap": Recipe(
            "unsloth_05", 12, "Unsloth, the same with flex_attention", {"attention": "flex_attention"}
        ),
    },
}

# {lesson: {arm: overrides of the lesson's profile}}; lessons 04 and 05 have none
LEVERS = tomllib.loads((Path(__file__).parent / "levers.toml").read_text("utf-8"))


def warm_up_steps(lesson, arm):
    """Steps at the begin of an arm that no rate counts."""
    return REFERENCE_WARM_UP_STEPS if arm == "reference" else WARM_UP_STEPS[lesson]


def levers_of(lesson):
    """{arm: overrides} of the course without one lever, for a lesson; empty if it has none."""
    return LEVERS.get(lesson, {})


def needs_unsloth(arm):
    """Whether an arm runs with the packages of the folder that --unsloth names."""
    return arm.startswith("unsloth")
