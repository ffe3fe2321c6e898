"""Checkpoints to rely on: a run begins anew or goes on, on purpose, from whole files only."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from utils import versions
from utils.errors import CourseError, first_ten
from utils.training import adapters
from utils.training.weight_files import why_unusable
from utils.units import GIB

RUN = "run.json"
STATES = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")  # without these, training goes on as another run
STACK = ("torch", "transformers", "accelerate", "datasets", "trl", "peft", "bitsandbytes")
# beginnings of arguments that change no weight; all others must be the same when a run is resumed
FREE_ARGUMENTS = (
    "output_dir",
    "run_name",
    "report_to",
    "project",
    "disable_tqdm",
    "save_total_limit",
    "resume_from_checkpoint",
    "logging_",
    "hub_",
    "push_",
    "trackio_",
    "log_level",
    "local_rank",
    "dataloader_num",
    "dataloader_pin",
    "dataloader_prefetch",
    "dataloader_persistent",
    "per_device_eval_batch_size",
)
# settings of an adapter that are the same adapter
FREE_SETTINGS = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")


def start(trainer, *, resume=False, cold=False):
    """Prepares the output folder of `trainer`; returns the checkpoint to go on from, or None to begin anew.

    resume=False: checkpoints of an earlier run are moved aside, to <folder>-earlier. resume=True: the newest whole
    checkpoint is returned if what decides the run is as it was, else CourseError names the difference. cold: see
    `last_complete`. Also raises CourseError if the disk has no room for the checkpoints. Call it right before
    trainer.train, on an untrained model. Rows grouped by length get the same order in each epoch of a run and of its
    resumption.
    """
    if not any(isinstance(callback, RepeatableOrder) for callback in trainer.callback_handler.callbacks):
        trainer.add_callback(RepeatableOrder())
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    check_disk(folder, trainer)
    settings = fingerprint(trainer)
    checkpoint = last_complete(folder, cold) if resume else None
    if checkpoint is not None:
        check_same_run(checkpoint, settings)
    else:
        clear(folder)
    if resume:
        print(f"Going on from {checkpoint.name}." if checkpoint else "No checkpoint to go on from: a fresh start.")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{RUN}.partial"
    partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / RUN)
    return None if checkpoint is None else str(checkpoint)


def check_disk(folder, trainer):
    """Raises CourseError if the disk has no room for the checkpoints of `trainer`: weights and two optimizer states."""
    checkpoints = (trainer.args.save_total_limit or 1) + 1  # an old one is deleted when the new one is there
    trained_bytes = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    need = 3 * checkpoints * trained_bytes
    free = shutil.disk_usage(folder).free
    if free < need:
        sizes = f"{free / GIB:.1f} GiB are free, and checkpoints may take {need / GIB:.1f} GiB"
        raise CourseError(f"{folder}: {sizes}; delete something, or set OUTPUT_DIR to another disk.")


def check_same_run(checkpoint, settings):
    """Raises CourseError if the run that wrote `checkpoint` had other settings, as `fingerprint` returns them."""
    file = checkpoint.parent / RUN
    if not file.exists():
        print(f"{RUN} is missing beside {checkpoint.name}: nobody can say whether the settings are the same.")
        return
    earlier = json.loads(file.read_text("utf-8"))
    for name in STACK:  # a file that was written with another build of the same release
        if name in earlier:
            earlier[name] = versions.public_version(earlier[name])
    names = list(earlier) + [name for name in settings if name not in earlier]
    changed = []
    for name in names:
        before = earlier.get(name)
        now = settings.get(name)
        if before != now:
            changed.append(f"{name} was {before!r} and is {now!r}")
    if changed:
        remedy = f"change it back, or set resume_from_checkpoint to False; to go on all the same, delete {RUN}"
        difference = f"another run made these checkpoints: {first_ten(changed)}"
        raise CourseError(f"{checkpoint.parent}: {difference}; {remedy}.")


def clear(folder):
    """Empties an output folder for a new run: checkpoints of an earlier one are moved to <folder>-earlier."""
    has_whole_checkpoint = any(not why_unusable(path) for path in folder.glob("checkpoint-*"))
    if not has_whole_checkpoint:  # what is in -earlier may still be of worth
        shutil.rmtree(folder)
        return
    earlier = folder.with_name(f"{folder.name}-earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    folder.rename(earlier)
    print(f"The checkpoints of an earlier run are in {earlier.name} now.")


def last_complete(folder, cold=False):
    """The newest whole checkpoint of a Trainer's output folder, or None. Prints a line for each that it passes over.

    One at which training had ended serves only to tell so: Trainer would take a step beyond it, so the checkpoint
    before it is used, and the last steps are repeated. Raises CourseError for one without the states of optimizer,
    scheduler and random numbers, unless `cold`: training would go on, but not as it would have without the break.
    """
    checkpoints = {}
    for path in folder.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if step.isdigit():
            checkpoints[int(step)] = path
    for step in sorted(checkpoints, reverse=True):
        checkpoint = checkpoints[step]
        reason = why_unusable(checkpoint)
        if reason:
            print(f"{checkpoint.name} is passed over: {reason}.")
            continue
        missing = [name for name in STATES if not list(checkpoint.glob(name))]
        if missing and not cold:
            remedy = "delete it to use the one before, or set resume_from_checkpoint to False to start anew"
            problem = f"{first_ten(missing)} is missing, so the run cannot go on as it was"
            raise CourseError(f"{checkpoint}: {problem}; {remedy}.")
        if has_ended(checkpoint):
            print(f"{checkpoint.name} is the end of a training; the steps before it are repeated.")
            continue
        return checkpoint
    return None


def has_ended(checkpoint):
    """Whether training had ended when this checkpoint was written: all steps were done, or it was stopped early."""
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    return state["global_step"] >= state["max_steps"] or bool(control.get("should_training_stop"))


def fingerprint(trainer):
    """{name: value} of all that decides what a training becomes: arguments, data, model, adapter, callbacks, versions.

    Values are such as JSON has, so that they can be compared with those of run.json. Weights of the base are
    represented by samples of its embeddings and norms, so call it before training.
    """
    settings = fingerprint_of_arguments(trainer)
    settings.update(fingerprint_of_data(trainer))
    settings.update(fingerprint_of_model(trainer.model))
    for callback in trainer.callback_handler.callbacks:
        if hasattr(callback, "state"):
            settings[type(callback).__name__] = callback.state()["args"]
    for name, (version, _) in versions.installed().items():
        if name in STACK:
            settings[name] = versions.public_version(version)
    return json.loads(json.dumps(settings, default=as_json))


def fingerprint_of_arguments(trainer):
    """{name: value} of the training arguments that may change a weight."""
    return {name: value for name, value in trainer.args.to_dict().items() if not name.startswith(FREE_ARGUMENTS)}


def fingerprint_of_data(trainer):
    """{"train_dataset" and "eval_dataset": number of rows and a hash of their content}, as far as they are there."""
    settings = {}
    for name in ("train_dataset", "eval_dataset"):
        dataset = getattr(trainer, name)
        if not hasattr(dataset, "iter"):
            continue
        digest = hashlib.sha256()
        for batch in dataset.iter(1000):
            digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
        settings[name] = f"{len(dataset)} rows, {digest.hexdigest()[:16]}"
    return settings


def fingerprint_of_model(model):
    """{name: value} of the model: its name, configuration, weights of the base, trained parameters and adapters."""
    config = model.config.to_dict()
    settings = {"model": Path(config.pop("_name_or_path", "")).name}
    for name, value in config.items():
        if name != "transformers_version":
            settings[f"model.{name}"] = value
    weights = []
    for name, sample in adapters.fingerprint(model).items():
        weights.append((name, sample["shape"], sample["values"]))
    settings["model weights"] = hashlib.sha256(json.dumps(weights).encode()).hexdigest()[:16]
    settings["trained parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for adapter in getattr(model, "peft_config", {}).values():
        for name, value in adapter.to_dict().items():
            if name not in FREE_SETTINGS:
                settings[f"adapter.{name}"] = value
    return settings


def as_json(value):
    """A value that JSON has in place of one that it does not know."""
    if isinstance(value, set):
        return sorted(value)
    return str(value)


class RepeatableOrder(TrainerCallback):
    """Draws the order of rows grouped by length from seed and epoch, from the second epoch on.

    Trainer draws it from the random numbers of the moment: in the first epoch those that it has seeded itself, later
    those that the run has come to, and a resumption comes to others.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Gives the sampler of rows by length a generator of its own."""
        sampler = getattr(getattr(train_dataloader, "batch_sampler", None), "sampler", None)
        epoch = int(state.epoch or 0)
        if epoch > 0 and isinstance(sampler, LengthGroupedSampler):
            sampler.generator = torch.Generator().manual_seed(args.seed + epoch)
