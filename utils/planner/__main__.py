"""Says what a fine-tuning run will need, whether it fits a card, and what to change if it does not.

python -m utils.planner google/gemma-2-9b-it --method qlora --batch 4 --length 1024 --card 16
"""

import argparse
import logging
import re
import sys

from utils.errors import CourseError, closest
from utils.planner.plan import plan
from utils.planner.settings import CARDS, METHODS
from utils.units import GIB

FITS, DOES_NOT_FIT, WRONG_CALL = 0, 1, 2  # exit statuses
SMALLEST_SHARE = 0.92  # of a card's GB, the GiB that torch finds: the least among the cards we know (T4)
MODEL_HELP = "a name that ships with the course, a folder with config.json, or an id on the Hugging Face hub"


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one sentence, without the usage."""

    def error(self, message):
        """Prints `message` and ends the program."""
        print(f"{message}; see --help.", file=sys.stderr)
        sys.exit(WRONG_CALL)


def parser():
    """The parser of the command line. Options without a value here keep the planner's defaults."""
    result = Parser(
        prog="python -m utils.planner",
        description=__doc__.split("\n")[0],
        epilog="Exit status: 0 if it fits or no card was named, 1 if it does not fit, 2 for a wrong call.",
    )
    result.add_argument("model", help=MODEL_HELP)
    result.add_argument("--method", default="full", choices=METHODS, help="default: full")
    result.add_argument("--card", help="memory of the card in GB, such as 16, or a name, such as T4")
    result.add_argument("--batch", type=int, default=8, help="rows of one forward pass; default: 8")
    result.add_argument("--length", type=int, default=512, help="tokens a row, padding included; default: 512")
    result.add_argument("--target-length", type=int, help="tokens an answer (T5); default: an eighth of --length")
    result.add_argument("--num-labels", type=int, help="classes, for a classifier")
    result.add_argument("--rank", type=int, help="r of LoRA, on all linear layers; default: 16")
    result.add_argument("--dtype", help="type of weights that are not quantized: float32, bfloat16 or float16")
    result.add_argument("--autocast", help="type of mixed precision: bfloat16, float16 or none")
    result.add_argument("--attention", help="eager, sdpa, flex_attention; default: what transformers chooses")
    result.add_argument("--optimizer", help="a name of TrainingArguments.optim; default: adamw_torch_fused")
    result.add_argument("--accumulation", type=int, help="micro-batches a step; default: 1")
    result.add_argument("--eval-batch", type=int, help="rows of an evaluation batch; default: as --batch")
    result.add_argument("--new-tokens", type=int, help="the evaluation writes so many tokens a row; default: none")
    result.add_argument("--checkpointing", action="store_true", help="activation checkpointing")
    return result


def main(arguments=None):
    """Prints the answer; returns the exit status. arguments: a list of words, by default those of the command line."""
    options = parser().parse_args(arguments)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; what failed is said below
    try:
        card, gib = card_memory(options.card) if options.card else (None, None)
        settings = settings_of(options)
        planned = plan(options.model, options.method, **settings)
    except CourseError as error:
        print(error, file=sys.stderr)
        return WRONG_CALL
    if card is None:
        print(planned)
        return FITS
    print("\n".join(lines_of_parts(planned)))
    if not planned.peaks:
        print(answer_for_parameters(planned, card, gib))
        return FITS if planned.bytes_on_card <= gib * GIB else DOES_NOT_FIT
    fits = planned.bytes_on_card <= gib * GIB
    print("\n".join(lines_of_answer(planned, card, gib)))
    if not fits:
        print("\n".join(lines_of_advice(options, settings, planned, gib)))
    if planned.note:
        print(planned.note)
    return FITS if fits else DOES_NOT_FIT


def card_memory(text):
    """(what to call the card, GiB that torch finds on it) for a number of GB or a part of a name in CARDS."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        size = float(text)
        if size <= 0:
            raise CourseError("--card is 0; write the memory of the card in GB, such as 16.")
        same = [gib for name, gib in CARDS.items() if name.endswith(f" {text} GB")]
        return f"a card of {text} GB", min(same, default=size * SMALLEST_SHARE)
    names = [name for name in CARDS if text.lower() in name.lower()]
    if len(names) == 1:
        return f"the {names[0]}", CARDS[names[0]]
    if names:
        raise CourseError(f"--card {text!r} may be {' or '.join(names)}; write which.")
    hint = closest(text, CARDS)
    raise CourseError(f"--card {text!r} is not known (closest: {hint!r}); write its memory in GB, such as 16.")


def settings_of(options):
    """{setting: value} of memory.plan for the options that were given."""
    settings = {"batch": options.batch, "length": options.length}
    for name in ("target_length", "num_labels", "dtype", "attention", "optimizer", "accumulation", "eval_batch"):
        value = getattr(options, name)
        if value is not None:
            settings[name] = value
    if options.autocast:
        settings["autocast"] = None if options.autocast == "none" else options.autocast
    if options.checkpointing:
        settings["checkpointing"] = True
    if options.new_tokens is not None:
        settings["generate"] = {"max_new_tokens": options.new_tokens}
    if options.rank is not None:
        if options.method == "full":
            raise CourseError("--rank is a setting of LoRA; add --method lora or --method qlora, or leave it out.")
        settings["lora"] = {"target_modules": "all-linear", "r": options.rank}
    return settings


def lines_of_parts(planned):
    """The plan's title and its parts."""
    lines = [planned.title]
    for part, size in planned.items():
        lines.append(f"{part:20} {size / GIB:8.2f} GiB")
    if planned.peaks:
        lines.append(f"{'on the card':20} {planned.bytes_on_card / GIB:8.2f} GiB, with CUDA's own part and slack")
    return lines


def answer_for_parameters(planned, card, gib):
    """What can be said of a model whose activations are not known."""
    if planned.bytes_on_card > gib * GIB:
        return (
            f"It does not fit: {card} gives torch about {gib:.1f} GiB, less than the parameters need.\n{planned.note}"
        )
    return f"The parameters fit {card} ({gib:.1f} GiB); whether the whole run does is not known.\n{planned.note}"


def lines_of_answer(planned, card, gib):
    """Whether it fits, and the largest batch that does."""
    needs = planned.bytes_on_card / GIB
    largest = planned.largest_batch(gib)
    if needs <= gib:
        answer = f"It fits {card}, which gives torch about {gib:.1f} GiB: {gib - needs:.1f} GiB are left."
    else:
        answer = f"It does not fit {card}, which gives torch about {gib:.1f} GiB: {needs - gib:.1f} GiB are missing."
    batch = f"The largest batch that fits: {largest}." if largest else "Not even a batch of 1 fits."
    return ["", answer, batch]


def lines_of_advice(options, settings, planned, gib):
    """Single changes that would make it fit; all of them together if none does alone."""
    alone = []
    for words, method, changes in possible_changes(options, planned, gib):
        changed = plan(options.model, method, **{**settings, **changes})
        if changed.bytes_on_card <= gib * GIB:
            alone.append(f"  {words:32} needs {changed.bytes_on_card / GIB:5.1f} GiB")
    if alone:
        return ["Each of these alone would make it fit:", *alone]
    changes = {"checkpointing": True, "batch": 1, "eval_batch": 1}
    all_together = plan(options.model, "qlora", **{**settings, **changes})
    needs = all_together.bytes_on_card / GIB
    words = "--method qlora --checkpointing --batch 1"
    if needs > gib:
        return [f"Even with {words} it needs {needs:.1f} GiB: take shorter rows, a smaller model or a larger card."]
    largest = all_together.largest_batch(gib)
    return [f"No single change is enough; with {words} it needs {needs:.1f} GiB (largest batch {largest})."]


def possible_changes(options, planned, gib):
    """(words of the command line, method, {setting: value}) of changes that need less memory, the mildest first."""
    changes = []
    largest = planned.largest_batch(gib)
    if largest:
        words = f"--batch {largest}"
        if planned.settings.eval_batch > largest:
            words += f" --eval-batch {largest}"
        changes.append((words, options.method, {"batch": largest, "eval_batch": largest}))
    if not options.checkpointing:
        changes.append(("--checkpointing", options.method, {"checkpointing": True}))
    if options.method == "full" and "8bit" not in planned.settings.optimizer:
        changes.append(("--optimizer adamw_8bit", "full", {"optimizer": "adamw_8bit"}))
    for method in METHODS[METHODS.index(options.method) + 1 :]:
        changes.append((f"--method {method}", method, {}))
    if options.length > 1:
        half = options.length // 2
        changes.append((f"--length {half}", options.method, {"length": half}))
    return changes


if __name__ == "__main__":
    sys.exit(main())
