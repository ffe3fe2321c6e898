"""One colour-blind safe style for all figures, figures that a lesson draws, and a view of tokens."""

import html
import warnings

import matplotlib.pyplot as plt
import numpy as np

# colours of Okabe and Ito, which colour-blind readers tell apart
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
PINK = "#CC79A7"
GREY = "#777777"

plt.rcParams["figure.figsize"] = (7, 3)
plt.rcParams["axes.spines.top"] = False
plt.rcParams["axes.spines.right"] = False
plt.rcParams["legend.frameon"] = False
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=[BLUE, ORANGE, GREEN, PINK])
plt.rcParams["image.cmap"] = "Blues"
plt.rcParams["text.parse_math"] = False  # a "$" in the name of a class is a dollar
warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box stands for it, and the lesson goes on
warnings.filterwarnings("ignore", message="Tight layout not applied")


def show(figure, path):
    """Saves `figure` to `path` and shows it once, below the cell; a figure that cannot be drawn or saved is a line."""
    try:
        figure.tight_layout()
        figure.savefig(path, dpi=120)
    except Exception as error:  # whatever matplotlib, a font or the disk has to say: no figure is worth a training
        reason = " ".join(str(error).split())[:200]
        print(f"{path}: this figure could not be drawn or saved ({reason}); the lesson goes on without it.")
        plt.close(figure)
        return
    plt.show()


def length_histogram(lengths, max_length, path):
    """How many tokens the examples have (a sequence of integers), and what `max_length` tokens would cut off."""
    shortest, longest = min(lengths), max(lengths)
    share_cut = np.mean(np.asarray(lengths) > max_length)
    figure, axes = plt.subplots()
    axes.hist(lengths, bins=np.arange(shortest, longest + 2) - 0.5)
    if max_length <= longest:
        axes.axvline(max_length + 0.5, color=ORANGE)
    axes.set_title(
        f"longest {longest}, max_length {max_length} cuts {share_cut:.1%} of the examples", fontsize="medium"
    )
    axes.set(xlabel="tokens in an example", ylabel="examples")
    axes.xaxis.get_major_locator().set_params(integer=True)
    show(figure, path)


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
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="perfectly calibrated")
        axes.fill_between(stated, low, high, color=GREY, alpha=0.3, linewidth=0, label="95 % of what chance does")
        axes.plot(stated, came_true, "o", markersize=5, label=f"{points[0][2]} statements a dot")
        axes.set(xlabel="stated probability", ylabel="share that came true", xlim=(0, 1), ylim=(0, 1), title=title)
        axes.legend(loc="upper left", fontsize="small")
    show(figure, path)


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
            f'<div style="border-left: 3px solid {ORANGE}">{" ".join(key)}</div>'
        )

    @staticmethod
    def _box(text, mark):
        """A text in a box: filled if it is marked, else with a border."""
        style = "border-radius: 3px; padding: 1px 3px; margin: 1px; display: inline-block; font-family: monospace;"
        if mark:
            style += f" background: {BLUE}; color: white;"
        else:
            style += f" border: 1px solid {GREY}; color: {GREY};"
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
