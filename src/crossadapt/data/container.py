"""Opening one video file with PyAV: what may be opened, which stream, and its pictures upright."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossadapt.data.decoding import Unreadable, check_file, describe
from crossadapt.errors import UserError

# Demuxers that read one file and nothing else. Playlists (HLS, DASH, concat) would open whatever
# a stranger's file names.
_FORMATS = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,asf,ogg,nut,mxf,rm,dv,"
    "y4m,yuv4mpegpipe,swf,wtv,nsv,gif,apng,mp3,wav,flac,aac,h263,vc1,mjpeg,bink,smk,roq,amv,gxf"
)
_TURNS = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(
            "reading videos needs PyAV", where="video", fix='pip install "crossadapt[video]"'
        ) from error
    return av


def require_decoder() -> None:
    """Raise a `UserError` when PyAV is not installed, before anything is begun."""
    _av()


@contextmanager
def errors() -> Iterator[None]:
    """FFmpeg's errors while reading and decoding become `Unreadable`."""
    av = _av()
    try:
        yield
    except av.FFmpegError as error:
        raise Unreadable(f"broken data: {_said(error)}") from error


@contextmanager
def opened(source: str | Path | bytes, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream, closed at the end."""
    av = _av()
    if not isinstance(source, bytes):
        check_file(Path(source))
    target = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(target, metadata_errors="ignore", options=options)
    except (av.FFmpegError, OSError, ValueError) as error:
        start = source if isinstance(source, bytes) else _start(Path(source))
        if not start:
            raise Unreadable("empty file: 0 bytes") from None
        raise Unreadable(f"not a video: {describe(start)} ({_said(error)})") from error
    with container:
        # The cover picture of a song is a video stream to FFmpeg.
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise Unreadable(f"no video stream: the file holds {kinds} only")
        stream = streams[0]
        context = stream.codec_context
        if context is None:
            raise Unreadable("unknown codec: this build of FFmpeg cannot decode it")
        if context.width * context.height > max_pixels:
            raise Unreadable(
                f"too large: {context.width} x {context.height} pixels, "
                f"the limit is {max_pixels} in all"
            )
        # Sizes may change within a stream; the decoder checks each change.
        context.options = {"max_pixels": str(max_pixels)}
        # Worker processes are the parallelism, and frame threads hold many frames in memory.
        context.thread_count = 1
        yield container, stream


def upright(frame: Any) -> Image.Image:
    """The picture, turned and mirrored as the file's display matrix says."""
    image = frame.to_image()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = (round(v / 65536) for v in np.frombuffer(matrix, np.int32)[:5].tolist())
    turn = _TURNS.get((a, b, c, d))
    return image if turn is None else image.transpose(turn)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _said(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()) or type(error).__name__
