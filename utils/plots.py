"""One colour-blind safe style for all figures, the figures that every lesson draws, and a view of tokens."""

import html

import matplotlib.pyplot as plt
import numpy as np

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#777777"  # Okabe and Ito
plt.rcParams["figure.figsize"] = (7, 3)
plt.rcParams["axes.spines.top"] = plt.rcParams["axes.spines.right"] = plt.rcParams["legend.frameon"] = False
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=[BLUE, ORANGE, "#009E73", "#CC79A7"])
plt.rcParams["image.cmap"] = "Blues"


def show(figure, path):
    """Saves `figure` to `path` and shows it once, below the cell."""
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.show()


def length_histogram(lengths, max_length, path):
    """How many tokens the examples have (a sequence of integers), and what `max_length` tokens would cut off."""
    figure, axes = plt.subplots()
    axes.hist(lengths, bins=np.arange(min(lengths), max(lengths) + 2) - 0.5)
    if max_length <= max(lengths):
        axes.axvline(max_length + 0.5, color=ORANGE)
    cut = np.mean(np.asarray(lengths) > max_length)
    axes.set_title(f"longest {max(lengths)}, max_length {max_length} cuts {cut:.1%} of the examples", fontsize="medium")
    axes.set(xlabel="tokens in an example", ylabel="examples")
    axes.xaxis.get_major_locator().set_params(integer=True)
    show(figure, path)


def learning_curve(history, metric, path):
    """Loss and `metric` against optimizer steps, from `trainer.state.log_history`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    curves = (left, "loss", "training", GREY), (left, "eval_loss", "validation", BLUE)
    for axes, key, label, colour in (*curves, (right, f"eval_{metric}", "validation", BLUE)):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=label, markersize=3)
        axes.set(xlabel="optimizer step", ylabel=metric if axes is right else "loss")
    left.legend()
    show(figure, path)


def reliability_diagram(points, path):
    """Stated probability against the share that came true: {name: points of metrics.calibration_error}."""
    figure, axes = plt.subplots(figsize=(4.5, 4))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="perfectly calibrated")
    for (name, found), style in zip(points.items(), ("o-", "s--", "^:"), strict=False):
        axes.plot([p for p, _, _ in found], [share for _, share, _ in found], style, label=name, markersize=5)
    axes.set(xlabel="stated probability", ylabel="share that came true", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    show(figure, path)


class TokensView:
    """What `tokens_view` returns: coloured HTML in a notebook, plain text in a log."""

    def __init__(self, pieces, marked, legend):
        self.pieces, self.marked, self.legend = pieces, marked, legend

    def __repr__(self):
        """All tokens in a line, those that are marked in [brackets]."""
        shown = (f"[{piece}]" if mark else piece for piece, mark in zip(self.pieces, self.marked, strict=True))
        counts = f"[{self.legend[0]}]: {sum(self.marked)}, {self.legend[1]}: {self.marked.count(False)}"
        return f"{'·'.join(shown)}\n{counts}"

    def _repr_html_(self):
        style = "border-radius: 3px; padding: 1px 3px; margin: 1px; display: inline-block; font-family: monospace;"
        looks = {True: f"background: {BLUE}; color: white;", False: f"border: 1px solid {GREY}; color: {GREY};"}

        def box(text, mark):
            return f'<span style="{style} {looks[mark]}">{html.escape(text)}</span>'

        shown = "".join(box(piece, mark) for piece, mark in zip(self.pieces, self.marked, strict=True))
        counts = self.marked.count(True), self.marked.count(False)
        parts = zip(self.legend, counts, (True, False), strict=True)
        key = " ".join(box(f"{name}: {n}", mark) for name, n, mark in parts)
        return f'<div style="line-height: 1.9">{shown}</div><div style="border-left: 3px solid {ORANGE}">{key}</div>'


def tokens_view(tokenizer, ids, marked, legend=("in the loss", "not in the loss")):
    """A view of token `ids` (n integers) in which `marked` (n booleans) ones stand out by more than their colour.

    A space is shown as "_" and a line break as "↵", so that no token is invisible; special tokens are shown as well.
    """
    pieces = [tokenizer.decode([number]).replace(" ", "_").replace("\n", "↵") for number in ids]
    return TokensView(pieces, [bool(mark) for mark in marked], legend)
