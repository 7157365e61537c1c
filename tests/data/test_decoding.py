from __future__ import annotations

import io
import os
import warnings

import numpy as np
import pytest
from PIL import Image
from tests.data import zoo

from crossadapt.data import Unreadable, decode
from crossadapt.data.decoding import decode_near

LEFT_RIGHT = Image.fromarray(
    np.repeat(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), 8, axis=0).repeat(8, axis=1)
)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(LEFT_RIGHT, "JPEG", exif=exif, quality=100, subsampling=0)
    image = decode(raw)
    assert image.size == ((16, 8) if orientation <= 4 else (8, 16))
    red_at = {1: (0, 0), 2: (15, 0), 3: (15, 7), 4: (0, 7), 5: (0, 0), 6: (7, 0), 7: (7, 15)}
    x, y = red_at.get(orientation, (0, 15))
    red, _, blue = image.getpixel((x, y))
    assert red > 200 > 60 > blue


def test_rotation_of_tiff_is_applied_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(LEFT_RIGHT, "TIFF", exif=exif)).size == (8, 16)


def test_corrupt_exif_is_ignored() -> None:
    raw = encoded(LEFT_RIGHT, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert decode(raw).size == (16, 8)


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "P", "YCbCr", "LAB"])
def test_colour_modes(mode: str) -> None:
    kind = {"LAB": "TIFF", "CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    image = Image.new("LAB", (16, 8), (128, 0, 0)) if mode == "LAB" else LEFT_RIGHT.convert(mode)
    result = decode(encoded(image, kind))
    assert result.mode == "RGB"
    assert result.size == (16, 8)


def test_cmyk_colour_survives() -> None:
    red, green, blue = decode(encoded(LEFT_RIGHT.convert("CMYK"), "JPEG")).getpixel((2, 4))
    assert red > 200
    assert max(green, blue) < 70


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert decode(encoded(clear, "PNG")).getpixel((1, 1)) == (255, 255, 255)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128)).convert(mode)
    assert 120 <= decode(encoded(half, "PNG")).getpixel((1, 1))[0] <= 135


def test_palette_and_colour_key_transparency() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((3, 3), 1)
    raw = encoded(palette, "PNG", transparency=0)
    assert decode(raw).getpixel((0, 0)) == (255, 255, 255)
    assert decode(raw).getpixel((3, 3)) == (200, 100, 50)
    keyed = encoded(palette, "PNG", transparency=b"\x00\xff")
    assert decode(keyed).getpixel((0, 0)) == (255, 255, 255)
    rgb = encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert decode(rgb).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey(kind: str) -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    result = np.asarray(decode(encoded(Image.fromarray(values), kind)))
    assert result[0, :, 0].tolist() == [0, 100, 255]


def test_float_and_integer_grey() -> None:
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert np.asarray(decode(encoded(unit, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    bytes_like = Image.fromarray(np.array([[-5.0, 100.0, np.nan]], np.float32))
    assert np.asarray(decode(encoded(bytes_like, "TIFF")))[0, :, 0].tolist() == [0, 100, 0]
    integers = Image.fromarray(np.array([[0, 65535, 70000]], np.int32))
    assert np.asarray(decode(encoded(integers, "TIFF")))[0, :, 0].tolist() == [0, 255, 255]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    raw = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(raw).getpixel((0, 0)) == (255, 0, 0)
    raw = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode(raw).getpixel((0, 0)) == (255, 0, 0)


def test_extension_plays_no_role(tmp_path) -> None:
    path = tmp_path / "actually-a-png.jpg"
    path.write_bytes(encoded(LEFT_RIGHT, "PNG"))
    assert decode(path).size == decode(str(path)).size == (16, 8)


@pytest.mark.parametrize("kind", zoo.BROKEN_KINDS)
def test_zoo(tmp_path, kind: str) -> None:
    path = tmp_path / "x.jpg"
    zoo.break_file(path, kind)
    expected = {
        "empty": "empty file",
        "truncated": "truncated",
        "pdf": "not a picture: it is a PDF",
        "noise": "not a picture",
        "html": "HTML page",
        "bomb": "too large: 30000 x 30000",
        "header_only": "not a picture|broken|truncated",
        "folder": "it is a folder",
        "bad_png": "broken|truncated",
        "dangling_link": "no such file",
    }
    with pytest.raises(Unreadable, match=expected[kind]):
        decode(path)


def test_pixel_cap_and_state_of_pillow() -> None:
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with pytest.raises(Unreadable, match="16 x 8 pixels, the limit is 100"):
        decode(encoded(LEFT_RIGHT, "PNG"), max_pixels=100)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(Unreadable, match="pipe"):
        decode(tmp_path / "pipe.jpg")


def test_bad_names() -> None:
    with pytest.raises(Unreadable, match="cannot open"):
        decode("a\0b.jpg")
    with pytest.raises(Unreadable, match="cannot open"):
        decode("x" * 5000)


def scene(width: int, height: int, seed: int) -> Image.Image:
    """Smooth areas, hard edges and noise: what makes resampling visible."""
    rng = np.random.default_rng(seed)
    grid = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    values = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    values[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(0, 256, 3)
    values += rng.integers(-8, 9, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "near", "drafted"),
    [
        ((640, 480), (224, 224), (320, 240)),
        ((640, 480), (240, 240), (320, 240)),
        ((640, 480), (241, 241), (640, 480)),
        ((2000, 1000), (100, 50), (250, 125)),
        ((100, 80), (224, 224), (100, 80)),
    ],
)
def test_a_jpeg_is_decoded_near_the_size_that_is_needed(size, near, drafted) -> None:
    raw = encoded(scene(*size, 0), "JPEG", quality=90)
    image, original = decode_near(raw, near)
    assert image.size == drafted
    assert original == size
    assert decode_near(raw, None)[0].size == size


def test_near_is_only_for_jpeg_and_knows_the_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = encoded(scene(640, 480, 0), "JPEG", exif=exif)
    image, original = decode_near(raw, (224, 224))
    assert (image.size, original) == ((240, 320), (480, 640))
    png = encoded(scene(64, 48, 0), "PNG")
    assert decode_near(png, (8, 8))[0].size == (64, 48)


def test_vectors_of_drafts_stay_within_the_bound_of_the_docs() -> None:
    from crossadapt.search.embedder import Embedder

    embedder = Embedder.open("pico-clip", device="cpu", precision="fp32")
    needs = embedder.backbone.preprocess.needs
    sizes = [(640, 480), (480, 640), (512, 512), (130, 150), (1030, 700)]
    raws = [encoded(scene(*size, i), "JPEG", quality=90) for i, size in enumerate(sizes)]
    full = [decode(raw) for raw in raws]
    near = [decode_near(raw, needs)[0] for raw in raws]
    assert all(a.size != b.size for a, b in zip(full, near, strict=True))
    vectors = [
        embedder.pictures(np.stack([embedder.prepare(image) for image in images]))
        for images in (full, near)
    ]
    assert (vectors[0] * vectors[1]).sum(1).min() >= 0.999
