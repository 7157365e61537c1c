"""Files by id: whole, in ranges, and only as long as they are what was indexed."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.search.server import making

from crossadapt.search.collection import Collections
from crossadapt.search.server.failures import Failure
from crossadapt.search.server.originals import BINARY, Originals, media_type
from crossadapt.search.server.sending import byte_range, disposition


@pytest.fixture
def file(tmp_path):
    """A picture file with its id."""
    content = making.encoded(making.picture(1))
    path = tmp_path / "a # b.png"
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()[:32], content


def read(originals, *asked):
    original = originals.open(*asked)
    with original.file as source:
        source.seek(original.start)
        return source.read(original.size), original.media_type


def test_plain_files(file):
    path, name, content = file
    assert read(Originals(), name, str(path), len(content)) == (content, "image/png")
    assert read(Originals(), name, str(path), None) == (content, "image/png")


def change_content(path):
    path.write_bytes(bytes(path.stat().st_size))


def change_keeping_the_time(path):
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def longer(path):
    path.write_bytes(path.read_bytes() + b"x")


def to_pipe(path):
    path.unlink()
    os.mkfifo(path)


def to_folder(path):
    path.unlink()
    path.mkdir()


def to_another_file(path):
    secret = path.with_name("secret")
    secret.write_bytes(b"s" * path.stat().st_size)
    path.unlink()
    path.symlink_to(secret)


@pytest.mark.parametrize(
    "change",
    [
        change_content, change_keeping_the_time, longer, to_pipe, to_folder, to_another_file,
        lambda path: path.unlink(), lambda path: path.write_bytes(b""),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_was_indexed_is_not_opened(file, change):
    path, name, content = file
    originals = Originals()
    assert read(originals, name, str(path), len(content))[0] == content
    change(path)
    with pytest.raises(Failure) as caught:
        originals.open(name, str(path), len(content))
    assert caught.value.status == 410
    assert "crossadapt index" in caught.value.fix
    assert str(path) not in caught.value.what + caught.value.where


def test_members_of_archives_and_cells_of_tables(tmp_path):
    contents = [making.encoded(making.picture(n)) for n in range(5)]
    names = [hashlib.sha256(content).hexdigest()[:32] for content in contents]
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for number, content in [(0, b"older"), *enumerate(contents)]:
            info = tarfile.TarInfo(f"d/{number}.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    cells = [{"bytes": content, "path": None} for content in contents]
    pq.write_table(pa.table({"image": cells}), tmp_path / "s.parquet")
    originals = Originals()
    for number in (3, 0, 4):
        wanted = (contents[number], "image/png")
        size = len(contents[number])
        member = f"{tmp_path}/s.tar#d/{number}.png"
        assert read(originals, names[number], member, size) == wanted
        cell = f"{tmp_path}/s.parquet#{number}"
        assert read(originals, names[number], cell, size) == wanted
    for place in ("s.tar#d/1.png", "s.tar#d/9.png", "s.parquet#1", "s.parquet#99", "no.tar#a"):
        with pytest.raises(Failure):
            originals.open(names[0], f"{tmp_path}/{place}", None)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, None), ("bytes=0-9", (0, 9)), ("bytes=90-", (90, 99)), ("bytes=-10", (90, 99)),
        ("bytes=-1000", (0, 99)), ("bytes=50-1000", (50, 99)), ("bytes=100-", ()),
        ("bytes=-0", ()), ("bytes=9-3", None), ("bytes=-", None), ("bytes=0-1,5-6", None),
        ("items=0-1", None), ("bytes=a-b", None), ("bytes=" + "9" * 18 + "-", ()),
    ],
)  # fmt: skip
def test_ranges(header, found):
    assert byte_range(header, 100) == found


def test_ranges_of_a_served_file(http, store):
    path = next((store.parent / "pictures").glob("*.png"))
    content = path.read_bytes()
    url = f"/file/{hashlib.sha256(content).hexdigest()[:32]}?collection=shapes"
    whole = http.get(url)
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-type"] == "image/png"
    assert whole.headers["content-disposition"].startswith('inline; filename="')
    assert "sandbox" in whole.headers["content-security-policy"]
    part = http.get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(content)}"
    beyond = http.get(url, headers={"Range": "bytes=999999-"})
    assert beyond.status_code == 416
    assert beyond.headers["content-range"] == f"bytes */{len(content)}"
    stale = http.get(url, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
    assert (stale.status_code, stale.content) == (200, content)
    head = http.head(url)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(content)))
    unchanged = http.get(url, headers={"If-None-Match": whole.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_types_by_content_and_names_that_cannot_split_a_header(store):
    assert media_type(b"<html><script>") == media_type(b"") == BINARY
    assert media_type(b"\x00\x00\x00\x18ftypmp42") == "video/mp4"
    assert disposition(BINARY, "a.html").startswith("attachment")
    sly = disposition("image/png", 'a"\r\nSet-Cookie: x=1; é☃.png')
    assert "\r" not in sly
    assert "\n" not in sly
    assert sly.isascii()
    assert sly.count('"') == 2
    assert not Collections(store).open("plain").get(["../x"]).num_rows
