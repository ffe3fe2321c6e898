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

STEPS = 22  # an epoch has 8
SAVE = 5  # steps between two checkpoints
FILES = 6  # of a checkpoint: the weights, four of torch.save, and trainer_state.json
TOKENIZER = Path(__file__).resolve().parents[2] / "data" / "models" / "tiny-bert"
TIMES = ("runtime", "per_second", "total_flos", "train_loss")


class LessonTrainer(training.OutOfMemoryRetry, Trainer):
    """As in the lessons."""


class Die(TrainerCallback):
    """kill -9 of this very process at a moment of a step."""

    def __init__(self, step, moment):
        self.step = step
        self.moment = moment

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
            done = write(*args, **kwargs)
            path = Path(str(args[place]))
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


class DieBefore(TrainerCallback):
    """kill -9 when file `number` of `folder` is about to be written, or, after the last one, in on_save.

    half: then the newest file is only half there. `moments` counts the times when the process might have been killed.
    """

    def __init__(self, folder, number, half):
        self.folder = folder
        self.number = number
        self.half = half
        self.moments = 0
        torch.save = self.before(torch.save)
        peft.peft_model.safe_save_file = self.before(peft.peft_model.safe_save_file)
        fast = transformers.PreTrainedTokenizerFast
        fast.save_pretrained = self.before(fast.save_pretrained)
        sys.addaudithook(self.on_audit)

    def before(self, write):
        """`write`, for which no Python of its own opens a file, so that the audit hook does not see it."""

        def wrapper(*args, **kwargs):
            paths = [Path(str(argument)) for argument in args[:2]]
            if any(self.folder in (path, path.parent) for path in paths):
                self.moment()
            return write(*args, **kwargs)

        return wrapper

    def on_audit(self, event, args):
        if event != "open" or not isinstance(args[0], str):
            return
        path, mode = Path(args[0]), args[1] or "r"
        if mode[0] in "wax" and path.parent == self.folder:
            self.moment()

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == int(self.folder.name.removeprefix("checkpoint-")):
            self.moment()

    def moment(self):
        self.moments += 1
        if self.moments != self.number:
            return
        newest = max(self.folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, default=None)
        if self.half and newest:
            os.truncate(newest, newest.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def adapter_moments(folder):
    """How many moments DieBefore knows in a save of an adapter, its tokenizer and the states."""
    counter = DieBefore(folder / "checkpoint-10", 0, False)
    train(folder, callbacks=[counter], adapter=True)
    return counter.moments


def make(folder, callbacks=(), adapter=False, **changes):
    """A trainer of a tiny BERT, or of an adapter on it, with dropout, evaluations, early stopping and accumulation."""
    set_seed(0)
    sizes = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = BertForSequenceClassification(BertConfig(**sizes, hidden_dropout_prob=0.1))
    tokenizer = None
    if adapter:
        lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], lora_dropout=0.1)
        model = peft.get_peft_model(model, lora)
        tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    rows = Dataset.from_dict(
        {"input_ids": [[1, 2, 3 + i % 50] for i in range(32)], "labels": [i % 2 for i in range(32)]}
    )
    options = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "save_steps": SAVE,
        "eval_steps": SAVE,
        "eval_strategy": "steps",
        "logging_steps": 1,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "restore_callback_states_from_checkpoint": True,
    }
    trainer = LessonTrainer(
        model,
        TrainingArguments(folder, **(options | changes)),
        train_dataset=rows,
        eval_dataset=rows.select(range(8)),
        processing_class=tokenizer,
        callbacks=list(callbacks),
        data_collator=default_data_collator,
    )
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
    child = os.fork()
    if child == 0:
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
    """The disk has room again."""
    (folder / "checkpoint-10" / "optimizer.pt").unlink()
    return train(folder, resume=True)


def without_states(folder, cold=False):
    """Somebody has deleted the states of a checkpoint."""
    for name in ("optimizer.pt", "rng_state.pth"):
        (folder / "checkpoint-10" / name).unlink(missing_ok=True)
    return train(folder, resume=True, cold=cold)


def fresh(*callbacks, **changes):
    """A first run, as a function of its folder."""
    return functools.partial(train, callbacks=callbacks, **changes)


def again(**changes):
    """The run that goes on in the same folder."""
    return functools.partial(train, resume=True, **changes)


def die_in_file(folder, number, half):
    """A run that is killed in its save of step 10."""
    die_in_save(folder / "checkpoint-10", number, half)
    return train(folder)


def die_in_adapter(folder, number, half):
    """A run of an adapter that is killed in its save of step 10."""
    return train(folder, callbacks=[DieBefore(folder / "checkpoint-10", number, half)], adapter=True)


def killed_at_a_step(every):
    """{case: first run, second run}: killed at the end of a step, and at other moments of step 10."""
    cases = {}
    for step in range(1, STEPS + 1) if every else (4, 9, 10, 11, 22):
        cases[f"step {step}"] = (fresh(Die(step, "end")), again())
    for moment in ("begin", "backward", "save"):
        cases[f"{moment} 10"] = (fresh(Die(10, moment)), again())
    return cases


def killed_in_a_file(every):
    """{case: first run, second run}: killed when a file of a checkpoint is there, or half of it."""
    cases = {}
    for number in range(1, FILES + 1):
        halves = (number % 2 == 1,)
        if every or number == FILES:
            halves = (True, False)
        for half in halves:
            first = functools.partial(die_in_file, number=number, half=half)
            cases[f"file {number} {'half' if half else 'whole'}"] = (first, again())
    return cases


def killed_in_a_file_of_an_adapter(every, last):
    """{case: first run, second run}: killed before a file of an adapter's checkpoint, of which there are `last` - 1."""
    cases = {"adapter, uninterrupted": (fresh(adapter=True), again(adapter=True))}
    for number in range(1, last + 1):
        if every:
            halves = (True, False)
        elif number == last:
            halves = (False,)
        elif number % 4 == 0:
            halves = (True,)
        else:
            halves = ()
        for half in halves:
            first = functools.partial(die_in_adapter, number=number, half=half)
            name = f"adapter, {'half ' if half else ''}before file {number} of {last - 1}"
            cases[name] = (first, again(adapter=True))
    return cases


def killed_with_rows_by_length():
    """{case: first run, second run}: killed in each epoch, where rows of like length stand together."""
    changes = {"train_sampling_strategy": "group_by_length"}
    cases = {"by length, uninterrupted": (fresh(**changes), again(**changes))}
    for step in (4, 9, 11, 17, 22):
        cases[f"by length, step {step}"] = (fresh(Die(step, "end"), **changes), again(**changes))
    return cases


def main(folder, every):
    """Each case: a first run, which dies in most of them, and what a second one in the same folder becomes."""
    place = folder / "run"
    early = {"patience": 1, "learning_rate": 0.0}
    cases = {
        "uninterrupted": (fresh(), again()),
        "stopped early": (fresh(**early), again(**early)),
        "disk full": (disk_full, freed),
        "without states": (fresh(Die(11, "end")), without_states),
        "without states, cold": (fresh(Die(11, "end")), functools.partial(without_states, cold=True)),
        "Trainer alone, broken": (functools.partial(die_in_file, number=3, half=True), alone),
        "Trainer alone, ended": (fresh(), alone),
    }
    cases |= killed_at_a_step(every)
    cases |= killed_in_a_file(every)
    cases |= killed_in_a_file_of_an_adapter(every, forked(functools.partial(adapter_moments, place)))
    cases |= killed_with_rows_by_length()
    results = {}
    for name, (first, second) in cases.items():
        for old in (place, folder / "run-earlier"):
            shutil.rmtree(old, ignore_errors=True)
        first_result = forked(functools.partial(first, place))
        second_result = forked(functools.partial(second, place))
        results[name] = [first_result, second_result]
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    gc.collect()
    gc.freeze()  # else each fork looks through all that was imported, at each collection
    main(Path(sys.argv[1]), sys.argv[2:] == ["--all"])
