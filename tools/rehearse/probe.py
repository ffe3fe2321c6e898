"""Runs inside the kernel of a rehearsed lesson, before its first cell: it limits the card, and measures the run.

The notebook stays as it is. `watch` is called by a start-up file of IPython (processes.py), and this module imports
nothing but the standard library, so that the lesson is the first to import torch and transformers. After each cell,
what was measured goes as JSON to the file that REHEARSAL_RECORD names. REHEARSAL_LIMIT: bytes that torch may allocate
on the card; 0 or nothing: all.
"""

import functools
import json
import os
import sys
import time

KINDS_OF_MEMORY = ("allocated", "reserved")  # by torch: for tensors, and from the card


def watch(shell):
    """Measure everything that the cells of an IPython shell do from here on."""
    recorder = Recorder(shell, float(os.environ.get("REHEARSAL_LIMIT") or 0), os.environ["REHEARSAL_RECORD"])
    shell.events.register("pre_run_cell", recorder.before_cell)
    shell.events.register("post_run_cell", recorder.after_cell)


def cuda():
    """torch.cuda if the lesson uses a GPU already, else None."""
    torch = sys.modules.get("torch")
    if hasattr(torch, "cuda") and torch.cuda.is_initialized():
        return torch.cuda
    return None


def time_when_done():
    """The time in seconds, once the GPU has done all that it was asked to."""
    card = cuda()
    if card:
        card.synchronize()
    return time.perf_counter()


class Recorder:
    """What was measured in a kernel.

    record, which goes to the file: "cells" (number, seconds, and highest bytes on the card of each), "trainings" (what
    TrainingMeter measured of each), "generate_seconds" (spent in `generate` outside of trainings), and from the
    variables of the notebook: "planned" and "moments" (its plan) and "training_peak" (bytes).
    """

    def __init__(self, shell, limit, file):
        """limit: bytes that torch may allocate; 0: all. file: where the record goes."""
        self.shell = shell
        self.limit = limit
        self.file = file
        self.record = {"cells": [], "trainings": [], "generate_seconds": 0.0}
        self.cell_started = time.perf_counter()
        self.peaks = {}  # highest bytes in this cell, by kind of memory
        self.meters = []  # of the trainings in this cell
        self.hooks = {  # by the module that each of them changes, until the lesson has imported it
            "torch": self.hook_torch,
            "transformers.trainer": self.hook_trainer,
            "transformers.generation.utils": self.hook_generation,
        }

    def before_cell(self, info):
        """IPython calls it before each cell."""
        for name in list(self.hooks):
            if name in sys.modules:
                hook = self.hooks.pop(name)
                hook(sys.modules[name])
        card = cuda()
        if card:
            card.reset_peak_memory_stats()
        self.peaks.clear()
        self.cell_started = time.perf_counter()

    def after_cell(self, result):
        """IPython calls it after each cell."""
        self.note_peaks()
        while self.meters:
            self.meters.pop().read_times()
        seconds = time.perf_counter() - self.cell_started
        self.record["cells"].append({"number": result.execution_count, "seconds": seconds, **self.peaks})
        self.note_variables(self.shell.user_ns)
        with open(self.file + ".partial", "w", encoding="utf-8") as file:
            json.dump(self.record, file, default=float)
        os.replace(self.file + ".partial", self.file)

    def note_peaks(self):
        """Take down the highest bytes since torch's statistics were reset."""
        card = cuda()
        if card:
            for kind in KINDS_OF_MEMORY:
                highest = getattr(card, f"max_memory_{kind}")()
                self.peaks[kind] = max(self.peaks.get(kind, 0), highest)

    def note_variables(self, names):
        """Take down what the notebook itself has planned and measured."""
        planned = names.get("planned")
        if hasattr(planned, "peaks"):
            self.record["planned"] = dict(planned)
            self.record["moments"] = dict(planned.peaks)
        cost = names.get("cost")
        if hasattr(cost, "seconds"):
            self.record["training_peak"] = cost.peak_bytes

    def hook_torch(self, torch):
        """Limit what torch allocates, and see the peaks before the lesson resets torch's statistics."""
        if not torch.cuda.is_available():
            return
        if self.limit:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(self.limit / total)
        reset = torch.cuda.reset_peak_memory_stats

        def note_and_reset(*args, **kwargs):
            self.note_peaks()
            return reset(*args, **kwargs)

        torch.cuda.reset_peak_memory_stats = note_and_reset

    def hook_trainer(self, module):
        """Have every Trainer measure its training."""

        class Meter(TrainingMeter, module.TrainerCallback):
            recorder = self

        module.DEFAULT_CALLBACKS.append(Meter)

    def hook_generation(self, module):
        """Measure the time in `generate`, unless it is part of an evaluation within a training."""
        generate = module.GenerationMixin.generate

        def timed(*args, **kwargs):
            started = time.perf_counter()
            try:
                return generate(*args, **kwargs)
            finally:
                trainings = self.record["trainings"]
                if not trainings or trainings[-1]["end"]:
                    self.record["generate_seconds"] += time_when_done() - started

        module.GenerationMixin.generate = timed


class TrainingMeter:
    """A callback that measures one training; Recorder.hook_trainer gives it the methods that it lacks.

    When the GPU began it and had done each step, rows and tokens of the steps, and the seconds of evaluations and of
    saving. Nobody waits for the GPU to learn when a step ended: that would change the speed. It notes the times
    itself, and they are read when it is done.
    """

    recorder = None  # the Recorder of this kernel
    training = None  # what was measured; None before the begin

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the record of this training."""
        self.training = {
            "begin": time_when_done(),
            "end": None,
            "ends": [],  # when the training began and each step ended, in seconds
            "counts": [],  # rows, real and padded tokens, all since the begin, after each step
            "undisturbed": [],  # of each step: whether no evaluation and no checkpoint came before it
            "evaluations": [],  # rows and seconds of each
            "saves": 0,
            "save_seconds": 0,
            "loss": None,
            "held": cuda() and cuda().memory_allocated(),  # bytes of this lesson's models and others
        }
        self.is_undisturbed = True
        self.first_event = None
        self.counts = []
        self.times = [self.time_of_gpu()]
        self.recorder.record["trainings"].append(self.training)
        self.recorder.meters.append(self)

    def time_of_gpu(self):
        """A function that returns the time when the GPU came to this point, once it is done."""
        card = cuda()
        if card is None:
            return functools.partial(float, time.perf_counter())
        event = card.Event(enable_timing=True)
        event.record()
        if self.first_event is None:
            self.first_event = event
        first = self.first_event
        return lambda: self.training["begin"] + first.elapsed_time(event) / 1000

    def on_step_end(self, args, state, control, **kwargs):
        """Note the end of a step, and what it trained on."""
        self.times.append(self.time_of_gpu())
        self.training["undisturbed"].append(self.is_undisturbed)
        self.is_undisturbed = True
        cost = self.recorder.shell.user_ns.get("cost")
        if cost is not None:
            self.counts.append([cost.rows, cost.real_tokens, cost.padded_tokens])
        if control.should_evaluate or control.should_save:
            self.last_mark = time_when_done()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Note an evaluation within the training."""
        self.is_undisturbed = False
        if self.training is not None and self.training["end"] is None:
            seconds = metrics.get("eval_runtime", 0)
            rows = round(seconds * metrics.get("eval_samples_per_second", 0))
            self.training["evaluations"].append([rows, seconds])
            self.last_mark = time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        """Note a checkpoint."""
        self.is_undisturbed = False
        self.training["saves"] += 1
        self.training["save_seconds"] += time.perf_counter() - self.last_mark

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Note the mean loss, which is logged at the end."""
        if self.training is not None:
            self.training["loss"] = logs.get("train_loss", self.training["loss"])

    def on_train_end(self, args, state, control, **kwargs):
        """Note the end."""
        self.training["end"] = time_when_done()

    def read_times(self):
        """Turn what was noted into numbers, when the GPU is done."""
        time_when_done()
        self.training["ends"] = [time_of() for time_of in self.times]
        self.training["counts"] = [[int(count) for count in counts] for counts in self.counts]
