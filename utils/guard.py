"""Guards a run: against a loss that is no number, memory that runs out, and a model that is no mere numbers."""

import hashlib
import math
import re
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, Trainer, TrainerCallback

from utils import checkpoints
from utils.checks import CourseError
from utils.memory import GIB

REVISIONS = {  # for which the course was written; none is known of the copy in 4 bits that lesson 05 takes on Colab
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "google-bert/bert-large-uncased": "6da4b6a26a1877e173fca3225479512db81a5e5b",
    "google-t5/t5-3b": "bed96aab9ee46012a5046386105ee5fd0ac572f0",
    "facebook/opt-1.3b": "3f5c25d0bc631cb57ac65913f76e22c2dfb61d62",
    "google/gemma-2-9b-it": "11c9b309abf73637e4b6f9a3fa1e92e615547819",
}


class StopOnNaN(TrainerCallback):
    """Raises CourseError in the forward pass whose loss is NaN or infinite: step, learning rate, rows, and a remedy.

    The Trainer itself goes on, and by default (`logging_nan_inf_filter`) its log shows the last good loss instead. The
    optimizer has not moved yet when this stops the run; with gradient accumulation the micro-batch at fault is named.
    Rows count from 0, as in trainer.train_dataset[0]; of rows with the same input_ids all are named, by the column id
    if the training data kept one. Cost: one device synchronization a forward pass. It needs a model that returns its
    loss, as those of transformers (and trl's fused head) do when the batch has labels, unless labels are smoothed.
    """

    hook = None

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, optimizer=None, **kwargs):
        self.on_train_end(args, state, control)  # of a run that failed elsewhere, a hook may be left

        def look(module, inputs, keywords, outputs):
            loss = getattr(outputs, "loss", None)
            if not module.training or loss is None:
                return
            self.micro_batch += 1
            if not math.isfinite(value := loss.mean().item()):
                self.on_train_end(args, state, control)
                rate = optimizer.param_groups[0]["lr"] if optimizer else args.learning_rate
                place = f"step {state.global_step + 1}"
                if args.gradient_accumulation_steps > 1:
                    place += f" (micro-batch {self.micro_batch} of {args.gradient_accumulation_steps})"
                where = f"{place}, learning rate {rate:.2g}, rows {_rows(keywords, train_dataloader.dataset)}"
                remedy = "look at these rows, lower learning_rate, or compute in bfloat16 or float32, not in float16"
                raise CourseError(
                    f"{where} of the training data: the loss is {value}, so the run was stopped; {remedy}."
                )

        self.hook = model.register_forward_hook(look, with_kwargs=True)

    def on_step_begin(self, args, state, control, **kwargs):
        self.micro_batch = 0

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


def halve_when_full(trainer, planned=None):
    """Lets `trainer` survive one lack of memory: the micro-batch is halved, accumulation doubled, the step repeated.

    Weights, data order and effective batch stay what they were, and random numbers are those of a run that had the
    smaller micro-batch from this step on. A second lack of memory raises CourseError with what `planned`, the Plan of
    this run, advises. (`auto_find_batch_size` of Trainer takes 0.9 of the batch, does not accumulate more, and begins
    again at step 0 with the weights of the step that failed.) Also raises CourseError if the loss of the model is a
    mean over the micro-batch while Trainer takes it for a share of the effective batch, and would add means up.
    """
    if trainer.loss_is_scaled_for_ga is None and _averages(trainer):
        remedy = "Trainer would add up those of accumulated micro-batches; set trainer.loss_is_scaled_for_ga = False"
        raise CourseError(f"the loss of {type(trainer.model).__name__} is a mean over its rows, and {remedy}.")
    step, now, seen, state, micro = trainer.training_step, None, [], [], None

    def fits(model, inputs, items):
        """The loss, or None if memory ran out; then what the failed pass holds is free when this returns."""
        try:
            return in_parts(model, inputs, items) if micro else step(model, dict(inputs), items)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
                raise

    def in_parts(model, inputs, items):
        steps, rows, losses = trainer.current_gradient_accumulation_steps, _rows_of(inputs), []
        for begin in range(0, rows, micro):
            part = {name: _part(value, rows, begin, begin + micro) for name, value in inputs.items()}
            trainer.current_gradient_accumulation_steps = steps * rows / _rows_of(part)  # what a mean is divided by
            losses.append(step(model, part, items))
        trainer.current_gradient_accumulation_steps = steps
        return sum(losses)

    def training_step(model, inputs, num_items_in_batch=None):
        nonlocal micro, now
        if now != (now := (id(trainer.state), trainer.state.global_step)):
            seen.clear()  # the micro-batches of this step, to repeat them
            state[:] = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        seen.append(inputs)
        if (loss := fits(model, inputs, num_items_in_batch)) is not None:
            return loss
        rows = _rows_of(inputs)
        if micro or rows == 1:
            raise CourseError(_advice(micro or rows, trainer, planned))
        micro = (rows + 1) // 2
        place = f"step {trainer.state.global_step + 1}: out of memory with {rows} rows at once"
        print(f"{place}, so it is repeated with {micro} at once; the effective batch stays the same.")
        model.zero_grad()
        clear_device_cache(garbage_collection=True)
        torch.set_rng_state(state[0])
        for number, device in enumerate(state[1]):
            torch.cuda.set_rng_state(device, number)
        for batch in seen:
            if (loss := fits(model, batch, num_items_in_batch)) is None:
                raise CourseError(_advice(micro, trainer, planned))
        return loss

    trainer.training_step = training_step


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


def _part(value, rows, begin, end):
    return value[begin:end] if torch.is_tensor(value) and value.shape[:1] == (rows,) else value


def _advice(rows, trainer, planned):
    """What to do when half of the micro-batch, or one row, is too much."""
    advice = []
    if planned:
        advice.append(f"the plan of this run was {planned['total'] / GIB:.1f} GiB")
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0).total_memory / GIB
        advice.append(f"this card has {card:.1f} GiB" + (" in all" if not planned else ""))
        advice += [f"enough for {planned.largest_batch(card)} rows at once by the plan"] if planned else []
    smaller = max(1, rows // 2)
    steps = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps // smaller
    remedy = f"set per_device_train_batch_size to {smaller} and gradient_accumulation_steps to {steps}"
    remedy += ", turn activation_checkpointing on, shorten max_length, or close what else uses the card"
    place = f"step {trainer.state.global_step + 1}: out of memory again, with {rows} rows at once"
    return f"{place}; {', '.join(advice)}{'; ' * bool(advice)}{remedy}."


def check_model(model_id):
    """Checks a model, a folder or a hub id, before its weights are loaded.

    Raises CourseError if it is neither here nor in the cache while the hub cannot be asked; if a folder's weights are
    not safetensors; if a file in the cache is damaged; if it brings code of its own; or if its tokenizer has ids beyond
    the model's embeddings. Says so if the hub has another revision than the course was written for.
    """
    if Path(model_id).is_dir():
        checkpoints.safe_weights(model_id)
    try:
        if "auto_map" in PreTrainedConfig.get_config_dict(model_id)[0]:
            remedy = "the course runs no code of a model; take one whose architecture transformers knows"
            raise CourseError(f"{model_id}: config.json names Python files of its own (auto_map); {remedy}.")
        config = AutoConfig.from_pretrained(model_id, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)
    except CourseError:
        raise
    except (OSError, ValueError) as error:
        remedy = "correct model_id, go online, accept the model's terms on its page at the hub, or use PROFILE = 'tiny'"
        raise CourseError(f"{model_id}: {' '.join(str(error).split())[:200]} …; {remedy}.") from None
    if not Path(model_id).is_dir():
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
