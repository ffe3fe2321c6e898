"""A start-up file of IPython that rehearse.py puts into a lesson's kernel: it caps the card, and meters the run.

The notebook stays as it is. After each cell, what was metered goes to the file that REHEARSAL_RECORD names.
REHEARSAL_LIMIT: bytes that torch may allocate on the card.
"""


def _watch(shell):
    import functools
    import json
    import os
    import sys
    import time

    record = {"cells": [], "trainings": [], "generate_seconds": 0.0}
    limit = float(os.environ.get("REHEARSAL_LIMIT") or 0)
    now, done, peaks, meters = time.perf_counter, set(), {}, []

    def cuda():
        """torch.cuda if the lesson uses a GPU already, else None."""
        torch = sys.modules.get("torch")
        return torch.cuda if hasattr(torch, "cuda") and torch.cuda.is_initialized() else None

    def note_peaks():
        if card := cuda():
            for name in ("allocated", "reserved"):
                peaks[name] = max(peaks.get(name, 0), getattr(card, f"max_memory_{name}")())

    def settled():
        """The time when the GPU has done all that it was asked to."""
        if card := cuda():
            card.synchronize()
        return now()

    def hook_torch(torch):
        if not torch.cuda.is_available():
            return
        if limit:
            torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
        reset = torch.cuda.reset_peak_memory_stats

        def reset_but_note(*args, **kwargs):
            note_peaks()
            return reset(*args, **kwargs)

        torch.cuda.reset_peak_memory_stats = reset_but_note

    def hook_trainer(module):
        class Meter(module.TrainerCallback):
            """Of one training: when the GPU began it and had done each step, rows and tokens of the steps, and the
            seconds of evaluations and of saving. Nobody waits for the GPU to learn when a step ended: that would change
            the speed. It notes the times itself, and they are read when it is done.
            """

            def on_train_begin(self, args, state, control, **kwargs):
                self.one = {"begin": settled(), "end": None, "ends": [], "counts": [], "undisturbed": []}
                self.one |= {"evaluations": [], "saves": 0, "save_seconds": 0, "loss": None}
                self.one["held"] = cuda() and cuda().memory_allocated()  # by this lesson's models and others
                self.quiet = True  # no evaluation and no checkpoint since the last step
                self.first, self.costs = None, []
                self.marks = [self.noted()]
                record["trainings"].append(self.one)
                meters.append(self)

            def noted(self):
                """A function that returns the time when the GPU came to this point, once it is done."""
                card = cuda()
                if card is None:
                    return functools.partial(float, now())
                event = card.Event(enable_timing=True)
                event.record()
                self.first = first = self.first or event
                return lambda: self.one["begin"] + first.elapsed_time(event) / 1000

            def on_step_end(self, args, state, control, **kwargs):
                self.marks.append(self.noted())
                self.one["undisturbed"].append(self.quiet)
                self.quiet, cost = True, shell.user_ns.get("cost")
                if cost is not None:  # rows, real and padded tokens so far
                    self.costs.append([cost.rows, cost.real_tokens, cost.padded_tokens])
                if control.should_evaluate or control.should_save:
                    self.mark = settled()

            def read(self):
                settled()
                self.one["ends"] = [mark() for mark in self.marks]
                self.one["counts"] = [[int(count) for count in counts] for counts in self.costs]

            def on_log(self, args, state, control, logs=None, **kwargs):
                if hasattr(self, "one"):
                    self.one["loss"] = logs.get("train_loss", self.one["loss"])

            def on_evaluate(self, args, state, control, metrics=None, **kwargs):
                self.quiet = False
                if getattr(self, "one", None) and self.one["end"] is None:
                    seconds = metrics.get("eval_runtime", 0)
                    rows = round(seconds * metrics.get("eval_samples_per_second", 0))
                    self.one["evaluations"].append([rows, seconds])
                    self.mark = now()

            def on_save(self, args, state, control, **kwargs):
                self.quiet = False
                self.one["saves"] += 1
                self.one["save_seconds"] += now() - self.mark

            def on_train_end(self, args, state, control, **kwargs):
                self.one["end"] = settled()

        module.DEFAULT_CALLBACKS.append(Meter)

    def hook_generation(module):
        generate = module.GenerationMixin.generate

        def timed(*args, **kwargs):
            started = now()
            try:
                return generate(*args, **kwargs)
            finally:
                if not record["trainings"] or record["trainings"][-1]["end"]:  # else it is part of an evaluation
                    record["generate_seconds"] += settled() - started

        module.GenerationMixin.generate = timed

    hooks = {
        "torch": hook_torch,
        "transformers.trainer": hook_trainer,
        "transformers.generation.utils": hook_generation,
    }

    def before(info):
        for name in hooks.keys() - done:
            if name in sys.modules:
                done.add(name)
                hooks[name](sys.modules[name])
        peaks.clear()
        if card := cuda():
            card.reset_peak_memory_stats()
            peaks.clear()
        record["started"] = now()

    def after(result):
        note_peaks()
        while meters:
            meters.pop().read()
        record["cells"].append({"number": result.execution_count, "seconds": now() - record["started"], **peaks})
        names = shell.user_ns
        if hasattr(names.get("planned"), "peaks"):
            record["planned"], record["moments"] = dict(names["planned"]), dict(names["planned"].peaks)
        if hasattr(names.get("cost"), "seconds"):
            record["training_peak"] = names["cost"].peak_bytes
        if hasattr(names.get("ledger"), "to_dict"):
            ledger = names["ledger"].astype(object).where(names["ledger"].notna(), None)
            record["ledger"] = ledger.to_dict()
        path = os.environ["REHEARSAL_RECORD"]
        with open(path + ".partial", "w", encoding="utf-8") as file:
            json.dump(record, file, default=float)
        os.replace(path + ".partial", path)

    shell.events.register("pre_run_cell", before)
    shell.events.register("post_run_cell", after)


_watch(get_ipython())  # noqa: F821  (IPython's own)
del _watch
