"""Small models with random weights, and batches for them, for the tests of utils/speed."""

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig

BERT = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)

GEMMA = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.7,  # large scores, so that the cap and a window are seen
    "pad_token_id": 0,
    "num_labels": 3,
    "use_cache": False,
}


def bert_batch(rows=4, length=8):
    """A batch for BERT, without padding."""
    ids = torch.randint(5, 99, (rows, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(rows, dtype=torch.long)}


def gemma2_classifier(attention, dtype=torch.float32, **changes):
    """A small Gemma-2 classifier with this attention; the same weights each time."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma2", **{**GEMMA, **changes})
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=attention, dtype=dtype)


def gemma2_batch(length, left=False):
    """Three rows for Gemma-2, the second with five positions of padding, on the right unless `left`."""
    ids = torch.randint(1, 64, (3, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, slice(0, 5) if left else slice(-5, None)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor([0, 1, 2])}


def loss_logits_and_gradients(model, batch):
    """[loss, logits, the gradient of each parameter that learns], in float32 on the CPU."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    output = model(**batch)
    output.loss.backward()
    tensors = [output.loss.detach(), output.logits.detach()]
    for parameter in model.parameters():
        if parameter.requires_grad:
            tensors.append(parameter.grad)
    return [tensor.float().cpu() for tensor in tensors]
