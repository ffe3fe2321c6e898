"""One training step, one evaluation batch and one generation, played on tensors without numbers."""

from dataclasses import dataclass

from utils.planner.families import FAMILIES
from utils.planner.generation import generate
from utils.planner.layers import Net
from utils.planner.optimizers import state_bytes
from utils.planner.tape import Buffer, Tape

CUBLAS_WORKSPACE = {True: 32 * 2**20, False: 8.125 * 2**20}  # bytes, on a Hopper card and on others
MOMENT_OF_STEP = "optimizer step"
MOMENT_OF_EVALUATION = "evaluation pass"


@dataclass
class Simulation:
    """What a played run took, in bytes.

    total, parts: of the fullest instant. moments: {moment: its total}. saved: what is kept for the backward pass.
    paged: optimizer states that can leave the card. cache: keys and values when generation ends.
    """

    total: int
    parts: dict
    moments: dict
    saved: int
    paged: int
    cache: int


def build_network(config, settings):
    """The Net of a configuration (a dict) and a completed PlanSettings, with all its weights.

    They are made by one forward pass of one token.
    """
    net = Net(config, settings)
    net.tape = Tape()
    FAMILIES[config["model_type"]].forward(net, 1, 1, 1)
    return net


def simulate(net, settings, evaluate=True):
    """One optimizer step of `net`, then an evaluation batch unless `evaluate` is False; a Simulation.

    settings: a completed PlanSettings. It may differ from that of the network in what leaves the weights as they are:
    sizes of batches, number of tokens, generation.
    """
    family = FAMILIES[net.config["model_type"]]
    trained = [weight for weight in net.weights.values() if weight.trainable]
    tape = Tape()
    net.tape = tape
    net.training = True
    lasting, paged = _allocate_what_lasts(net, settings, trained)
    tape.checkpointing = settings.checkpointing
    tape.compiled = settings.compiled

    loss = family.forward(net, settings.batch, settings.length, settings.target_length)
    saved = tape.alive["activations"] + tape.alive["logits and loss"]
    tape.autocast_copies.clear()
    if trained:
        tape.backward(loss)
    tape.nodes = []
    loss = None

    tape.moment = MOMENT_OF_STEP
    tape.spike(1 + _work_of_step(settings, trained))
    for weight in trained:
        weight.grad = None

    tape.moment = MOMENT_OF_EVALUATION
    tape.kind = "activations"
    tape.recording = False
    net.training = False
    tape.spike(1)
    if evaluate:
        family.forward(net, settings.eval_batch, settings.length, settings.target_length)
        tape.autocast_copies.clear()
    cache = generate(net, family, settings) if settings.generate else 0

    fullest = max(tape.peaks.values(), key=lambda peak: peak.total)
    moments = {moment: peak.total for moment, peak in tape.peaks.items()}
    del lasting
    return Simulation(fullest.total, fullest.parts, moments, saved, paged, cache)


def _allocate_what_lasts(net, settings, trained):
    """(buffers of what a run holds all the time, bytes of optimizer states in paged memory)."""
    tape = net.tape
    workspace = 2 * CUBLAS_WORKSPACE[bool(settings.hopper)]  # one for the forward pass, one for the backward pass
    buffers = [Buffer(tape, workspace, "CUDA libraries")]
    for weight in net.weights.values():
        buffers.append(Buffer(tape, weight.nbytes, weight.kind))
    paged = 0
    for weight in trained:
        on_card, in_paged_memory = state_bytes(weight, settings.optimizer)
        buffers.append(Buffer(tape, on_card, "optimizer states"))
        paged += in_paged_memory
        weight.grad = None
        if settings.accumulation > 1:  # the gradients of the micro-batches before
            weight.grad = Buffer(tape, weight.count * weight.size, "gradients")
    return buffers, paged


def _work_of_step(settings, trained):
    """Bytes of work space in the optimizer's step."""
    if settings.optimizer != "adamw_torch":
        return 0
    # without "fused", torch takes the root of all second moments at once, into new tensors
    return sum(weight.count * weight.size for weight in trained)
