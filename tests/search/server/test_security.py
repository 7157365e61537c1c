"""What a hostile or clumsy client sends: a clear 4xx, and the server stays up."""

from __future__ import annotations

import socket
import struct
import zlib

import pytest
from tests.search.server import making

from crossadapt.errors import UserError

BOUNDED = "multipart/form-data; boundary=b"
PART = b"--b\r\nContent-Disposition: form-data"


def error(answer, status):
    """The error of an answer, which must have the one shape and the status."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"what", "where", "fix"}
    assert body["error"]["what"]
    assert "Traceback" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    return body["error"]


def bomb(width, height):
    """A small PNG file that says it has so many pixels."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(3 * width + 1) * 64)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", packed)]
    return b"".join([*parts, chunk(b"IEND", b"")])


@pytest.mark.parametrize(
    ("asked", "status", "what"),
    [
        ({"q": "x" * 10_000}, 422, "10,000 characters"),
        ({"q": ""}, 422, "the query is empty"),
        ({"q": " \u200b\x00 "}, 422, "the query is empty"),
        ({"q": "x", "collection": "shaps"}, 404, "no collection 'shaps'"),
        ({"q": "x", "collection": "../../etc"}, 404, "no collection"),
        ({"q": "x", "collection": ""}, 422, "which collection"),
        ({"q": "x", "view": "c"}, 422, "no view 'c'"),
        ({"q": "x", "filter": "color = 'red'"}, 422, "color"),
        ({"q": "x", "filter": "colour = 'red'; drop table shapes"}, 422, ""),
        ({"q": "x", "filter": "colour = 'x' or 1=1 --"}, 422, ""),
        ({"q": "x", "filter": "(" * 3000}, 422, ""),
        ({"q": "x", "filter": "x" * 5000}, 422, ""),
        ({"q": "x", "like": "../../etc/passwd"}, 422, "no item"),
        ({"q": "x", "like": "' or id like '%"}, 422, "no item"),
        ({"q": "x", "k": "0"}, 422, "k is 0"),
        ({"q": "x", "k": "1" * 400}, 422, "k"),
        ({"q": "x", "k": "many"}, 422, "k: input should be a valid integer"),
        ({"q": "x", "strength": "nan"}, 422, "strength is nan"),
        ({"q": "x", "weight": "inf"}, 422, "weight is inf"),
        ({"q": "x", "K": "5"}, 422, "unknown parameter"),
        ({"exclude": "x"}, 422, "nothing is looked for"),
        ({"q": "x", "exclude": "x"}, 422, "nothing is left"),
    ],
)
def test_bad_queries_are_explained(http, asked, status, what):
    found = error(http.get("/search", params={"collection": "shapes", **asked}), status)
    assert what in found["what"]


def test_fixes_name_the_nearest(http):
    def fix(**asked):
        answer = http.get("/search", params={"collection": "shapes", "q": "x", **asked})
        return answer.json()["error"]["fix"]

    assert "did you mean 'shapes'?" in fix(collection="shaps")
    assert "did you mean 'view'?" in fix(viev="a")
    assert "colour" in fix(filter="color = 'red'")


@pytest.mark.parametrize(
    "text",
    [
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "מה השעה עכשיו?",
        "\u202eevil\u202c",
        "a" * 2000,
        "\ud800".encode("utf-8", "replace"),
    ],
)
def test_unusual_texts_are_searched(http, text):
    answer = http.get("/search", params={"collection": "shapes", "q": text})
    assert answer.status_code == 200
    assert len(answer.json()["hits"]) == 10


def test_an_injecting_filter_never_reaches_the_engine(http):
    sly = "shape = 'x'' or ''1''=''1'"
    answer = http.get("/search", params={"collection": "shapes", "q": "x", "filter": sly})
    assert answer.status_code == 200
    assert answer.json()["passing"] == 0


@pytest.mark.parametrize(
    ("content", "name", "what"),
    [
        (b"%PDF-1.7\n" + bytes(500), "holiday.jpg", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.png", "SVG"),
        (b"<!DOCTYPE html><script>alert(1)</script>", "a.gif", "HTML"),
        (making.encoded(making.picture(1, 400), "JPEG")[:900], "cut.jpg", ""),
        (making.encoded(making.picture(1))[:60], "cut.png", ""),
        (bomb(30_000, 30_000), "bomb.png", "30000 x 30000"),
        (bomb(30_000, 1), "thin.png", "too narrow"),
        (b"", "empty.png", "empty"),
        (bytes(2000), "zeros.webp", "not a picture"),
    ],
)
def test_what_is_no_picture_is_refused(http, content, name, what):
    files = {"image": (name, content)}
    found = error(http.post("/search", files=files, data={"collection": "shapes"}), 422)
    assert what in found["what"]


def test_an_upload_that_is_too_large_is_not_read_to_its_end(address, settings):
    sent = 0

    def endless():
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        while sent < 200 * settings.max_upload:
            sent += 65_536
            yield bytes(65_536)

    with making.client(address) as client:
        answer = client.post(
            "/search",
            content=endless(),  # chunked: the size is not told before
            headers={"Content-Type": BOUNDED},
        )
    found = error(answer, 413)
    assert "1,048,576 bytes" in found["what"]
    assert sent < 20 * settings.max_upload


def test_an_upload_that_says_it_is_too_large(http, settings):
    files = {"image": ("a.png", bytes(settings.max_upload + 1))}
    error(http.post("/search", files=files, data={"collection": "shapes"}), 413)
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"q": "x"}', "application/json", 415),
        (b"q=x", "application/x-www-form-urlencoded", 415),
        (b"x", "multipart/form-data", 400),
        (PART + b"\r\n\r\nx\r\n--b--", BOUNDED, 400),
        (PART + b"; name=\"image\"; filename=\"a\"\r\n\r\nhalf", BOUNDED, 400),
        (b"--b\r\n" + b"X-Y: " + b"z" * 9000 + b"\r\n\r\n--b--", BOUNDED, 400),
        (PART + b"; name=q\r\n\r\n" + bytes(70_000) + b"\r\n--b--", BOUNDED, 413),
        ((PART + b"; name=q\r\n\r\n\r\n") * 40 + b"--b--", BOUNDED, 400),
        (b"garbage", BOUNDED, 400),
    ],
)  # fmt: skip
def test_malformed_forms(http, body, kind, status):
    error(http.post("/search", content=body, headers={"Content-Type": kind}), status)


def test_forms_are_as_strict_as_queries(http):
    def post(files, **data):
        return http.post("/search", files=files, data={"collection": "shapes", **data})

    content = making.encoded(making.picture(1))
    assert "unknown file" in error(post({"picture": ("a.png", content)}), 422)["what"]
    two = [("image", ("a.png", content)), ("image", ("b.png", content))]
    assert "twice" in error(post(two), 422)["what"]
    assert "unknown parameter" in error(post({"image": ("a.png", content)}, qq="x"), 422)["what"]
    web = error(post({"image": (None, "http://127.0.0.1/secret")}), 422)
    assert "addresses are not fetched" in web["fix"]
    twice = [("q", (None, "a")), ("q", (None, "b"))]
    assert "twice" in error(http.post("/search", files=twice), 422)["what"]
    both = error(post({"image": ("a.png", content)}, like="a"), 422)
    assert "not both" in both["what"]


@pytest.mark.parametrize("route", ["items", "thumbnail", "file"])
@pytest.mark.parametrize(
    ("id", "status"),
    [
        ("..%2f..%2f..%2fetc%2fpasswd", 404),
        ("%2e%2e", 422),
        ("....//....//etc", 404),
        ("%00", 422),
        ("' or '1'='1", 422),
        ("a" * 500, 422),
        ("0" * 32, 404),
        ("ünïcödé", 422),
    ],
)
def test_ids_are_no_paths(http, route, id, status):
    error(http.get(f"/{route}/{id}", params={"collection": "shapes"}), status)


@pytest.mark.parametrize(
    "path", ["/page/..%2fcard.py", "/page/../../card.py", "/page//etc/passwd", "/page/", "/etc"]
)
def test_the_page_is_a_fixed_list_of_files(address, path):
    with socket.create_connection(address.removeprefix("http://").split(":")) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65_536), b""))
    assert b" 404 " in answer.splitlines()[0]


def test_every_answer_is_dressed(http):
    for path in ("/health", "/search", "/nothing", "/openapi.json", "/metrics", "/"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
    assert error(http.put("/search"), 405)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9999", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:7700", 421),
        ("", 421),
    ],
)
def test_other_names_are_refused_against_rebinding(http, host, status):
    assert http.get("/collections", headers={"Host": host}).status_code == status


def test_pages_of_other_sites_cannot_post(http):
    def post(origin):
        form = {"collection": (None, "shapes"), "q": (None, "x")}
        return http.post("/search", files=form, headers={"Origin": origin})

    error(post("https://evil.example"), 403)
    error(post("null"), 403)
    assert post(str(http.base_url).rstrip("/")).status_code == 200


def test_an_unexpected_error_is_logged_and_not_told(http, app, monkeypatch, caplog):
    def broken(*args, **options):
        raise RuntimeError("secret detail")

    monkeypatch.setattr("crossadapt.search.server.searching.rank", broken)
    answer = http.get("/search", params={"collection": "shapes", "q": "x"})
    found = error(answer, 500)
    assert "secret" not in answer.text
    number = found["where"].removeprefix("error ")
    record = next(r for r in caplog.records if number in r.getMessage())
    assert "secret detail" in str(record.exc_info[1])
    monkeypatch.undo()
    assert http.get("/search", params={"collection": "shapes", "q": "x"}).status_code == 200


def test_a_collection_that_cannot_be_read_is_503(http, monkeypatch, caplog):
    def broken(*args, **options):
        raise UserError("the disk is on fire", where="/secret/path")

    monkeypatch.setattr("crossadapt.search.server.searching.rank", broken)
    answer = http.get("/search", params={"collection": "shapes", "q": "x"})
    error(answer, 503)
    assert "secret" not in answer.text
    assert answer.headers["retry-after"]
    assert "/secret/path" in caplog.text
