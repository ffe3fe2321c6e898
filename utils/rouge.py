"""ROUGE through the interface of `evaluate`, without a download: Google's `rouge_score` counts, as papers do.

Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
"""

import functools
import unicodedata

import datasets
import evaluate
import regex
from nltk.stem import PorterStemmer
from rouge_score import rouge_scorer, tokenizers

from utils.metrics import ALONE, JOINED

# A word is letters and digits of any alphabet, with the marks that belong to them. Where a script puts no spaces
# between words, as Chinese, Japanese and Thai, each letter counts as one.
WORD = regex.compile(rf"{ALONE}|(?:(?!{ALONE})[\p{{L}}\p{{N}}])(?:(?!{ALONE})[\p{{L}}\p{{N}}]|{JOINED})*")


class CachedStemmer(tokenizers.Tokenizer):
    """The tokenizer that rouge_score takes for `use_stemmer=True`, with a memory, and for all alphabets.

    For English the scores are the same, in a tenth of the time: to stem the same words again and again takes most of
    it. rouge_score itself knows the letters a to z only, and gives 0 to a Russian text that is compared with itself.
    """

    stem = staticmethod(functools.cache(PorterStemmer().stem))

    def tokenize(self, text):
        """The words of a text as a list: lower case, those of more than three letters without their endings.

        Of a text without a word, such as one of emoji, they are its characters.
        """
        text = unicodedata.normalize("NFC", text.lower())
        words = WORD.findall(text) or list("".join(text.split()))
        return [self.stem(word) if len(word) > 3 else word for word in words]


def one_sentence_a_line(text):
    """The text with one sentence a line, as rougeLsum needs it.

    It is split after . ! ? that a space follows, and after the full stops of other scripts.
    """
    return regex.sub(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f\u0964\u06d4\u061f])\s*", "\n", text.strip())


class Rouge(evaluate.Metric):
    """What `evaluate.load("rouge")` would fetch from the hub: `compute(predictions=..., references=...)`.

    Returns {type: F1, 0 to 1}, the mean over the rows, or one value a row with `use_aggregator=False`. The types are
    those of rouge_score.
    """

    def __init__(self, rouge_types=("rougeL", "rouge1", "rouge2", "rougeLsum")):
        super().__init__(keep_in_memory=True)
        self.scorer = rouge_scorer.RougeScorer(list(rouge_types), tokenizer=CachedStemmer())

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Lin 2004",
            inputs_description="predictions and references: lists of strings",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions, references, use_aggregator=True):
        values = {rouge_type: [] for rouge_type in self.scorer.rouge_types}
        for prediction, reference in zip(predictions, references, strict=True):
            scores = self.scorer.score(one_sentence_a_line(reference), one_sentence_a_line(prediction))
            for rouge_type in values:
                values[rouge_type].append(scores[rouge_type].fmeasure)
        if not use_aggregator:
            return values
        return {rouge_type: sum(row) / len(row) for rouge_type, row in values.items()}
