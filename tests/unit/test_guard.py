"""A loss that is no number stops the run at its step; a lack of memory halves the micro-batch once, and only that."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import refusal
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    OPTConfig,
    OPTForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from utils import memory
from utils.training import out_of_memory
from utils.training.nan import StopOnNaN
from utils.training.out_of_memory import halve_when_full

BAD = 40  # the token whose embedding becomes NaN
SIZES = dict(vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=2)


class Tokenizer:
    """Pads with 1, on the right, as a data collator asks."""

    padding_side, pad_token_id, model_input_names = "right", 1, ["input_ids", "attention_mask"]

    def pad(self, rows, **kwargs):
        longest = max(len(row["input_ids"]) for row in rows)
        ids = [[*row["input_ids"], *[1] * (longest - len(row["input_ids"]))] for row in rows]
        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        rest = {"labels": torch.tensor([row["labels"] for row in rows])}
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)} | rest


def rows(label, plant=True):
    ids = [[5, 6, 7 + number, *[9] * (number % 3)] for number in range(12)]
    if plant:
        ids[8][1] = BAD
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": label})


def trainer(kind, folder, plant=True, **more):
    torch.manual_seed(0)
    options = dict(per_device_train_batch_size=2, max_steps=6, report_to=[], disable_tqdm=True, use_cpu=True)
    options |= dict(learning_rate=1e-3, train_sampling_strategy="sequential", save_strategy="no")
    options |= more
    if kind == "bert":
        model = BertForSequenceClassification(BertConfig(intermediate_size=64, **SIZES))
        made = Trainer(model, TrainingArguments(folder, **options), DataCollatorWithPadding(Tokenizer()))
        data = rows([0, 1] * 6, plant)
    elif kind == "t5":
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=50,
                d_model=64,
                d_kv=32,
                d_ff=64,
                num_layers=1,
                num_heads=2,
                decoder_start_token_id=0,
                tie_word_embeddings=False,
            )
        )
        model = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["v"]))
        made = Seq2SeqTrainer(model, Seq2SeqTrainingArguments(folder, **options), DataCollatorWithPadding(Tokenizer()))
        data = rows([[3, 4]] * 12, plant)
    else:
        model = OPTForCausalLM(OPTConfig(ffn_dim=64, word_embed_proj_dim=64, max_position_embeddings=32, **SIZES))
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"]))
        data = rows([[5, 6, 7, 8, 9]] * 12, plant).remove_columns("labels")
        data = data.add_column("labels", data["input_ids"][:])
        return add(
            SFTTrainer(
                model,
                SFTConfig(folder, bf16=False, gradient_checkpointing=False, **options),
                train_dataset=data,
                processing_class=fast_tokenizer(),
            ),
            model,
        )
    made.train_dataset = data
    return add(made, model)


def add(made, model):
    made.add_callback(StopOnNaN())
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == SIZES["vocab_size"]:
            module.register_forward_hook(lambda m, ids, out: out.masked_fill((ids[0] == BAD).unsqueeze(-1), math.nan))
    return made


def fast_tokenizer():
    from tokenizers import Tokenizer as Fast
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"</s>": 2, "<pad>": 1, "a": 0} | {f"w{n}": n for n in range(3, 50)}
    return PreTrainedTokenizerFast(tokenizer_object=Fast(WordLevel(words, "a")), pad_token="<pad>", eos_token="</s>")


class Keep(TrainerCallback):
    """The trained weights as they are after the newest optimizer step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["bert", "t5", "opt"])
def test_a_planted_nan_stops_the_run_at_its_step(kind, tmp_path):
    made, kept = trainer(kind, tmp_path), Keep()
    made.add_callback(kept)
    message = refusal(made.train)
    assert "step 5, learning rate 0.00033, rows 8, 9 of the training data: the loss is nan" in message
    assert "lower learning_rate, or compute in bfloat16 or float32" in message
    assert made.state.global_step == 4
    assert kept.weights
    assert all(torch.equal(made.model.get_parameter(name), value) for name, value in kept.weights.items())
    assert all(value.isfinite().all() for value in kept.weights.values())
    assert not made.model._forward_hooks


@pytest.mark.parametrize("kind", ["bert", "t5", "opt"])
def test_with_accumulation_the_rows_of_the_micro_batch_are_named(kind, tmp_path):
    made = trainer(kind, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=3, max_steps=4)
    assert "step 3, learning rate 0.0005, rows 8 of the training data" in refusal(made.train)
    assert made.state.global_step == 2


@pytest.mark.parametrize("kind", ["bert", "t5", "opt"])
def test_without_a_nan_the_run_ends_and_the_hook_is_gone(kind, tmp_path):
    made = trainer(kind, tmp_path, plant=False)
    made.train()
    assert made.state.global_step == 6
    assert not made.model._forward_hooks


@pytest.mark.parametrize("kind", ["bert", "t5", "opt"])
def test_without_the_guard_the_same_run_ends_as_if_all_was_well(kind, tmp_path):
    """The Trainer sees the NaN and hides it: this is why the guard exists."""
    made = trainer(kind, tmp_path, logging_steps=1)
    made.remove_callback(StopOnNaN)
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert made.state.global_step == len(losses) == 6
    assert all(map(math.isfinite, losses))
    assert not all(p.isfinite().all() for p in made.model.parameters() if p.requires_grad)


def test_nobody_waits_for_a_loss_before_the_last_forward_pass_of_a_step(tmp_path):
    """On a GPU a look at each loss would stop Python in each forward pass."""
    made, seen = trainer("bert", tmp_path, plant=False, gradient_accumulation_steps=3, max_steps=1), []
    guard = next(c for c in made.callback_handler.callbacks if isinstance(c, StopOnNaN))
    judge = guard.on_pre_optimizer_step
    guard.on_pre_optimizer_step = lambda *args, **kwargs: seen.append(len(guard.losses)) or judge(*args, **kwargs)
    made.train()
    assert seen == [3]
    assert guard.losses == [], "batches are kept alive"


def test_an_infinite_loss_is_none_either_and_ids_are_named(tmp_path):
    made = trainer("bert", tmp_path, plant=False, remove_unused_columns=False)
    ids = [f"row-{number:02}" for number in range(12)]
    made.train_dataset = made.train_dataset.add_column("id", ids)
    pad = made.data_collator
    made.data_collator = lambda rows: pad([{k: v for k, v in row.items() if k != "id"} for row in rows])
    forward = made.model.forward

    def overflow(**batch):
        found = forward(**batch)
        found.loss = found.loss * (math.inf if made.state.global_step == 2 else 1)
        return found

    made.model.forward = overflow
    assert "step 3, learning rate 0.00067, rows row-04, row-05 of the training data: the loss is inf" in refusal(
        made.train
    )


def test_a_run_that_failed_elsewhere_leaves_no_second_hook(tmp_path):
    made = trainer("bert", tmp_path, plant=False)

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    made.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        made.train()
    made.remove_callback(Interrupt)
    made.train()
    assert not made.model._forward_hooks


def test_data_without_input_ids_names_no_rows(tmp_path):
    made = trainer("bert", tmp_path, remove_unused_columns=False)
    made.train_dataset = made.train_dataset.rename_column("input_ids", "ids")
    pad = made.data_collator
    made.data_collator = lambda rows: pad([{"input_ids": row.pop("ids"), **row} for row in rows])
    assert "step 5, learning rate 0.00033, rows unknown of the training data" in refusal(made.train)


# ------------------------------------------------------------------------------------------------ memory runs out

KINDS = ["bert", "t5", "opt"]
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


def even(kind, folder, **more):
    """A trainer whose rows all have one length, so that a micro-batch can be cut without changing its padding."""
    options = dict(logging_steps=1, per_device_train_batch_size=4, max_steps=5, max_grad_norm=1.0) | more
    made = trainer(kind, folder, plant=False, **options)
    made.loss_is_scaled_for_ga = None if kind == "opt" else False
    ids = [[5, 6, 7 + number, 9] for number in range(12)]
    label = {"bert": [0, 1] * 6, "t5": [[3, 4 + n] for n in range(12)], "opt": ids}[kind]
    columns = {"input_ids": ids, "attention_mask": [[1] * 4] * 12, "labels": label}
    made.train_dataset = Dataset.from_dict(columns)
    return made


def without_dropout(made):
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    return made


def fail(made, rows, times=99, backward_of=None, message=FULL):
    """Memory is too small for more than `rows` rows, `times` times, in the forward pass or in one backward pass."""
    left, passes = [times], []

    def forward(module, args, inputs):
        passes.append(len(inputs["input_ids"]))
        if backward_of is None and module.training and passes[-1] > rows and left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError(message)

    def backward(gradient):
        if len(passes) == backward_of and left[0]:  # other parameters have their gradients already
            left[0] -= 1
            raise torch.OutOfMemoryError(message)

    made.model.register_forward_pre_hook(forward, with_kwargs=True)
    [p for p in made.model.parameters() if p.requires_grad][0].register_hook(backward)
    return passes


def outcome(made):
    made.train()
    log = [(entry["loss"], entry["grad_norm"]) for entry in made.state.log_history if "grad_norm" in entry]
    return torch.tensor(log), torch.cat([p.detach().flatten() for p in made.model.parameters() if p.requires_grad])


def same(one, other, tolerance=1e-6):
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_it_becomes_the_run_with_the_smaller_micro_batch(kind, tmp_path, capsys, monkeypatch):
    """From the first step on, dropout included, which draws its random numbers micro-batch by micro-batch."""
    made, forgotten = even(kind, tmp_path), []
    monkeypatch.setattr(out_of_memory, "_retry_callbacks", [lambda: forgotten.append(True)])
    halve_when_full(made)
    passes = fail(made, rows=0, times=1, backward_of=1)  # when the forward pass has drawn its numbers
    halved = outcome(made)
    assert passes == [4] + [2] * 10
    assert forgotten == [True]  # recorded CUDA graphs hold memory, too
    assert "step 1: out of memory with 4 rows at once, so it is repeated with 2 at once" in capsys.readouterr().out
    smaller = even(kind, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert same(halved, outcome(smaller))
    assert not same(halved, outcome(even(kind, tmp_path, per_device_train_batch_size=2)), 1e-3), "all runs are alike"


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_middle_of_a_step_nothing_is_lost_or_counted_twice(kind, tmp_path):
    """It happens in the backward pass of the second micro-batch of step 2; the last micro-batch has two rows only."""
    settings = dict(per_device_train_batch_size=5, gradient_accumulation_steps=2, max_steps=4)
    made = without_dropout(even(kind, tmp_path, **settings))
    halve_when_full(made)
    passes = fail(made, rows=0, times=1, backward_of=5)
    halved = outcome(made)
    assert passes[:9] == [5, 5, 2, 5, 5, 3, 2, 3, 2]
    assert same(halved, outcome(without_dropout(even(kind, tmp_path, **settings))), 1e-5)


def test_the_second_time_it_ends_with_advice(tmp_path, monkeypatch, capsys):
    made = even("bert", tmp_path, gradient_accumulation_steps=2)
    planned = memory.plan(made.model, batch=4, length=4)
    halve_when_full(made, planned)
    passes = fail(made, rows=1)
    message = refusal(made.train)
    assert passes == [4, 2]
    assert "step 1: out of memory again, with 2 rows at once; the plan of this run was " in message
    assert "set per_device_train_batch_size to 1 and gradient_accumulation_steps to 8, turn activation_ch" in message
    card = SimpleNamespace(total_memory=8 * memory.GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: share)
    from utils.training.out_of_memory import _advice

    share = 1.0

    assert f"this card has 8.0 GiB, enough for {planned.largest_batch(8)} rows at once" in _advice(
        2, "rows", made, planned
    )
    assert "this card has 8.0 GiB in all; set per_device" in _advice(2, "rows", made, None)
    share = 0.5  # a process that may use half of the card
    assert "this card has 4.0 GiB in all; set per_device" in _advice(2, "rows", made, None)
    made.args.activation_checkpointing = True
    assert "turn activation_checkpointing on" not in _advice(2, "rows", made, None)


@pytest.mark.parametrize("kind", KINDS)
def test_later_steps_end_with_advice_too_and_one_row_cannot_be_halved(kind, tmp_path):
    made = even(kind, tmp_path)
    halve_when_full(made)
    passes = fail(made, rows=2)
    fail(made, rows=0, times=1, backward_of=5)
    assert "step 3: out of memory again, with 2 rows at once; set per_device" in refusal(made.train)
    assert passes[:5] == [4, 2, 2, 2, 2]
    made = even(kind, tmp_path, per_device_train_batch_size=1)
    halve_when_full(made)
    fail(made, rows=0)
    assert "step 1: out of memory again, with 1 rows at once; set per_device" in refusal(made.train)


def test_other_faults_pass_and_without_the_guard_the_run_ends(tmp_path):
    made = even("bert", tmp_path)
    halve_when_full(made)
    fail(made, rows=2, message="another fault")
    made.model.register_forward_hook(lambda module, args, found: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        made.train()
    made = even("bert", tmp_path)
    fail(made, rows=2)
    with pytest.raises(torch.OutOfMemoryError):
        made.train()


def too_small_for(made, rows):
    """Evaluations of more than `rows` rows at once find too little memory; the rows of each evaluation pass."""
    passes = []

    def forward(module, args, inputs):
        if not module.training:
            passes.append(len(inputs["input_ids"]))
            if passes[-1] > rows:
                raise torch.OutOfMemoryError(FULL)

    made.model.register_forward_pre_hook(forward, with_kwargs=True)
    return passes


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_is_repeated_in_halves_until_it_fits(kind, tmp_path, capsys, monkeypatch):
    forgotten, found, losses = [], [], []
    monkeypatch.setattr(out_of_memory, "_retry_callbacks", [lambda: forgotten.append(True)])
    for fits in (12, 3):
        made = even(kind, tmp_path, per_device_eval_batch_size=12, disable_tqdm=False)
        made.eval_dataset, made.args.eval_strategy, made.args.eval_steps = made.train_dataset, "steps", 2
        halve_when_full(made)
        passes = too_small_for(made, fits)
        found.append(outcome(made))
        losses.append([entry["eval_loss"] for entry in made.state.log_history if "eval_loss" in entry])
    assert same(*found)  # the training takes no notice
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert passes == [12, 6] + [3] * 12  # 12 rows, three times
    assert forgotten == [True] * 2
    assert "evaluation of 6 rows at once, so it is repeated with 3 at once" in capsys.readouterr().out


def test_an_evaluation_that_cannot_be_halved_or_has_another_fault_ends(tmp_path):
    made = even("bert", tmp_path, per_device_eval_batch_size=2)
    halve_when_full(made)
    passes = too_small_for(made, rows=0)
    assert "in an evaluation of one row at a time; shorten max_length" in refusal(made.evaluate, made.train_dataset)
    assert passes == [2, 1]
    made = even("bert", tmp_path, per_device_eval_batch_size=2)
    halve_when_full(made)
    made.model.register_forward_pre_hook(lambda module, args: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        made.evaluate(made.train_dataset)


def uneven(kind, folder, **more):
    """Rows of 3 to 8 tokens, four a step, from long to short; what the model was given, (rows, length) by pass."""
    made, given = without_dropout(even(kind, folder, optim="sgd", learning_rate=0.1, **more)), []
    lengths = [8, 5, 4, 3, 8, 8, 8, 8, 3, 3, 3, 3]
    ids = [[5, 10 + n, *[7] * (size - 3), 9] for n, size in enumerate(lengths)]
    label = {"bert": [0, 1] * 6, "t5": [[3, 4 + n] for n in range(12)], "opt": ids}[kind]
    columns = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": label}
    made.train_dataset = Dataset.from_dict(columns)
    shape = lambda module, args, batch: given.append(tuple(batch["input_ids"].shape))  # noqa: E731
    made.model.register_forward_pre_hook(shape, with_kwargs=True)
    return made, given


@pytest.mark.parametrize("kind", KINDS)
def test_parts_by_tokens_are_the_same_step_in_less_memory(kind, tmp_path):
    whole, given = uneven(kind, tmp_path, max_steps=3)
    wanted = outcome(whole)
    assert given == [(4, 8), (4, 8), (4, 3)]
    parts, given = uneven(kind, tmp_path, max_steps=3)
    halve_when_full(parts, tokens_at_once=16)
    assert same(wanted, outcome(parts), 1e-5)
    assert given == [(1, 8), (3, 5), (2, 8), (2, 8), (4, 3)], "too many parts, or uneven ones, or padding was left"
    one, given = uneven(kind, tmp_path, max_steps=3)
    halve_when_full(one, tokens_at_once=1)
    assert same(wanted, outcome(one), 1e-5)
    assert given == [(1, size) for size in (8, 5, 4, 3, 8, 8, 8, 8, 3, 3, 3, 3)], "a row is the least"
    assert not same(wanted, outcome(uneven(kind, tmp_path, per_device_train_batch_size=3, max_steps=3)[0]), 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_by_tokens_are_halved_too(kind, tmp_path, capsys):
    wanted = outcome(uneven(kind, tmp_path, max_steps=3)[0])
    made, given = uneven(kind, tmp_path, max_steps=3)
    halve_when_full(made, tokens_at_once=32)
    fail(made, rows=2, times=1)
    assert same(wanted, outcome(made), 1e-5)
    assert given == [(4, 8), (1, 8), (3, 5), (2, 8), (2, 8), (4, 3)]
    assert "step 1: out of memory with 32 tokens at once, so it is repeated with 16 at once" in capsys.readouterr().out
    made, given = uneven(kind, tmp_path, max_steps=3)
    halve_when_full(made, tokens_at_once=16)  # it happens in a part
    fail(made, rows=1, times=1)
    assert same(wanted, outcome(made), 1e-5)
    assert given == [(1, 8), (3, 5), (1, 8), (1, 5), (2, 4), *[(1, 8)] * 4, (2, 3), (2, 3)]
    made, given = uneven(kind, tmp_path, max_steps=3)
    halve_when_full(made, tokens_at_once=1000)  # more than the batch has
    fail(made, rows=1)
    assert "out of memory again, with 16 tokens at once; set tokens_at_once to 8, turn" in refusal(made.train)


def test_parts_of_no_tokens_are_refused(tmp_path):
    for size in (0, -1):
        message = refusal(halve_when_full, uneven("bert", tmp_path)[0], None, size)
        assert f"tokens_at_once is {size}, so no row would have a part; set it to" in message


def test_no_other_cuts_make_fewer_parts_or_a_smaller_largest_one():
    from utils.training.micro_batches import _cuts

    assert _cuts([9], 1) == [0, 1]
    assert _cuts([1] * 32, 12) == [0, 11, 22, 32]
    for widths in itertools.product((1, 3, 4, 8), repeat=5):
        for most in (8, 11, 16, 40):
            size = lambda a, b: (b - a) * max(widths[a:b])  # noqa: B023, E731
            ways = [[0, *cuts, 5] for count in range(5) for cuts in itertools.combinations(range(1, 5), count)]
            largest = {tuple(way): max(itertools.starmap(size, itertools.pairwise(way))) for way in ways}
            fit = [(len(way), largest[way]) for way in largest if largest[way] <= most]
            found = tuple(_cuts(list(widths), most))
            assert (len(found), largest[found]) == min(fit), (widths, most)


def test_parts_keep_padding_on_the_left_and_the_collators_multiple():
    from utils.training.micro_batches import _parts

    trainer = SimpleNamespace(data_collator=SimpleNamespace(pad_to_multiple_of=4), model=SimpleNamespace())
    trainer.model.config = SimpleNamespace(is_encoder_decoder=False)
    mask = torch.tensor([[1] * 5 + [0] * 7, [1] * 2 + [0] * 10, [1] * 12])
    batch = {"input_ids": torch.arange(36).view(3, 12), "attention_mask": mask, "labels": torch.arange(3), "kind": "a"}
    parts = list(_parts(batch, 16, trainer))
    assert [part["input_ids"].tolist() for part in parts] == [
        [list(range(8)), list(range(12, 20))],
        [list(range(24, 36))],
    ]
    assert [part["labels"].tolist() for part in parts] == [[0, 1], [2]]
    assert {part["kind"] for part in parts} == {"a"}
    left = [part["input_ids"].shape for part in _parts(batch | {"attention_mask": mask.flip(1)}, 24, trainer)]
    assert left == [(2, 12), (1, 12)]
    trainer.model.config.is_encoder_decoder = True  # labels of as many columns are no padded texts
    first, _ = _parts(batch | {"labels": torch.ones(3, 12)}, 16, trainer)
    assert (first["input_ids"].shape, first["labels"].shape) == ((2, 8), (2, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_that_trainer_would_add_up_is_refused(kind, tmp_path):
    made = even(kind, tmp_path)
    made.loss_is_scaled_for_ga = None
    before = torch.get_rng_state()
    if kind == "opt":
        halve_when_full(made)
    else:
        message = refusal(halve_when_full, made)
        assert "is a mean over its rows, and Trainer would add up" in message
        assert "set trainer.model_accepts_loss_kwargs = False." in message
    assert torch.equal(torch.get_rng_state(), before), "the guard would change the run that it guards"


def test_why_trainers_own_ways_will_not_do(tmp_path):
    """If one of these fails, the library has changed: look again whether it does our part."""
    summed = without_dropout(even("bert", tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2))
    summed.loss_is_scaled_for_ga = None
    added, once = (outcome(made)[0][0, 0].item() for made in (summed, without_dropout(even("bert", tmp_path))))
    assert added == pytest.approx(2 * once, rel=1e-4)
    own = even("bert", tmp_path, auto_find_batch_size=True)
    fail(own, rows=3)
    own.train()
    assert (own._train_batch_size, own.args.gradient_accumulation_steps) == (3, 1), "another effective batch"
