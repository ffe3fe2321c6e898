"""ROUGE for `evaluate.load("<this folder>")`: no download. It counts with Google's rouge_score, as papers do.

Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
"""

import functools
import re

import datasets
import evaluate
from nltk.stem import PorterStemmer
from rouge_score import rouge_scorer, tokenize, tokenizers

TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def sentences(text):
    """The text with one sentence a line, as rougeLsum needs it; split after . ! ? that a space follows."""
    return re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


class Stems(tokenizers.Tokenizer):
    """rouge_score's own tokenizer with a memory: to stem the same words again and again takes most of its time."""

    stem = staticmethod(functools.cache(PorterStemmer().stem))

    def tokenize(self, text):
        return tokenize.tokenize(text, self)


class Rouge(evaluate.Metric):
    """F1 of each type, 0 to 1: the mean, or one value a row with `use_aggregator=False`."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Lin 2004",
            inputs_description="predictions and references: lists of strings",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions, references, rouge_types=TYPES, use_stemmer=True, use_aggregator=True):
        scorer = rouge_scorer.RougeScorer(rouge_types, tokenizer=Stems() if use_stemmer else None)
        pairs = zip(map(sentences, references), map(sentences, predictions), strict=True)
        rows = [scorer.score(reference, prediction) for reference, prediction in pairs]
        values = {kind: [row[kind].fmeasure for row in rows] for kind in rouge_types}
        return {kind: sum(v) / len(v) for kind, v in values.items()} if use_aggregator else values
