"""The model families that the planner knows: their forward passes, and what libraries do with them by default.

Each forward pass follows its file in transformers (models/*/modeling_*.py), line by line where a line allocates; linear
layers follow peft (tuners/lora) and bitsandbytes (autograd/_functions.py); types under autocast follow torch's list for
CUDA.
"""

from collections.abc import Callable
from dataclasses import dataclass

from utils.planner.families.bert import bert
from utils.planner.families.gated import gated
from utils.planner.families.modernbert import modernbert
from utils.planner.families.opt import opt
from utils.planner.families.t5 import t5

DECODER = "decoder"
ENCODER = "encoder"
ENCODER_DECODER = "encoder-decoder"


@dataclass(frozen=True)
class Family:
    """What the planner knows of one model_type of transformers."""

    forward: Callable
    """forward(net, batch, length, target_length): plays one forward pass on `net`; returns the loss, or while
    generating the logits of the last position."""
    shape: str
    """DECODER, ENCODER (planned as a classifier) or ENCODER_DECODER."""
    measured: bool = False
    """Whether plans of it were compared with a card (benchmarks/receipts/memory.json), or with a live model on a CPU
    alone (tests/unit/test_planner.py)."""
    lora_targets: tuple = ("q_proj", "v_proj")
    """The layers that peft chooses when a LoraConfig names none; empty if it refuses to choose."""
    attention: str = "sdpa"
    """The attention kernel that transformers chooses."""
    keep_in_fp32: tuple = ()
    """Modules that transformers does not quantize, and keeps in float32 unless the model is loaded in bfloat16."""
    has_liger_kernels: bool = False
    """Whether Liger replaces its norms, rotary positions and MLP."""
    fills_in_configuration: bool = False
    """Whether config.json leaves out values that the forward pass needs, so that transformers fills them in."""


FAMILIES = {
    "bert": Family(bert, ENCODER, measured=True, lora_targets=("query", "value")),
    "t5": Family(t5, ENCODER_DECODER, measured=True, lora_targets=("q", "v"), keep_in_fp32=("wo",)),
    "opt": Family(opt, DECODER, measured=True),
    "gemma2": Family(gated, DECODER, measured=True, attention="eager", has_liger_kernels=True),
    "llama": Family(gated, DECODER, has_liger_kernels=True),
    "mistral": Family(gated, DECODER, has_liger_kernels=True),
    "qwen2": Family(gated, DECODER, has_liger_kernels=True),
    "qwen3": Family(gated, DECODER, has_liger_kernels=True, fills_in_configuration=True),
    "smollm3": Family(gated, DECODER, lora_targets=(), has_liger_kernels=True, fills_in_configuration=True),
    "gemma3_text": Family(gated, DECODER, has_liger_kernels=True, fills_in_configuration=True),
    "modernbert": Family(modernbert, ENCODER, lora_targets=(), fills_in_configuration=True),
}
