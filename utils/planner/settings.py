"""What a plan is made of: the parts, the cards, the settings of a run, and the one place where they are checked."""

import dataclasses
import numbers
import sys
from dataclasses import dataclass, field
from typing import Any

from utils.errors import CourseError, closest
from utils.planner.families import DECODER, ENCODER, FAMILIES
from utils.planner.layers import HEADS
from utils.units import GIB

PARTS = (
    "weights",
    "adapters",
    "gradients",
    "optimizer states",
    "activations",
    "logits and loss",
    "temporary",
    "CUDA libraries",
)
CARDS = {  # GiB that torch finds on them
    "T4 16 GB": 14.7,
    "RTX 3060 12 GB": 11.7,
    "RTX 4090 24 GB": 23.6,
    "A100 40 GB": 39.4,
    "A100 80 GB": 79.2,
    "H200 141 GB": 139.8,
}
CONTEXT = int(0.75 * GIB)  # what CUDA itself takes, outside of torch's allocator: measured on an H200
SLACK = 0.05  # share of the peak that the allocator holds in pieces too small to use
METHODS = ("full", "lora", "qlora")
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of an element
BY_METHOD = "by method"  # the value of a setting that follows from the method


@dataclass
class LoraSettings:
    """What the planner reads of a peft LoraConfig."""

    rank: int = 8
    """The inner size of both matrices."""
    dropout: float = 0.0
    """Probability of dropout before the first matrix."""
    target_modules: Any = ()
    """Names of linear layers, a regular expression for full names, or "all-linear"."""
    layers_to_transform: tuple | None = None
    """Numbers of the layers that get adapters; None for all."""
    modules_to_save: tuple = ()
    """Names of modules of which PEFT trains a copy, in full."""

    def transforms_layer(self, number):
        """Whether layer `number` gets adapters; None for a module outside of the numbered layers."""
        return self.layers_to_transform is None or number in self.layers_to_transform


@dataclass
class QuantizationSettings:
    """What the planner reads of a BitsAndBytesConfig for 4 bits."""

    scales: str = "double"
    """"double" if the scales are quantized, too; else "single"."""
    compute_size: int = 2
    """Bytes of an element of the type that layers compute in."""
    skip: set = field(default_factory=set)
    """Names of modules that stay as they are."""


@dataclass
class GenerationSettings:
    """How an evaluation generates text."""

    max_new_tokens: int
    """Tokens that are written for each row."""
    batch: int
    """Rows at once."""
    length: int
    """Tokens of the prompt, padding included, or of the encoder's side."""
    num_beams: int = 1
    """Beams of the search; 1 for greedy search or sampling."""


@dataclass
class PlanSettings:
    """The settings of one training run, as `plan` takes them by keyword.

    None stands for a default that follows from the model or the other settings. In the settings of a finished plan all
    of these are filled in, and lora, quantization and generate are LoraSettings, QuantizationSettings and
    GenerationSettings, or None.
    """

    batch: int = 8
    """Rows of one forward pass in training (a micro-batch, on one device)."""
    length: int = 512
    """Tokens a row, padding included; for an encoder-decoder, those that the encoder reads."""
    target_length: int | None = None
    """Tokens a row of the decoder's side, for an encoder-decoder. By default an eighth of length."""
    num_labels: int | None = None
    """Classes, for a classifier. By default what the configuration says; 2 for an encoder."""
    lora: Any = None
    """A peft LoraConfig, or a dict with some of its fields. By default r = 16 on all linear layers, or none for the
    method "full"."""
    quantization: Any = None
    """A BitsAndBytesConfig for 4 bits, or a dict with some of its fields. By default NF4 with double quantization for
    the method "qlora", else none."""
    dtype: Any = BY_METHOD
    """The type of weights that are not quantized: "float32", "bfloat16", "float16" or torch's own. By default float32
    for the method "full" without LoRA, else bfloat16."""
    autocast: Any = BY_METHOD
    """The type of autocast, as with bf16=True: "bfloat16", "float16" or None. By default None for the method "full"
    without LoRA, else bfloat16."""
    attention: str | None = None
    """"eager", "sdpa", "flex_attention", "sdpa_shared_bias" (T5; utils/speed/t5_bias.py), or another kernel that keeps
    what flex_attention keeps. By default what transformers chooses for the model."""
    checkpointing: bool = False
    """Activation checkpointing (gradient_checkpointing=True): each layer keeps its input only."""
    accumulation: int = 1
    """Micro-batches whose gradients are added up for one step of the optimizer."""
    optimizer: str = "adamw_torch_fused"
    """A name of TrainingArguments.optim."""
    prepare: bool = False
    """Whether prepare_model_for_kbit_training is called, which casts what is not quantized to float32."""
    keep_in_fp32: Any = None
    """Names of modules that transformers does not quantize, and keeps in float32 unless dtype is bfloat16. By default
    ["wo"] for T5."""
    eval_batch: int | None = None
    """Rows of an evaluation batch. By default batch."""
    padded: bool = True
    """Whether rows differ in length, so that there is padding and a mask."""
    hopper: bool | None = None
    """Whether the card is a Hopper (H100, H200), whose cuBLAS takes more work space. By default that of this
    machine."""
    generate: Any = None
    """A dict if the evaluation generates, as with predict_with_generate: max_new_tokens (target_length), batch
    (eval_batch), length (length), num_beams (1). By default it does not."""
    liger: bool = False
    """Liger's fused kernels for norms, rotary positions and the gated MLP; families without these ignore it."""
    compiled: bool = False
    """Whether each layer is compiled: it keeps what it multiplies and computes the rest again (decoders only)."""
    cast_inputs: bool = True
    """Whether PEFT casts what goes into an adapter to float32; not inside disable_input_dtype_casting."""
    fused_head: bool = False
    """TRL's loss in pieces, as SFTTrainer computes it, instead of all logits at once."""

    @property
    def dtype_size(self):
        """Bytes of an element of weights that are not quantized."""
        return SIZES[self.dtype]

    @property
    def autocast_size(self):
        """Bytes of an element under autocast; None without it."""
        return SIZES[self.autocast] if self.autocast else None


def complete_settings(configuration, method, keywords):
    """The PlanSettings of `keywords` for a model and a method, checked, with every default filled in.

    configuration: a Configuration. method: "full", "lora" or "qlora". keywords: {name: value}.
    Raises CourseError for an unknown name or a value that no run could have.
    """
    _refuse_unknown_names(keywords, PlanSettings)
    _refuse_unknown_names(keywords.get("generate") or {}, GenerationSettings)
    if method not in METHODS:
        raise CourseError(f"method {method!r} is not known; write 'full', 'lora' or 'qlora'.")
    settings = PlanSettings(**keywords)
    _fill_in_from_method(settings, method)
    settings.dtype = _type_name("dtype", settings.dtype)
    if settings.autocast is not None:
        settings.autocast = _type_name("autocast", settings.autocast)
    _fill_in_from_others(settings)
    _fill_in_from_model(settings, configuration)
    _refuse_impossible_sizes(settings)
    _fill_in_generation(settings, configuration)
    return settings


def _refuse_unknown_names(keywords, settings_class):
    names = [one.name for one in dataclasses.fields(settings_class)]
    for name in keywords:
        if name not in names:
            hint = closest(name, names)
            raise CourseError(f"memory.plan has no setting {name!r} (closest: {hint!r}); correct it.")


def _fill_in_from_method(settings, method):
    if not settings.lora:
        settings.lora = None if method == "full" else {"target_modules": "all-linear", "r": 16}
    if not settings.quantization:
        settings.quantization = {} if method == "qlora" else None
    trains_all_in_float32 = method == "full" and settings.lora is None
    if settings.dtype in (BY_METHOD, None):
        settings.dtype = "float32" if trains_all_in_float32 else "bfloat16"
    if settings.autocast == BY_METHOD:
        settings.autocast = None if trains_all_in_float32 else "bfloat16"


def _type_name(setting, value):
    """The name of a number type, for its name or torch's own object."""
    name = str(value).removeprefix("torch.")
    if name not in SIZES:
        raise CourseError(f"{setting} {value!r} is not known; write 'float32', 'bfloat16' or 'float16'.")
    return name


def _fill_in_from_others(settings):
    if settings.target_length is None:
        settings.target_length = max(1, settings.length // 8)
    if settings.eval_batch is None:
        settings.eval_batch = settings.batch
    if settings.hopper is None:
        settings.hopper = _on_hopper()


def _fill_in_from_model(settings, configuration):
    family = FAMILIES.get(configuration.model_type)
    if settings.compiled and (family is None or family.shape != DECODER):
        raise CourseError(
            f"{configuration.name}: what compiled layers keep is known of decoders only; leave out compiled."
        )
    if settings.num_labels is None:
        settings.num_labels = configuration.values.get("num_labels")
    if settings.attention is None:
        settings.attention = family.attention if family else "sdpa"
    if settings.keep_in_fp32 is None:
        settings.keep_in_fp32 = family.keep_in_fp32 if family else ()
    settings.liger = bool(settings.liger and family and family.has_liger_kernels)
    if settings.lora is not None:
        settings.lora = _read_lora(settings.lora, settings.num_labels, configuration.model_type)
    if settings.quantization is not None:
        settings.quantization = _read_quantization(settings.quantization)
    if settings.num_labels is None and family and family.shape == ENCODER:
        settings.num_labels = 2  # transformers' default


def _refuse_impossible_sizes(settings):
    for name in ("batch", "length", "target_length", "eval_batch", "accumulation"):
        _refuse_unless_whole(name, getattr(settings, name))


def _refuse_unless_whole(name, value):
    if not isinstance(value, numbers.Integral) or value < 1:
        raise CourseError(f"{name} is {value!r}; write a whole number from 1.")


def _fill_in_generation(settings, configuration):
    family = FAMILIES.get(configuration.model_type)
    if settings.generate is None or family is None:
        return
    if family.shape == ENCODER or settings.num_labels:
        raise CourseError(f"{configuration.name}: a classifier writes no text; leave out generate.")
    defaults = {
        "max_new_tokens": settings.target_length,
        "batch": settings.eval_batch,
        "length": settings.length,
        "num_beams": 1,
    }
    settings.generate = GenerationSettings(**{**defaults, **settings.generate})
    for name, value in dataclasses.asdict(settings.generate).items():
        _refuse_unless_whole(f"generate: {name}", value)


def _on_hopper():
    """Whether this process runs on a Hopper card; does not import torch to find out."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability()[0] == 9


def _field(config, name, default=None):
    """A field of a dict or an object; `default` if it is not there, or None."""
    value = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
    return default if value is None else value


def _read_lora(config, num_labels, model_type):
    """The LoraSettings of a LoraConfig or a dict."""
    targets = _field(config, "target_modules") or _targets_of_peft(model_type)
    layers = _field(config, "layers_to_transform")
    if isinstance(layers, int):
        layers = [layers]
    saved = list(_field(config, "modules_to_save", []))
    family = FAMILIES.get(model_type)
    encoder = family is not None and family.shape == ENCODER
    classifies = encoder or "SEQ_CLS" in str(_field(config, "task_type", ""))
    if isinstance(config, dict) and num_labels:
        classifies = True
    if classifies:
        saved += ["classifier", "score"]
    return LoraSettings(
        rank=_field(config, "r", 8),
        dropout=_field(config, "lora_dropout", 0.0),
        target_modules=targets if isinstance(targets, str) else tuple(targets),
        layers_to_transform=None if layers is None else tuple(layers),
        modules_to_save=tuple(saved),
    )


def _targets_of_peft(model_type):
    """The layers that peft chooses when a LoraConfig names none."""
    family = FAMILIES.get(model_type)
    targets = family.lora_targets if family else ("q_proj", "v_proj")
    if not targets:
        raise CourseError(f"peft chooses no layers of {model_type!r} by itself; name target_modules in lora.")
    return targets


def _read_quantization(config):
    """The QuantizationSettings of a BitsAndBytesConfig or a dict."""
    if _field(config, "load_in_8bit", False):
        raise CourseError("the planner knows 4-bit quantization only; set load_in_4bit=True.")
    double = _field(config, "bnb_4bit_use_double_quant", isinstance(config, dict))
    compute = _type_name("bnb_4bit_compute_dtype", _field(config, "bnb_4bit_compute_dtype", "bfloat16"))
    return QuantizationSettings(
        scales="double" if double else "single",
        compute_size=SIZES[compute],
        skip={*_field(config, "llm_int8_skip_modules", []), *HEADS},
    )
