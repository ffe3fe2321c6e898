"""Generation as transformers does it (generation/utils.py), on tensors without numbers."""

from utils.planner.families import ENCODER_DECODER
from utils.planner.tape import Buffer, Tensor

BYTES_A_TOKEN = 8  # input ids
BYTES_A_TOKEN_OF_BEAMS = 100  # ids, running and finished sequences, indices of beams


def generate(net, family, settings):
    """Plays the prompt with its first new token, then the last token; returns the bytes of keys and values then.

    net: a Net. family: its Family. settings: a completed PlanSettings with `generate`.
    accelerate wraps the forward pass of the model itself into autocast: the encoder runs without it, and so does all
    of a model that PEFT has wrapped.
    """
    asked = settings.generate
    tape = net.tape
    autocast_size = net.autocast_size
    rows = asked.batch * asked.num_beams
    has_encoder = family.shape == ENCODER_DECODER
    tape.moment = "generation"
    net.writing = True
    net.autocast_size = None
    past = asked.length
    if has_encoder:
        past = 1  # the decoder's start token
        _run_encoder(net, family, asked)
    if not settings.lora:
        net.autocast_size = autocast_size
    net.key_values = {}

    bytes_a_token = BYTES_A_TOKEN if asked.num_beams == 1 else BYTES_A_TOKEN_OF_BEAMS
    ids = Buffer(tape, rows * (past + asked.max_new_tokens) * bytes_a_token, "logits and loss")
    scores = []
    last_layer_before = None
    for tokens_before in _first_and_last(asked.max_new_tokens):
        if tokens_before:
            net.past = past + tokens_before - 1
            last_layer_before = _grow_cache(net)  # counted to the end, which errs to the safe side
        tape.kind = "activations"
        length = asked.length if has_encoder or not tokens_before else 1
        # the scores of the step before live until all of the new ones are there
        scores = _scores(net, family.forward(net, rows, length, 1), asked.num_beams)
        if asked.num_beams > 1:
            _reorder_cache(net)
    cache = 0
    for kept in net.key_values.values():
        for tensor in (kept.keys, kept.values):
            cache += tensor.count * tensor.size

    del ids, scores, last_layer_before
    net.key_values = None
    net.encoder_states = None
    net.held_scores = None
    net.past = 0
    net.autocast_size = autocast_size
    net.writing = False
    return cache


def _run_encoder(net, family, asked):
    """Leaves in `net` what the encoder found, once for each beam."""
    states = family.forward(net, asked.batch, asked.length, 0)
    if asked.num_beams > 1:
        states = Tensor(net.tape, states.count * asked.num_beams, states.size)
    net.encoder_states = states


def _first_and_last(tokens):
    """How many tokens are there before the first new one, and before the last one."""
    if tokens == 1:
        return [0]
    return [0, tokens - 1]


def _grow_cache(net):
    """Makes keys and values as long as `net.past`, or as the window; those of the encoder's side stay.

    Returns the last layer's keys and values as they were.
    """
    before = None
    for kept in net.key_values.values():
        before = (kept.keys, kept.values)
        if kept.position_size is None:
            continue
        positions = min(net.past, kept.window or net.past)
        for name in ("keys", "values"):
            size = getattr(kept, name).size
            setattr(kept, name, None)  # freed first: in between there were many steps
            setattr(kept, name, Tensor(net.tape, kept.position_size * positions, size))
    return before


def _scores(net, logits, num_beams):
    """The scores of the next token, for all of the vocabulary."""
    tape = net.tape
    tape.autocast_copies.clear()
    if net.autocast_size:
        logits = net.cast(logits, 4)  # accelerate
    scores = [Tensor(tape, logits.count, 4)]
    tape.spike(scores[0].count * 4)  # a logits processor works on a copy
    if num_beams > 1:
        scores.append(Tensor(tape, scores[0].count, 4))  # log_softmax
        tape.spike(scores[0].count * 4)  # plus the score of the beam so far
    return scores


def _reorder_cache(net):
    """Keys and values follow their beams: each is copied; of a sliding window, without its oldest position."""
    for kept in net.key_values.values():
        for name in ("keys", "values"):
            tensor = getattr(kept, name)
            count = tensor.count
            if kept.window:
                count = min(count, kept.position_size * (kept.window - 1))
            setattr(kept, name, Tensor(net.tape, count, tensor.size))
