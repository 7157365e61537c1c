"""Tokens, names, and settings that would leave a door open."""

from __future__ import annotations

import pytest
from tests.search.server import making

from crossadapt.errors import UserError
from crossadapt.search.collection import Collections
from crossadapt.search.server.app import create_app
from crossadapt.search.server.settings import Settings

TOKEN = "0123456789abcdef-token"


@pytest.fixture(scope="module")
def guarded(store, app):
    """A second server on the same models that wants a token and has a name of its own."""
    settings = Settings(port=0, token=TOKEN, hosts=("shop.example",))
    engines = app.state.server.catalogue.engines
    other = create_app(Collections(store), ["plain"], settings, engines)
    with making.serving(other, settings) as where:
        yield where


def test_the_token_guards_everything_but_page_and_probe(guarded):
    with making.client(guarded) as client:
        for path in ("/search?q=x", "/collections", "/metrics", "/openapi.json", "/file/a", "/no"):
            answer = client.get(path)
            assert answer.status_code == 401
            assert set(answer.json()["error"]) == {"what", "where", "fix"}
            assert answer.headers["www-authenticate"] == "Bearer"
            for wrong in (
                f"Bearer {TOKEN}x",
                f"Bearer {TOKEN[:-1]}",
                f"Basic {TOKEN}",
                TOKEN,
                "Bearer",
            ):
                assert client.get(path, headers={"Authorization": wrong}).status_code == 401
        assert client.get("/health").status_code == 200
        assert client.get("/page/none.js").status_code == 404
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get("/search?q=x", headers=right).status_code == 200
        schema = client.get("/openapi.json", headers=right).json()
        assert schema["security"] == [{"token": []}]
        named = {**right, "Host": "shop.example"}
        assert client.get("/collections", headers=named).status_code == 200
        assert client.get("/collections", headers={**right, "Host": "x.example"}).status_code == 421
        form = {"q": (None, "x")}
        proxied = {**named, "Origin": "https://shop.example"}
        assert client.post("/search", files=form, headers=proxied).status_code == 200


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"host": "0.0.0.0"}, "no token"),
        ({"host": "192.168.1.7"}, "no token"),
        ({"host": "example.org"}, "no token"),
        ({"token": "short"}, "5 characters"),
        ({"token": "a" * 20 + "\n"}, "header cannot carry"),
        ({"port": 70_000}, "port is 70000"),
        ({"queue": 0}, "queue is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"max_upload": -1}, "max-upload is -1"),
    ],
)
def test_settings_that_would_be_open_or_broken(options, what):
    with pytest.raises(UserError, match=what):
        Settings(**options)


def test_settings_that_are_meant():
    assert Settings(host="0.0.0.0", no_token=True).checks_host
    assert not Settings(host="0.0.0.0", token=TOKEN).checks_host
    assert Settings(host="::1").checks_host
    assert Settings(host="localhost").checks_host


def test_an_error_about_a_token_does_not_repeat_it():
    with pytest.raises(UserError) as caught:
        Settings(token=TOKEN + "\x00")
    assert TOKEN not in str(caught.value)
