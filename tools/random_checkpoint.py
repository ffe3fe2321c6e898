"""A checkpoint of full size with random weights: memory and speed depend on shapes and types, not on the values."""

import copy
import json
import re

LAYER = re.compile(r"((?:\w+\.)*?(?:block|layers?)\.)(\d+)\.(.+)")  # the first number in a name: T5 has two
NUMBERS_OF_LAYERS = ("num_hidden_layers", "num_layers", "num_decoder_layers")


def random_checkpoint(model_class, config, folder, device="cuda"):
    """Writes what `save_pretrained` would of a model with random weights in bfloat16, one file a layer.

    model_class: a class of transformers with `from_config`. config: its configuration, at full size; afterwards it
    names the architecture and the data type. folder: is made. device: where the weights are drawn.

    Made are two layers only; the others are copies of the second. So it takes seconds and little memory.
    """
    import torch

    with torch.device(device):
        model = model_class.from_config(with_two_layers(config), dtype=torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    write_layers(tensors_of_each_layer(model, config), folder)
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def with_two_layers(config):
    """A copy of a configuration with at most two layers, in the encoder and in the decoder."""
    small = copy.deepcopy(config)
    known = config.to_dict()
    for name in NUMBERS_OF_LAYERS:
        if name in known:
            setattr(small, name, min(2, getattr(config, name)))
    if getattr(config, "layer_types", None):
        small.layer_types = config.layer_types[:2]
    return small


def tensors_of_each_layer(model, config):
    """{number of a layer: {name: tensor}} of all layers of `config`, from a model with two; 0 holds the rest, too."""
    tensors = {0: {}}
    for name, parameter in model.named_parameters():  # a tied one has one name here, as in save_pretrained
        match = LAYER.fullmatch(name)
        if match is None:
            tensors[0][name] = parameter.detach()
            continue
        stack, number, rest = match.groups()
        if number == "0":
            tensors[0][name] = parameter.detach()
            continue
        layers = config.num_hidden_layers
        if stack.startswith("decoder."):
            layers = config.num_decoder_layers
        for layer in range(1, layers):
            tensors.setdefault(layer, {})[f"{stack}{layer}.{rest}"] = parameter.detach()
    return tensors


def write_layers(tensors_of_layers, folder):
    """Writes a file of safetensors for each layer, and the index that says which tensor is in which."""
    from safetensors.torch import save_file

    file_of = {}
    total_size = 0
    for number, tensors in tensors_of_layers.items():
        file = f"model-{number + 1:05}-of-{len(tensors_of_layers):05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        for name, tensor in tensors.items():
            file_of[name] = file
            total_size += tensor.numel() * tensor.element_size()
    index = {"metadata": {"total_size": total_size}, "weight_map": file_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
