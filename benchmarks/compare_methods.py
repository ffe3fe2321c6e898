"""Put the methods of a run of lesson 02 into docs/benchmarks.md: python -m benchmarks.compare_methods RESULTS.json"""

import json
import shutil
import statistics
import sys
from pathlib import Path

from tools.tables import markdown_table, put_into_page
from utils import paths

RECEIPT = paths.ROOT / "benchmarks" / "receipts" / "methods_tiny.json"


def table(record):
    """A line a method: accuracy of each seed and their mean, and the cost of the first seed. record: a results.json."""
    rows = []
    for method, runs in record["metrics"]["methods"].items():
        accuracies = [run["accuracy"] for run in runs]
        first = runs[0]
        rows.append(
            {
                "method": method,
                "accuracy, seeds 0, 1, 2": " · ".join(f"{accuracy:.3f}" for accuracy in accuracies),
                "mean": f"{statistics.mean(accuracies):.3f}",
                "trainable": f"{first['trainable share']:.1%}",
                "weights": f"{first['weights, MiB']:.1f} MiB",
                "optimizer states": f"{first['optimizer states, MiB']:.1f} MiB",
                "on disk": f"{first['on disk, MiB']:.1f} MiB",
                "training": f"{statistics.mean(run['training, s'] for run in runs):.0f} s",
            }
        )
    note = f"n = {record['n_eval']} test rows; TF-IDF gets {record['baseline']:.3f}. {record['device']}."
    return f"{markdown_table(rows)}\n\n{note}"


def main():
    """Copies the results.json that the command line names to the receipts, and writes the table."""
    if Path(sys.argv[1]).resolve() != RECEIPT:
        shutil.copyfile(sys.argv[1], RECEIPT)
    record = json.loads(RECEIPT.read_text(encoding="utf-8"))
    put_into_page("docs/benchmarks.md", "methods", table(record))


if __name__ == "__main__":
    main()
