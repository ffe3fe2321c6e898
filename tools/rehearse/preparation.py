"""What stands before a rehearsal: tokenizers, rows and weights are written, and what does not fit is refused."""

import json
import math
import re
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from tools.rehearse.fake_hub import BYTES, KINDS, count_parameters, snapshot, write_tokenizer, write_weights
from tools.rehearse.lesson import code_cells, cuts, lesson_of, plan_of, profile_of
from tools.rehearse.rows import write_rows
from utils import memory
from utils.errors import CourseError
from utils.planner import settings

PYTHON_GIB = 2  # RAM of Python with its libraries
ROOM = 3e9  # bytes of disk for what no rule below counts


def prepare(args, folder):
    """Write tokenizers, rows and weights, print what the rehearsal will be, and refuse what does not fit.

    args: the options of the command line: nb, profile, overrides, steps, gpu_memory, sizes, anyway, cpu. Call it in a
    process of its own, so that nothing of it stays on the card. Returns a dict: "run", the settings of the profile
    (None: there is no GPU, and no weights were written), "cut", the overrides that make it a rehearsal, "rows", what
    rows.write_rows says of the data, and "planned", the plan. Raises CourseError for what is unknown or does not fit.
    """
    from transformers import AutoTokenizer  # not above: it reads the environment

    path = lesson_of(args.nb)
    run = profile_of(path, args.profile, args.overrides)
    shapes = shapes_of(run, args.sizes)
    folders = {model_id: snapshot(folder / "hf" / "hub", model_id) for model_id in shapes}
    for model_id, shape in shapes.items():
        write_tokenizer(shape, folders[model_id])
    rows = write_rows(run, AutoTokenizer.from_pretrained(run.model_id), folder / "rows")
    cut = {**cuts(run, args.steps), **rows["overrides"]}
    card = None if args.profile == "cpu" else find_card(run, args.gpu_memory * 1e9)
    planned = plan_of(path, run, rows)
    counts = {model_id: count_parameters(shape) for model_id, shape in shapes.items()}
    disk = disk_need(path, counts, planned)
    free = shutil.disk_usage(folder).free

    print(f"Rehearsal of {path.stem}, profile {args.profile}, on {described_card(args, card)}.")
    print("It measures memory and time. The weights are random: what the model says and scores means nothing.")
    for model_id, count in counts.items():
        download = count * BYTES[KINDS[shapes[model_id]["model_type"]].dtype]
        print(f"  {model_id}: random weights, {gigabytes(2 * count)} on disk, instead of a download of", end=" ")
        print(gigabytes(download))
    print(f"  data: {rows['described']}")
    print(f"  disk: about {gigabytes(disk)} in {tempfile.gettempdir()}, removed at the end; free: {gigabytes(free)}")
    print(f"  overrides: {shown_overrides(args.overrides, cut)}")
    parts = ", ".join(f"{part} {size / memory.GIB:.2f}" for part, size in planned.items() if size)
    print(f"  planned GiB at the fullest instant of a step: {parts}")
    if not card and not args.cpu:
        print(f"No GPU is here, so nothing was run. On a machine with one: {command_of(args)}")
        return {"run": None}
    refuse_full_disk(args, disk, free)
    refuse_small_card(args, card, planned, run, rows["longest"])
    refuse_small_ram(args, planned)
    started = time.perf_counter()
    for model_id, shape in shapes.items():
        write_weights(shape, folders[model_id])
    print(f"Weights written in {time.perf_counter() - started:.0f} s. The lesson runs:")
    return {"run": vars(run), "cut": cut, "rows": rows, "planned": planned}


def shapes_of(run, file):
    """{model id: configuration, a dict} of all models that the settings of a profile name; `file`: where they stand."""
    known = json.loads(Path(file).read_text("utf-8"))
    if run.model_id not in known:
        raise CourseError(f"{run.model_id}: its shape is not known; add its configuration to {file.name}.")
    shapes = {}
    for value in vars(run).values():
        if isinstance(value, str) and value in known:
            shapes[value] = known[value]
    return shapes


# ---- the card and the disk ---------------------------------------------------------------------------------------


def find_card(run, limit):
    """The card's name and bytes: total, of them used by others, and what is left or `limit`; None without a GPU.

    Raises CourseError if the card has no units for a data type of the profile.
    """
    import torch

    from utils import session

    if not torch.cuda.is_available():
        return None
    for dtype in (getattr(run, "dtype", None), getattr(run, "compute_dtype", None)):
        session.check_dtype(dtype or "float32")
    if getattr(run, "bf16", False):
        session.check_dtype("bfloat16")
    free, total = torch.cuda.mem_get_info()
    others = max(0, total - free - settings.CONTEXT)  # this process has a context, too
    has = min(limit or math.inf, total - others)
    return {"name": torch.cuda.get_device_name(), "total": total, "others": others, "has": has}


def disk_need(path, counts, planned):
    """Bytes that a rehearsal of a notebook takes on the disk; counts: {model id: parameters}.

    The weights in two bytes each; what learns, with its optimizer, as two checkpoints, saved, and once more; a copy of
    the largest model in float32 wherever the notebook saves a whole one; and room.
    """
    source = "\n".join(cell.source for cell in code_cells(path))
    whole_models = len(re.findall(r"(?<!tokenizer)\.save_pretrained\(", source))
    learns = (planned["adapters"] or planned["weights"]) + planned["optimizer states"]
    return int(2 * sum(counts.values()) + 4 * learns + 4 * whole_models * max(counts.values()) + ROOM)


def refuse_full_disk(args, need, free):
    """Raise CourseError if the disk is too small, unless it is to be tried all the same."""
    if free < need and not args.anyway:
        place = f"the rehearsal needs {gigabytes(need)} of disk, and {tempfile.gettempdir()} has {gigabytes(free)}"
        raise CourseError(f"{place}; make room, or set TMPDIR to a folder on a larger disk.")


def refuse_small_card(args, card, planned, run, length):
    """Raise CourseError if the card is too small for the plan, unless it is to be tried all the same.

    card: what find_card returned. length: tokens of the longest row.
    """
    if not card or args.anyway:
        return
    if args.gpu_memory * 1e9 > card["total"]:
        raise CourseError(f"GPU_MEMORY={args.gpu_memory:g} is more than the {gigabytes(card['total'])} of this card.")
    needs = (planned["total"] * (1 + settings.SLACK) + settings.CONTEXT) / memory.GIB
    has = card["has"] / memory.GIB
    if needs <= has:
        return
    place = f"lesson {args.nb}, profile {args.profile}, is planned at {needs:.1f} GiB, and there are {has:.1f} GiB"
    if card["others"] > memory.GIB / 2:
        place += f" (other programs use {card['others'] / memory.GIB:.1f})"
    remedy = remedy_for(planned.largest_batch(has), run, length)
    raise CourseError(f"{place}; {remedy}; --anyway tries it all the same.")


def refuse_small_ram(args, planned):
    """Raise CourseError if the profile `cpu` needs more RAM than is free, unless it is to be tried all the same."""
    if args.profile != "cpu" or args.anyway:
        return
    needs = (planned["total"] - planned["CUDA libraries"]) * (1 + settings.SLACK) / memory.GIB + PYTHON_GIB
    has = psutil.virtual_memory().available / memory.GIB
    if needs > has:
        place = f"lesson {args.nb}, profile cpu, is planned at {needs:.1f} GiB of RAM, and {has:.1f} GiB are free"
        raise CourseError(f"{place}; take a smaller batch (OVERRIDES), or --anyway, which tries it all the same.")


def remedy_for(largest_batch, run, length):
    """What to change, in words, if a batch of this size is the largest that fits; 0: none does."""
    if not largest_batch:
        return "choose PROFILE=colab, or activation_checkpointing in OVERRIDES"
    if hasattr(run, "tokens_at_once"):
        overrides = {"tokens_at_once": largest_batch * length}
    else:
        overrides = {"per_device_train_batch_size": largest_batch}
    return f"OVERRIDES='{json.dumps(overrides)}' fits by the plan"


# ---- in words ----------------------------------------------------------------------------------------------------


def gigabytes(size):
    """Bytes in words."""
    return f"{size / 1e9:.1f} GB"


def described_card(args, card):
    """On what the rehearsal runs, in words."""
    if card:
        words = f"{card['name']}, {card['total'] / memory.GIB:.0f} GiB"
    elif args.cpu:
        words = "the CPU"
    else:
        words = "a GPU"
    if args.gpu_memory:
        words += f", as if it had {args.gpu_memory:g} GB"
    return words


def shown_overrides(overrides, cut):
    """All overrides of the rehearsal as JSON, without the folder of the synthetic rows."""
    shown = {**overrides, **cut}
    if "dataset_id" in cut:
        shown["dataset_id"] = "(synthetic rows)"
    return json.dumps(shown)


def command_of(args):
    """The make command of this rehearsal."""
    parts = ["make rehearse", f"NB={args.nb}", f"PROFILE={args.profile}"]
    if args.gpu_memory:
        parts.append(f"GPU_MEMORY={args.gpu_memory:g}")
    if args.overrides:
        parts.append(f"OVERRIDES='{json.dumps(args.overrides)}'")
    return " ".join(parts)
