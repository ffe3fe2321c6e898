"""Figures that a lesson draws, and a view of tokens. The style of all figures is `course.mplstyle`."""

import html
import math

import matplotlib.pyplot as plt
import numpy as np


def length_bins(lengths, most=500):
    """The edges of the bars of a histogram of whole numbers: one a number, or wider ones if they would be too many.

    A single very long text would otherwise ask for a bar for each length up to its own: minutes and gigabytes.
    """
    width = math.ceil((max(lengths) - min(lengths) + 1) / most)
    return np.arange(min(lengths), max(lengths) + 1 + width, width) - 0.5


def literal(names, longest=40):
    """Names as a figure shows them letter by letter: "$" begins no formula, and a long name is cut."""
    shown = [" ".join(str(name).split()) for name in names]
    shown = [name if len(name) <= longest else f"{name[: longest - 1]}…" for name in shown]
    return [name.replace("$", r"\$") for name in shown]


def reliability_diagram(judges, path):
    """Stated probability against the share that came true, a panel for each of `judges`: {title: (points, shares)}.

    points: of metrics.calibration_error. shares: (draws, bins), what came true when winners were drawn from the stated
    probabilities themselves; the grey band holds 95 % of it, so what lies inside may be chance.
    """
    figure, panels = plt.subplots(1, len(judges), figsize=(4.5 * len(judges), 4), squeeze=False)
    for axes, (title, (points, shares)) in zip(panels[0], judges.items(), strict=True):
        stated = [mean_stated for mean_stated, _, _ in points]
        came_true = [share_true for _, share_true, _ in points]
        low, high = np.quantile(shares, [0.025, 0.975], axis=0)
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, label="perfectly calibrated")
        axes.fill_between(stated, low, high, color="grey", alpha=0.3, linewidth=0, label="95 % of what chance does")
        axes.plot(stated, came_true, "o", markersize=5, label=f"{points[0][2]} statements a dot")
        axes.set(xlabel="stated probability", ylabel="share that came true", xlim=(0, 1), ylim=(0, 1), title=title)
        axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path)
    plt.show()


class TokensView:
    """What `tokens_view` returns: coloured HTML in a notebook, plain text in a log.

    pieces: the text of each token; marked: whether it stands out (booleans, as many); legend: what marked and unmarked
    tokens are called.
    """

    def __init__(self, pieces, marked, legend):
        self.pieces = pieces
        self.marked = marked
        self.legend = legend

    def __repr__(self):
        """All tokens in a line, those that are marked in [brackets]."""
        shown = []
        for piece, mark in zip(self.pieces, self.marked, strict=True):
            shown.append(f"[{piece}]" if mark else piece)
        name_marked, name_unmarked = self.legend
        counts = f"[{name_marked}]: {self.marked.count(True)}, {name_unmarked}: {self.marked.count(False)}"
        return f"{'·'.join(shown)}\n{counts}"

    def _repr_html_(self):
        shown = []
        for piece, mark in zip(self.pieces, self.marked, strict=True):
            shown.append(self._box(piece, mark))
        name_marked, name_unmarked = self.legend
        key = [
            self._box(f"{name_marked}: {self.marked.count(True)}", True),
            self._box(f"{name_unmarked}: {self.marked.count(False)}", False),
        ]
        return (
            f'<div style="line-height: 1.9">{"".join(shown)}</div>'
            f'<div style="border-left: 3px solid #E69F00">{" ".join(key)}</div>'
        )

    @staticmethod
    def _box(text, mark):
        """A text in a box: filled if it is marked, else with a border."""
        style = "border-radius: 3px; padding: 1px 3px; margin: 1px; display: inline-block; font-family: monospace;"
        if mark:
            style += " background: #0072B2; color: white;"
        else:
            style += " border: 1px solid #777777; color: #777777;"
        return f'<span style="{style}">{html.escape(text)}</span>'


def tokens_view(tokenizer, ids, marked, legend=("in the loss", "not in the loss")):
    """A view of token `ids` (n integers) in which `marked` (n booleans) ones stand out by more than their colour.

    A space is shown as "_" and a line break as "↵", so that no token is invisible; special tokens are shown as well.
    """
    pieces = []
    for number in ids:
        text = tokenizer.decode([number])
        pieces.append(text.replace(" ", "_").replace("\n", "↵"))
    return TokensView(pieces, [bool(mark) for mark in marked], legend)
