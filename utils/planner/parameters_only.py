"""The plan for an architecture whose forward pass is not known: what follows from its parameters alone."""

import dataclasses

from utils.errors import CourseError
from utils.planner.families import FAMILIES
from utils.planner.layers import Net
from utils.planner.optimizers import state_bytes
from utils.planner.tape import Weight


def build_parameters(configuration, settings):
    """A Net with the weights of a model whose forward pass is not known; transformers builds it without memory.

    configuration: a Configuration. settings: a completed PlanSettings. Raises CourseError if transformers has no text
    model for it.
    """
    import torch  # not above: a model of a known family is planned without it

    config, model_class = _config_and_class(configuration, settings.num_labels)
    with torch.device("meta"):
        model = model_class.from_config(config)
    net = Net(configuration.values, dataclasses.replace(settings, keep_in_fp32=()))
    for name, tensor in model.named_parameters():
        net.weight(name, tensor.numel(), linear=tensor.ndim == 2 and "embed" not in name)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and net.targeted(name):
            count = settings.lora.rank * (module.in_features + module.out_features)
            net.weights[f"{name}.lora"] = Weight(f"{name}.lora", count, 4, True, None, "adapters")
    return net


def parts_of_parameters(net):
    """{part: bytes} of weights, adapters, gradients and optimizer states."""
    parts = {"weights": 0, "adapters": 0, "gradients": 0, "optimizer states": 0}
    for weight in net.weights.values():
        parts[weight.kind] += weight.nbytes
        if weight.trainable:
            parts["gradients"] += weight.count * weight.size
            on_card, _ = state_bytes(weight, net.settings.optimizer)
            parts["optimizer states"] += on_card
    return parts


def note_of_parameters(model_type):
    """What such a plan has to say."""
    return (
        f"The forward pass of {model_type!r} is not known here (known: {', '.join(FAMILIES)}): activations, logits and "
        "work space are NOT in this total."
    )


def _config_and_class(configuration, num_labels):
    """(transformers' configuration, the class that its model is loaded with)."""
    import transformers

    values = {name: value for name, value in configuration.values.items() if value is not None}
    config = transformers.AutoConfig.for_model(**values)
    if num_labels:
        config.num_labels = num_labels
    for model_class in _classes_to_try(config, num_labels):
        if type(config) in model_class._model_mapping:
            return config, model_class
    raise CourseError(
        f"{configuration.name}: transformers has no text model for {config.model_type!r}; choose another model."
    )


def _classes_to_try(config, num_labels):
    import transformers

    classes = [transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM, transformers.AutoModel]
    if config.is_encoder_decoder:
        classes = [transformers.AutoModelForSeq2SeqLM, transformers.AutoModel]
    if num_labels:
        classes.insert(0, transformers.AutoModelForSequenceClassification)
    return classes
