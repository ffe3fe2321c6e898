"""The published recipe of a lesson, timed on your GPU: random weights of the real shape, the rows of a rehearsal.

python benchmarks/reference.py --nb 05 [--steps 5] [--keep folder]

`make rehearse` measures the course's recipe on the same rows. What was changed in the recipe so that it runs on today's
libraries, and nothing else, is listed in CHANGED. Results: one JSON file.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import rehearse  # noqa: E402

CHANGED = {
    "05": [
        "overwrite_output_dir, evaluation and checkpoints left out, torch_dtype renamed to dtype",
        "quantized when loaded, as the published checkpoint was: NF4, double quantization, bfloat16",
        "attn_implementation='eager' written out: what transformers took for Gemma-2 then",
        "texts from json.loads instead of eval, the turns of a talk joined by a space",
        "no <eos> behind a text; the pad token is named in the configuration, which today's classifier needs",
    ],
}


def reference_05(rows, folder):
    """(model, training arguments, tokenized rows, collator) of the Gemma-2 notebook, batches of 2 x 16."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorWithPadding,
        Gemma2ForSequenceClassification,
        TrainingArguments,
    )

    checkpoint = "google/gemma-2-9b-it"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="right")
    nf4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = Gemma2ForSequenceClassification.from_pretrained(
        checkpoint,
        num_labels=3,
        dtype=torch.float16,
        device_map="auto",
        attn_implementation="eager",
        quantization_config=BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=torch.bfloat16),
    )
    model.config.use_cache, model.config.pad_token_id = False, tokenizer.pad_token_id
    model = prepare_model_for_kbit_training(model)
    targets = ["k_proj", "o_proj", "q_proj", "v_proj", "gate_proj"]
    lora = LoraConfig(r=64, lora_alpha=32, target_modules=targets, lora_dropout=0.05, task_type=TaskType.SEQ_CLS)
    model = get_peft_model(model, lora)
    args = TrainingArguments(
        output_dir=folder,
        report_to="none",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=16,
        optim="adamw_8bit",
        fp16=True,
        learning_rate=1.7e-4,
        warmup_steps=20,
        logging_steps=10,
        save_strategy="no",
    )
    names = {"<prompt>: ": "prompt", "\n\n<response_a>: ": "response_a", "\n\n<response_b>: ": "response_b"}
    texts = ["".join(start + " ".join(json.loads(row[name])) for start, name in names.items()) for row in rows]
    encoded = tokenizer(texts, max_length=1024, truncation=True)["input_ids"]
    labels = [[row[name] for name in rehearse.WINNERS].index(1) for row in rows]
    found = [{"input_ids": ids, "labels": label} for ids, label in zip(encoded, labels, strict=True)]
    return model, args, found, DataCollatorWithPadding(tokenizer)


RECIPES = {"05": (reference_05, "google/gemma-2-9b-it", "lmsys/lmsys-arena-human-preference-55k", "train.csv")}


def measure(recipe, rows, folder, steps):
    """Trains for so many steps after a first one of warm-up; rows/s, real tokens/s, padding, peak bytes, mean loss."""
    import torch
    from transformers import Trainer, TrainerCallback

    model, args, encoded, collator = recipe(rows, folder)
    args.max_steps, counted = steps + 1, []

    def collate(batch):
        made = collator(batch)
        counted.append((len(batch), int(made["attention_mask"].sum()), made["attention_mask"].numel()))
        return made

    class Clock(TrainerCallback):
        times = []

        def on_step_end(self, args, state, control, **kwargs):
            torch.cuda.synchronize()
            self.times.append(time.perf_counter())
            if len(self.times) == 1:
                torch.cuda.reset_peak_memory_stats()

    trainer = Trainer(model, args, collate, train_dataset=encoded, callbacks=[Clock])
    loss = trainer.train().training_loss
    seconds = Clock.times[-1] - Clock.times[0]
    batches = counted[args.gradient_accumulation_steps : (steps + 1) * args.gradient_accumulation_steps]
    count, real, padded = (sum(column) for column in zip(*batches, strict=True))
    found = {"steps": steps, "seconds": seconds, "rows_per_second": count / seconds}
    found |= {"real_tokens_per_second": real / seconds, "tokens_a_row": real / count, "padding": 1 - real / padded}
    found |= {"peak_allocated_bytes": torch.cuda.max_memory_allocated(), "mean_loss": loss}
    return found | {"trainable_parameters": model.get_nb_trainable_parameters()[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nb", default="05", choices=[*RECIPES])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--keep", type=Path, default=Path())
    args = parser.parse_args()
    recipe, model_id, dataset_id, file = RECIPES[args.nb]
    folder = Path(tempfile.mkdtemp(prefix="reference-"))
    try:
        rehearse.enter(folder, 0)
        from transformers import AutoTokenizer

        from utils import environment

        shape = json.loads((rehearse.MODELS / "full_size.json").read_text("utf-8"))[model_id]
        place = rehearse.snapshot(folder / "hf" / "hub", model_id)
        rehearse.write_tokenizer(shape, place)
        rehearse.write_weights(shape, place)
        make, *_ = rehearse.DATA[dataset_id]
        rows = make(AutoTokenizer.from_pretrained(model_id))[0][file]
        found = measure(recipe, rows, folder / "out", args.steps)
        found = {"arm": "reference", "lesson": args.nb, "changed": CHANGED[args.nb]} | found | environment.facts()
        args.keep.mkdir(parents=True, exist_ok=True)
        (args.keep / f"{args.nb}_reference.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(SimpleNamespace(**found))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
