"""The splits that a data set does not bring are cut out of its training rows."""

import math
from collections import Counter

import numpy as np

from utils.data import repeats
from utils.errors import CourseError, first_ten

SHARES = {"test": 0.2, "validation": 0.1}  # of the rows that are in train at that moment


def add_missing_splits(dataset, seed, stratify_by_column=None, group_by=None):
    """Adds test and validation to a `datasets.DatasetDict` that lacks them; returns it.

    They are drawn at random with the seed.
    stratify_by_column: a column of classes, a `ClassLabel`, whose shares all parts then keep as far as they can; each
    part has each class. group_by: the text of each row of train, a list. Rows whose texts repeat each other, word for
    word or nearly (`repeats.groups`), then stay in one part; a line says where a class has too few different texts for
    that. Raises CourseError if a class, or the whole set, has fewer rows than there are parts.
    """
    missing = [split for split in SHARES if split not in dataset]
    train = dataset["train"]
    if not missing:
        return dataset
    texts = map(str, range(len(train))) if group_by is None else group_by
    classes, names = [0] * len(train), None
    if stratify_by_column is not None:
        classes, names = train[stratify_by_column][:], train.features[stratify_by_column].names
    groups = _groups_that_fill(1 + len(missing), list(texts), classes, names)
    _refuse_too_few(1 + len(missing), groups, classes, names, stratify_by_column)
    random = np.random.default_rng(seed)
    left = list(range(len(train)))
    for number, split in enumerate(missing):
        held = _draw(left, groups, classes, SHARES[split], parts_after=len(missing) - number, random=random)
        left = [row for row in left if row not in held]
        _refuse_absent(held, classes, names, stratify_by_column)
        dataset[split] = train.select(random.permutation(sorted(held)).tolist())
    dataset["train"] = train.select(random.permutation(left).tolist())
    return dataset


def _groups_that_fill(parts, texts, classes, names):
    """The group of each text. A class with fewer groups than parts is cut more finely, in the end row by row."""
    groups = repeats.groups(texts)
    finer = (
        lambda: repeats.groups(texts, alike=0.9),
        lambda: repeats.groups(texts, near=False),
        lambda: range(len(texts)),
    )
    for grouped in finer:
        few = _classes_with_few_groups(parts, groups, classes)
        if not few:
            return groups
        others = grouped()
        for row, number in enumerate(classes):
            if number in few:
                groups[row] = ("finer", others[row])
        numbers = {}
        groups = [numbers.setdefault(group, len(numbers)) for group in groups]
    if len(set(zip(repeats.groups(texts, near=False), classes, strict=True))) < len(set(groups)):
        which = f"classes {first_ten(map(repr, (names[number] for number in few)))}" if names else "'train'"
        what = f"{which} have so few different texts that copies of one stand in several splits"
        print(f"Warning: {what}; the scores will look too good.")
    return groups


def _classes_with_few_groups(parts, groups, classes):
    """{class: how many groups have a row of it} of the classes with fewer groups than parts, in order."""
    counts = Counter(number for _, number in set(zip(groups, classes, strict=True)))
    return {number: count for number, count in sorted(counts.items()) if count < parts}


def _refuse_too_few(parts, groups, classes, names, column):
    """Raises CourseError for classes with fewer groups than parts; names: None if there are no classes."""
    few = _classes_with_few_groups(parts, groups, classes)
    if not few:
        return
    number, count = next(iter(few.items()))
    rows = "1 row" if count == 1 else f"{count} rows"
    need = f"{parts} are needed, one for 'train' and for each split that is cut from it"
    if names is None:
        raise CourseError(f"split 'train': it has {rows} only, and {need}; add rows.")
    others = f" (classes with too few: {len(few)})" if len(few) > 1 else ""
    where = f"split 'train', column {column!r}"
    raise CourseError(f"{where}: class {names[number]!r} has {rows} only, and {need}{others}; add rows, or remove it.")


def _refuse_absent(held, classes, names, column):
    """Raises CourseError if a split that was cut lacks a class, whose texts all stand under other classes as well."""
    absent = sorted(set(classes) - {classes[row] for row in held})
    if absent:
        where = f"split 'train', column {column!r}"
        what = f"the texts of class {names[absent[0]]!r} also stand under other classes, so no split can be cut"
        raise CourseError(f"{where}: {what}; give each text one class.")


def _draw(rows, groups, classes, share, parts_after, random):
    """A set of some of these rows, whole groups of them: about `share` of each class, and at least one row of it.

    groups, classes: of all rows of train. Of each class, `parts_after` groups at least are left over.
    """
    pool = _Pool(rows, groups, classes, parts_after)
    sizes = Counter(classes[row] for row in rows)
    for number in sorted(sizes, key=lambda number: (sizes[number], number)):
        wanted = share * sizes[number]
        wanted = math.ceil(wanted - 1e-9) if len(sizes) == 1 else max(1, round(wanted))
        candidates = random.permutation(sorted(pool.groups_left[number])).tolist()
        for group in candidates:
            if pool.taken[number] >= wanted:
                break
            if pool.taken[number] + len(pool.members[group]) <= wanted:
                pool.take(group)
        for group in sorted(candidates, key=lambda group: len(pool.members[group])):
            if pool.taken[number]:
                break
            pool.take(group)  # all groups are larger than what is wanted: the smallest one
    return pool.held


class _Pool:
    """The groups that a split may be drawn from."""

    def __init__(self, rows, groups, classes, fewest):
        self.classes = classes
        self.fewest = fewest
        self.members = {}  # {group: its rows}
        self.groups_left = {}  # {class: groups that have a row of it}
        for row in rows:
            self.members.setdefault(groups[row], []).append(row)
            self.groups_left.setdefault(classes[row], set()).add(groups[row])
        self.held = set()  # the rows that were taken
        self.taken = Counter()  # {class: how many of its rows were taken}

    def take(self, group):
        """Takes all rows of a group, unless a class would keep fewer than `fewest` groups."""
        its_classes = {self.classes[row] for row in self.members[group]}
        if any(len(self.groups_left[number]) <= self.fewest for number in its_classes):
            return
        for number in its_classes:
            self.groups_left[number].remove(group)
        self.held.update(self.members[group])
        self.taken.update(self.classes[row] for row in self.members[group])
