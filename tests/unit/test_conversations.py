"""Conversations: every form that is read, what is refused with which sentence, and which splits come out."""

import csv
import json

import datasets
import pytest
from conftest import refusal
from data_files import assert_says, jsonl, never, on_the_hub, splits_of
from datasets import load_dataset

from utils import data

TALK = ("conversations",)
CHAT = ("messages",)
PAIR = ("prompt", "completion")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_cache"))


def said(*contents, roles=("user", "assistant")):
    return [{"role": roles[n % len(roles)], "content": content} for n, content in enumerate(contents)]


def load(place, columns=TALK, load_dataset=never, **settings):
    return data.conversations.load(place, load_dataset, columns, **settings)


def load_from_hub(dataset, columns=TALK, **settings):
    return load("some/set", columns, on_the_hub(dataset), **settings)


def messages(*contents):
    """What is made of a conversation of these texts."""
    return said(*contents)


def first_questions(part):
    return [talk[0]["content"] for talk in part["messages"][:]]


def talks(*questions, answer="a"):
    """Rows of one question and one answer each."""
    return [{"conversations": [question, answer]} for question in questions]


# ---- a conversation

FORMS = [
    {"conversations": ["q", "a"]},
    {"conversations": '["q", "a"]', "source": "x"},
    {"messages": said("q", "a")},
    {"messages": json.dumps(said("q", "a"))},
    {"prompt": "q", "completion": "a"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"messages": said("q", "a", roles=["human", "gpt"])},
    {"prompt": said("q"), "completion": said("a", roles=["assistant"])},
    {"prompt": said("q"), "completion": "a"},
    {"prompt": "q", "completion": said("a", roles=["assistant"])},
    {"messages": said("q", "a", roles=["Human", "AI"])},
    {"messages": said("q", "a", roles=["user", "model"])},
    {"messages": said([{"type": "text", "text": "q"}], ["a"])},
    {"messages": [{"from": "user", "content": "q"}, {"role": "assistant", "value": "a"}]},
    {"messages": [{"role": "user", "content": "q", "weight": 0}, {"role": "assistant", "content": "a", "weight": 1}]},
    {"messages": [{"role": "user", "text": "q"}, {"role": "assistant", "text": "a", "tool_calls": None}]},
]


@pytest.mark.parametrize("row", FORMS)
def test_every_form_of_a_conversation_gives_its_messages(row):
    assert data.conversations.conversation(row) == messages("q", "a")


def test_more_turns_and_a_system_message():
    assert data.conversations.conversation({"messages": said("q", "a", "r", "b")}) == messages("q", "a", "r", "b")
    system = [{"role": "system", "content": "Be brief."}]
    assert data.conversations.conversation({"messages": system + said("q", "a")}) == system + messages("q", "a")
    for nothing in ("", None):
        system[0]["content"] = nothing
        assert data.conversations.conversation({"messages": system + said("q", "a")}) == messages("q", "a")


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"messages": said("a", "b", roles=["Caller", "Clerk"])}, ["message 1 is of 'Caller' where 'user' is due"]),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, ["message 1 is of 'assistant' where 'user' is due"]),
        ({"prompt": said("q"), "completion": said("a")}, ["message 2 is of 'user' where 'assistant' is due"]),
        ({"messages": said("a", "b", roles=["user"])}, ["message 2 is of 'user' where 'assistant' is due"]),
        ({"messages": said("a", "b", roles=["assistant", "user"])}, ["message 1 is of 'assistant'"]),
        ({"messages": said("a", "b", roles=["user", "system"])}, ["message 2 is of 'system'", "one 'system' at most"]),
        ({"messages": said("a", "b", roles=["system", "user"])}, ["the last question has no answer"]),
        ({"messages": said("a", roles=["system"])}, ["there is no question"]),
        ({"messages": said("a", {"b": 1})}, ["answer 1 is {'b': 1}, which is not text"]),
        ({"messages": said("a", [{"type": "image_url"}])}, ["message 2 has a part that is no text ('image_url')"]),
        ({"messages": said("a", "\u200b\ufeff")}, ["answer 1 is empty"]),
        ({"messages": [*said("a"), {"role": "assistant", "tool_calls": [1]}]}, ["message 2 has 'tool_calls', which"]),
        ({"messages": said("a", "b", roles=["user", "tool"])}, ["message 2 is of 'tool', a tool", "delete the row"]),
        (
            {"messages": [*said("a"), {"role": "assistant", "content": "b", "weight": 0}]},
            ["message 2 has 'weight' 0, but this lesson trains every answer"],
        ),
        (
            {"messages": [*said("a"), {"role": "assistant", "content": "b", "thinking": "c"}]},
            ["message 2 has 'thinking'", "write it into the content"],
        ),
        ({"messages": [{"speaker": "human", "value": "a"}]}, ["message 1 is of None where 'user' is due"]),
        ({"messages": [{"role": ["user"], "content": "a"}]}, ["message 1 is of ['user']"]),
        ({"messages": None}, ["None is not a list of turns"]),
        ({"conversations": []}, ["there is no question"]),
        ({"conversations": ["a"]}, ["the last question has no answer; write one, or delete the row"]),
        ({"conversations": ["a", "b", "c"]}, ["the last question has no answer"]),
        ({"conversations": ["a", " "]}, ["answer 1 is empty"]),
        ({"conversations": ["a", "b", "", "d"]}, ["question 2 is empty"]),
        ({"conversations": ["a", 3]}, ["answer 1 is 3, which is not text; write ["]),
        ({"conversations": ["a", {"role": "assistant"}]}, ["answer 1 is {"]),
        ({"conversations": "['a', 'b']"}, ["as Python prints it, which is not JSON; save the column with json.dumps"]),
        ({"conversations": "__import__('os').abort()"}, ["is not a list of turns"]),
        ({"conversations": '{"role": "user"}'}, ["is not a list of turns"]),
        ({"conversations": "[" * 100_000}, ["is not a list of turns"]),
        ({"conversations": f"[{'[' * 900}{']' * 900}, 1]"}, ["question 1 is [[", "not text"]),
        ({"conversations": "9" * 5000}, ["is not a list of turns"]),
        ({"prompt": "a"}, ["answer 1 is empty"]),
        ({"prompt": "a", "completion": said("b")}, ["message 2 is of 'user' where 'assistant' is due"]),
        ({"question": "a", "answer": "b"}, ["no column 'messages', 'conversations' or 'prompt'", "'question'"]),
    ],
)
def test_a_conversation_that_is_none(row, parts):
    message = refusal(data.conversations.conversation, row)
    assert_says(message, *parts)
    assert len(message) < 400


# ---- files


BIG = "x" * 10_000_000
BAD = {  # columns, second line of the file, parts of the sentence
    "odd": (TALK, {"conversations": ["a", "b", "c"]}, ["row 2, column 'conversations'", "no answer; write one"]),
    "deep text": (TALK, {"conversations": "[" * 100_000}, ["row 2", "is not a list of turns; write ["]),
    "NUL in a turn": (TALK, {"conversations": ["a", "b\0"]}, ["row 2, column 'conversations'", "a NUL"]),
    "a long turn": (TALK, {"conversations": ["a", BIG]}, ["row 2", "up to 10,000,002 characters"]),
    "roles": (CHAT, {"messages": said("a", "b", roles=["user"])}, ["row 2", "message 2 is of 'user'", "take turns"]),
    "no answer": (PAIR, {"prompt": "a"}, ["row 2, column 'completion'", "None is an empty text"]),
    "a number": (PAIR, {"prompt": 7, "completion": "a"}, ["row 2, column 'prompt'", "7 is not text"]),
    "not JSON": (TALK, "{'text': 1}", ["row 2: this is not a JSON object"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_gets_one_sentence(tmp_path, case):
    columns, row, parts = BAD[case]
    good = {"conversations": ["q", "a"], "messages": said("q", "a"), "prompt": "q", "completion": "a"}
    good = {column: good[column] for column in columns}
    path = jsonl(tmp_path / "train.jsonl", good, row)
    assert_says(refusal(load, path, columns), str(path), *parts)
    jsonl(path, *[good] * 10)
    for split in ("validation", "test"):
        jsonl(tmp_path / f"{split}.jsonl", good)
    assert load(tmp_path, columns)["train"]["messages"][:] == [messages("q", "a")] * 10


def test_a_bad_csv_gets_one_sentence(tmp_path):
    (tmp_path / "train.csv").write_text("conversations\nwho?\n")
    assert_says(refusal(load, tmp_path), "train.csv", "row 2", "'who?' is not a list of turns")
    (tmp_path / "train.csv").write_text("conversations_a\nb\n")
    assert_says(refusal(load, tmp_path), "no column 'conversations'", "rename the column 'conversations_a'")


def test_of_many_bad_rows_ten_are_named_and_all_are_counted(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *[{"conversations": ["q"]}] * 25)
    assert_says(refusal(load, path), "rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, … (25 in all), column")


def test_conversations_of_a_csv_file(tmp_path):
    for split in ("train", "validation", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            rows = [["messages", "source"], [json.dumps(said("who\n?", "me, you")), "x"], ['["q", "a"]', "y"]]
            csv.writer(file).writerows(rows)
    dataset = load(tmp_path, CHAT)
    assert dataset["train"].to_list() == [
        {"source": "x", "messages": messages("who\n?", "me, you")},
        {"source": "y", "messages": messages("q", "a")},
    ]


def test_only_the_columns_that_were_asked_for_are_read(tmp_path, capsys):
    row = {"prompt": "q", "completion": "a", "messages": said("another", "one"), "note": "a column of the reader"}
    for split in ("train", "validation", "test"):
        jsonl(tmp_path / f"{split}.jsonl", row)
    dataset = load(tmp_path, PAIR)["train"]
    assert dataset["messages"][0] == messages("q", "a")
    assert dataset.column_names == ["note", "messages"]
    assert "Not used: columns 'messages', 'note'. The" in capsys.readouterr().out
    assert load(tmp_path, CHAT)["train"]["messages"][0] == messages("another", "one")


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        (("question", "answer"), {"question": "q", "answer": "a"}),
        (("completion", "prompt"), {"prompt": "q", "completion": "a"}),
        (("output", "instruction", "input"), {"instruction": "q", "input": "", "output": "a"}),
        (("instruction", "input", "output"), {"instruction": "q", "input": None, "output": "a"}),
        (("dialog",), {"dialog": ["q", "a"]}),
        ("dialog", {"dialog": ["q", "a"]}),
    ],
)
def test_columns_of_other_names(tmp_path, columns, row):
    for split in ("train", "validation", "test"):
        jsonl(tmp_path / f"{split}.jsonl", row)
    assert load(tmp_path, columns)["train"]["messages"][:] == [messages("q", "a")]


def test_an_instruction_goes_before_its_input_and_a_system_message_before_both(tmp_path):
    alpaca = {"instruction": "Translate.", "input": "Hupe", "output": "horn", "system": "Be brief."}
    for split in ("train", "validation", "test"):
        jsonl(tmp_path / f"{split}.jsonl", alpaca)
    found = load(tmp_path, ("instruction", "input", "output"))["train"]["messages"][0]
    assert found == messages("Translate.\n\nHupe", "horn")
    found = load(tmp_path, ("output", "instruction", "system"))["train"]["messages"][0]
    assert found == [{"role": "system", "content": "Be brief."}, *messages("Translate.", "horn")]
    message = refusal(load, tmp_path, ("instruction", "output"))
    assert_says(message, "column 'input' holds texts", 'set columns to ["instruction", "input", "output"]')


@pytest.mark.parametrize("columns", [(), ("prompt", "messages"), ("prompt", "prompt"), ("a", "b", "c", "d")])
def test_columns_that_are_none(columns):
    assert_says(refusal(load, "a.jsonl", columns), "are not columns of conversations; write [")


def test_the_columns_that_are_there_are_suggested(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"messages": said("q", "a")})
    assert_says(refusal(load, path), "no column 'conversations' among 'messages'", 'set columns to ["messages"].')
    jsonl(path, {"question": "q", "answer": "a"})
    assert 'set columns to ["question", "answer"].' in refusal(load, path, CHAT)


def test_repeats_of_questions_stay_on_one_side(tmp_path):
    rows = [{"conversations": [f"What is part {n % 12}{'?! '[n // 12]}", f"a{n}"]} for n in range(36)]
    found = load(jsonl(tmp_path / "a.jsonl", *rows))
    numbers = {split: {text.strip("?! ") for text in first_questions(part)} for split, part in found.items()}
    assert not numbers["train"] & (numbers["test"] | numbers["validation"])
    assert sum(found.num_rows.values()) == 36


def test_a_parquet_file_is_read_by_load_dataset(tmp_path):
    path = tmp_path / "a.parquet"
    splits_of(train=talks(*"bcdefghijk"))["train"].to_parquet(path)
    dataset = load(path, TALK, load_dataset)
    assert sorted(text for part in dataset.values() for text in first_questions(part)) == list("bcdefghijk")


# ---- splits


def test_rows_of_the_hub_name_split_and_row():
    dataset = splits_of(train=[{"messages": said("q", "a")}, {"messages": said("q")}])
    assert_says(
        refusal(load_from_hub, dataset, CHAT), "split 'train' (rows count from 0)", "row 1, column 'messages': the"
    )


def test_a_test_of_questions_alone_is_left_out_and_another_is_cut_out_of_train(tmp_path):
    """As in LIMA: its test split has no answers."""
    questions = [{"conversations": [f"question {n}"]} for n in range(3)]
    dataset = splits_of(train=talks(*"bcdefghijk"), validation=talks("x"), test=questions)
    found = load_from_hub(dataset)
    assert {split: len(part) for split, part in found.items()} == {"train": 8, "validation": 1, "test": 2}
    assert {text for split in ("train", "test") for text in first_questions(found[split])} == set("bcdefghijk")
    for split in dataset:
        jsonl(tmp_path / f"{split}.jsonl", *dataset[split].to_list())
    assert load(tmp_path)["test"]["messages"][:] == found["test"]["messages"][:]
    unanswered = splits_of(train=talks(*"bcdefghijk"), validation=questions)
    assert_says(refusal(load_from_hub, unanswered), "split 'validation'", "rows 0, 1, 2", "no answer")
    train = [{"prompt": f"q{n}", "completion": "a"} for n in range(10)]
    pairs = splits_of(train=train, test=[{"prompt": "r", "completion": ""}])
    assert len(load_from_hub(pairs, PAIR)["test"]) == 2
    del pairs["test"]
    for nothing in (["q", ""], ["q", None]):
        assert data.conversations.conversation({"conversations": nothing}, answers=False) == messages("q")
    jsonl(tmp_path / "train.jsonl", *pairs["train"].to_list())
    jsonl(tmp_path / "validation.jsonl", {"prompt": "r", "completion": "b"})
    jsonl(tmp_path / "test.jsonl", {"prompt": "s"})
    assert len(load(tmp_path, PAIR)["test"]) == 2


def test_a_single_row_without_its_answer_does_not_replace_the_test(capsys):
    some = splits_of(train=talks(*"bcdefghijk"), test=[*talks("x", "y"), {"conversations": ["z"]}])
    message = refusal(load_from_hub, some)
    assert_says(message, "split 'test'", "row 2: the last question has no answer (1 of 3 rows of the test); write one")
    load_from_hub(splits_of(train=talks(*"bcdefghijk"), test=[{"conversations": ["z"]}]))
    assert "Not used: split 'test', whose rows have no answers" in capsys.readouterr().out


def test_questions_on_both_sides_give_one_line_with_counts(capsys):
    more = {"validation": talks("one more")}
    load_from_hub(splits_of(train=talks("a law"), test=talks("another"), **more))
    assert capsys.readouterr().out == ""
    load_from_hub(splits_of(train=talks("a law"), test=talks(" A\nLAW ", "b", answer="y"), **more))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert_says(out, "Warning: 1 of 2 texts of 'test' also stand in 'train'")


def test_missing_splits_are_cut_out_of_train():
    dataset = splits_of(train=talks(*map(str, range(100))))
    found = load_from_hub(dataset, seed=3)
    assert found.num_rows == {"train": 72, "test": 20, "validation": 8}
    assert load_from_hub(dataset, seed=3)["test"]["messages"][:] == found["test"]["messages"][:]
    assert load_from_hub(dataset, seed=4)["test"]["messages"][:] != found["test"]["messages"][:]
