"""What makes a training step faster or smaller, one lever a file; `apply` pulls several of them on a loaded model.

README.md beside this file says what each lever does, brings and costs. A lever's module is imported when the lever is
asked for.
"""

import contextlib

from utils.errors import CourseError, closest
from utils.training.hooks import ForwardHookCallback

# Each of these decides how the layers of a model run, so only one of them can be on.
ONE_OF = ("compiled_layers", "compiled_checkpoints", "cuda_graphs", "compiled_graphs")


def apply(model, names):
    """Applies the levers called `names` to a loaded model, and prints one line: which are on, and which not and why.

    model: a model of transformers, with or without PEFT's adapters; where a lever belongs in it is found here.
    names: a list of names out of LEVERS, in any order.
    Returns a contextlib.ExitStack. Its end as a context manager, or its close(), takes everything back. Keep it as
    long as the levers should work: when nobody holds it any more, Python takes everything back, too.
    A lever that this machine or this architecture has no use for is left out, and the line says so. One that replaces a
    part of the model has to prove first, on this very model, that the answers stay the same (see proof.py).
    Raises CourseError for an unknown name, and for two levers that exclude each other.
    """
    if isinstance(names, str):
        names = [names]
    _check(names)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    on = []
    not_on = []
    with contextlib.ExitStack() as stack:
        for name, lever in LEVERS.items():
            if name not in names:
                continue
            try:
                stack.enter_context(_proved(lever, base) if name in REPLACE_A_PART else lever(base))
            except NotHereError as reason:
                not_on.append(f"{name} ({reason})")
            else:
                on.append(name)
        levers = stack.pop_all()
    if on or not_on:
        line = f"Speed levers on: {', '.join(on) or 'none'}"
        print(f"{line}; not on: {', '.join(not_on)}." if not_on else f"{line}.")
    return levers


@contextlib.contextmanager
def _proved(lever, base):
    """The lever, if the model answers the same with it as without it; raises NotHereError otherwise."""
    from utils.speed import proof

    without = proof.outputs(base)
    with lever(base):
        difference = proof.difference(without, proof.outputs(base))
        if not difference <= proof.tolerance(base):
            raise NotHereError(f"with it this model answers differently: by {difference:.1%}")
        yield


def _check(names):
    for name in names:
        if name not in LEVERS:
            hint = f"(closest: {closest(name, LEVERS)!r}); choose from: {', '.join(LEVERS)}"
            raise CourseError(f"speed: {name!r} is not known {hint}.")
    exclusive = [name for name in ONE_OF if name in names]
    if len(exclusive) > 1:
        remedy = 'name one of them ("compiled_graphs" are CUDA graphs of compiled layers)'
        raise CourseError(f"speed: {' and '.join(exclusive)} exclude each other; {remedy}.")


def has_flash_attention():
    """Whether the lever "flash_attention" runs on this machine: an H100 or newer with the package flash-attn-4."""
    from utils.speed import flash

    return not flash.why_not()


class DuringTraining(ForwardHookCallback):
    """Callback of Trainer that applies levers when a training begins and takes them back when it ends.

    names: as `apply` takes them; an empty list does nothing. Raises CourseError, already here, for an unknown name and
    for two levers that exclude each other.
    """

    def __init__(self, names):
        _check(names)
        self.names = names

    def add_hook(self, model):
        """Applies the levers; what it returns takes them back with `remove()`."""
        return _Applied(apply(model, self.names))


class _Applied:
    """Levers that are on, with the method that torch's handles of hooks have."""

    def __init__(self, levers):
        self.levers = levers

    def remove(self):
        self.levers.close()


class NotHereError(Exception):
    """A lever does nothing on this machine or for this model; the message says why, in a few words."""


# ---- the levers: each is a context manager over a model, and raises NotHereError before it changes anything


@contextlib.contextmanager
def _shared_position_bias(base):
    if base.config.model_type not in ("t5", "mt5"):
        raise NotHereError("only T5 has a position bias that all layers share")
    from utils.speed import t5_bias

    with _attention(base, t5_bias.share_position_bias()):
        yield


@contextlib.contextmanager
def _flash_attention(base):
    from utils.speed import flash

    _need_causal_decoder(base)
    if getattr(base.config, "attention_dropout", 0):
        raise NotHereError("attention_dropout is not 0")
    if flash.why_not():
        raise NotHereError(flash.why_not())
    with _without_cache(base), _attention(base, flash.compiled_flash()):
        yield


@contextlib.contextmanager
def _last_token(base):
    if type(base).__name__ != "Gemma2ForSequenceClassification":
        raise NotHereError("only for classifiers of Gemma-2")
    from utils.speed import last_token

    with _without_cache(base), last_token.reading_last_token(base):
        yield


@contextlib.contextmanager
def _no_padding_mask(base):
    _need_causal_decoder(base)
    from utils.speed import no_mask

    with no_mask.without_mask(base.get_decoder()):
        yield


@contextlib.contextmanager
def _compiled_layers(base):
    _need_gpu()
    from utils.speed import compiled_layers

    with compiled_layers.compiled(base, _layers(base)):
        yield


@contextlib.contextmanager
def _compiled_checkpoints(base):
    _need_causal_decoder(base)
    _need_gpu()
    from utils.speed import compiled_layers

    with _without_cache(base), compiled_layers.compiled_in_checkpoints(base, _layers(base)):
        yield


@contextlib.contextmanager
def _cuda_graphs(base, compiled=False):
    _need_gpu()
    from utils.speed import cuda_graphs

    with cuda_graphs.replay(_all_but_loss(base), compiled=compiled):
        yield


def _compiled_graphs(base):
    return _cuda_graphs(base, compiled=True)


# In the order in which they are applied. First what attention is, then what a decoder is given, then how layers run:
# what is compiled or captured must be the model as the levers before have made it.
LEVERS = {
    "shared_position_bias": _shared_position_bias,
    "flash_attention": _flash_attention,
    "last_token": _last_token,
    "no_padding_mask": _no_padding_mask,
    "compiled_layers": _compiled_layers,
    "compiled_checkpoints": _compiled_checkpoints,
    "cuda_graphs": _cuda_graphs,
    "compiled_graphs": _compiled_graphs,
}

# These put something else in the place of a part of the model, so they are proved before they are applied.
REPLACE_A_PART = ("shared_position_bias", "flash_attention", "last_token", "no_padding_mask")


# ---- what they need


def _need_gpu():
    import torch

    if not torch.cuda.is_available():
        raise NotHereError("no GPU here")


def _need_causal_decoder(base):
    """transformers tells every attention layer whether its tokens see only those before them."""
    causal = [module.is_causal for module in base.modules() if hasattr(module, "is_causal")]
    if not causal or not all(causal):
        raise NotHereError("not a causal decoder")


def _layers(base):
    """The layers that transformers itself would checkpoint, but for a last layer that `last_token` has changed."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    from utils.speed.last_token import LastTokenLayer

    layers = []
    for module in base.modules():
        if isinstance(module, GradientCheckpointingLayer) and not isinstance(module, LastTokenLayer):
            layers.append(module)
    if not layers:
        raise NotHereError("it has no layers that transformers knows as such")
    return layers


def _all_but_loss(base):
    """Of a causal language model its decoder, because TRL takes hidden states from it and computes the loss in pieces;
    of others the whole model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    is_language_model = type(base).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return base.base_model if is_language_model else base


@contextlib.contextmanager
def _attention(base, implementation):
    """Inside the block all layers use this `attn_implementation`, as if the model had been loaded with it."""
    earlier = base.config._attn_implementation
    base.set_attn_implementation(implementation)
    try:
        yield
    finally:
        base.set_attn_implementation(earlier)


@contextlib.contextmanager
def _without_cache(base):
    """Inside the block the model keeps no keys and values unless a call asks for them."""
    earlier = base.config.use_cache
    base.config.use_cache = False
    try:
        yield
    finally:
        base.config.use_cache = earlier
