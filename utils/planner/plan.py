"""The planner: what a run will need, by component, before it starts."""

import dataclasses

from utils.planner.configuration import read_configuration
from utils.planner.families import FAMILIES
from utils.planner.parameters_only import build_parameters, note_of_parameters, parts_of_parameters
from utils.planner.settings import CARDS, CONTEXT, PARTS, SLACK, complete_settings
from utils.planner.simulate import build_network, simulate
from utils.units import GIB

LARGEST_BATCH = 4096  # the search for the largest batch ends here
DECIDES = 0.7  # a moment below this share of the total does not decide which batch fits


class Plan(dict):
    """Bytes by component at the fullest instant of a run, and "total", their sum: the peak that torch will report.

    print() adds what each card of CARDS makes of it. A plan of parameters only has neither peaks nor cards.

    title: what is planned. note: what is not certain. settings: the PlanSettings with every default filled in.
    config: the model's configuration, a dict. net: the network with its weights. peaks: {moment: its total in bytes}.
    saved: bytes kept for the backward pass. paged: optimizer bytes that can move to the computer's own memory.
    cache: bytes of keys and values when generation ends.
    """

    def __init__(self, parts, title, note, settings, net, peaks=None, saved=0, paged=0, cache=0):
        super().__init__(parts)
        self["total"] = sum(parts.values())
        self.title = title
        self.note = note
        self.settings = settings
        self.config = net.config
        self.net = net
        self.peaks = peaks or {}
        self.saved = saved
        self.paged = paged
        self.cache = cache
        self._needs = {}  # {batch: bytes on a card}, of batches that largest_batch has tried

    def __str__(self):
        lines = [self.title]
        for part, size in self.items():
            lines.append(f"{part:20} {size / GIB:8.2f} GiB")
        if self.peaks:
            moments = [f"{name} {size / GIB:.2f}" for name, size in self.peaks.items()]
            lines += [f"moments: {', '.join(moments)}", "", *self._lines_of_cards()]
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)

    def _lines_of_cards(self):
        lines = [f"{'card':16} {'needs GiB':>9} {'has':>6}  fits  largest batch"]
        for card, row in self.cards().items():
            lines.append(f"{card:16} {row['needs']:9.1f} {row['has']:6.1f}  {row['fits']:4}  {row['largest batch']}")
        return lines

    @property
    def bytes_on_card(self):
        """The total with what the allocator cannot use and what CUDA takes for itself."""
        return bytes_on_card(self["total"])

    def cards(self):
        """{card: needs (GiB, with CUDA's own part and slack), has (GiB), fits ("yes" or "no"), largest batch}."""
        rows = {}
        for card, has in CARDS.items():
            rows[card] = {
                "needs": self.bytes_on_card / GIB,
                "has": has,
                "fits": "yes" if self.bytes_on_card <= has * GIB else "no",
                "largest batch": self.largest_batch(has),
            }
        return rows

    def largest_batch(self, gib):
        """The largest batch of this plan that a card with `gib` GiB can train; 0 if none. Between two powers of two
        the need is taken as a straight line, which errs to the safe side."""
        batch = 1
        while batch < LARGEST_BATCH and self._need(2 * batch) <= gib:
            batch *= 2
        share = (gib - self._need(batch)) / (self._need(2 * batch) - self._need(batch))
        return int(batch * (1 + share)) if share >= 0 else 0

    def _need(self, batch):
        """GiB on a card if the batch were `batch`, in training, evaluation and generation."""
        if batch not in self._needs:
            generate = self.settings.generate
            if generate:
                decides = self.peaks["generation"] > DECIDES * self["total"]
                generate = dataclasses.replace(generate, batch=batch) if decides else None
            settings = dataclasses.replace(self.settings, batch=batch, eval_batch=batch, generate=generate)
            evaluate = self.peaks["evaluation pass"] > DECIDES * self["total"]
            self._needs[batch] = bytes_on_card(simulate(self.net, settings, evaluate).total)
        return self._needs[batch] / GIB


def bytes_on_card(total):
    """What `total` bytes of tensors take of a card: with pieces too small to use, and CUDA's own part."""
    return total * (1 + SLACK) + CONTEXT


def plan(model, method="full", *, batch=8, length=512, **settings):
    """What one training run needs, from the configuration alone: no weights, no network, no GPU; a Plan.

    model: a configuration, a model, a folder with config.json, a name the course knows, or a hub id (asks the hub).
    method: "full", "lora" (r = 16 on all linear layers), "qlora" (the same on NF4 with double quantization).
    batch, length: rows and tokens a row, padding included.
    settings: the other fields of PlanSettings (utils/planner/settings.py), which says what each of them means:
    target_length, num_labels, lora, quantization, dtype, autocast, attention, checkpointing, accumulation, optimizer,
    prepare, keep_in_fp32, eval_batch, padded, hopper, generate, liger, compiled, cast_inputs, fused_head.
    Raises CourseError for a model without a configuration, an unknown setting, or a value that no run could have.
    """
    configuration = read_configuration(model)
    completed = complete_settings(configuration, method, {"batch": batch, "length": length, **settings})
    if configuration.model_type not in FAMILIES:
        net = build_parameters(configuration, completed)
        return Plan(
            parts_of_parameters(net),
            title=f"{configuration.name}: planned memory of the parameters",
            note=note_of_parameters(configuration.model_type),
            settings=completed,
            net=net,
        )
    net = build_network(configuration.values, completed)
    simulation = simulate(net, completed)
    return Plan(
        {part: simulation.parts.get(part, 0) for part in PARTS},
        title=f"{configuration.name}, batch {batch}, length {length}: planned memory at the fullest instant",
        note=_note(configuration, simulation.paged),
        settings=completed,
        net=net,
        peaks=simulation.moments,
        saved=simulation.saved,
        paged=simulation.paged,
        cache=simulation.cache,
    )


def _note(configuration, paged):
    """What is not certain about the plan of a model whose forward pass is known."""
    sentences = []
    if paged:
        sentences.append(
            f"{paged / GIB:.2f} GiB of optimizer states are paged: they can move to the computer's memory."
        )
    if not FAMILIES[configuration.model_type].measured:
        sentences.append(
            f"The layers of {configuration.model_type!r} follow transformers, but were never measured on a card."
        )
    if configuration.remark:
        sentences.append(configuration.remark)
    return " ".join(sentences)
