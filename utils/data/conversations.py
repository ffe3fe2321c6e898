"""Data of lessons 03 and 04, whose answer is text: summaries, conversations, and what tokenization leaves of them."""

import contextlib
import json
import reprlib

from utils.data import reading, rules
from utils.errors import CourseError, first_ten

LONGEST = 1_000_000  # characters; more takes long to tokenize, and nearly all of it is cut off afterwards
TALKS = ("messages", "conversations")  # columns with a whole conversation in one cell
WRITE = 'write ["question", "answer"], or [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


def source(dataset_id, columns, unanswered=()):
    """Checks local data files row by row and returns the arguments for `load_dataset`, as `checks.data_source` does.

    columns: those which every row needs, the input first: ("text", "summary"), ("prompt", "completion"), or
    ("conversations",) or ("messages",), whose cells `conversation` must understand. Rows may have more columns.
    In CSV, NA, null and None stay text. unanswered: names of the splits whose rows may lack the (last) answer.
    Raises CourseError for a wrong path and for the first kind of bad row: file, row, column, remedy.
    """
    return reading.read_source(
        dataset_id, columns, lambda file, split, *rest: _check_rows(file, columns, split not in unanswered, *rest)
    )


def check(dataset, columns, needed=("train",), unanswered=()):
    """Checks the splits `needed`, and train, validation and test if there are such, of a loaded DatasetDict.

    columns, unanswered: as for `source`. Rows count from 0, as in dataset["train"][0]. Prints a line for a split that
    repeats inputs (the first column, or the first question) of train. 20,000 rows of 10,000 characters take seconds.
    Raises CourseError for a missing or empty split, a missing column, and the first kind of bad row.
    """
    import pandas as pd  # not above: importing this module stays cheap

    inputs = {}
    for split in dict.fromkeys([*needed, "train", "validation", "test"]):
        if isinstance(dataset, dict) and split in dataset:
            part, where = dataset[split], f"split {split!r} (rows count from 0)"
            here = columns if {*columns} <= {*part.column_names} else part.column_names
            rows = pd.DataFrame({column: part[column][:] for column in here}, dtype=object)
            inputs[split] = _check_rows(where, columns, split not in unanswered, rows)
        elif split in needed:
            raise CourseError(f"the data has no split {split!r}; name a file {split}.jsonl or {split}.csv.")
    rules.warn_of_repeats(inputs)


def conversation(row, answers=True):
    """The turns of `row` as a list of strings: question, answer, question, answer, ...

    row holds "messages" or "conversations", a list of strings or of {"role": ..., "content": ...}, or JSON text of
    one; or "prompt" and "completion". Roles are user and assistant in turn; the text of a first system message is put
    in front of the first question. answers: whether the last question must have its answer; with answers=False it may
    be missing or empty, and the list then ends with the question, as in the test split of LIMA.
    Raises CourseError that says what is wrong, but not where: `conversations` adds split and row.
    """
    column, system = next((column for column in TALKS if column in row), None), ""
    if column is None and "prompt" not in row:
        raise CourseError(
            f"no column 'messages', 'conversations' or 'prompt' among {first_ten(map(repr, row))}; add one."
        )
    turns = row[column] if column else [row["prompt"], row.get("completion")]
    with contextlib.suppress(ValueError, RecursionError):  # what is no JSON stays a string
        turns = json.loads(turns) if isinstance(turns, str) else turns
    if not isinstance(turns, list):
        raise CourseError(f"{reprlib.repr(turns)} is not a list of turns; {WRITE}.")
    if turns and all(isinstance(turn, dict) for turn in turns):
        if turns[0].get("role") == "system":
            system, *turns = f"{turns[0].get('content') or ''}\n\n", *turns[1:]
        for number, turn in enumerate(turns, 1):
            if turn.get("role") != (due := ("assistant", "user")[number % 2]):
                remedy = "let 'user' and 'assistant' take turns, after one 'system' at most"
                raise CourseError(f"message {number} is of {turn.get('role')!r} where {due!r} is due; {remedy}.")
        turns = [turn.get("content") for turn in turns]
    if not answers and len(turns) % 2 == 0 and turns[-1:] in ([None], [""]):
        turns = turns[:-1]
    for number, turn in enumerate(turns):
        name = f"{('question', 'answer')[number % 2]} {number // 2 + 1}"
        if turn is None or not str(turn).strip():
            raise CourseError(f"{name} is empty; write one, or delete the row.")
        if not isinstance(turn, str):
            raise CourseError(f"{name} is {reprlib.repr(turn)}, which is not text; {WRITE}.")
    if not turns or (answers and len(turns) % 2):
        fault = "the last question has no answer" if turns else "there is no question"
        raise CourseError(f"{fault}; write one, or delete the row.")
    return [system.lstrip() + turns[0], *turns[1:]]


def conversations(dataset, split, answers=True):
    """`conversation` of every row of dataset[split], a list of lists; its errors name split and row, from 0."""
    columns = [name for name in dataset[split].column_names if name in (*TALKS, "prompt", "completion")]
    rows = zip(*(dataset[split][column][:] for column in columns), strict=True)
    return _turns(f"split {split!r} (rows count from 0)", columns, answers, enumerate(rows))


def has_answers(dataset, split):
    """Whether every conversation of dataset[split] ends with an answer; False for the test split of LIMA."""
    return all(len(turns) % 2 == 0 for turns in conversations(dataset, split, answers=False))


def plain(text, tokenizer):
    """`text` with a space inside each control token that it spells ("</s>" becomes "< /s>"), so that it has none.

    For a byte-level BPE (OPT, GPT-2) tokenizer(text, split_special_tokens=True) does as much and leaves the text as it
    is. For a Unigram (T5) it does not: "</s>", "<pad>" and "<extra_id_0>" are pieces of its own vocabulary, which it
    finds again, even behind full-width letters. The tokenizer must be a fast one. The id of unknown text may remain.
    """
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}  # one may be the unknown token too
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    control = (control | {*tokenizer.all_special_ids}) - ({tokenizer.unk_token_id} - ends)
    while True:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = [span for n, span in zip(found["input_ids"], found["offset_mapping"], strict=True) if n in control]
        if not spans:
            return text
        for start, end in reversed(spans):
            middle = end - len(text[start:end].lstrip()) + 1  # some tokens swallow the space before them
            text = f"{text[:middle]} {text[middle:]}"


def drop_cut(encoded, max_length, split="train", eos_token_id=None):
    """Drops the rows of a tokenized Dataset of which `max_length` leaves no answer; prints a line if any answer is cut.

    encoded: its column labels holds the ids of the answer (T5), or of prompt and answer with -100 on the prompt, cut to
    `max_length` or not yet. Returns the rows kept, unchanged; raises CourseError if there is none. An answer is empty
    if it is only eos_token_id, and cut in part if it goes on after max_length, or fills it without an eos_token_id at
    its end (if given). T5's tokenizer ends a cut answer with one, too: to see such cuts, hand in uncut labels.
    """
    gone, kept, part, nothing = [], [], 0, {-100, eos_token_id}
    for row, labels in enumerate(encoded["labels"][:]):
        left, full = {*labels[:max_length]} - nothing, eos_token_id is not None and len(labels) == max_length
        (kept if left else gone).append(row)
        part += bool(left and ({*labels[max_length:]} - {-100} or (full and labels[-1] not in nothing)))
    of, rows = f"of {len(encoded)} answers", f"row{'s' * (len(gone) > 1)} {first_ten(gone)}"
    if not kept:
        raise CourseError(f"split {split!r}: none {of} begins within max_length {max_length}; raise max_length.")
    lost = f"{len(gone)} {of} lie wholly beyond max_length {max_length}, or are empty ({rows}): dropped; " * bool(gone)
    cut = f"{part} {of} are cut in part at max_length {max_length}; " * bool(part)
    if gone or part:
        print(f"split {split!r}: {lost}{cut}raise max_length to keep them.")
    return encoded.select(kept) if gone else encoded


def _check_rows(where, columns, answered, rows, features=()):
    """Raises CourseError for the first kind of bad row of a DataFrame; returns the inputs, one string a row."""
    columns = columns if answered else columns[:1]
    rules.check_columns(where, rows, columns, features)
    for column in reversed(columns):
        values = inputs = rows[column]
        if column in TALKS:
            turns = _turns(where, [column], answered, ((row, [cell]) for row, cell in values.items()))
            inputs, texts = [talk[0] for talk in turns], map("\n".join, turns)
            values = values.map(lambda cell, texts=texts: next(texts))
        rules.refuse_texts(where, values)
        if (longest := max(map(len, values))) > LONGEST:
            fault = f"is too long (up to {longest:,} characters; {LONGEST:,} may be); shorten it, or delete the row"
            rules.refuse(where, values, lambda text: len(text) > LONGEST, fault)
    return inputs


def _turns(where, columns, answers, rows):
    """The conversations of (number, cells) pairs; the first fault is told with the numbers of all bad rows."""
    turns, bad = [], {}
    for number, cells in rows:
        try:
            turns.append(conversation(dict(zip(columns, cells, strict=True)), answers))
        except CourseError as error:
            bad[number] = error
    if bad:
        place = f"row{'s' * (len(bad) > 1)} {first_ten(bad)}, column {columns[0]!r}"
        raise CourseError(f"{where}, {place}: {next(iter(bad.values()))}")
    return turns
