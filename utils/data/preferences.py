"""Data of lesson 05: comparisons of two answers."""

import json
import re
import reprlib
import zlib

from utils.data import reading, repeats, rules
from utils.errors import CourseError, first_ten

TEXTS = ("prompt", "response_a", "response_b")
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")  # the classes 0, 1 and 2
BITS = {"1": 1, "0": 0, "true": 1, "false": 0}  # how a winner may be written
HELD_OUT = {"validation": 0, "test": 1}  # the fold of the training rows that becomes a missing split


def load(dataset_id, load_dataset, bad_rows="refuse", n_folds=20, seed=0):
    """Reads and checks comparisons of two answers; returns {"train", "validation" and "test": a `pandas.DataFrame`}.

    Columns, as in the arena set of LMSYS: id; prompt, response_a and response_b, each a list with one text a turn or
    JSON text of it (see `turns`), null for no answer, as many turns in all three; winner_model_a, winner_model_b and
    winner_tie, of which one is 1 or true and the others 0 or false. Others may be there and are kept. The three texts
    come back as JSON text in one spelling, so that equal texts are equal cells.

    dataset_id says where the data is:
    * a folder with files train, validation and test, all of one kind (`files.KINDS`); several files of a split
      are joined;
    * one such file;
    * a name on the hub, such as "lmsys/lmsys-arena-human-preference-55k".
    A test without winners cannot be scored and is left out. A missing validation or test split is one of n_folds folds
    of the training rows. The fold of a row is a checksum of its prompt (`first_spelling`), so each prompt stands on one
    side only. With n_folds=None nothing is split: the splits are those of the files, in the order of their rows.

    load_dataset is the function of the `datasets` library, which reads a name on the hub; or one with more settings:
    functools.partial(load_dataset, revision="..."). seed: of the order of rows in train and in folds.

    bad_rows: "refuse" stops at the first row that cannot be used; "drop" leaves such rows out, up to 1 % of a split.
    Repeats, rows with the texts of an earlier one, are dropped. Prints what was dropped, how many pairs are equal and
    still have a winner, and which splits repeat prompts of train. Each file is read once, and what was checked is what
    comes back. Raises CourseError for a wrong path, for bad rows (with file, row, column and remedy), and for an id
    that stands for two comparisons.
    """
    tables = reading.read(dataset_id, load_dataset)
    for table in tables:
        _refuse_other_forms(table)
        rules.check_columns(table, required_columns(table))
        _lists_as_json(table)
    without_winners = {table.split for table in tables if not has_winners(table)}
    tables, dropped = _without_bad_rows(tables, bad_rows)
    frames = {}
    for split, part in reading.to_datasets(tables, TEXTS).items():
        frame = part.to_pandas()
        if split in without_winners:
            frame = frame.drop(columns=list(WINNERS), errors="ignore")
        frame = _without_repeats(frame, split, dropped[split])
        if split in without_winners:
            print(f"Not used: split {split!r}, whose rows have no winners; a fold of 'train' takes its place.")
        else:
            frames[split] = frame
    _refuse_only_ties(frames["train"])
    if n_folds is not None:
        check_folds(frames, n_folds)
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


def text_of(cell):
    """The turns of a cell as one text, a line a turn."""
    return "\n".join(turns(cell))


def _refuse_other_forms(table):
    """Raises CourseError for the columns in which other courses and libraries keep preferences."""
    forms = (("chosen", "rejected"), ("prompt", "winner"), ("prompt", "label"), ("prompt", "preference"))
    for names in forms:
        if set(names) <= set(table.columns) and not set(WINNERS) & set(table.columns):
            there = " and ".join(map(repr, names))
            remedy = f"write response_a and response_b, in random order, and 1 or 0 in {', '.join(WINNERS)}"
            raise CourseError(f"{table.place}: comparisons with {there} are not read; {remedy}.")


def _lists_as_json(table):
    """Puts JSON text in place of cells that are lists."""
    for name in TEXTS:
        values = table.column(name)
        if not any(isinstance(value, list) for value in values):
            continue
        values = [json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value for value in values]
        if table.dataset is not None:
            table.dataset = table.dataset.remove_columns(name).add_column(name, values)
        table.columns[name] = values


def _refuse_only_ties(frame):
    """Raises CourseError if nobody wins in the training rows."""
    if len(frame) and (frame[WINNERS[2]] == 1).all():
        remedy = "add comparisons that somebody wins"
        raise CourseError(f"split 'train', column {WINNERS[2]!r}: every comparison is a tie; {remedy}.")


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
    if sorted(_bit(row[name]) for name in WINNERS) != [0, 0, 1]:
        said = ", ".join(str(row[name]).removesuffix(".0") for name in WINNERS)
        return f"column {WINNERS[0]!r}: to {WINNERS[-1]!r} are {said}; write 1 in one of the three, 0 in the others."
    return ""


def _bit(value):
    """1 or 0 of a winner, as a number, a text, or true and false; -1 for anything else."""
    return BITS.get(str(value).strip().removesuffix(".0").lower(), -1)


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
    winners = [name for name in WINNERS if name in frame]
    frame = frame.copy()
    for name in TEXTS:
        frame[name] = frame[name].map(_one_spelling)
    for name in winners:
        frame[name] = frame[name].map(_bit)
    kept = frame.drop_duplicates(list(TEXTS))
    doubled = sorted(kept["id"][kept["id"].duplicated()].astype(str))
    if doubled:
        where = f"split {split!r} (rows count from 0), column 'id'"
        remedy = "give each comparison an id of its own, or delete one"
        raise CourseError(f"{where}: {first_ten(doubled)} stands for two comparisons; {remedy}.")
    repeats = len(frame) - len(kept)
    print(f"split {split!r}: {len(kept)} comparisons, {repeats} repeats and {dropped} bad rows were dropped")
    if winners:
        _tell_doubts(frame, kept, split)
    return kept.reset_index(drop=True)


def _tell_doubts(frame, kept, split):
    """Prints how many winners may not be meant: of equal answers, and of repeats that named another one."""
    equal = int(((kept["response_a"] == kept["response_b"]) & (kept[WINNERS[2]] == 0)).sum())
    if equal:
        print(f"Warning: split {split!r}: {equal} comparisons of equal answers have a winner; a tie may be meant.")
    others = len(frame.drop_duplicates([*TEXTS, *WINNERS])) - len(kept)
    if others:
        what = f"{others} of the repeats name another winner than the row that was kept"
        print(f"Warning: split {split!r}: {what}; keep the verdict that you trust.")


def _one_spelling(cell):
    """A good cell in one spelling of JSON, without half characters."""
    return re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(json.loads(cell), ensure_ascii=False))


def first_spelling(prompts):
    """For each of a Series of prompts the first one that is the same but for case, spaces and punctuation."""
    groups = repeats.groups([text_of(prompt) for prompt in prompts], near=False)
    return prompts.groupby(groups).transform("first")


def split_by_prompt(frames, n_folds, seed):
    """{"train", "validation", "test": rows} from {split: rows}; a missing split becomes a fold of the training rows.

    The fold is a checksum of the prompt modulo n_folds: the same on every machine and for every new file. The rows of
    train and of folds come in an order drawn with the seed.
    """
    train = frames["train"]
    fold = first_spelling(train["prompt"]).map(lambda prompt: checksum(prompt) % n_folds)
    held_out = {}
    for split, number in HELD_OUT.items():
        if split in frames:
            held_out[split] = frames[split]
        else:
            held_out[split] = train[fold == number].sample(frac=1, random_state=seed)
            train, fold = train[fold != number], fold[fold != number]
    splits = {"train": train.sample(frac=1, random_state=seed), **held_out}
    return {split: frame.reset_index(drop=True) for split, frame in splits.items()}


def checksum(prompt):
    """A number that depends on the text of a prompt and on nothing else."""
    return zlib.crc32(prompt.encode("utf-8", "replace"))


def check_folds(frames, n_folds):
    """Raises CourseError if n_folds leaves one of the missing splits, or train, without a row.

    frames: {split: rows}, before they are split.
    """
    missing = [split for split in HELD_OUT if split not in frames]
    if n_folds <= len(missing):
        raise CourseError(f"n_folds = {n_folds} leaves nothing to train on; write {len(missing) + 1} or more.")
    numbers = first_spelling(frames["train"]["prompt"]).map(checksum)

    def is_full(count):
        folds = set(numbers % count)
        return all(HELD_OUT[split] in folds for split in missing) and any(
            fold not in [HELD_OUT[split] for split in missing] for fold in folds
        )

    if not is_full(n_folds):
        fits = [count for count in range(n_folds - 1, len(missing), -1) if is_full(count)]
        prompts = "1 prompt" if numbers.nunique() == 1 else f"{numbers.nunique()} different prompts"
        remedy = f"set n_folds to {fits[0]}, or add rows of other prompts" if fits else "add rows of other prompts"
        what = f"{prompts} do not fill the splits that are cut from it by n_folds {n_folds}"
        raise CourseError(f"split 'train': {what}; {remedy}.")
