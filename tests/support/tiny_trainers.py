"""Trainers of tiny models for the tests of utils/training: an encoder, an encoder-decoder and a decoder.

The kinds are "bert" (Trainer, all weights), "t5" (Seq2SeqTrainer, LoRA) and "opt" (SFTTrainer, LoRA).
"""

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from utils import training

KINDS = ("bert", "t5", "opt")
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."
BAD = 40  # the token whose embedding becomes NaN in a trainer of `with_a_nan`
VOCABULARY = 50
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


class RetryTrainer(training.Safeguards, Trainer):
    """As in the lessons that use Trainer."""


class RetrySeq2SeqTrainer(training.Safeguards, Seq2SeqTrainer):
    """As in lesson 03."""


class RetrySFTTrainer(training.Safeguards, SFTTrainer):
    """As in lesson 04."""


RETRY = {"bert": RetryTrainer, "t5": RetrySeq2SeqTrainer, "opt": RetrySFTTrainer}
PLAIN = {"bert": Trainer, "t5": Seq2SeqTrainer, "opt": SFTTrainer}


class PaddingTokenizer:
    """Pads with 1, on the right, as a data collator asks."""

    padding_side = "right"
    pad_token_id = 1
    model_input_names = ("input_ids", "attention_mask")

    def save_pretrained(self, folder):
        """Trainer saves the tokenizer beside the model; this one has no files."""

    def pad(self, rows, **kwargs):
        """The rows as tensors of one length."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids = []
        mask = []
        for row in rows:
            length = len(row["input_ids"])
            ids.append([*row["input_ids"], *[1] * (longest - length)])
            mask.append([1] * length + [0] * (longest - length))
        labels = [row["labels"] for row in rows]
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(labels),
        }


def fast_tokenizer():
    """A tokenizer of 50 words, for SFTTrainer."""
    words = {"</s>": 2, "<pad>": 1, "a": 0}
    for number in range(3, VOCABULARY):
        words[f"w{number}"] = number
    backend = FastTokenizer(WordLevel(words, "a"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


def labels_of(kind, ids):
    """Labels that fit the kind of model, for rows of these tokens."""
    if kind == "bert":
        return [0, 1] * (len(ids) // 2)
    if kind == "t5":
        return [[3, 4 + number] for number in range(len(ids))]
    return ids


def rows_of(kind, ids):
    """A data set of tokenized rows, with mask and labels."""
    mask = [[1] * len(row) for row in ids]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": mask, "labels": labels_of(kind, ids)})


def model_of(kind):
    """A model of 64 numbers a token with one layer; the same weights each time."""
    torch.manual_seed(0)
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(intermediate_size=64, **SIZES))
    if kind == "t5":
        config = T5Config(
            vocab_size=VOCABULARY,
            d_model=64,
            d_kv=32,
            d_ff=64,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
            tie_word_embeddings=False,
        )
        lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["v"])
        return get_peft_model(T5ForConditionalGeneration(config), lora)
    config = OPTConfig(ffn_dim=64, word_embed_proj_dim=64, max_position_embeddings=32, **SIZES)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"])
    return get_peft_model(OPTForCausalLM(config), lora)


def make_trainer(kind, folder, rows, classes=RETRY, **changes):
    """A trainer of a tiny model on these rows, in their order. changes: of the training arguments."""
    arguments = {
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    arguments.update(changes)
    model = model_of(kind)
    if kind == "opt":
        args = SFTConfig(folder, bf16=False, gradient_checkpointing=False, **arguments)
        trainer = classes[kind](model, args, train_dataset=rows, processing_class=fast_tokenizer())
    else:
        config = Seq2SeqTrainingArguments if kind == "t5" else TrainingArguments
        collator = DataCollatorWithPadding(PaddingTokenizer())
        trainer = classes[kind](model, config(folder, **arguments), collator, train_dataset=rows)
    if kind != "opt":
        trainer.loss_is_scaled_for_ga = False  # the loss is a mean over its rows
    return trainer


def trainer_of_even_rows(kind, folder, classes=RETRY, **changes):
    """Its rows all have one length, so that a micro-batch can be cut without changing its padding."""
    arguments = {"logging_steps": 1, "per_device_train_batch_size": 4, "max_steps": 5, "max_grad_norm": 1.0}
    arguments.update(changes)
    ids = [[5, 6, 7 + number, 9] for number in range(12)]
    return make_trainer(kind, folder, rows_of(kind, ids), classes, **arguments)


def trainer_of_uneven_rows(kind, folder, **changes):
    """Its rows have 3 to 8 tokens, four a step; also returns a list of the shapes that the model is given, by pass."""
    lengths = [8, 5, 4, 3, 8, 8, 8, 8, 3, 3, 3, 3]
    ids = []
    for number, length in enumerate(lengths):
        ids.append([5, 10 + number, *[7] * (length - 3), 9])
    arguments = {
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.1,
    }
    arguments.update(changes)
    trainer = without_dropout(make_trainer(kind, folder, rows_of(kind, ids), **arguments))
    shapes = []

    def note(module, args, batch):
        shapes.append(tuple(batch["input_ids"].shape))

    trainer.model.register_forward_pre_hook(note, with_kwargs=True)
    return trainer, shapes


def without_dropout(trainer):
    """The same trainer, its model without dropout."""
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return trainer


def run_out_of_memory(trainer, rows, times=99, backward_of=None, message=FULL):
    """Memory is too small for more than `rows` rows, `times` times, in the forward pass or in one backward pass.

    backward_of: the number of the pass whose backward pass fails. Returns a list of the rows of each forward pass.
    """
    left = [times]
    passes = []

    def forward(module, args, inputs):
        passes.append(len(inputs["input_ids"]))
        if backward_of is None and module.training and passes[-1] > rows and left[0] > 0:
            left[0] -= 1
            raise torch.OutOfMemoryError(message)

    def backward(gradient):
        if len(passes) == backward_of and left[0] > 0:  # other parameters have their gradients already
            left[0] -= 1
            raise torch.OutOfMemoryError(message)

    trainer.model.register_forward_pre_hook(forward, with_kwargs=True)
    first = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
    first.register_hook(backward)
    return passes


def outcome(trainer):
    """What a training becomes: (loss and norm of the gradients of each step, trained weights)."""
    trainer.train()
    log = [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry]
    weights = [p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]
    return torch.tensor(log), torch.cat(weights)


def same(one, other, tolerance=1e-6):
    """Whether two outcomes are the same, up to rounding."""
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(one, other, strict=True))
