"""Reads, checks and splits data: `data.<kind>.load(dataset_id, load_dataset, ...)`, a module a kind.

For example `data.classification.load("my_commands.csv", load_dataset)`, with `load_dataset` of the library `datasets`.
"""

from utils.data import classification, conversations, preferences, reading, summaries, tokenized

__all__ = ["classification", "conversations", "preferences", "reading", "summaries", "tokenized"]
