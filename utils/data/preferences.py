"""Data of lesson 05: comparisons of two answers."""

import json
import re
import reprlib
import zlib

from utils.data import reading, rules
from utils.errors import CourseError, first_ten

TEXTS = ("prompt", "response_a", "response_b")
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")  # the classes 0, 1 and 2
HELD_OUT = {"validation": 0, "test": 1}  # the fold of the training rows that becomes a missing split


def load(dataset_id, load_dataset, bad_rows="refuse", n_folds=20, seed=0):
    """Reads and checks comparisons of two answers; returns {"train", "validation" and "test": a `pandas.DataFrame`}.

    Columns, as in the arena set of LMSYS: id; prompt, response_a and response_b, each JSON text of a list with one
    text a turn (see `turns`), null for no answer, as many turns in all three; winner_model_a, winner_model_b and
    winner_tie, of which one is 1 and the others 0. Others may be there and are kept.

    dataset_id says where the data is:
    * a folder with files train, validation and test, all .csv, all .jsonl or all .parquet; several files of a split
      are joined;
    * a .csv, .jsonl or .parquet file;
    * a name on the hub, such as "lmsys/lmsys-arena-human-preference-55k".
    A test without winners cannot be scored and is left out. A missing validation or test split is one of n_folds folds
    of the training rows. The fold of a row is a checksum of its prompt, so each prompt stands on one side only. With
    n_folds=None nothing is split: the splits are those of the files, in the order of their rows.

    load_dataset is the function of the `datasets` library, which reads a name on the hub or Parquet; or one with more
    settings: functools.partial(load_dataset, revision="..."). seed: of the order of rows in train and in folds.

    bad_rows: "refuse" stops at the first row that cannot be used; "drop" leaves such rows out, up to 1 % of a split.
    Repeats, rows with the texts of an earlier one, are dropped. Prints what was dropped, and which splits repeat
    prompts of train. Each file is read once, and what was checked is what comes back. Raises CourseError for a wrong
    path, for bad rows (with file, row, column and remedy), and for an id that stands for two comparisons.
    """
    tables = reading.read(dataset_id, load_dataset, TEXTS)
    for table in tables:
        rules.check_columns(table, required_columns(table))
    without_winners = {table.split for table in tables if not has_winners(table)}
    tables, dropped = _without_bad_rows(tables, bad_rows)
    frames = {}
    for split, part in reading.to_datasets(tables, TEXTS).items():
        frame = part.to_pandas()
        if split in without_winners:
            frame = frame.drop(columns=list(WINNERS), errors="ignore")
        frame = _without_repeats(frame, split, dropped[split])
        if split not in without_winners:
            frames[split] = frame
    if n_folds is not None:
        frames = split_by_prompt(frames, n_folds, seed)
    rules.warn_of_repeats({split: frame["prompt"] for split, frame in frames.items()})
    return frames


def turns(cell):
    """The turns of a cell, a JSON-encoded list of texts, as a list of strings; null (no answer) becomes "".

    Half characters, which JSON can spell and no file can hold (a lone surrogate such as \\ud800), become "\ufffd".
    Nothing in the cell is executed. Raises CourseError that says what is wrong, but not where.
    """
    remedy = 'write a JSON list of texts, such as ["one turn", "the next"], with null for no answer'
    if not isinstance(cell, str):
        raise CourseError(f"{reprlib.repr(cell)} is not text; {remedy}.")
    if len(cell) > rules.LONGEST:
        fault = f"is {len(cell):,} characters long ({rules.LONGEST:,} may be)"
        raise CourseError(f"{fault}; shorten it, or delete the row.")
    try:
        texts = json.loads(cell)
    except RecursionError:
        raise CourseError(f"{reprlib.repr(cell)} is nested too deep; {remedy}.") from None
    except ValueError:
        raise CourseError(f"{reprlib.repr(cell)} is not JSON; {remedy}.") from None
    if not isinstance(texts, list) or not all(text is None or isinstance(text, str) for text in texts):
        raise CourseError(f"{reprlib.repr(cell)} is not a list of texts; {remedy}.")
    texts = [text or "" for text in texts]
    if any("\0" in text for text in texts):
        raise CourseError(f"{reprlib.repr(cell)} holds a NUL; retype it.")
    return [re.sub("[\ud800-\udfff]", "\ufffd", text) for text in texts]


def required_columns(table):
    """The columns that a Table must have. A test may lack the winners, all three of them."""
    has_a_winner_column = any(name in table.columns for name in WINNERS)
    if table.split == "test" and not has_a_winner_column:
        return ("id", *TEXTS)
    return ("id", *TEXTS, *WINNERS)


def has_winners(table):
    """Whether a Table says who won; a test may lack it, or hold nothing in these columns."""
    if table.split != "test":
        return True
    if WINNERS[0] not in table.columns:
        return False
    return not all(rules.is_empty(value) for name in WINNERS for value in table.column(name))


# ---- bad rows


def faults_of(table):
    """{row number: what is wrong with the row, with its column and the remedy} of a Table."""
    with_winners = has_winners(table)
    names = ("id", *TEXTS, *WINNERS) if with_winners else ("id", *TEXTS)
    faults = {}
    for number, row in table.rows(names):
        fault = fault_of(row, with_winners)
        if fault:
            faults[number] = fault
    return faults


def fault_of(row, with_winners=True):
    """What is wrong with a row, a dict: its column and the remedy; an empty string if nothing is."""
    if rules.is_empty(row["id"]):
        return "column 'id': is empty; give each comparison an id of its own."
    texts = {}
    for column in TEXTS:
        try:
            texts[column] = turns(row[column])
        except CourseError as error:
            return f"column {column!r}: {error}"
    return _fault_of_texts(texts) or (_fault_of_winners(row) if with_winners else "")


def _fault_of_texts(texts):
    """What is wrong with {column: its turns}."""
    if not "".join(texts["prompt"]).strip():
        return "column 'prompt': is empty; write a question, or delete the row."
    if not "".join(texts["response_a"] + texts["response_b"]).strip():
        return "column 'response_a': and 'response_b' are both empty; delete the row."
    lengths = {name: len(column) for name, column in texts.items()}
    if len(set(lengths.values())) > 1:
        remedy = "give each as many as the prompt has"
        return f"column 'response_a': and the others differ in turns ({lengths}); {remedy}."
    return ""


def _fault_of_winners(row):
    """What is wrong with the three columns that say who won."""
    values = [str(row[name]).removesuffix(".0") for name in WINNERS]
    if sorted(values) != ["0", "0", "1"]:
        said = ", ".join(values)
        return f"column {WINNERS[0]!r}: to {WINNERS[-1]!r} are {said}; write 1 in one of the three, 0 in the others."
    return ""


def _without_bad_rows(tables, bad_rows):
    """(tables without their bad rows, {split: how many were dropped}); raises CourseError if they may not be."""
    faults = [faults_of(table) for table in tables]
    dropped = {}
    for split in dict.fromkeys(table.split for table in tables):
        pairs = [pair for pair in zip(tables, faults, strict=True) if pair[0].split == split]
        dropped[split] = _refuse_or_count(pairs, bad_rows)
    return [table.without(of_table) for table, of_table in zip(tables, faults, strict=True)], dropped


def _refuse_or_count(pairs, bad_rows):
    """The number of bad rows of a split; raises CourseError for the first one if they may not be dropped.

    pairs: (Table, its `faults_of`) of each file of the split.
    """
    bad = sum(len(faults) for _, faults in pairs)
    if not bad:
        return 0
    rows = sum(len(table) for table, _ in pairs)
    why = ""
    if bad_rows == "drop":
        if bad <= max(1, rows // 100) and bad < rows:
            return bad
        why = f" ({bad} of {rows} rows are bad; at most 1 % may be dropped)"
    table, faults = next((table, faults) for table, faults in pairs if faults)
    number, fault = next(iter(faults.items()))
    raise CourseError(f"{table.place}, row {number}, {fault.rstrip('.')}{why}.")


# ---- good rows


def _without_repeats(frame, split, dropped):
    """The frame of a split without repeats, its winners as whole numbers; prints what was dropped.

    dropped: how many bad rows were left out already. Raises CourseError for an id that stands for two comparisons.
    """
    kept = frame.drop_duplicates(list(TEXTS))
    winners = [name for name in WINNERS if name in kept]
    kept = kept.astype(dict.fromkeys(winners, float)).astype(dict.fromkeys(winners, int))  # also from "1" and "1.0"
    doubled = sorted(kept["id"][kept["id"].duplicated()].astype(str))
    if doubled:
        where = f"split {split!r} (rows count from 0), column 'id'"
        remedy = "give each comparison an id of its own, or delete one"
        raise CourseError(f"{where}: {first_ten(doubled)} stands for two comparisons; {remedy}.")
    repeats = len(frame) - len(kept)
    print(f"split {split!r}: {len(kept)} comparisons, {repeats} repeats and {dropped} bad rows were dropped")
    return kept.reset_index(drop=True)


def split_by_prompt(frames, n_folds, seed):
    """{"train", "validation", "test": rows} from {split: rows}; a missing split becomes a fold of the training rows.

    The fold is a checksum of the prompt modulo n_folds: the same on every machine and for every new file. The rows of
    train and of folds come in an order drawn with the seed.
    """
    train = frames["train"]
    fold = train["prompt"].map(lambda prompt: zlib.crc32(prompt.encode("utf-8", "replace")) % n_folds)
    held_out = {}
    for split, number in HELD_OUT.items():
        if split in frames:
            held_out[split] = frames[split]
        else:
            held_out[split] = train[fold == number].sample(frac=1, random_state=seed)
            train, fold = train[fold != number], fold[fold != number]
    splits = {"train": train.sample(frac=1, random_state=seed), **held_out}
    return {split: frame.reset_index(drop=True) for split, frame in splits.items()}
