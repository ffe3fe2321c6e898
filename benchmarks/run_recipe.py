"""Trains by one recipe, in a process of its own, and writes what was measured. `bench.py` calls it.

python -m benchmarks.run_recipe LESSON ARM --rows FILE --folder FOLDER --out FILE

The recipe is imported before anything that imports transformers, which Unsloth patches. So this module imports neither
the rehearsal nor transformers by itself.
"""

import argparse
import csv
import dataclasses
import importlib
import json
from importlib import metadata
from pathlib import Path

from benchmarks import arms
from benchmarks.rates import steady_rates

UNSLOTH_PACKAGES = (
    "unsloth",
    "unsloth_zoo",
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
)


def read_rows(path):
    """The rows of a .csv or .jsonl file, as dicts."""
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        return [json.loads(line) for line in file]


class CountingCollator:
    """A data collator that notes of each batch its rows, its real tokens and its tokens with padding."""

    def __init__(self, collator):
        self.collator = collator
        self.counts = []

    def __call__(self, examples):
        """Returns the batch that the collator makes of some examples."""
        import torch

        batch = self.collator(examples)
        mask = batch.get("attention_mask")
        if mask is None:  # TRL's packs have none: all their tokens are real
            mask = torch.ones_like(batch["input_ids"])
        self.counts.append((len(examples), int(mask.sum()), mask.numel()))
        return batch

    def counts_of_steps(self, steps, batches_a_step):
        """[rows, real tokens, padded tokens] of each step of the optimizer."""
        totals = []
        for step in range(steps):
            batches = self.counts[step * batches_a_step : (step + 1) * batches_a_step]
            totals.append([sum(column) for column in zip(*batches, strict=True)])
        return totals


def clock(warm_up_steps):
    """A callback of Trainer that has the GPU note when each step ends, and counts peak memory after the warm-up only.

    The GPU notes the time when it comes to the mark; nobody waits for it.
    """
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.marks = []

        def mark(self):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
            if len(self.marks) == warm_up_steps:
                torch.cuda.reset_peak_memory_stats()

        def on_train_begin(self, args, state, control, **kwargs):
            self.mark()

        def on_step_end(self, args, state, control, **kwargs):
            self.mark()

        def seconds(self):
            """Seconds from the begin of the training to each mark, the first one 0."""
            torch.cuda.synchronize()
            return [self.marks[0].elapsed_time(mark) / 1000 for mark in self.marks]

    return Clock()


def changed_arguments(args):
    """{name: value} of the arguments of a Trainer that are not the defaults, without its folder."""
    changed = {}
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        is_plain = isinstance(value, bool | int | float | str | dict)  # what JSON can hold as it is
        if is_plain and field.init and field.name != "output_dir" and value != field.default:
            changed[field.name] = value
    return changed


def train(trainer, steps, warm_up_steps):
    """Trains for `warm_up_steps` and then `steps` steps; returns what of a Receipt was measured, as a dict.

    Rates and peak bytes are those of the steps after the warm-up.
    """
    import torch

    args = trainer.args
    args.max_steps = steps + warm_up_steps
    counting = CountingCollator(trainer.data_collator)
    trainer.data_collator = counting
    timing = clock(warm_up_steps)
    trainer.add_callback(timing)
    mean_loss = trainer.train().training_loss

    step_ends = timing.seconds()
    step_counts = counting.counts_of_steps(args.max_steps, args.gradient_accumulation_steps)
    undisturbed = [True] * len(step_counts)
    measured = dataclasses.asdict(steady_rates(step_ends, step_counts, undisturbed, warm_up_steps))
    measured["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
    measured["mean_loss"] = mean_loss
    measured["attention"] = getattr(trainer.model.config, "_attn_implementation", None)
    measured["trainable_parameters"] = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    measured["settings"] = changed_arguments(args)
    return measured


def main():
    """Reads the options, trains, and writes the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lesson")
    parser.add_argument("arm")
    parser.add_argument("--rows", type=Path, required=True, help="file with the rows to train on, .csv or .jsonl")
    parser.add_argument("--folder", type=Path, required=True, help="where the Trainer writes")
    parser.add_argument("--out", type=Path, required=True, help="file for the measurement")
    options = parser.parse_args()

    recipe = arms.RECIPES[options.lesson][options.arm]
    rows = read_rows(options.rows)
    if "train_rows" in arms.COURSE_OVERRIDES[options.lesson]:  # the course has both orders of each
        rows = rows[: 2 * arms.COURSE_OVERRIDES[options.lesson]["train_rows"]]
    module = importlib.import_module(f"benchmarks.recipes.{recipe.module}")
    trainer = module.build_trainer(rows, options.folder, **recipe.options)
    measured = train(trainer, recipe.steps, arms.warm_up_steps(options.lesson, options.arm))
    if options.arm == "reference":
        measured["changed"] = module.CHANGED
    else:
        measured["recipe"] = recipe.description
    if arms.needs_unsloth(options.arm):
        measured["versions"] = {name: metadata.version(name) for name in UNSLOTH_PACKAGES}
    options.out.write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
