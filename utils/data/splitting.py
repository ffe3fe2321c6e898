"""The splits that a data set does not bring are cut out of its training rows."""

SHARES = {"test": 0.2, "validation": 0.1}  # of the rows that are in train at that moment


def add_missing_splits(dataset, seed, stratify_by_column=None):
    """Adds test and validation to a `datasets.DatasetDict` that lacks them; returns it.

    They are drawn at random with the seed. stratify_by_column: a column of classes, whose shares all parts then keep;
    ValueError if a class has too few rows for that.
    """
    for split, share in SHARES.items():
        if split not in dataset:
            parts = dataset["train"].train_test_split(share, seed=seed, stratify_by_column=stratify_by_column)
            dataset["train"] = parts["train"]
            dataset[split] = parts["test"]
    return dataset
