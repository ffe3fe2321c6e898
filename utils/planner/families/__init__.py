"""The forward passes of the model families that the planner knows, written on tensors without numbers.

Each follows its file in transformers (models/*/modeling_*.py), line by line where a line allocates; linear layers
follow peft (tuners/lora) and bitsandbytes (autograd/_functions.py); types under autocast follow torch's list for CUDA.
"""

from utils.planner.families.bert import bert
from utils.planner.families.gated import gated
from utils.planner.families.opt import opt
from utils.planner.families.t5 import t5

FAMILIES = {"bert": bert, "t5": t5, "opt": opt, "gemma2": gated, "llama": gated, "mistral": gated, "qwen2": gated}
