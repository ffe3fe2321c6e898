"""One colour-blind safe style for all figures, and the figures that every lesson draws. Each is saved as a PNG."""

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
