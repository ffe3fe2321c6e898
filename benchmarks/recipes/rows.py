"""The rows of the lessons' data sets, encoded as the recipes want them. A row is a dict, a key for each column."""

import json


def driver_intents_padded_to_512(tokenizer, rows):
    """Driver intents as lessons 01 and 02's published data set had them: tokens and a class, all rows 512 tokens."""
    class_names = sorted({row["label"] for row in rows})
    texts = [row["text"] for row in rows]
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=512)
    examples = []
    for number, row in enumerate(rows):
        examples.append(
            {
                "input_ids": encoded["input_ids"][number],
                "attention_mask": encoded["attention_mask"][number],
                "token_type_ids": encoded["token_type_ids"][number],
                "labels": class_names.index(row["label"]),
            }
        )
    return examples


def driver_intents(tokenizer, rows):
    """Driver intents, tokens and a class; a collator pads them."""
    class_names = sorted({row["label"] for row in rows})
    encoded = tokenizer([row["text"] for row in rows], truncation=True)["input_ids"]
    examples = []
    for input_ids, row in zip(encoded, rows, strict=True):
        examples.append({"input_ids": input_ids, "labels": class_names.index(row["label"])})
    return examples


def bills(tokenizer, rows):
    """Bills cut at 1,024 tokens, with their summaries cut at 128."""
    texts = ["summarize: " + row["text"] for row in rows]
    summaries = [row["summary"] for row in rows]
    inputs = tokenizer(texts, max_length=1024, truncation=True)["input_ids"]
    labels = tokenizer(text_target=summaries, max_length=128, truncation=True)["input_ids"]
    return [{"input_ids": ids, "labels": answer} for ids, answer in zip(inputs, labels, strict=True)]


def questions_and_answers(rows):
    """The first question of each conversation and its answer, as one text."""
    texts = []
    for row in rows:
        question, answer = row["conversations"][:2]
        texts.append(f"Question: {question}\n\nAnswer: {answer}")
    return texts


def comparisons(tokenizer, rows):
    """A question with two answers, cut at 1,024 tokens, and which one won: 0 for A, 1 for B, 2 for neither."""
    texts, labels = [], []
    for row in rows:
        prompt = " ".join(json.loads(row["prompt"]))
        response_a = " ".join(json.loads(row["response_a"]))
        response_b = " ".join(json.loads(row["response_b"]))
        texts.append(f"<prompt>: {prompt}\n\n<response_a>: {response_a}\n\n<response_b>: {response_b}")
        won = [int(row["winner_model_a"]), int(row["winner_model_b"]), int(row["winner_tie"])]
        labels.append(won.index(1))
    encoded = tokenizer(texts, max_length=1024, truncation=True)["input_ids"]
    return [{"input_ids": ids, "labels": label} for ids, label in zip(encoded, labels, strict=True)]
