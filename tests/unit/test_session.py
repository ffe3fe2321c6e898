"""The folder into which a lesson writes."""

import os

import pytest
from conftest import refusal
from data_files import assert_says

from utils import session


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    folder = session.writable_folder(str(tmp_path / "outputs" / "tiny"))
    assert folder == tmp_path / "outputs" / "tiny"
    assert list(folder.iterdir()) == []
    assert session.writable_folder(folder) == folder


@pytest.mark.parametrize("path", ["file", "file/below", "/proc/x"])
def test_a_folder_that_cannot_be_written(tmp_path, path):
    (tmp_path / "file").write_text("in the way")
    if path.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("there is no /proc here")
    message = refusal(session.writable_folder, tmp_path / path)
    assert_says(message, path, "cannot write", "OUTPUT_DIR")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("path", "folder"),
    [("~/x", "x"), (session.ROOT / "~/x", "x"), (str(session.ROOT / "~"), "."), ("~/a b/$HOME/100%", "a b/$HOME/100%")],
)
def test_a_folder_in_the_home_folder(tmp_path, monkeypatch, path, folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert session.writable_folder(path) == tmp_path / folder
    assert (tmp_path / folder).is_dir()
    assert not (session.ROOT / "~").exists()


def test_a_home_folder_that_nobody_knows():
    assert_says(refusal(session.writable_folder, session.ROOT / "~nobody-here/x"), "~nobody-here/x", "OUTPUT_DIR")
