"""Writes the table of methods into docs/benchmarks.md, from the receipt: python -m benchmarks.compare_methods

The receipt is that of `python -m benchmarks.adapters --only methods`.
"""

import json
import statistics

from tools.tables import markdown_table, put_into_page
from utils import paths

RECEIPT = paths.ROOT / "benchmarks" / "receipts" / "adapters_tiny.jsonl"
STEPS = 200
METHODS = {  # {name: (base, adapter)}
    "full": ("float32", ""),
    "LoRA": ("float32", "LoRA"),
    "QLoRA": ("nf4", "LoRA"),
}


def read(path=RECEIPT):
    """The runs of the receipt, a list of dicts."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def runs_of(method, runs):
    """The runs of a method, by their seeds."""
    chosen = [run for run in runs if run["steps"] == STEPS and (run["base"], run["adapter"]) == METHODS[method]]
    return sorted(chosen, key=lambda run: run["seed"])


def table(runs):
    """A line a method: accuracy of each seed and their mean, and the cost of the first seed. runs: see `read`."""
    rows = []
    for method in METHODS:
        own = runs_of(method, runs)
        accuracies = [run["test_accuracy"] for run in own]
        first = own[0]
        rows.append(
            {
                "method": method,
                "accuracy of each seed": " · ".join(f"{accuracy:.3f}" for accuracy in accuracies),
                "mean": f"{statistics.mean(accuracies):.3f}",
                "trainable": f"{first['trainable_parameters']:,}",
                "weights": f"{first['weight_bytes'] / 2**20:.1f} MiB",
                "optimizer states": f"{first['optimizer_bytes'] / 2**20:.1f} MiB",
                "on disk": f"{first['bytes_on_disk'] / 2**20:.1f} MiB",
                "masked words found": f"{statistics.mean(run['masked_word_accuracy'] for run in own):.3f}",
            }
        )
    note = f"{STEPS} steps; n = {len(runs[0]['test_right'])} test rows; TF-IDF gets 0.655. {runs[0]['device']}."
    return f"{markdown_table(rows)}\n\n{note}"


def main():
    """Writes the table."""
    put_into_page("docs/benchmarks.md", "methods", table(read()))


if __name__ == "__main__":
    main()
