"""Data of lesson 04: conversations of questions and answers, in the forms that people write them in."""

import contextlib
import json
import reprlib
from collections import Counter

from utils.data import reading, rules, splitting
from utils.errors import CourseError, first_ten

TALKS = ("messages", "conversations")  # columns with a whole conversation in one cell
ROLES = {  # in the words of transformers; other words for the same, as ShareGPT, Gemini and OpenAssistant have them
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
}
TOOLS = ("tool", "function", "observation", "function_call", "tool_call", "ipython")  # roles of programs, not of people
NOT_TRAINED = ("tool_calls", "function_call", "images", "audio", "reasoning_content", "reasoning", "thinking")
MARKS = ("weight", "train", "trainable", "loss")  # keys of a message which say that it is to be left out of the loss
QUESTIONS = ("prompt", "question", "instruction", "input", "query")
ANSWERS = ("completion", "response", "output", "answer", "target")
WRITE = 'write ["question", "answer"], or [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


def load(dataset_id, load_dataset, columns=("conversations",), seed=0):
    """Reads and checks conversations; returns a `datasets.DatasetDict` of train, validation and test.

    Its column `messages` holds a list of {"role": "user" or "assistant", "content": text}, perhaps after one message of
    the role "system", as chat templates want it. It stands in place of `columns`; other columns are kept.

    columns: the names of columns that hold
    * one: a whole talk, a list of texts (question, answer, ...), of {"role", "content"} or of ShareGPT's {"from",
      "value"}, or JSON text of one (see `conversation`), as ("messages",) or ("conversations",);
    * two: question and answer, two texts or two lists of messages, as ("prompt", "completion");
    * three: Alpaca's ("instruction", "input", "output"), of which the second may be empty; or a system message,
      question and answer, as ("system", "prompt", "completion").
    No turn may be empty, and no conversation longer than a million characters.

    dataset_id says where the data is:
    * a folder with files train, validation and test, all of one kind (`files.KINDS`). Validation and test may be
      missing: they are cut out of train at random, conversations of the same questions into the same part. The same is
      done if all rows of test lack their last answer, as LIMA's do;
    * one such file, which is cut likewise;
    * a name on the hub, such as "HuggingFaceH4/no_robots".

    load_dataset is the function of the `datasets` library, which reads a name on the hub; or one with more settings:
    functools.partial(load_dataset, revision="..."). seed: of the cuts.

    Prints a line for a split that repeats questions of train, and for splits and columns that are not used. Each file
    is read once, and what was checked is what comes back. Raises CourseError for a wrong path and for rows that cannot
    be trained on, with file, row, column and remedy.
    """
    columns = ordered(columns)
    tables = reading.read(dataset_id, load_dataset)
    talks = {table.split: [] for table in tables}
    unanswered = []
    for table in tables:
        _suggest_columns(table, columns)
        of_table = check(table, columns, answers=table.split != "test")
        talks[table.split].extend(of_table)
        unanswered += _rows_without_answer(table, of_table)
    without_answers = _refuse_some(unanswered, talks.get("test", ()))
    _tell_unused_columns(tables, columns)
    dataset = reading.to_datasets(tables, columns)
    if without_answers:
        print("Not used: split 'test', whose rows have no answers; a test is cut out of 'train' in its place.")
        del dataset["test"], talks["test"]
    questions = {split: _questions(rows) for split, rows in talks.items()}
    rules.warn_of_repeats(questions)
    for split, rows in talks.items():
        dataset[split] = _with_messages(dataset[split], columns, rows)
    return splitting.add_missing_splits(dataset, seed, group_by=questions["train"])


def ordered(columns):
    """`columns` in the order in which they are read: the answer last, a system message first.

    Raises CourseError if they cannot be columns of conversations.
    """
    columns = (columns,) if isinstance(columns, str) else tuple(columns)
    stands_twice = len(set(columns)) < len(columns)
    has_a_talk_beside_others = len(columns) > 1 and set(columns) & set(TALKS)
    if len(columns) not in (1, 2, 3) or stands_twice or has_a_talk_beside_others:
        remedy = 'write ["messages"], or ["prompt", "completion"], or ["instruction", "input", "output"]'
        raise CourseError(f"columns = {list(columns)} are not columns of conversations; {remedy}.")
    if len(columns) > 1 and set(columns) <= {*QUESTIONS, *ANSWERS, "system"}:
        columns = tuple(sorted(columns, key=lambda name: (name in ANSWERS, name != "system")))
    return columns


def _suggest_columns(table, columns):
    """Raises CourseError if a Table of train has other columns than `columns`, which it names, with conversations."""
    if {*columns} == {"instruction", "output"} and not all(map(rules.is_empty, table.columns.get("input", ()))):
        what = "column 'input' holds texts that belong to the instructions"
        remedy = 'set columns to ["instruction", "input", "output"], or delete the column'
        raise CourseError(f"{table.place}: {what}; {remedy}.")
    if not len(table) or table.split != "train" or all(column in table.columns for column in columns):
        return
    present = [[name] for name in TALKS]
    present.append(["instruction", "input", "output"])
    present += [[question, answer] for question in QUESTIONS for answer in ANSWERS]
    for names in present:
        if all(name in table.columns for name in names):
            missing = next(column for column in columns if column not in table.columns)
            there = first_ten(map(repr, table.columns))
            remedy = f"set columns to {json.dumps(names)}"
            raise CourseError(f"{table.place}: no column {missing!r} among {there}; {remedy}.")


def _rows_without_answer(table, talks):
    """(Table, number) of each row whose last question has no answer."""
    pairs = zip(table.numbers, talks, strict=True)
    return [(table, number) for number, talk in pairs if talk[-1]["role"] != "assistant"]


def _refuse_some(unanswered, talks):
    """Whether no row of the test has its answer; raises CourseError if some have theirs and others do not."""
    if unanswered and len(unanswered) < len(talks):
        table = unanswered[0][0]
        rows = rules.rows_in_words(number for other, number in unanswered if other is table)
        what = f"the last question has no answer ({len(unanswered)} of {len(talks)} rows of the test)"
        raise CourseError(f"{table.place}, {rows}: {what}; write one, or delete the row.")
    return len(unanswered) > 0


def _tell_unused_columns(tables, columns):
    """Prints which columns are not used: one of them may have been meant."""
    names = dict.fromkeys(name for table in tables for name in table.columns)
    others = [name for name in names if name not in (*columns, "source")]
    if others:
        noun = "column" if len(others) == 1 else "columns"
        print(f"Not used: {noun} {first_ten(map(repr, others))}. The conversations are read from {first_ten(columns)}.")


def _questions(talks):
    """For each conversation all of its questions in one text, behind its system message if no other one has that."""
    systems = Counter(talk[0]["content"] for talk in talks if talk[0]["role"] == "system")
    questions = []
    for talk in talks:
        texts = [message["content"] for message in talk if message["role"] == "user"]
        if talk[0]["role"] == "system" and systems[talk[0]["content"]] == 1:
            texts.insert(0, talk[0]["content"])
        questions.append("\n".join(texts))
    return questions


def _with_messages(part, columns, talks):
    """The Dataset with a column `messages` in place of `columns`."""
    replaced = [column for column in part.column_names if column in (*columns, "messages")]
    name = "checked_messages"
    while name in part.column_names:
        name = f"{name}_"
    return part.add_column(name, talks).remove_columns(replaced).rename_column(name, "messages")


def check(table, columns, answers=True):
    """The messages of each row of a Table; raises CourseError for the first kind of bad row.

    answers: whether the last question of a row must have its answer.
    """
    if len(columns) == 1:
        rules.check_columns(table, columns)
        talks = _talks_of_rows(table, columns, answers)
        _check_texts(table, columns[0], [_whole_text(talk) for talk in talks])
        return talks
    needed = columns if answers else columns[:-1]
    rules.check_columns(table, needed)
    may_be_empty = optional_column(columns)
    for column in reversed(needed):
        if column != may_be_empty and not any(isinstance(value, list) for value in table.column(column)):
            _check_texts(table, column, table.column(column))
    talks = _talks_of_rows(table, columns, answers)
    _check_texts(table, columns[0], [_whole_text(talk) for talk in talks])
    return talks


def optional_column(columns):
    """The one of three columns that may be empty: the system message, else what belongs to the question; or None."""
    if len(columns) < 3:
        return None
    return columns[0] if columns[0] == "system" else columns[1]


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
            talks.append(conversation(_named(row, columns), answers))
        except CourseError as error:
            faults[number] = error
    if faults:
        first_fault = next(iter(faults.values()))
        rows = rules.rows_in_words(faults)
        raise CourseError(f"{table.place}, {rows}, column {columns[0]!r}: {first_fault}")
    return talks


def _named(row, columns):
    """`row` with the names that `conversation` knows, whatever the names of its columns."""
    if len(columns) == 1:
        return {"messages": row[columns[0]]}
    named = {"prompt": row[columns[-2]], "completion": row.get(columns[-1])}
    if len(columns) == 2:
        return named
    optional = row[optional_column(columns)]
    if not rules.is_empty(optional) and not isinstance(optional, str):
        what = f"column {optional_column(columns)!r} holds {reprlib.repr(optional)}, which is not text"
        raise CourseError(f"{what}; put it in double quotes.")
    if columns[0] == "system":
        named["system"] = optional
    elif rules.is_empty(optional):
        named["prompt"] = row[columns[0]]
    else:
        named["prompt"] = f"{row[columns[0]]}\n\n{optional}"
    return named


def conversation(row, answers=True):
    """The messages of `row`: a list of {"role": "user" or "assistant" in turn, "content": text}, perhaps after one
    message of the role "system".

    row holds "messages" or "conversations": a list of strings (question, answer, ...), of {"role", "content"} or of
    ShareGPT's {"from": "human" or "gpt", "value"}, or JSON text of one; or "prompt" and "completion", two strings or
    two lists of messages, perhaps beside "system". A content may be a list of parts that are texts. A system message
    without a text is left out. What cannot be trained as a text is refused: pictures, calls of tools, thoughts beside
    the content, and messages that are marked to be left out of the loss.
    answers: whether the last question must have its answer; with answers=False it may be missing or empty, and the
    list then ends with the question, as in the test split of LIMA.
    Raises CourseError that says what is wrong, but not where.
    """
    turns = _list_of_turns(row)
    system = []
    if turns and all(isinstance(turn, dict) for turn in turns):
        system, turns = _texts_of_messages(turns)
    last_answer_is_empty = len(turns) > 0 and len(turns) % 2 == 0 and rules.is_empty(turns[-1])
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
        if rules.is_empty(row.get("system")) and not isinstance(prompt, list) and not isinstance(completion, list):
            return [prompt, completion]
        system = [] if rules.is_empty(row.get("system")) else [{"role": "system", "content": row["system"]}]
        return system + _as_messages(prompt, "user") + _as_messages(completion, "assistant")
    turns = row[column]
    if isinstance(turns, str):
        written = turns.lstrip()
        with contextlib.suppress(ValueError, RecursionError):  # what is no JSON stays a string, which is no list
            turns = json.loads(turns)
        if isinstance(turns, str) and written.startswith(("['", "[{'")):
            what = f"{reprlib.repr(turns)} is a list as Python prints it, which is not JSON"
            raise CourseError(f"{what}; save the column with json.dumps.")
    if not isinstance(turns, list):
        raise CourseError(f"{reprlib.repr(turns)} is not a list of turns; {WRITE}.")
    return turns


def _as_messages(turn, role):
    """A prompt or a completion as a list of messages: a list as it is, a text as the message of this role."""
    return turn if isinstance(turn, list) else [{"role": role, "content": turn}]


def _texts_of_messages(messages):
    """(the system message, in a list that may be empty, and the texts of the others) of a list of messages."""
    named = []
    for number, message in enumerate(messages, 1):
        try:
            named.append(_role_and_text(message))
        except CourseError as error:
            raise CourseError(f"message {number} {error}") from None
    system = []
    if named[0][0] == "system":
        if not rules.is_empty(named[0][1]):
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
    role = next((message[name] for name in ("role", "from") if name in message), None)
    text = next((message[name] for name in ("content", "value", "text") if message.get(name) is not None), None)
    word = role.strip().lower() if isinstance(role, str) else None
    _refuse_what_is_not_trained(message, word)
    if isinstance(text, list):
        text = _text_of_parts(text)
    return ROLES.get(word, role), text


def _refuse_what_is_not_trained(message, role):
    """Raises CourseError for a message of which a part would be lost, or trained although it says that it is not."""
    if role in TOOLS:
        raise CourseError(f"is of {role!r}, a tool, and this lesson trains questions and answers only; delete the row.")
    for name in NOT_TRAINED:
        if message.get(name):
            remedy = "write it into the content, or delete it or the row"
            raise CourseError(f"has {name!r}, which this lesson does not train; {remedy}.")
    for name in MARKS:
        mark = message.get(name)
        if ROLES.get(role) == "assistant" and mark is not None and mark != 1:
            what = f"has {name!r} {mark!r}, but this lesson trains every answer alike"
            raise CourseError(f"{what}; delete the key, or the row if its answer is not to be learned.")


def _text_of_parts(parts):
    """The text of a content that is a list of parts, each a text or {"type": "text", "text": ...}."""
    texts = []
    for part in parts:
        if isinstance(part, dict) and part.get("type", "text") in ("text", "input_text", "output_text"):
            part = part.get("text")
        if not isinstance(part, str):
            kind = part.get("type") if isinstance(part, dict) else reprlib.repr(part)
            remedy = "write its text as the content, or delete the row"
            raise CourseError(f"has a part that is no text ({kind!r}), which this lesson does not train; {remedy}.")
        texts.append(part)
    return "\n".join(texts)


def _check_turns(turns, answers):
    """Raises CourseError for a turn that is empty or no text, and for a last question without its answer."""
    for place, turn in enumerate(turns):
        kind = "answer" if place % 2 else "question"
        name = f"{kind} {place // 2 + 1}"
        if rules.is_empty(turn):
            raise CourseError(f"{name} is empty; write one, or delete the row.")
        if not isinstance(turn, str):
            raise CourseError(f"{name} is {reprlib.repr(turn)}, which is not text; {WRITE}.")
    if not turns:
        raise CourseError("there is no question; write one, or delete the row.")
    if answers and len(turns) % 2:
        raise CourseError("the last question has no answer; write one, or delete the row.")
