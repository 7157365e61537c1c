import errno
import os

import pytest
from safetensors import SafetensorError

from crossadapt import files
from crossadapt.errors import UserError


def test_whole_files_replace_whole_files(tmp_path):
    path = tmp_path / "a" / "b.txt"
    files.write_file(path, b"one")
    files.write_file(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "zwölf"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"]


def test_new_files_have_ordinary_permissions(tmp_path):
    mask = os.umask(0)
    os.umask(mask)
    written = files.write_file(tmp_path / "x", b"")
    assert written.stat().st_mode & 0o777 == 0o666 & ~mask


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="could not be saved"):
        files.write_file(tmp_path / "folder", b"")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot create a folder"):
        files.write_file(tmp_path / "file" / "x", b"")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
    ],
)
def test_a_full_disk_keeps_the_old_file(tmp_path, error):
    path = files.write_file(tmp_path / "x", b"old")

    def overwrite():
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(UserError, match="the disk is full"):
        overwrite()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_errors_that_are_not_about_writing_pass_through(tmp_path):
    def fail():
        with files.replacing(tmp_path / "x") as temporary:
            temporary.write_bytes(b"half")
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []
