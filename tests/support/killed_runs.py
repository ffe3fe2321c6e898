"""Small trainings that are killed and resumed, each in a fork of this process, so that nothing is imported twice.

`python tests/support/killed_runs.py FOLDER` writes FOLDER/results.json, {case: what the run and its resumption
became}, for tests/robustness/test_checkpoints.py. With --all behind it, every step and every half-written file is a
case.
"""

import contextlib
import functools
import gc
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import peft
import safetensors.torch
import torch
import transformers
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from utils import training
from utils.training import checkpoints

STEPS, SAVE, FILES = 22, 5, 6  # an epoch has 8 steps; the weights, four of torch.save, and trainer_state.json
TOKENIZER = Path(__file__).resolve().parents[2] / "data" / "models" / "tiny-bert"
TIMES = ("runtime", "per_second", "total_flos", "train_loss")


class LessonTrainer(training.OutOfMemoryRetry, Trainer):
    """As in the lessons."""


class Die(TrainerCallback):
    """kill -9 of this very process at a moment of a step."""

    def __init__(self, step, moment):
        self.step, self.moment = step, moment

    def on_event(self, args, state, control, moment, **kwargs):
        if moment == self.moment and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    on_step_begin = functools.partialmethod(on_event, moment="begin")
    on_pre_optimizer_step = functools.partialmethod(on_event, moment="backward")
    on_step_end = functools.partialmethod(on_event, moment="end")
    on_save = functools.partialmethod(on_event, moment="save")


def die_in_save(folder, number, half):
    """Patches what Trainer writes with, so that kill -9 comes when file `number` of `folder` is there (half of it)."""
    written = []

    def patched(write, place):
        def wrapper(*args, **kwargs):
            done, path = write(*args, **kwargs), Path(str(args[place]))
            if path.parent == folder:
                written.append(path)
                if len(written) == number:
                    if half:
                        os.truncate(path, path.stat().st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
            return done

        return wrapper

    transformers.modeling_utils.safe_save_file = patched(safetensors.torch.save_file, 1)
    torch.save = patched(torch.save, 1)
    TrainerState.save_to_json = patched(TrainerState.save_to_json, 1)


def die_before(folder, number, half):
    """kill -9 when file `number` of `folder` is about to be written; `half`: then the newest one is only half there.

    Returns a callback, in whose on_save all files are there, and a list that grows by one at each of these moments.
    """
    moments = []

    def moment(*args, **kwargs):
        moments.append(len(moments) + 1)
        if moments[-1] == number:
            newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, default=None)
            if half and newest:
                os.truncate(newest, newest.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def before(write):  # what no Python of its own opens a file for
        def wrapper(*args, **kwargs):
            if any(folder in (path := Path(str(arg)), path.parent) for arg in args[:2]):
                moment()
            return write(*args, **kwargs)

        return wrapper

    def opened(event, args):
        if event == "open" and isinstance(args[0], str) and (args[1] or "r")[0] in "wax":
            moment() if Path(args[0]).parent == folder else None

    torch.save, peft.peft_model.safe_save_file = before(torch.save), before(peft.peft_model.safe_save_file)
    fast = transformers.PreTrainedTokenizerFast
    fast.save_pretrained = before(fast.save_pretrained)
    sys.addaudithook(opened)

    class Saved(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == int(folder.name[11:]):
                moment()

    return Saved(), moments


def adapter_moments(place):
    """How many moments die_before knows in a save of an adapter, its tokenizer and the states."""
    saved, moments = die_before(place / "checkpoint-10", 0, False)
    train(place, callbacks=[saved], adapter=True)
    return moments


def make(folder, callbacks=(), adapter=False, **changes):
    """A trainer of a tiny BERT, or of an adapter on it, with dropout, evaluations, early stopping and accumulation."""
    set_seed(0)
    sizes = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = BertForSequenceClassification(BertConfig(**sizes, hidden_dropout_prob=0.1))
    tokenizer = None
    if adapter:
        lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], lora_dropout=0.1)
        model, tokenizer = peft.get_peft_model(model, lora), transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    rows = Dataset.from_dict(
        {"input_ids": [[1, 2, 3 + i % 50] for i in range(32)], "labels": [i % 2 for i in range(32)]}
    )
    options = dict(max_steps=STEPS, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-3)
    options |= dict(save_steps=SAVE, eval_steps=SAVE, eval_strategy="steps", logging_steps=1, save_total_limit=2)
    options |= dict(load_best_model_at_end=True, metric_for_best_model="loss", report_to=[], disable_tqdm=True)
    options |= dict(use_cpu=True, restore_callback_states_from_checkpoint=True)
    args = TrainingArguments(folder, **options | changes)
    data = dict(train_dataset=rows, eval_dataset=rows.select(range(8)), processing_class=tokenizer)
    trainer = LessonTrainer(model, args, **data, callbacks=[*callbacks], data_collator=default_data_collator)
    trainer.model_accepts_loss_kwargs = False  # the loss is a mean over its rows
    return trainer


def train(folder, resume=False, callbacks=(), patience=9, cold=False, **changes):
    """A run as the notebooks do it: what it became, in numbers that can be compared."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        trainer = make(folder, [EarlyStoppingCallback(patience), *callbacks], **changes)
        checkpoint = training.prepare(trainer, resume=resume, cold=cold)
        trainer.train(resume_from_checkpoint=checkpoint)
    state = trainer.model.state_dict()
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()
    log = [{k: v for k, v in entry.items() if not k.endswith(TIMES)} for entry in trainer.state.log_history]
    lines = [line for line in said.getvalue().splitlines() if not line.startswith("{")]
    return {
        "from": checkpoint and Path(checkpoint).name,
        "said": lines,
        "steps": trainer.state.global_step,
        "best": trainer.state.best_global_step,
        "log": [entry for entry in log if len(entry) > 2],
        "weights": digest,
    }


def forked(work):
    """What `work` returns in a fork, or {"died": exit code}, or {"error": traceback}."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            text = json.dumps(work())
        except BaseException:
            text = json.dumps({"error": traceback.format_exc()})
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(text) if text else {"died": os.waitstatus_to_exitcode(status)}


def alone(folder):
    """What Trainer itself makes of the newest checkpoint, without our checks."""
    trainer = make(folder)
    trainer.train(resume_from_checkpoint=True)
    return {"steps": trainer.state.global_step}


def disk_full(folder):
    """The disk is full when the optimizer of step 10 is written: /dev/full answers as such a disk does."""
    (folder / "checkpoint-10").mkdir(parents=True)
    (folder / "checkpoint-10" / "optimizer.pt").symlink_to("/dev/full")
    checkpoints.shutil.rmtree = lambda *args, **kwargs: None  # of what cannot be used, as the folder is at the start
    return train(folder)


def freed(folder, **changes):
    (folder / "checkpoint-10" / "optimizer.pt").unlink()
    return train(folder, resume=True)


def without_states(folder, cold=False):
    for name in ("optimizer.pt", "rng_state.pth"):
        (folder / "checkpoint-10" / name).unlink(missing_ok=True)
    return train(folder, resume=True, cold=cold)


def main(folder, every):
    """Each case: a first run, which dies in most of them, and what a second one in the same folder becomes."""
    again, place = functools.partial(train, resume=True), folder / "run"
    early = dict(patience=1, learning_rate=0.0)
    cases = {
        "uninterrupted": (train, again),
        "stopped early": (lambda p: train(p, **early), lambda p: again(p, **early)),
    }
    for step in range(1, STEPS + 1) if every else (4, 9, 10, 11, 22):
        cases[f"step {step}"] = (lambda p, step=step: train(p, callbacks=[Die(step, "end")]), again)
    for moment in ("begin", "backward", "save"):
        cases[f"{moment} 10"] = (lambda p, moment=moment: train(p, callbacks=[Die(10, moment)]), again)
    for number in range(1, FILES + 1):
        for half in (True, False) if every or number == FILES else [number % 2 == 1]:

            def broken(p, number=number, half=half):
                die_in_save(p / "checkpoint-10", number, half)
                return train(p)

            cases[f"file {number} {'half' if half else 'whole'}"] = (broken, again)
    whole = dict(adapter=True)
    cases["adapter, uninterrupted"] = (lambda p: train(p, **whole), lambda p: again(p, **whole))
    last = len(forked(lambda: adapter_moments(place)))
    for number in range(1, last + 1):
        for half in (True, False) if every else [False] * (number == last) or [True] * (number % 4 == 0):

            def killed(p, number=number, half=half):
                return train(p, callbacks=[die_before(p / "checkpoint-10", number, half)[0]], **whole)

            name = f"adapter, {'half ' if half else ''}before file {number} of {last - 1}"
            cases[name] = (killed, lambda p: again(p, **whole))
    by_length = dict(train_sampling_strategy="group_by_length")
    cases["by length, uninterrupted"] = (lambda p: train(p, **by_length), lambda p: again(p, **by_length))
    for step in (4, 9, 11, 17, 22):  # in all epochs
        dies = functools.partial(train, callbacks=[Die(step, "end")], **by_length)
        cases[f"by length, step {step}"] = (dies, lambda p: again(p, **by_length))
    cases["disk full"] = (disk_full, freed)
    cases["without states"] = (cases["step 11"][0], without_states)
    cases["without states, cold"] = (cases["step 11"][0], lambda p: without_states(p, cold=True))
    cases["Trainer alone, broken"] = (cases["file 3 half"][0], alone)
    cases["Trainer alone, ended"] = (train, alone)
    found = {}
    for name, (first, second) in cases.items():
        for old in (place, folder / "run-earlier"):
            shutil.rmtree(old, ignore_errors=True)
        found[name] = [forked(lambda first=first: first(place)), forked(lambda second=second: second(place))]
    (folder / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    gc.collect()
    gc.freeze()  # else each fork looks through all that was imported, at each collection
    main(Path(sys.argv[1]), sys.argv[2:] == ["--all"])
