from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.data.zoo import bomb, jpeg, picture
from tests.search.query_world import World, nudged, world

from crossadapt.cli.main import main
from crossadapt.data.openmoji import picture_bytes
from crossadapt.search import opening, query
from crossadapt.search.collection import Collections

pytestmark = pytest.mark.xdist_group("query")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def emoji() -> World:
    return world()


@pytest.fixture
def search(
    emoji: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run ``crossadapt search emoji ...`` with the models at hand; code, output, errors."""
    monkeypatch.setattr(opening, "open_embedder", lambda collection, views=None: emoji.embedder)

    def run(*args: object, name: str = "emoji") -> tuple[int, str, str]:
        code = main(["search", name, *map(str, args), "--store", str(emoji.store)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_table_of_hits(search: Run) -> None:
    code, out, err = search("red apple", "--k", 3)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == 'emoji: "red apple" (view nudged)'
    assert lines[2].split() == ["rank", "cosine", "calibrated", "item", "caption"]
    rank, cosine, calibrated, item, *caption = lines[4].split()
    assert (rank, item, caption) == ("1", "openmoji:1F34E", ["red", "apple"])
    assert 0 < float(cosine) < 1
    assert float(calibrated) > 0.9
    assert lines[-1].startswith("3 of 180 items, exact, ")
    assert "\x1b" not in out


def test_json_is_pure_and_complete(search: Run, emoji: World) -> None:
    code, out, _ = search("red", "--json", "--compare", "--exclude", "apple", "--strength", 0.5,
                          "--filter", "flag = false", "--k", 2)  # fmt: skip
    document = json.loads(out)
    assert code == 0
    assert document["collection"] == "emoji"
    assert document["strength"] == 0.5
    assert document["query"]["exclude"] == "apple"
    assert len(document["hits"]) == len(document["frozen_hits"]) == 2
    hit = document["hits"][0]
    assert hit["attributes"]["flag"] is False
    assert hit["frozen_rank"] >= 1
    assert set(document["seconds"]) == {"prepare", "embed", "search", "total"}
    code, out, _ = search("--like", hit["id"], "--json", "--k", 3)
    assert hit["id"] not in [found["id"] for found in json.loads(out)["hits"]]


@pytest.mark.parametrize("text", ["an animal", ""])  # the second is refused
def test_garbage_is_not_collected_meanwhile_and_is_afterwards(
    text: str, search: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    check = query.check

    def watched(*args: object) -> object:
        seen.append(gc.isenabled())
        return check(*args)

    monkeypatch.setattr(query, "check", watched)
    search(text)
    assert (seen, gc.isenabled()) == ([False], True)


def test_compare_shows_both(search: Run) -> None:
    _, out, _ = search("an animal", "--compare", "--k", 4)
    assert "frozen rank" in out
    assert "\nthe frozen model" in out


def test_a_picture_file(search: Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes("openmoji:1F34E"))
    code, out, _ = search("--image", tmp_path / "a.png", "--k", 1)
    assert code == 0
    assert "openmoji:1F34E" in out
    assert out.startswith("emoji: a picture (view nudged)")


@pytest.mark.parametrize("text", ["🍎🍏", "تفاحة حمراء", "תפוח"])
def test_columns_align_whatever_the_script(text: str, search: Run) -> None:
    code, out, _ = search(text, "--k", 3)
    assert code == 0
    head = out.splitlines()[2]
    rows = out.splitlines()[4:7]
    place = head.index("item")
    assert all(row[place:].startswith("openmoji:") for row in rows)
    assert text in out.splitlines()[0]


def test_a_caption_cannot_send_escape_sequences(emoji: World, tmp_path: Path, capsys) -> None:
    from crossadapt.search.query import Hit, Query, Result
    from crossadapt.search.show import legible, show

    hit = Hit(
        "0" * 32, "תפוח\x1b]0;owned\x07.png", 1, 0.5, 0.5, texts=["[red]x[/red] \u202etxt.exe"]
    )
    show(Result([hit], None, "nudged", 1.0, "exact", 1, 1), emoji.collection, Query("x\x1b[2J"))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert " תפוח\ufffd]0;owned\ufffd.png " in out  # a path in a pipe gets no marks of direction
    assert "[red]x[/red]" in out  # rich's own markup is text too
    assert legible("👩‍👩‍👧") == "👩‍👩‍👧"
    assert legible("תפוח") == "\u2068תפוח\u2069"


def test_pictures_only_on_a_terminal(search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-kitty")
    _, out, _ = search("red apple", "--images", "blocks", "--k", 2)
    assert "\x1b" not in out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    _, out, _ = search("red apple", "--images", "blocks", "--k", 2)
    assert "\x1b[38;2;" in out
    assert "▀" in out
    _, out, _ = search("red apple", "--k", 2)
    assert out.count("\x1b_Ga=T,f=100,") == 2
    _, out, _ = search("red apple", "--images", "never", "--k", 2)
    assert "\x1b_G" not in out
    assert "▀" not in out


# --- bad input ------------------------------------------------------------------------------


@pytest.fixture
def refused(search: Run) -> Callable[..., str]:
    """Run a search that must end with exit code 1 and say what, where and how to fix it."""

    def run(*args: object, name: str = "emoji") -> str:
        code, out, err = search(*args, name=name)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert "\n  where: " in err
        assert "\n  fix: " in err
        return err

    return run


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the query is empty"),
        (["x" * 10_000], "10,000 characters"),
        (["red", "--k", "0"], "k is 0"),
        (["red", "--k", "1000000"], "k is 1,000,000"),
        (["red", "--view", "nudge"], "did you mean 'nudged'"),
        (["red", "--filter", "flog = true"], "did you mean 'flag'"),
        (["red", "--like", "../../x"], "no item"),
        (["red", "--image", "gone.jpg"], "does not exist"),
        (["red", "--images", "always"], "--images"),
        (["red", "--excude", "blue"], "did you mean '--exclude'"),
    ],
)
def test_wrong_options(args: list[str], message: str, refused: Callable[..., str]) -> None:
    assert message in refused(*args)


def test_an_unknown_collection_names_the_nearest(refused: Callable[..., str]) -> None:
    assert "did you mean 'emoji'" in refused("red", name="emojis")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"%PDF-1.7\n", "PDF document"),
        (bomb(), "too large: 30000 x 30000"),
        (jpeg(picture(1, (200, 160)))[:900], "truncated"),
    ],
    ids=["pdf", "bomb", "truncated"],
)
def test_wrong_pictures(
    content: bytes, message: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "door.jpg"
    path.write_bytes(content)
    said = refused("--image", path)
    assert message in said
    assert str(path) in said


def test_a_folder_is_no_picture(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "is not a file" in refused("--image", tmp_path)


# --- the models the card names ----------------------------------------------------------------


def test_models_come_from_the_card(emoji: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "emoji", "red apple", "--k", "1", "--store", str(emoji.store)]) == 0
    assert "openmoji:1F34E" in capsys.readouterr().out


def test_an_adapter_that_is_gone_or_changed_is_refused(
    emoji: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(emoji.store, store)
    folder = nudged(tmp_path / "adapter", seed=1)
    with Collections(store).open("emoji", write=True) as collection:
        frozen, view = collection.card.views
        moved = type(view)(view.name, view.fingerprint, str(folder), view.method, view.trained)
        collection.update_card(views=(frozen, moved))
    assert main(["search", "emoji", "red", "--store", str(store)]) == 1
    err = capsys.readouterr().err
    assert "embedded with another adapter" in err
    assert "crossadapt index PATH --collection emoji --adapter" in err
    shutil.rmtree(folder)
    assert main(["search", "emoji", "red", "--store", str(store)]) == 1
    err = capsys.readouterr().err
    assert "the adapter of view 'nudged' is gone" in err
    assert f"--adapter {folder}" in err
    # The frozen view does not need it.
    assert main(["search", "emoji", "red", "--view", "frozen", "--store", str(store)]) == 0


def test_another_backbone_is_refused(emoji: World, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    shutil.copytree(emoji.store, store)
    with Collections(store).open("emoji", write=True) as collection:
        collection.update_card(backbone="tiny:clip")
    assert main(["search", "emoji", "red", "--view", "frozen", "--store", str(store)]) == 1
    assert "embedded with another model" in capsys.readouterr().err


def test_the_picture_file_is_not_read_when_it_is_huge(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**33)  # a sparse file; reading it would take 8 GB
    assert "the limit is 32 MB" in refused("--image", tmp_path / "huge.png")


def test_thumbnails_of_any_mode_are_drawn() -> None:
    from crossadapt.search.pictures import encode

    for mode in ("L", "RGBA", "P", "CMYK"):
        assert encode(Image.new(mode, (9, 5)), "blocks", 4, 2).count("▀") >= 1
