"""One training step, one evaluation and one generation, played on tensors without numbers."""

from types import SimpleNamespace

from utils.planner.families import FAMILIES
from utils.planner.layers import Net
from utils.planner.settings import PARTS, SIZES
from utils.planner.tape import Buffer, Tape, Tensor


def _state_bytes(weight, optimizer):
    """Bytes of the optimizer states of one weight on the card, and of those in paged memory."""
    count, name = weight.count, optimizer.lower()
    if name.startswith("sgd"):
        return 0, 0
    if "8bit" in name and count >= 4096 and not weight.embedding:  # Trainer keeps embeddings at 32 bits
        states = 2 * (count + 4 * -(-count // 256))  # one byte a value, one float32 scale for 256 values
    else:
        states = 2 * count * (4 if "bit" in name else weight.size)
    paged = "paged" in name and count >= 100_000  # bitsandbytes pages nothing smaller
    return (0, states) if paged else (states, 0)


def _net(s):
    """The network of settings as `plan` completes them, with all its weights: one forward pass of one token."""
    names = ("attention", "lora", "quantization", "prepare", "padded", "num_labels")
    setup = {name: s[name] for name in (*names, "liger", "fused_head", "cast_inputs")}
    setup |= {"dtype": SIZES[s["dtype"]], "dtype_name": s["dtype"], "autocast": SIZES[s["autocast"]]}
    net = Net(s["config"], setup | {"keep_in_fp32": set(s["keep_in_fp32"])})
    net.tape = Tape()
    FAMILIES[s["config"]["model_type"]](net, 1, 1, 1)
    return net


def simulate(net, evaluate=True, **s):
    """One optimizer step and one evaluation batch of `net` on `planner.tape`, for settings as `plan` completes them.

    Returns total and parts at the fullest instant, moments {moment: its total}, saved (bytes kept for the backward
    pass), paged (optimizer bytes that can leave the card) and cache (bytes of keys and values at generation's end).
    """
    forward, net.training = FAMILIES[s["config"]["model_type"]], True
    tape = net.tape = Tape()
    workspace = 2 * (32 if s["hopper"] else 8.125) * 2**20  # cuBLAS: one for the forward pass, one for the backward
    trained, static, paged = [w for w in net.weights.values() if w.trainable], [Buffer(tape, workspace, PARTS[-1])], 0
    static += [Buffer(tape, weight.nbytes, weight.kind) for weight in net.weights.values()]
    for weight in trained:
        here, there = _state_bytes(weight, s["optimizer"])
        static.append(Buffer(tape, here, "optimizer states"))
        paged += there
        weight.grad = Buffer(tape, weight.count * weight.size, "gradients") if s["accumulation"] > 1 else None
    tape.checkpointing, tape.compiled = s["checkpointing"], s["compiled"]
    loss = forward(net, s["batch"], s["length"], s["target_length"])
    saved = tape.alive["activations"] + tape.alive["logits and loss"]
    tape.cache.clear()
    if trained:
        tape.backward(loss)
    tape.nodes, loss = [], None
    tape.moment = "optimizer step"
    # without "fused", torch takes the root of all second moments at once, into new tensors
    tape.spike(1 + sum(w.count * w.size for w in trained if s["optimizer"] == "adamw_torch"))
    for weight in trained:
        weight.grad = None
    tape.moment, tape.kind, tape.recording, net.training = "evaluation pass", "activations", False, False
    tape.spike(1)
    if evaluate:
        forward(net, s["eval_batch"] or s["batch"], s["length"], s["target_length"])
        tape.cache.clear()
    cache = _generate(net, forward, s, **s["generate"]) if s["generate"] else 0
    total, parts = max(tape.peaks.values(), key=lambda peak: peak[0])
    moments = {moment: peak[0] for moment, peak in tape.peaks.items()}
    return SimpleNamespace(total=total, parts=parts, moments=moments, saved=saved, paged=paged, cache=cache)


def _generate(net, forward, s, batch, length, max_new_tokens, num_beams):
    """Generation as transformers does it (generation/utils.py): the prompt and its first new token, then the last one.

    accelerate wraps the forward pass of the model itself into autocast: the encoder runs without it, and so does all
    of a model that PEFT has wrapped. Returns the bytes of keys and values when the last token is there.
    """
    tape, half, rows, kind = net.tape, net.half, batch * num_beams, s["config"]["model_type"]
    tape.moment, net.half, net.writing, past = "generation", None, True, length
    if kind == "t5":
        past, states = 1, forward(net, batch, length, 0)  # past: the decoder's start token
        net.states = Tensor(tape, states.count * num_beams, states.size) if num_beams > 1 else states
        del states
    net.half, net.cache, held = None if s["lora"] else half, {}, []
    held.append(Buffer(tape, rows * (past + max_new_tokens) * (8 if num_beams == 1 else 100), "logits and loss"))  # ids
    for done in range(0, max_new_tokens, max(1, max_new_tokens - 1)):  # tokens that are there: none, all but one
        if done:
            net.past = past + done - 1
            for kept in net.cache.values():
                *_, each, window = kept
                for i in range(2) if each else ():
                    size, kept[i] = kept[i].size, None
                    kept[i] = Tensor(tape, each * min(net.past, window or net.past), size)
        tape.kind = "activations"
        logits = forward(net, rows, length if kind == "t5" or not done else 1, 1)
        tape.cache.clear()
        logits = net.cast(logits, 4) if net.half else logits  # accelerate
        scores = [Tensor(tape, logits.count, 4)]  # those of the step before live until all of these are there
        tape.spike(scores[0].count * 4)  # a logits processor works on a copy
        if num_beams > 1:
            scores.append(Tensor(tape, scores[0].count, 4))  # log_softmax
            tape.spike(scores[0].count * 4)  # plus the score of the beam so far
        held[1:], logits = scores, None
        for kept in net.cache.values() if num_beams > 1 else ():  # keys and values follow their beams
            for i, most in enumerate([kept[2] * (kept[3] - 1) if kept[3] else kept[0].count] * 2):
                kept[i] = Tensor(tape, min(kept[i].count, most), kept[i].size)
    cache = sum(tensor.count * tensor.size for kept in net.cache.values() for tensor in kept[:2])
    net.cache = net.states = net.held = None
    net.past, net.half, net.writing = 0, half, False
    return cache
