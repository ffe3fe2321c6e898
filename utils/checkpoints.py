"""Checkpoints to rely on: a folder has one owner; a run begins anew or goes on, on purpose, from whole files only."""

import atexit
import contextlib
import hashlib
import json
import os
import platform
import shutil
import threading
import time
import zipfile
from pathlib import Path

import psutil

from utils.checks import CourseError, some, writable_folder
from utils.environment import versions

LOCK, RUN = "in_use.json", "run.json"
SILENT = 300  # seconds after which the lock of another machine counts as left behind; a living owner renews it
STATES = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")  # without these, training goes on as another run
SAFE = {f"{kind}model.safetensors{index}" for kind in ("", "adapter_") for index in ("", ".index.json")}
STACK = ("torch", "transformers", "accelerate", "datasets", "trl", "peft", "bitsandbytes")
# arguments that change no weight; all others must be the same when a run is resumed
FREE = ("output_dir", "run_name", "report_to", "project", "disable_tqdm", "save_total_limit", "resume_from_checkpoint")
FREE += ("logging_", "hub_", "push_", "trackio_", "log_level", "local_rank", "dataloader_num", "dataloader_pin")
FREE += ("dataloader_prefetch", "dataloader_persistent", "per_device_eval_batch_size")


def own_folder(path):
    """Creates the folder if need be, takes it for this process until it ends, and returns it as a Path.

    Raises CourseError if it cannot be written, or if a living process other than those that started this one has it.
    The lock of a dead process is taken over. Processes of another machine count as alive while they renew the lock.
    """
    folder, me = writable_folder(path), psutil.Process()
    lock, family = folder / LOCK, {me.pid, *(parent.pid for parent in me.parents())}
    mine = {"pid": me.pid, "host": platform.node(), "started": me.create_time(), "since": time.strftime("%F %T")}
    while True:
        try:
            _create(lock, mine)
            break
        except FileExistsError:
            text, owner = _owner(lock)
        if owner and _alive(owner, lock):
            if owner["host"] == mine["host"] and owner["pid"] in family:
                return folder
            who = f"process {owner['pid']} on {owner['host']} has been using this folder since {owner['since']}"
            raise CourseError(f"{folder}: {who}; stop it (a notebook: shut its kernel down), or set OUTPUT_DIR.")
        _remove(lock, text)
    atexit.register(_release, lock, mine)
    threading.Thread(target=_renew, args=(lock,), daemon=True).start()
    return folder


def _create(lock, mine):
    """Writes the lock, there with its content at once; FileExistsError if there is one."""
    draft = lock.with_name(f"{LOCK}.{mine['host']}.{mine['pid']}")
    try:
        draft.write_text(json.dumps(mine))
        try:
            os.link(draft, lock)
        except FileExistsError:
            raise
        except OSError:  # a file system without links, such as Google Drive
            with lock.open("x") as file:
                json.dump(mine, file)
    finally:
        draft.unlink(missing_ok=True)


def _remove(lock, text):
    """Removes the lock with this text, of a dead owner. Of all that want to, one at a time may look and remove it, so
    that none removes the lock of a new owner who took over in the meantime."""
    turn = lock.with_name(f"{LOCK}.{hashlib.sha256(text.encode()).hexdigest()[:16]}")
    try:
        turn.touch(exist_ok=False)
    except FileExistsError:  # somebody else's turn, which takes a moment
        with contextlib.suppress(FileNotFoundError):
            if time.time() - turn.stat().st_mtime > SILENT:
                fault = "a process was killed while it took this folder over"
                raise CourseError(f"{turn}: {fault}; delete that file.") from None
        return time.sleep(0.02)
    try:
        with contextlib.suppress(FileNotFoundError):
            if lock.read_text() == text:
                lock.unlink()
    finally:
        turn.unlink()


def _owner(lock):
    """Text and content of the lock; None for what nobody is writing and nobody can read."""
    text = ""
    for _ in range(20):
        try:
            text = lock.read_text()
            return text, {"pid": 0, "host": "", "started": 0.0, "since": ""} | json.loads(text)
        except (OSError, ValueError, TypeError):  # its owner may be between creating and writing it
            time.sleep(0.05)
    return text, None


def _alive(owner, lock):
    try:
        if owner["host"] != platform.node():
            return time.time() - lock.stat().st_mtime < SILENT
        return abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) < 5
    except (psutil.Error, FileNotFoundError):
        return False


def _renew(lock):
    while lock.exists():
        os.utime(lock)
        time.sleep(SILENT / 5)


def _release(lock, mine):
    if os.getpid() == mine["pid"] and lock.exists() and _owner(lock)[1] == mine:
        lock.unlink()


def fault(checkpoint):
    """Why a checkpoint cannot be used, in a few words; "" if every file in it is whole. Nothing in it is unpickled."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["global_step"]  # Trainer writes it last
    except (OSError, ValueError, TypeError, KeyError):
        return "trainer_state.json is missing or broken"
    weights = [*checkpoint.glob("*.safetensors")]
    for index in checkpoint.glob("*.safetensors.index.json"):
        weights += [checkpoint / name for name in set(json.loads(index.read_text("utf-8"))["weight_map"].values())]
    if not weights:
        return "it has no weights in the safetensors format"
    archives = [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]
    broken = [file.name for file in weights if not _whole_tensors(file)]
    broken += [file.name for file in archives if not _whole_zip(file)]
    return f"{some(broken)} is not whole" if broken else ""


def safe_weights(folder):
    """Raises CourseError if a folder has weights, but none in the safetensors format under the name that is looked for:
    all other formats are pickles, which can run code when they are opened. Nothing is opened here."""
    names = sorted(file.name for file in Path(folder).glob("*") if file.is_file())
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5"))]
    if pickles and not SAFE & {*names}:
        remedy = "get the model in the safetensors format, which holds numbers only"
        raise CourseError(f"{folder}: {some(pickles)} can run code when it is opened; {remedy}.")


def _whole_tensors(file):
    """Whether the header of a .safetensors file agrees with the file's size."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length) if length < file.stat().st_size else b"")
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return file.stat().st_size == 8 + length + max(ends, default=0)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _whole_zip(file):
    """Whether a file that torch.save wrote, a zip archive, has its directory and all its checksums."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


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
    from utils import adapters  # not above: the runner needs this module, but not torch

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
    found |= {name: version for name, (version, _) in versions().items() if name in STACK}
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
