"""Texts, conversations and cut answers: what is refused, with which sentence, and what passes."""

import csv
import json
import time

import datasets
import pytest
from conftest import ROOT, refusal
from datasets import Dataset, DatasetDict, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2TokenizerFast, T5Tokenizer

from utils.data import classification, conversations, reading

COLUMNS = ("text", "summary")
TALK = ("conversations",)
CHAT = ("messages",)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_cache"))


def assert_says(message, *parts):
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"


def jsonl(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def bill(text="a law", summary="law", **more):
    return {"text": text, "summary": summary, **more}


def said(*contents, roles=("user", "assistant")):
    return [{"role": roles[n % len(roles)], "content": content} for n, content in enumerate(contents)]


# ---- files


def test_good_files_pass_and_are_loaded_as_they_were_written(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", bill(title="T", id=1), bill("b", "NA", title="U", id=None))
    dataset = load_dataset(**conversations.source(path, COLUMNS))
    assert conversations.check(dataset, COLUMNS) is None
    assert dataset["train"]["summary"][:] == ["law", "NA"]
    assert dataset["train"].column_names == ["text", "summary", "title", "id"]


def test_csv_keeps_words_that_pandas_takes_for_missing_and_texts_that_look_like_numbers(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('text,summary\nNA,null\n"two\nlines",007\nNone,nan\n')
    dataset = load_dataset(**conversations.source(tmp_path, COLUMNS))
    conversations.check(dataset, COLUMNS)
    assert dataset["train"]["text"][:] == ["NA", "two\nlines", "None"]
    assert dataset["train"]["summary"][:] == ["null", "007", "nan"]


def test_a_long_csv_field_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"text,summary\n{'a ' * 100_000}a,b\n")  # Python's csv stops at 131,072 characters
    dataset = load_dataset(**conversations.source(path, COLUMNS))
    conversations.check(dataset, COLUMNS)
    assert len(dataset["train"]["text"][0]) == 200_001


def test_a_parquet_file_is_checked_after_loading(tmp_path):
    path = tmp_path / "a.parquet"
    Dataset.from_list([bill(), bill(summary=" ")]).to_parquet(path)
    dataset = load_dataset(**conversations.source(path, COLUMNS))
    assert_says(
        refusal(conversations.check, dataset, COLUMNS), "split 'train'", "row 1, column 'summary'", "empty text"
    )


def test_a_hub_id_is_left_alone():
    assert conversations.source("GAIR/lima", TALK) == {"path": "GAIR/lima"}


def test_files_are_found_and_read_by_one_function(tmp_path, monkeypatch):
    calls = []
    for module in (reading, classification):
        monkeypatch.setattr(module, "read_source", lambda *given: calls.append(given[:2]) or {})
    classification.data_source("x")
    conversations.source("y", COLUMNS)
    assert calls == [("x", ("text", "label")), ("y", COLUMNS)]


BIG = "x" * 10_000_000
BAD = {  # columns, second line of the file, parts of the sentence
    "another name": (COLUMNS, {"text": "a", "sumary": "b"}, ["row 2", "'summary'", "empty text"]),
    "empty": (COLUMNS, bill(summary="  "), ["row 2, column 'summary'", "is an empty text; write one, or delete"]),
    "null": (COLUMNS, bill(None), ["row 2, column 'text'", "None is an empty text"]),
    "number": (COLUMNS, bill(summary=7), ["row 2, column 'summary'", "7 is not text", "double quotes"]),
    "NUL": (COLUMNS, bill("a\0b"), ["row 2, column 'text'", "a NUL or a broken character; retype it"]),
    "half a character": (COLUMNS, bill("\ud83d x"), ["row 2, column 'text'", "broken character"]),
    "10 MB": (COLUMNS, bill(BIG), ["row 2, column 'text'", "too long (up to 10,000,000 characters", "shorten it"]),
    "not JSON": (COLUMNS, "{'text': 1}", ["row 2: this is not a JSON object"]),
    "deep JSON": (COLUMNS, "[" * 100_000, ["row 2: this is not a JSON object"]),
    "odd": (TALK, {"conversations": ["a", "b", "c"]}, ["row 2, column 'conversations'", "no answer; write one"]),
    "deep text": (TALK, {"conversations": "[" * 100_000}, ["row 2", "is not a list of turns; write ["]),
    "NUL in a turn": (TALK, {"conversations": ["a", "b\0"]}, ["row 2, column 'conversations'", "a NUL"]),
    "a long turn": (TALK, {"conversations": ["a", BIG]}, ["row 2", "up to 10,000,002 characters"]),
    "roles": (CHAT, {"messages": said("a", "b", roles=["user"])}, ["row 2", "message 2 is of 'user'", "take turns"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_gets_one_sentence(tmp_path, case):
    columns, row, parts = BAD[case]
    good = bill() | {"conversations": ["q", "a"], "messages": said("q", "a")}
    path = jsonl(tmp_path / "train.jsonl", {column: good[column] for column in columns}, row)
    assert_says(refusal(conversations.source, path, columns), str(path), *parts)
    jsonl(path, {column: good[column] for column in columns})
    assert conversations.source(path, columns)["path"] == "json"


@pytest.mark.parametrize(
    ("content", "columns", "parts"),
    [
        ("text,sumary\na,b\n", COLUMNS, ["no column 'summary'", "rename the column 'sumary' to 'summary'"]),
        ("text;summary\na;b\n", COLUMNS, ["'text;summary'", "put a comma between the columns"]),
        ("text_a\nb\n", ("text",), ["no column 'text'", "rename the column 'text_a'"]),
        ("text,summary\na,b\nc\n", COLUMNS, ["row 3: not as many fields as the header"]),
        ('text,summary\n"a,b\n', COLUMNS, ["a double quote is not closed"]),
        ("text,summary\n", COLUMNS, ["it has no rows"]),
        ("conversations\nwho?\n", TALK, ["row 2", "'who?' is not a list of turns"]),
    ],
)
def test_a_bad_csv_gets_one_sentence(tmp_path, content, columns, parts):
    (tmp_path / "train.csv").write_text(content)
    assert_says(refusal(conversations.source, tmp_path, columns), "train.csv", *parts)


def test_a_path_that_does_not_exist():
    assert_says(refusal(conversations.source, "./nowhere", COLUMNS), "'./nowhere': no such file", "correct dataset_id")


def test_of_many_bad_rows_ten_are_named_and_all_are_counted(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *[{"conversations": ["q"]}] * 25)
    assert_says(refusal(conversations.source, path, TALK), "rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, … (25 in all), column")


# ---- loaded data


def as_dataset(**splits):
    return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([bill(), bill(summary="")], ["split 'train' (rows count from 0), row 1, column 'summary': '' is an empty"]),
        ([bill(None), bill()], ["row 0, column 'text'", "empty text"]),
        ([bill(summary=1)], ["row 0, column 'summary'", "1 is not text"]),
        ([bill(["a"])], ["row 0, column 'text'", "is not text"]),
        ([bill("a\0")], ["row 0, column 'text'", "NUL"]),
        ([bill("x" * 1_000_001)], ["row 0, column 'text'", "up to 1,000,001 characters"]),
        ([{"text": "a", "abstract": "b"}], ["no column 'summary'", "rename the column 'abstract' to 'summary'"]),
    ],
)
def test_bad_rows_of_loaded_data_name_split_and_row(rows, parts):
    assert_says(refusal(conversations.check, as_dataset(train=rows), COLUMNS), *parts)
    conversations.check(as_dataset(train=[bill("x" * 1_000_000)]), COLUMNS)


def test_splits_that_are_missing_or_empty_or_not_asked_for():
    good, empty = [bill()], Dataset.from_dict({"text": [], "summary": []})
    assert_says(refusal(conversations.check, as_dataset(test=good), COLUMNS), "no split 'train'", "train.jsonl")
    assert_says(refusal(conversations.check, as_dataset(train=good)["train"], COLUMNS), "no split 'train'")
    assert_says(
        refusal(conversations.check, as_dataset(train=good), COLUMNS, ("train", "ca_test")), "no split 'ca_test'"
    )
    with_empty = as_dataset(train=good) | {"validation": empty}
    assert_says(refusal(conversations.check, with_empty, COLUMNS), "split 'validation'", "no rows")
    bad = [bill(summary="")]
    conversations.check(as_dataset(train=good, ca_test=bad), COLUMNS)
    assert_says(
        refusal(conversations.check, as_dataset(train=good, ca_test=bad), COLUMNS, ("ca_test",)), "split 'ca_test'"
    )


@pytest.mark.parametrize("kind", [COLUMNS, TALK])
def test_inputs_on_both_sides_give_one_line_with_counts(capsys, kind):
    def row(text, answer):
        return bill(text, answer) if kind == COLUMNS else {"conversations": [text, answer]}

    conversations.check(as_dataset(train=[row("a law", "x")], test=[row("another", "x")]), kind)
    assert capsys.readouterr().out == ""
    conversations.check(as_dataset(train=[row("a law", "x")], test=[row(" A\nLAW ", "y"), row("b", "x")]), kind)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert_says(out, "Warning: 1 of 2 texts of 'test' also stand in 'train'")


def test_hub_data_of_many_long_rows_is_quick():
    text = "the law of roads, " * 555
    part = Dataset.from_dict({"text": [f"{n} {text}" for n in range(20_000)], "summary": ["s"] * 20_000})
    dataset = DatasetDict(train=part, test=part.select(range(100)))
    start = time.perf_counter()
    conversations.check(dataset, COLUMNS)
    assert time.perf_counter() - start < 30  # about 6 s
    bad = DatasetDict(train=Dataset.from_dict({"text": ["a"] * 20_000, "summary": [""] * 20_000}))
    assert_says(refusal(conversations.check, bad, COLUMNS), "rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … (20000 in all)")


# ---- conversations

FORMS = [
    {"conversations": ["q", "a"]},
    {"conversations": '["q", "a"]', "source": "x"},
    {"messages": said("q", "a")},
    {"messages": json.dumps(said("q", "a"))},
    {"prompt": "q", "completion": "a"},
]


@pytest.mark.parametrize("row", FORMS)
def test_every_form_of_a_conversation_gives_its_turns(row):
    assert conversations.conversation(row) == ["q", "a"]


def test_more_turns_and_a_system_message():
    assert conversations.conversation({"messages": said("q", "a", "r", "b")}) == ["q", "a", "r", "b"]
    system = [{"role": "system", "content": "Be brief."}]
    assert conversations.conversation({"messages": system + said("q", "a")}) == ["Be brief.\n\nq", "a"]
    for nothing in ("", None):
        system[0]["content"] = nothing
        assert conversations.conversation({"messages": system + said("q", "a")}) == ["q", "a"]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"messages": said("a", "b", roles=["human", "gpt"])}, ["message 1 is of 'human' where 'user' is due"]),
        ({"messages": said("a", "b", roles=["user"])}, ["message 2 is of 'user' where 'assistant' is due"]),
        ({"messages": said("a", "b", roles=["assistant", "user"])}, ["message 1 is of 'assistant'"]),
        ({"messages": said("a", "b", roles=["user", "system"])}, ["message 2 is of 'system'", "one 'system' at most"]),
        ({"messages": said("a", "b", roles=["system", "user"])}, ["the last question has no answer"]),
        ({"messages": said("a", roles=["system"])}, ["there is no question"]),
        ({"messages": said("a", ["b"])}, ["answer 1 is ['b'], which is not text"]),
        ({"messages": [{"from": "human", "value": "a"}]}, ["message 1 is of None where 'user' is due"]),
        ({"messages": [{"role": ["user"], "content": "a"}]}, ["message 1 is of ['user']"]),
        ({"messages": None}, ["None is not a list of turns"]),
        ({"conversations": []}, ["there is no question"]),
        ({"conversations": ["a"]}, ["the last question has no answer; write one, or delete the row"]),
        ({"conversations": ["a", "b", "c"]}, ["the last question has no answer"]),
        ({"conversations": ["a", " "]}, ["answer 1 is empty"]),
        ({"conversations": ["a", "b", "", "d"]}, ["question 2 is empty"]),
        ({"conversations": ["a", 3]}, ["answer 1 is 3, which is not text; write ["]),
        ({"conversations": ["a", {"role": "assistant"}]}, ["answer 1 is {"]),
        ({"conversations": "['a', 'b']"}, ["is not a list of turns"]),
        ({"conversations": "__import__('os').abort()"}, ["is not a list of turns"]),
        ({"conversations": '{"role": "user"}'}, ["is not a list of turns"]),
        ({"conversations": "[" * 100_000}, ["is not a list of turns"]),
        ({"conversations": f"[{'[' * 900}{']' * 900}, 1]"}, ["question 1 is [[", "not text"]),
        ({"conversations": "9" * 5000}, ["is not a list of turns"]),
        ({"prompt": "a"}, ["answer 1 is empty"]),
        ({"prompt": "a", "completion": said("b")}, ["answer 1 is [{", "not text"]),
        ({"question": "a", "answer": "b"}, ["no column 'messages', 'conversations' or 'prompt'", "'question'"]),
    ],
)
def test_a_conversation_that_is_none(row, parts):
    message = refusal(conversations.conversation, row)
    assert_says(message, *parts)
    assert len(message) < 400


def test_questions_alone_are_for_splits_without_answers(tmp_path):
    dataset = as_dataset(train=[{"conversations": ["q", "a"]}], test=[{"conversations": ["r"]}])
    assert conversations.has_answers(dataset, "train")
    assert not conversations.has_answers(dataset, "test")
    assert conversations.conversations(dataset, "test", answers=False) == [["r"]]
    assert_says(
        refusal(conversations.conversations, dataset, "test"), "split 'test' (rows count from 0), row 0", "answer"
    )
    assert_says(refusal(conversations.check, dataset, TALK), "split 'test'", "row 0", "no answer")
    conversations.check(dataset, TALK, unanswered=("test",))
    for split in dataset:
        dataset[split].to_json(tmp_path / f"{split}.jsonl")
    assert_says(refusal(conversations.source, tmp_path, TALK), "test.jsonl, row 1", "no answer")
    assert conversations.source(tmp_path, TALK, unanswered=("test",))["path"] == str(tmp_path)
    for nothing in (["q", ""], ["q", None]):
        assert conversations.conversation({"conversations": nothing}, answers=False) == ["q"]
    pairs = as_dataset(train=[{"prompt": "q", "completion": "a"}], test=[{"prompt": "r"}])
    conversations.check(pairs, ("prompt", "completion"), unanswered=("test",))
    assert conversations.conversations(pairs, "test", answers=False) == [["r"]]


def test_conversations_of_a_csv_file(tmp_path):
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(said("who\n?", "me, you"))], ['["q", "a"]']])
    dataset = load_dataset(**conversations.source(tmp_path, CHAT))
    conversations.check(dataset, CHAT)
    assert conversations.conversations(dataset, "train") == [["who\n?", "me, you"], ["q", "a"]]


def test_conversations_name_split_and_row():
    dataset = as_dataset(train=[{"messages": said("q", "a")}, {"messages": said("q")}])
    assert_says(
        refusal(conversations.conversations, dataset, "train"), "split 'train'", "row 1, column 'messages': the"
    )


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
def test_plain_text_holds_no_control_token(make, text):
    tokenizer = make()
    assert controls(tokenizer, text) or (make is byte_level and "extra" in text)
    safe = conversations.plain(text, tokenizer)
    for options in ({}, {"split_special_tokens": True}, {"truncation": True, "max_length": 9}):
        assert not controls(tokenizer, safe, **options)
    assert safe.replace(" ", "") == text.replace(" ", "")


def test_what_split_special_tokens_does_and_does_not():
    """The finding behind `plain`: in transformers 5.23 the option holds for a byte-level BPE, not for a Unigram."""
    assert not [text for text in SPELT if controls(byte_level(), text, split_special_tokens=True)]
    assert len([text for text in SPELT if controls(unigram(), text, split_special_tokens=True)]) == len(SPELT)


def test_plain_text_stays_as_it_is():
    for make in (unigram, byte_level):
        for text in ("the law of roads", "a < b, b </ c > s", "naïve ☃ 道 🚗", " two\n lines ", ""):
            assert conversations.plain(text, make()) == text


@pytest.mark.parametrize("folder", ["tiny-t5", "tiny-opt"])
def test_plain_text_for_the_models_of_the_course(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "models" / folder)
    for text in SPELT:
        assert not controls(tokenizer, conversations.plain(text, tokenizer))


# ---- cut answers


def encoded(*labels):
    return Dataset.from_dict({"input_ids": [[5] * len(row) for row in labels], "labels": list(labels)})


def test_answers_beyond_max_length_are_dropped_and_counted(capsys):
    labels = [[-100, 7, 8, 2], [-100, -100, -100, -100], [-100, -100, 7, 8], [-100, 9, 2]]
    kept = conversations.drop_cut(encoded(*labels), 4, "train", eos_token_id=2)
    assert kept["labels"][:] == [labels[0], labels[2], labels[3]]
    said = capsys.readouterr().out
    assert said == (
        "split 'train': 1 of 4 answers lie wholly beyond max_length 4, or are empty (row 1): dropped; "
        "1 of 4 answers are cut in part at max_length 4; raise max_length to keep them.\n"
    )


def test_labels_that_are_not_yet_cut(capsys):
    labels = [[-100, 7, 8, 2], [-100, -100, -100, 7, 2], [-100, -100, 7, 2], [7, -100, -100, -100]]
    kept = conversations.drop_cut(encoded(*labels), 3, "test")
    assert kept["labels"][:] == [labels[0], labels[2], labels[3]]
    assert_says(capsys.readouterr().out, "'test': 1 of 4", "(row 1)", "2 of 4 answers are cut in part")


def test_empty_summaries_are_dropped(capsys):
    labels = [[7, 8, 1], [1], [], [9, 1]]
    kept = conversations.drop_cut(encoded(*labels), 8, "train", eos_token_id=1)
    assert kept["labels"][:] == [[7, 8, 1], [9, 1]]
    assert_says(capsys.readouterr().out, "2 of 4 answers", "(rows 1, 2): dropped")


def test_whole_answers_are_kept_in_silence(capsys):
    data = encoded([-100, 7, 2], [7, 8, 2])
    assert conversations.drop_cut(data, 3, eos_token_id=2) is data
    assert capsys.readouterr().out == ""


def test_no_answer_at_all():
    message = refusal(conversations.drop_cut, encoded([-100, -100], [-100]), 2, "train")
    assert_says(message, "split 'train': none of 2 answers begins within max_length 2; raise max_length")
