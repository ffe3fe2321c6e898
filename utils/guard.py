"""Guards a run: against a loss that is no number, memory that runs out, and a model that is no mere numbers."""

import bisect
import hashlib
import itertools
import re
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, Trainer, TrainerCallback
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, has_file

from utils import checkpoints, graphs
from utils.checks import CourseError
from utils.memory import GIB

REVISIONS = {  # for which the course was written; none is known of the copy in 4 bits that lesson 05 takes on Colab
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "google-bert/bert-large-uncased": "6da4b6a26a1877e173fca3225479512db81a5e5b",
    "google-t5/t5-3b": "bed96aab9ee46012a5046386105ee5fd0ac572f0",
    "facebook/opt-1.3b": "3f5c25d0bc631cb57ac65913f76e22c2dfb61d62",
    "google/gemma-2-9b-it": "11c9b309abf73637e4b6f9a3fa1e92e615547819",
}

SAFE_WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)


class StopOnNaN(TrainerCallback):
    """Raises CourseError at the step whose loss is NaN or infinite: step, learning rate, rows, and a remedy.

    The Trainer itself goes on, and by default (`logging_nan_inf_filter`) its log shows the last good loss instead. The
    optimizer has not moved yet when this stops the run; with gradient accumulation, the rows of the micro-batch at
    fault are named. Rows count from 0, as in trainer.train_dataset[0]; of rows with the same input_ids all are named,
    by the column id if the training data kept one. Cost: a step waits until its forward passes are done, while the last
    backward pass keeps the GPU busy. It needs a model that returns its loss, as those of transformers (and trl's fused
    head) do when the batch has labels, unless labels are smoothed.
    """

    hook, losses = None, []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.on_train_end(args, state, control)  # of a run that failed elsewhere, a hook may be left
        self.hook, self.losses = model.register_forward_hook(self.note, with_kwargs=True), []

    def note(self, module, inputs, batch, outputs):
        """Sends the loss of a forward pass to the CPU, for which nobody waits yet."""
        loss = getattr(outputs, "loss", None)
        if module.training and loss is not None:
            arrived, loss = torch.cuda.Event() if loss.is_cuda else None, loss.detach().mean()
            self.losses.append((loss.to("cpu", non_blocking=loss.is_cuda), arrived, batch))
            if arrived:
                arrived.record()

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, train_dataloader=None, **kwargs):
        losses, self.losses = self.losses, []
        for loss, arrived, batch in losses:
            if arrived:
                arrived.synchronize()
            if not loss.isfinite():
                rate = optimizer.param_groups[0]["lr"] if optimizer else args.learning_rate
                rows = _rows(batch, train_dataloader.dataset)
                where = f"step {state.global_step + 1}, learning rate {rate:.2g}, rows {rows} of the training data"
                remedy = "look at these rows, lower learning_rate, or compute in bfloat16 or float32, not in float16"
                self.on_train_end(args, state, control)
                raise CourseError(f"{where}: the loss is {loss.item()}, so the run was stopped; {remedy}.")

    def on_train_end(self, args, state, control, **kwargs):
        if self.hook:
            self.hook.remove()
        self.hook = None


def _rows(batch, dataset):
    """The rows of `dataset` whose input_ids are those of `batch`, a dict of tensors (rows, length), padding aside."""
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    columns = getattr(dataset, "column_names", None) or []
    if ids is None or mask is None or "input_ids" not in columns:
        return "unknown"
    wanted = {tuple(row[kept.bool()].tolist()) for row, kept in zip(ids, mask, strict=True)}
    found = [number for number, row in enumerate(dataset["input_ids"][:]) if tuple(map(int, row)) in wanted]
    names = [dataset["id"][number] for number in found[:40]] if "id" in columns else found[:40]
    return ", ".join(map(str, names)) or "unknown"


def halve_when_full(trainer, planned=None, tokens_at_once=None):
    """Lets `trainer` survive one lack of memory: the micro-batch is halved, accumulation doubled, the step repeated.

    Weights, data order and effective batch stay what they were, and random numbers are those of a run that had the
    smaller micro-batch from this step on. A second lack of memory raises CourseError with what `planned`, the Plan of
    this run, advises. (`auto_find_batch_size` of Trainer takes 0.9 of the batch, does not accumulate more, and begins
    again at step 0 with the weights of the step that failed.) Also raises CourseError if the loss of the model is a
    mean over the micro-batch while Trainer takes it for a share of the effective batch, and would add means up. An
    evaluation that finds too little memory is repeated with half of its rows at once, as often as need be.

    tokens_at_once: a micro-batch goes through the model in parts of so many positions at most (rows times the longest
    one of the part), as few and as equal as can be, but never less than a row. So short rows go many at a time.
    """
    if tokens_at_once is not None and tokens_at_once < 1:
        remedy = "set it to the tokens of the longest row, or more"
        raise CourseError(f"tokens_at_once is {tokens_at_once}, so no row would have a part; {remedy}.")
    if trainer.loss_is_scaled_for_ga is None and _averages(trainer):
        fault = f"the loss of {type(trainer.model).__name__} is a mean over its rows"
        remedy = "Trainer would add up those of accumulated micro-batches; set trainer.model_accepts_loss_kwargs"
        raise CourseError(f"{fault}, and {remedy} = False.")
    step, now, seen, state, most, halved = trainer.training_step, None, [], [], tokens_at_once, False

    def fits(do, *args, **kwargs):
        """What `do` returns, or None if memory ran out; then what it held is free when this returns."""
        try:
            return do(*args, **kwargs)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
                raise

    def in_parts(model, inputs, items):
        steps, rows, losses = trainer.current_gradient_accumulation_steps, _rows_of(inputs), []
        try:
            for part in _parts(inputs, most, trainer if tokens_at_once else None):
                trainer.current_gradient_accumulation_steps = steps * rows / _rows_of(part)  # what a mean is divided by
                losses.append(step(model, part, items))
        finally:
            trainer.current_gradient_accumulation_steps = steps
        return sum(losses)

    def training_step(model, inputs, num_items_in_batch=None):
        nonlocal most, halved, now
        if now != (now := (id(trainer.state), trainer.state.global_step)):
            seen.clear()  # the micro-batches of this step, to repeat them
            state[:] = _random_states()
        seen.append(inputs)
        if (loss := fits(in_parts if most else step, model, dict(inputs), num_items_in_batch)) is not None:
            return loss
        rows, unit = _rows_of(inputs), "tokens" if tokens_at_once else "rows"
        size = min(most or rows, inputs["input_ids"].numel() if tokens_at_once else rows)
        if halved or rows == 1:
            raise CourseError(_advice(size, unit, trainer, planned))
        most, halved = (size + 1) // 2, True
        place = f"step {trainer.state.global_step + 1}: out of memory with {size} {unit} at once"
        print(f"{place}, so it is repeated with {most} at once; the effective batch stays the same.")
        model.zero_grad()
        _make_room(*state)
        for batch in seen:
            if (loss := fits(in_parts, model, batch, num_items_in_batch)) is None:
                raise CourseError(_advice(most, unit, trainer, planned))
        return loss

    def evaluate(*args, **kwargs):
        before = _random_states()  # each try draws some
        while (found := fits(usual_evaluate, *args, **kwargs)) is None:
            if (size := trainer.args.per_device_eval_batch_size) == 1:
                remedy = "shorten max_length, or close what else uses the card"
                raise CourseError(f"out of memory in an evaluation of one row at a time; {remedy}.")
            trainer.args.per_device_eval_batch_size = size // 2
            print(f"Out of memory in an evaluation of {size} rows at once, so it is repeated with {size // 2} at once.")
            _make_room(*before)
        return found

    trainer.training_step, usual_evaluate, trainer.evaluate = training_step, trainer.evaluate, evaluate


def _random_states():
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _make_room(cpu, gpus):
    """Frees what nobody uses any more and what CUDA graphs hold; random numbers are drawn from these states again."""
    graphs.forget()
    clear_device_cache(garbage_collection=True)
    torch.set_rng_state(cpu)
    torch.cuda.set_rng_state_all(gpus)


def _parts(inputs, most, trainer=None):
    """A batch in parts of at most `most` rows; given a trainer, of at most `most` tokens, and without columns that hold
    nothing but padding."""
    rows, widths, mask = _rows_of(inputs), None, inputs.get("attention_mask")
    if trainer:
        length = mask.shape[1]
        multiple = getattr(trainer.data_collator, "pad_to_multiple_of", None) or 1
        last = (mask * torch.arange(1, length + 1, device=mask.device)).amax(dim=1).tolist()
        widths = [min(length, -(-end // multiple) * multiple) for end in last]
    by_row = {name for name, value in inputs.items() if torch.is_tensor(value) and value.shape[:1] == (rows,)}
    ends = _cuts(widths or [1] * rows, most)
    for begin, end in itertools.pairwise(ends):
        part = {name: value[begin:end] if name in by_row else value for name, value in inputs.items()}
        if widths:
            long = [name for name, value in inputs.items() if getattr(value, "shape", None) == mask.shape]
            long = [name for name in long if name != "labels" or not trainer.model.config.is_encoder_decoder]
            part |= {name: part[name][:, : max(widths[begin:end])] for name in long}
        yield part


def _cuts(widths, most):
    """Where to cut rows of these widths, so that parts (rows times the widest) are of `most` at most, as few as can be,
    and about as large as each other: what a part costs beside its tokens, it costs alike."""

    def cut(limit):
        ends = [0]
        for row in range(1, len(widths)):
            if (row + 1 - ends[-1]) * max(widths[ends[-1] : row + 1]) > limit:
                ends.append(row)
        return [*ends, len(widths)]

    few = len(cut(most))
    return cut(bisect.bisect_left(range(most), -few, key=lambda limit: -len(cut(limit))))


def _averages(trainer):
    """Whether the model's loss ignores the number of items that Trainer hands to it; False if it gets none."""
    own = type(trainer).compute_loss is not Trainer.compute_loss or trainer.compute_loss_func is not None
    if own or not trainer.model_accepts_loss_kwargs:
        return False
    model, training = trainer.model, trainer.model.training
    with torch.random.fork_rng(devices=[]), torch.no_grad(), trainer.compute_loss_context_manager():
        batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset.select([0]))))
        batch = {name: value.to(trainer.args.device) for name, value in batch.items()}
        model.eval()
        one, two = (trainer.compute_loss(model, batch, num_items_in_batch=number).item() for number in (1, 2))
        model.train(training)
    return one == two


def _rows_of(inputs):
    return next(len(value) for value in inputs.values() if torch.is_tensor(value))


def _advice(size, unit, trainer, planned):
    """What to do when half of the micro-batch, or one row, is too much; size: its "rows" or "tokens"."""
    advice = [f"the plan of this run was {planned['total'] / GIB:.1f} GiB"] if planned else []
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0).total_memory / GIB
        card *= torch.cuda.get_per_process_memory_fraction()  # as a rehearsal for a smaller card sets it
        advice.append(f"this card has {card:.1f} GiB" + (" in all" if not planned else ""))
        advice += [f"enough for {planned.largest_batch(card)} rows at once by the plan"] if planned else []
    smaller = max(1, size // 2)
    remedy = f"set tokens_at_once to {smaller}"
    if unit == "rows":
        steps = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps // smaller
        remedy = f"set per_device_train_batch_size to {smaller} and gradient_accumulation_steps to {steps}"
    remedy += ", turn activation_checkpointing on" * (not trainer.args.activation_checkpointing)
    remedy += ", shorten max_length, or close what else uses the card"
    place = f"step {trainer.state.global_step + 1}: out of memory again, with {size} {unit} at once"
    return f"{place}; {', '.join(advice)}{'; ' * bool(advice)}{remedy}."


def check_model(model_id, converted=False):
    """Checks a model, a folder or a hub id, before its weights are loaded.

    Raises CourseError if it is neither here nor in the cache while the hub cannot be asked; if its weights are not
    safetensors; if a file in the cache is damaged; if it brings code of its own; or if its tokenizer has ids beyond
    the model's embeddings. Says so if the hub has another revision than the course was written for.
    converted: where the hub has a pickle only, the copy that its bot converted will do. The caller then loads with
    use_safetensors=True, which takes that copy, and never opens the pickle.
    """
    is_folder = Path(model_id).is_dir()
    if is_folder:
        checkpoints.safe_weights(model_id)
    try:
        if "auto_map" in PreTrainedConfig.get_config_dict(model_id)[0]:
            remedy = "the course runs no code of a model; take one whose architecture transformers knows"
            raise CourseError(f"{model_id}: config.json names Python files of its own (auto_map); {remedy}.")
        config = AutoConfig.from_pretrained(model_id, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)
        if not (converted or is_folder or any(has_file(model_id, name) for name in SAFE_WEIGHTS)):
            remedy = "a pickle can run code when it is opened; take a model whose main branch has safetensors"
            raise CourseError(f"{model_id}: there are no weights in the safetensors format; {remedy}.")
    except CourseError:
        raise
    except (OSError, ValueError) as error:
        remedy = "correct model_id, go online, accept the model's terms on its page at the hub, or use PROFILE = 'tiny'"
        raise CourseError(f"{model_id}: {' '.join(str(error).split())[:200]} …; {remedy}.") from None
    if not is_folder:
        _check_cache(model_id)
    vocabulary = tokenizer.get_vocab()
    token = max(vocabulary, key=vocabulary.get)
    if vocabulary[token] >= config.vocab_size:
        fault = f"its tokenizer gives {token!r} the number {vocabulary[token]}, but the model has {config.vocab_size}"
        raise CourseError(f"{model_id}: {fault} tokens; use the tokenizer that the model was trained with.")


def _check_cache(model_id):
    """Compares the revision in the hub's cache with REVISIONS, and large files with their names: those are hashes."""
    config = try_to_load_from_cache(model_id, "config.json")
    if not isinstance(config, str):
        return
    folder, known = Path(config).parent, REVISIONS.get(model_id)
    if known not in (None, folder.name):
        print(f"{model_id}: the hub has revision {folder.name}, the course was written for {known}; scores may differ.")
        print(f"To go back: hf download {model_id} --revision {known} --local-dir FOLDER, and FOLDER as model_id.")
    for file in sorted(folder.iterdir()):
        blob = file.resolve()
        if re.fullmatch("[0-9a-f]{64}", blob.name):  # what git-lfs holds, named by its SHA-256
            with blob.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != blob.name:
                    remedy = f"delete {blob} and run again, and it is fetched anew"
                    raise CourseError(f"{model_id}: {file.name} in the cache is damaged; {remedy}.")
