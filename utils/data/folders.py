"""Which files of a folder belong to which split."""

import re
from pathlib import Path

from utils.data.files import KINDS, kind_of
from utils.errors import CourseError, first_ten

SPLITS = ("train", "validation", "test")  # what a lesson uses; other splits are left out
WORDS = {  # in the name of a file or a folder, as `load_dataset` reads them, in upper or lower case
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def declared_features(folder):
    """The `datasets.Features` that README.md of a folder declares; {} if there is none."""
    from datasets.info import DatasetInfosDict  # not above: importing this module stays cheap

    try:
        infos = DatasetInfosDict.from_directory(str(folder))
    except Exception as error:  # of the parser of YAML, or of a type that `datasets` does not know
        remedy = "correct what stands between the two lines ---, or remove it"
        reason = str(error).strip().splitlines()[0]
        raise CourseError(f"{folder / 'README.md'}: its head cannot be read ({reason}); {remedy}.") from error
    for info in infos.values():
        return info.features or {}
    return {}


def declares_files(folder):
    """Whether README.md of a folder says which files are which split."""
    readme = folder / "README.md"
    return readme.is_file() and "data_files:" in readme.read_text("utf-8", "replace")


def files_of_splits(folder):
    """{split: [paths]} of a folder whose README.md names no files; prints which files are left out, and why.

    The split stands in a file's name or in that of a folder around it; if it stands nowhere, all files are train.
    Raises CourseError for a folder without data, for files of several kinds, and for a file of two splits.
    """
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        remedy = "write each split with to_parquet, into files train.parquet and test.parquet"
        raise CourseError(f"{folder}: this was written by save_to_disk; {remedy}.")
    files = _data_files(folder)
    if not files:
        _refuse_without_data(folder)
    splits = {file: _split_of(file.relative_to(folder)) for file in files}
    if not any(splits.values()):
        splits = dict.fromkeys(files, "train")
    found = {}
    for split in SPLITS:
        of_split = [file for file in files if splits[file] == split]
        if of_split:
            found[split] = [str(file) for file in of_split]
    left_out = [str(file.relative_to(folder)) for file in files if not splits[file]]
    if left_out:
        remedy = "put train, validation or test into a name to use it"
        print(f"Not used: {first_ten(left_out)} in {folder.name}, which name no split; {remedy}.")
    for split, paths in found.items():
        names = [str(Path(path).relative_to(folder)) for path in paths]
        if len(names) > 1 and not all(re.search(r"-\d+-of-\d+", name) for name in names):
            print(f"split {split!r}: the rows of {len(names)} files, {first_ten(names)}")
    return found


def _data_files(folder):
    """The files of a folder, and of folders in it, whose kind is one that is read; hidden ones are passed over."""
    files = []
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        hidden = any(part.startswith((".", "__")) for part in parts)
        if not hidden and file.is_file() and kind_of(file):
            files.append(file)
    return files


def _refuse_without_data(folder):
    """Raises CourseError for a folder in which there is nothing to read."""
    there = sorted(path.name for path in folder.iterdir())
    names = f"among {first_ten(there)}" if there else "in it"
    remedy = f"name the files train, validation and test, all of one kind of {', '.join(KINDS)}"
    raise CourseError(f"{folder}: no data {names}; {remedy}.")


def _split_of(path):
    """The split that a relative path names; "" if it names none. The file's own name counts before its folders."""
    for part in reversed(path.parts):
        words = re.split(r"[-._ 0-9()]+", part.casefold())
        splits = [split for split, of_split in WORDS.items() if set(words) & set(of_split)]
        if len(splits) > 1:
            two = " and ".join(map(repr, splits))
            raise CourseError(f"{path}: the name says both {two}; rename the file after one of them.")
        if splits:
            return splits[0]
    return ""
