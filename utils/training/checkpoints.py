"""Checkpoints to rely on: a run begins anew or goes on, on purpose, from whole files only."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from utils.errors import CourseError, some
from utils.session import public_version, versions
from utils.training import adapters
from utils.training.weight_files import fault

RUN = "run.json"
STATES = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")  # without these, training goes on as another run
STACK = ("torch", "transformers", "accelerate", "datasets", "trl", "peft", "bitsandbytes")
# arguments that change no weight; all others must be the same when a run is resumed
FREE = ("output_dir", "run_name", "report_to", "project", "disable_tqdm", "save_total_limit", "resume_from_checkpoint")
FREE += ("logging_", "hub_", "push_", "trackio_", "log_level", "local_rank", "dataloader_num", "dataloader_pin")
FREE += ("dataloader_prefetch", "dataloader_persistent", "per_device_eval_batch_size")


def last_complete(folder, cold=False):
    """The newest whole checkpoint of a Trainer's output folder, or None. Prints a line for each that it passes over.

    One at which training had ended serves only to tell so: Trainer would take a step beyond it, so the checkpoint
    before it is used, and the last steps are repeated. Raises CourseError for one without the states of optimizer,
    scheduler and random numbers, unless `cold`: training would go on, but not as it would have without the break.
    """
    found = {int(path.name[11:]): path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()}
    for _, checkpoint in sorted(found.items(), reverse=True):
        if why := fault(checkpoint):
            print(f"{checkpoint.name} is passed over: {why}.")
            continue
        if (missing := [name for name in STATES if not [*checkpoint.glob(name)]]) and not cold:
            remedy = "delete it to use the one before, or set resume_from_checkpoint to False to start anew"
            raise CourseError(f"{checkpoint}: {some(missing)} is missing, so the run cannot go on as it was; {remedy}.")
        state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
        if state["global_step"] >= state["max_steps"] or control.get("should_training_stop"):
            print(f"{checkpoint.name} is the end of a training; the steps before it are repeated.")
            continue
        return checkpoint
    return None


def fingerprint(trainer):
    """{name: value} of all that decides what a training becomes: arguments, data, model, adapter, callbacks, versions.

    Weights of the base are represented by samples of its embeddings and norms, so call it before training.
    """
    model, found = trainer.model, {}
    for name, value in trainer.args.to_dict().items():
        if not name.startswith(FREE):
            found[name] = value
    for name in ("train_dataset", "eval_dataset"):
        if hasattr(rows := getattr(trainer, name), "iter"):
            digest = hashlib.sha256()
            for batch in rows.iter(1000):
                digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
            found[name] = f"{len(rows)} rows, {digest.hexdigest()[:16]}"
    config = model.config.to_dict()
    found["model"] = Path(config.pop("_name_or_path", "")).name
    found |= {f"model.{name}": value for name, value in config.items() if name != "transformers_version"}
    base = [(name, entry["shape"], entry["values"]) for name, entry in adapters.fingerprint(model).items()]
    found["model weights"] = hashlib.sha256(json.dumps(base).encode()).hexdigest()[:16]
    found["trained parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for adapter in getattr(model, "peft_config", {}).values():
        skip = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
        found |= {f"adapter.{name}": value for name, value in adapter.to_dict().items() if name not in skip}
    for callback in trainer.callback_handler.callbacks:
        if hasattr(callback, "state"):
            found[type(callback).__name__] = callback.state()["args"]
    found |= {name: public_version(version) for name, (version, _) in versions().items() if name in STACK}
    return json.loads(json.dumps(found, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))


def _repeatable_order(trainer):
    """Draws the order of rows grouped by length from seed and epoch, from the second epoch on.

    Trainer draws it from the random numbers of the moment: in the first epoch those that it has seeded itself, later
    those that the run has come to, and a resumption comes to others.
    """
    import torch
    from transformers import TrainerCallback
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class Order(TrainerCallback):
        def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
            sampler = getattr(getattr(train_dataloader, "batch_sampler", None), "sampler", None)
            if (epoch := int(state.epoch or 0)) and isinstance(sampler, LengthGroupedSampler):
                sampler.generator = torch.Generator().manual_seed(args.seed + epoch)

    trainer.add_callback(Order())


def start(trainer, resume=False, cold=False):
    """Prepares the output folder of `trainer`; returns the checkpoint to go on from, or None to begin anew.

    resume=False: checkpoints of an earlier run are moved aside, to <folder>-earlier. resume=True: the newest whole
    checkpoint is returned if what decides the run is as it was, else CourseError names the difference. Also raises
    CourseError if the disk has no room for the checkpoints. Call it right before trainer.train, on an untrained model.
    Rows grouped by length get the same order in each epoch of a run and of its resumption.
    """
    _repeatable_order(trainer)
    folder, earlier = Path(trainer.args.output_dir), Path(f"{trainer.args.output_dir}-earlier")
    limit = (trainer.args.save_total_limit or 1) + 1  # an old one is deleted when the new one is there
    need = 3 * limit * sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < need:
        sizes = f"{free / 2**30:.1f} GiB are free, and checkpoints may take {need / 2**30:.1f} GiB"
        raise CourseError(f"{folder}: {sizes}; delete something, or set OUTPUT_DIR to another disk.")
    now, record = fingerprint(trainer), folder / RUN
    checkpoint = last_complete(folder, cold) if resume else None
    if checkpoint and record.exists():
        then = json.loads(record.read_text("utf-8"))
        for name in STACK:  # a record that was written with another build of the same release
            if name in then:
                then[name] = public_version(then[name])
        pairs = {name: (then.get(name), now.get(name)) for name in {**then, **now}}
        if changed := [f"{name} was {a!r} and is {b!r}" for name, (a, b) in pairs.items() if a != b]:
            remedy = f"change it back, or set resume_from_checkpoint to False; to go on all the same, delete {RUN}"
            raise CourseError(f"{folder}: another run made these checkpoints: {some(changed)}; {remedy}.")
    elif checkpoint:
        print(f"{RUN} is missing beside {checkpoint.name}: nobody can say whether the settings are the same.")
    elif any(not fault(path) for path in folder.glob("checkpoint-*")):
        shutil.rmtree(earlier, ignore_errors=True)
        folder.rename(earlier)
        print(f"The checkpoints of an earlier run are in {earlier.name} now.")
    else:  # nothing that anybody could use: what is in -earlier may still be of worth
        shutil.rmtree(folder)
    if resume:
        print(f"Going on from {checkpoint.name}." if checkpoint else "No checkpoint to go on from: a fresh start.")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{RUN}.partial"
    partial.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, record)
    return checkpoint and str(checkpoint)
