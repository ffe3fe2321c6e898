"""What tokenization does to a text: control tokens that it spells, and answers that are cut off."""

import itertools
import json

import pytest
from conftest import ROOT, refusal
from data_files import assert_says
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2TokenizerFast, T5Tokenizer

from utils.data import tokenized

# ---- control tokens in a reader's text


def unigram():
    """A T5 tokenizer with a tiny vocabulary, whose Unigram model holds the control tokens, as the published ones do."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    options = dict(vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False)
    text = ["the law of roads and cars a an on <>/_extra id pad s unk 0123456789"] * 30
    made.train_from_iterator(text, trainers.UnigramTrainer(**options))
    return T5Tokenizer(vocab=[tuple(piece) for piece in json.loads(made.to_str())["model"]["vocab"]], extra_ids=1)


def byte_level():
    """A GPT-2 tokenizer with OPT's control tokens: </s> is the first, the last and the unknown token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    options = dict(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["the law of roads and cars"] * 30, trainers.BpeTrainer(**options))
    model = json.loads(made.to_str())["model"]
    special = dict(pad_token="<pad>", eos_token="</s>", bos_token="</s>", unk_token="</s>")
    return GPT2TokenizerFast(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], **special)


SPELT = ["the </s> law", "</s>", "<pad><pad></s>", "a <extra_id_0> b", "<<pad>pad></</s>s>"]


def controls(tokenizer, text, **options):
    ids = tokenizer(text, add_special_tokens=False, **options)["input_ids"]
    return {"</s>", "<pad>", "<extra_id_0>"} & {*tokenizer.convert_ids_to_tokens(ids)}


@pytest.mark.parametrize("text", SPELT)
@pytest.mark.parametrize("make", [unigram, byte_level])
def test_escaped_text_holds_no_control_token(make, text):
    tokenizer = make()
    assert controls(tokenizer, text) or (make is byte_level and "extra" in text)
    safe = tokenized.escape_special_tokens(text, tokenizer)
    for options in ({}, {"split_special_tokens": True}, {"truncation": True, "max_length": 9}):
        assert not controls(tokenizer, safe, **options)
    assert safe.replace(" ", "") == text.replace(" ", "")


def test_what_split_special_tokens_does_and_does_not():
    """Why there is `escape_special_tokens`: in transformers 5.23 the option works for a byte-level BPE, not for T5."""
    assert not [text for text in SPELT if controls(byte_level(), text, split_special_tokens=True)]
    assert len([text for text in SPELT if controls(unigram(), text, split_special_tokens=True)]) == len(SPELT)


def test_text_without_control_tokens_stays_as_it_is():
    for make in (unigram, byte_level):
        for text in ("the law of roads", "a < b, b </ c > s", "naïve ☃ 道 🚗", " two\n lines ", ""):
            assert tokenized.escape_special_tokens(text, make()) == text


@pytest.mark.parametrize("folder", ["tiny-t5", "tiny-opt"])
def test_escaped_text_for_the_models_of_the_course(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "models" / folder)
    for text in SPELT:
        assert not controls(tokenizer, tokenized.escape_special_tokens(text, tokenizer))


# ---- cut answers


def encoded(*labels):
    return Dataset.from_dict({"input_ids": [[5] * len(row) for row in labels], "labels": list(labels)})


def test_answers_beyond_max_length_are_dropped_and_counted(capsys):
    labels = [[-100, 7, 8, 2], [-100, -100, -100, -100], [-100, -100, 7, 8], [-100, 9, 2]]
    kept = tokenized.drop_cut(encoded(*labels), 4, "train", eos_token_id=2)
    assert kept["labels"][:] == [labels[0], labels[2], labels[3]]
    said = capsys.readouterr().out
    assert said == (
        "split 'train': 1 of 4 answers lie wholly beyond max_length 4, or are empty (row 1): dropped; "
        "1 of 4 answers are cut in part at max_length 4; raise max_length to keep them.\n"
    )


def test_labels_that_are_not_yet_cut(capsys):
    labels = [[-100, 7, 8, 2], [-100, -100, -100, 7, 2], [-100, -100, 7, 2], [7, -100, -100, -100]]
    kept = tokenized.drop_cut(encoded(*labels), 3, "test")
    assert kept["labels"][:] == [labels[0], labels[2], labels[3]]
    assert_says(capsys.readouterr().out, "'test': 1 of 4", "(row 1)", "2 of 4 answers are cut in part")


def test_empty_summaries_are_dropped(capsys):
    labels = [[7, 8, 1], [1], [], [9, 1]]
    kept = tokenized.drop_cut(encoded(*labels), 8, "train", eos_token_id=1)
    assert kept["labels"][:] == [[7, 8, 1], [9, 1]]
    assert_says(capsys.readouterr().out, "2 of 4 answers", "(rows 1, 2): dropped")


def test_whole_answers_are_kept_in_silence(capsys):
    data = encoded([-100, 7, 2], [7, 8, 2])
    assert tokenized.drop_cut(data, 3, eos_token_id=2) is data
    assert capsys.readouterr().out == ""


def test_no_answer_at_all():
    message = refusal(tokenized.drop_cut, encoded([-100, -100], [-100]), 2, "train")
    assert_says(message, "split 'train': none of 2 answers begins within max_length 2; raise max_length")


def test_what_is_left_of_every_small_answer():
    """All answers of up to four labels against what the words say: -100 is the prompt, 1 the end token."""
    for count in range(5):
        for labels in itertools.product((-100, 1, 7), repeat=count):
            for limit in range(1, 5):
                inside, beyond = labels[:limit], labels[limit:]
                said = tokenized.what_is_left(labels, limit, eos_token_id=1)
                assert (said == "gone") == (7 not in inside)
                goes_on = 1 in beyond or 7 in beyond
                is_full_without_end = count == limit and labels[-1] == 7
                assert (said == "cut") == (7 in inside and (goes_on or is_full_without_end))


@pytest.mark.parametrize(("text", "warned"), [("这个产品不好第0次", True), ("open the window", False), ("", False)])
def test_a_writing_that_the_tokenizer_does_not_know_is_said_with_its_share(text, warned, capsys):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "models" / "tiny-bert")
    share = tokenized.warn_of_unknown(tokenizer([text] * 3)["input_ids"], tokenizer)
    out = capsys.readouterr().out
    assert (share > 0.5) is warned
    assert (f"Warning: {share:.0%} of the tokens are [UNK]" in out) is warned
    assert ("take a model_id" in out) is warned


def test_a_tokenizer_without_an_unknown_token_knows_every_writing():
    assert tokenized.warn_of_unknown([[1, 2, 3]], byte_level()) == 0
