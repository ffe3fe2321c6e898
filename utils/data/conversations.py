"""Data of lesson 04: conversations of questions and answers, in the forms that people write them in."""

import contextlib
import json
import reprlib

from utils.data import reading, rules, splitting
from utils.errors import CourseError, first_ten

TALKS = ("messages", "conversations")  # columns with a whole conversation in one cell
ROLES = {  # as transformers calls them, and as ShareGPT does
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
WRITE = 'write ["question", "answer"], or [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


def load(dataset_id, load_dataset, columns=("conversations",), seed=0):
    """Reads and checks conversations; returns a `datasets.DatasetDict` of train, validation and test.

    Its column `messages` holds a list of {"role": "user" or "assistant", "content": text}, perhaps after one message of
    the role "system", as chat templates want it. It stands in place of `columns`; other columns are kept.

    columns: ("conversations",) or ("messages",), a list of texts (question, answer, ...), of {"role", "content"} or of
    ShareGPT's {"from", "value"}, or JSON text of one (see `conversation`); or ("prompt", "completion"), two texts or
    two lists of messages. No turn may be empty, and no conversation longer than a million characters.

    dataset_id says where the data is:
    * a folder with files train, validation and test, all .csv, all .jsonl or all .parquet. Validation and test may be
      missing: they are cut out of train at random. The same is done if a row of test lacks its last answer, as all
      rows of LIMA's test do;
    * a .csv, .jsonl or .parquet file, which is cut likewise;
    * a name on the hub, such as "HuggingFaceH4/no_robots".

    load_dataset is the function of the `datasets` library, which reads a name on the hub or Parquet; or one with more
    settings: functools.partial(load_dataset, revision="..."). seed: of the cuts.

    Prints a line for a split that repeats questions of train, and for splits that are not used. Each file is read
    once, and what was checked is what comes back. Raises CourseError for a wrong path and for rows that cannot be
    trained on, with file, row, column and remedy.
    """
    tables = reading.read(dataset_id, load_dataset, columns)
    talks = {table.split: [] for table in tables}
    for table in tables:
        talks[table.split].extend(check(table, columns, answers=table.split != "test"))
    dataset = reading.to_datasets(tables, columns)
    rules.warn_of_repeats({split: [_first_question(talk) for talk in rows] for split, rows in talks.items()})
    for split, rows in talks.items():
        if all(talk[-1]["role"] == "assistant" for talk in rows):
            dataset[split] = _with_messages(dataset[split], columns, rows)
        else:
            del dataset[split]
    return splitting.add_missing_splits(dataset, seed)


def _first_question(talk):
    """What stands before the first answer, the system message included."""
    texts = []
    for message in talk:
        if message["role"] == "assistant":
            break
        texts.append(message["content"])
    return "\n".join(texts)


def _with_messages(part, columns, talks):
    """The Dataset with a column `messages` in place of `columns`."""
    replaced = [column for column in part.column_names if column in (*columns, "messages")]
    part = part.add_column("checked_messages", talks).remove_columns(replaced)
    return part.rename_column("checked_messages", "messages")


def check(table, columns, answers=True):
    """The messages of each row of a Table; raises CourseError for the first kind of bad row.

    answers: whether the last question of a row must have its answer.
    """
    if len(columns) == 1:
        rules.check_columns(table, columns)
        talks = _talks_of_rows(table, columns, answers)
        _check_texts(table, columns[0], [_whole_text(talk) for talk in talks])
        return talks
    needed = columns if answers else columns[:1]
    rules.check_columns(table, needed)
    for column in reversed(needed):
        if not any(isinstance(value, list) for value in table.column(column)):
            _check_texts(table, column, table.column(column))
    talks = _talks_of_rows(table, columns, answers)
    _check_texts(table, columns[0], [_whole_text(talk) for talk in talks])
    return talks


def _whole_text(talk):
    return "\n".join(message["content"] for message in talk)


def _check_texts(table, column, values):
    rules.refuse_texts(table, column, values)
    rules.refuse_long_texts(table, column, values)


def _talks_of_rows(table, columns, answers):
    """`conversation` of each row of a Table; the first fault is told with the numbers of all bad rows."""
    talks, faults = [], {}
    for number, row in table.rows([column for column in columns if column in table.columns]):
        try:
            talks.append(conversation(row, answers))
        except CourseError as error:
            faults[number] = error
    if faults:
        first_fault = next(iter(faults.values()))
        rows = rules.rows_in_words(faults)
        raise CourseError(f"{table.place}, {rows}, column {columns[0]!r}: {first_fault}")
    return talks


def conversation(row, answers=True):
    """The messages of `row`: a list of {"role": "user" or "assistant" in turn, "content": text}, perhaps after one
    message of the role "system".

    row holds "messages" or "conversations": a list of strings (question, answer, ...), of {"role", "content"} or of
    ShareGPT's {"from": "human" or "gpt", "value"}, or JSON text of one; or "prompt" and "completion", two strings or
    two lists of messages. A system message without a text is left out.
    answers: whether the last question must have its answer; with answers=False it may be missing or empty, and the
    list then ends with the question, as in the test split of LIMA.
    Raises CourseError that says what is wrong, but not where.
    """
    turns = _list_of_turns(row)
    system = []
    if turns and all(isinstance(turn, dict) for turn in turns):
        system, turns = _texts_of_messages(turns)
    last_answer_is_empty = len(turns) > 0 and len(turns) % 2 == 0 and turns[-1] in (None, "")
    if last_answer_is_empty and not answers:
        turns = turns[:-1]
    _check_turns(turns, answers)
    messages = list(system)
    for place, text in enumerate(turns):
        messages.append({"role": "assistant" if place % 2 else "user", "content": text})
    return messages


def _list_of_turns(row):
    """What the row says, as a list that is not checked yet."""
    column = next((column for column in TALKS if column in row), None)
    if column is None and "prompt" not in row:
        names = first_ten(map(repr, row))
        raise CourseError(f"no column 'messages', 'conversations' or 'prompt' among {names}; add one.")
    if column is None:
        prompt, completion = row["prompt"], row.get("completion")
        if isinstance(prompt, list) and isinstance(completion, list):
            return prompt + completion
        return [prompt, completion]
    turns = row[column]
    if isinstance(turns, str):
        with contextlib.suppress(ValueError, RecursionError):  # what is no JSON stays a string, which is no list
            turns = json.loads(turns)
    if not isinstance(turns, list):
        raise CourseError(f"{reprlib.repr(turns)} is not a list of turns; {WRITE}.")
    return turns


def _texts_of_messages(messages):
    """(the system message, in a list that may be empty, and the texts of the others) of a list of messages."""
    named = [_role_and_text(message) for message in messages]
    system = []
    if named[0][0] == "system":
        if named[0][1]:
            system = [{"role": "system", "content": named[0][1]}]
        named = named[1:]
    for number, (role, _) in enumerate(named, 1):
        due = "user" if number % 2 else "assistant"
        if role != due:
            remedy = "let 'user' and 'assistant' take turns, after one 'system' at most"
            raise CourseError(f"message {number} is of {role!r} where {due!r} is due; {remedy}.")
    return system, [text for _, text in named]


def _role_and_text(message):
    """The role, in the words of transformers if ROLES knows it, and the text of {"role", "content"} or of
    {"from", "value"}."""
    if "role" not in message and "from" in message:
        role, text = message["from"], message.get("value")
    else:
        role, text = message.get("role"), message.get("content")
    if isinstance(role, str):
        role = ROLES.get(role, role)
    return role, text


def _check_turns(turns, answers):
    """Raises CourseError for a turn that is empty or no text, and for a last question without its answer."""
    for place, turn in enumerate(turns):
        kind = "answer" if place % 2 else "question"
        name = f"{kind} {place // 2 + 1}"
        if turn is None or not str(turn).strip():
            raise CourseError(f"{name} is empty; write one, or delete the row.")
        if not isinstance(turn, str):
            raise CourseError(f"{name} is {reprlib.repr(turn)}, which is not text; {WRITE}.")
    if not turns:
        raise CourseError("there is no question; write one, or delete the row.")
    if answers and len(turns) % 2:
        raise CourseError("the last question has no answer; write one, or delete the row.")
