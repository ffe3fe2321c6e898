"""Rates of a training from the time and the tokens of each step."""

import itertools
import statistics
from dataclasses import dataclass

TOO_SLOW = 3  # a step that takes so many times as long a token as the median step compiled kernels


@dataclass(kw_only=True)
class Rates:
    """How fast the steps of a training were. A step is one step of the optimizer."""

    steps: int
    """all steps, those of the warm-up too"""
    steady_steps: int
    """steps that the rates below are of"""
    step_seconds: float
    rows_per_second: float
    real_tokens_per_second: float
    """tokens that are not padding"""
    padding: float
    """share of the tokens that are padding, 0 to 1"""
    tokens_a_row: float
    """real tokens of a row, mean"""
    first_steps_seconds: float
    """seconds of all steps of the warm-up together"""
    slow_steps: int
    """steps after the warm-up that took far longer than most, so that no rate counts them"""
    slow_seconds: float
    """seconds of the slow steps together"""
    all_seconds: float
    """from the begin of the training to the end of its last step"""


def steady_rates(step_ends, step_counts, undisturbed, warm_up_steps):
    """Returns the Rates of a training: of its steps after the warm-up, without those that something else disturbed.

    step_ends: seconds, the begin of the training and then the end of each step. step_counts: for each step its rows,
    its real tokens and its tokens with padding. undisturbed: for each step, whether nothing but the step lies in its
    time (no evaluation, no checkpoint). warm_up_steps: how many steps at the begin no rate counts.

    A step that takes more than three times as long a token as most compiled kernels: it counts overall only.
    """
    seconds_of = [end - begin for begin, end in itertools.pairwise(step_ends)]
    seconds_a_token = {}
    for step, (_, _, padded_tokens) in enumerate(step_counts):
        if step >= warm_up_steps and undisturbed[step]:
            seconds_a_token[step] = seconds_of[step] / padded_tokens
    limit = TOO_SLOW * statistics.median(seconds_a_token.values())
    steady = [step for step, seconds in seconds_a_token.items() if seconds <= limit]
    slow = [step for step, seconds in seconds_a_token.items() if seconds > limit]

    seconds = sum(seconds_of[step] for step in steady)
    rows = sum(step_counts[step][0] for step in steady)
    real_tokens = sum(step_counts[step][1] for step in steady)
    padded_tokens = sum(step_counts[step][2] for step in steady)
    return Rates(
        steps=len(seconds_of),
        steady_steps=len(steady),
        step_seconds=seconds / len(steady),
        rows_per_second=rows / seconds,
        real_tokens_per_second=real_tokens / seconds,
        padding=1 - real_tokens / padded_tokens,
        tokens_a_row=real_tokens / rows,
        first_steps_seconds=sum(seconds_of[:warm_up_steps]),
        slow_steps=len(slow),
        slow_seconds=sum(seconds_of[step] for step in slow),
        all_seconds=step_ends[-1] - step_ends[0],
    )
