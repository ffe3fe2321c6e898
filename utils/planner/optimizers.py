"""What an optimizer keeps of a weight."""

from utils.planner.tape import divide_up

SMALLEST_IN_8_BITS = 4096  # elements: bitsandbytes keeps the states of smaller weights in float32
SMALLEST_PAGED = 100_000  # elements: bitsandbytes pages nothing smaller
BLOCK_OF_8_BITS = 256  # elements that share one float32 scale


def state_bytes(weight, optimizer):
    """(bytes on the card, bytes in paged memory) of the optimizer states of `weight`.

    optimizer: a name of TrainingArguments.optim. All but SGD are taken for a kind of Adam, with two states a value.
    """
    name = optimizer.lower()
    if name.startswith("sgd"):
        return 0, 0
    in_8_bits = "8bit" in name and weight.count >= SMALLEST_IN_8_BITS
    if in_8_bits and not weight.embedding:  # Trainer keeps those of embeddings at 32 bits
        states = 2 * (weight.count + 4 * divide_up(weight.count, BLOCK_OF_8_BITS))
    elif "bit" in name:  # bitsandbytes: float32, whatever the weight is
        states = 2 * weight.count * 4
    else:
        states = 2 * weight.count * weight.size
    if "paged" in name and weight.count >= SMALLEST_PAGED:
        return 0, states
    return states, 0
