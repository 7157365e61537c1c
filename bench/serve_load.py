"""A server under load: 64 connections ask mixed searches for 30 seconds.

A collection of rendered pictures with the frozen view and two adapters is made, served by
`crossadapt serve` in a process of its own, and asked for texts, pictures, filters, blends and both
adapters over kept-alive connections. Before the load every request is asked once alone, and each
answer under load is compared with that. A second, short load goes to a server whose queue is
shorter than the number of connections, so that it has to refuse. Prints one JSON document:
throughput, latencies, statuses, what differed, and the server's memory along the way. Exits with 1
if, in the first load, anything but 200 came back, a connection was dropped, an answer differed or
memory grew by more than 5 %; or, in the second, a 429 had no Retry-After or the server counted
other refusals than the clients saw.

    python bench/serve_load.py [--seconds 30] [--connections 64] [--rows 2000] [--short-queue 16]
                               [--output FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import _record
from _load import alone, load, refused

COLOURS = ("red", "green", "blue", "yellow", "black", "orange")
SHAPES = ("rectangle", "ellipse")


def picture(number: int) -> bytes:
    """A coloured shape as JPEG."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (160, 120), "white")
    draw = getattr(ImageDraw.Draw(image), SHAPES[number // 6 % 2])
    draw((10 + number % 50, 10, 60 + number % 97, 40 + number % 71), fill=COLOURS[number % 6])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def build(folder: Path, rows: int) -> None:
    """Pictures with captions, and two untrained (but different) adapters; all indexed."""
    import crossadapt
    from crossadapt.cli.main import main

    (folder / "photos").mkdir()
    lines = ["file_name,text,colour,number"]
    for number in range(rows):
        (folder / "photos" / f"{number:05}.jpg").write_bytes(picture(number))
        colour = COLOURS[number % 6]
        lines.append(f"{number:05}.jpg,a {colour} {SHAPES[number // 6 % 2]},{colour},{number}")
    (folder / "photos" / "metadata.csv").write_text("\n".join(lines) + "\n")
    for seed, name in enumerate("ab"):
        backbone = crossadapt.load("pico-clip")
        config = crossadapt.CrossModalAdapterConfig()
        adapter = crossadapt.attach(backbone, config, seed=seed)
        import torch

        with torch.no_grad():
            for parameter in adapter.trained().values():
                parameter += 0.02 * torch.randn_like(parameter)
        crossadapt.save_adapter(backbone, "default", folder / name)
    asked = ["index", str(folder / "photos"), "--collection", "load", "--quiet"]
    asked += ["--adapter", f"a={folder / 'a'}", f"b={folder / 'b'}"]
    if code := main([*asked, "--store", str(folder / "store")]):
        raise SystemExit(code)


@contextlib.contextmanager
def served(folder: Path, *options: str):
    """(process, port) of a running server."""
    command = [sys.executable, "-m", "crossadapt.cli.main", "serve", "load", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--store", str(folder / "store"), *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        yield process, int(found[1])
    finally:
        process.terminate()
        process.wait(120)  # a busy machine may need long to stop


def requests(views: list[str]) -> list[bytes]:
    """Complete HTTP requests."""
    found = []
    for number in range(60):
        fields = {"q": f"a {COLOURS[number % 6]} {SHAPES[number % 2]} {number}", "k": "20"}
        fields["view"] = views[number % len(views)]
        if number % 4 == 1:
            fields["filter"] = f'colour = "{COLOURS[number % 6]}" and number > {number}'
        if number % 6 == 2:
            fields["strength"] = "0.5"
        if number % 5:
            found.append(
                f"GET /search?{urlencode(fields)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            continue
        parts = [
            f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        ]
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="p.jpg"\r\n\r\n'
        body = b"".join([*parts, head, picture(number), b"\r\n--b--\r\n"])
        found.append(
            b"POST /search HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
    return found


def memory(pid: int) -> float:
    """Resident megabytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def sample(pid: int, sizes: list[float], stop: threading.Event) -> None:
    """Note the memory of a process every second."""
    while not stop.wait(1.0):
        sizes.append(memory(pid))


def under_load(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], list[dict]]:
    """The long load with the usual queue, and the answers given alone."""
    asked = requests(["frozen", "a", "b"])
    with served(folder) as (process, port):
        expected = asyncio.run(alone(port, asked))
        asyncio.run(load(port, options.connections, 3, asked, expected))  # warm
        sizes = [memory(process.pid)]
        stop = threading.Event()
        watch = threading.Thread(target=sample, args=(process.pid, sizes, stop))
        watch.start()
        seen = asyncio.run(load(port, options.connections, options.seconds, asked, expected))
        stop.set()
        watch.join()
        sizes.append(memory(process.pid))
    shown = [sizes[round(n * (len(sizes) - 1) / 6)] for n in range(7)]
    found = seen.to_dict(options.seconds)
    found["memory_mb"] = [round(size, 1) for size in shown]
    found["memory_growth"] = round(sizes[-1] / sizes[0] - 1, 4)
    return found, expected


def refusing(folder: Path, options: argparse.Namespace, expected: list[dict]) -> dict[str, Any]:
    """A short load on a server that has to refuse."""
    asked = requests(["frozen", "a", "b"])
    with served(folder, "--queue", str(options.short_queue)) as (_, port):
        seen = asyncio.run(load(port, options.connections, 5, asked, expected))
        counted = asyncio.run(refused(port))
    return {**seen.to_dict(5), "queue": options.short_queue, "refused_by_the_server": int(counted)}


def main() -> int:
    """Build, serve, ask, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--short-queue", type=int, default=16)
    _record.output_option(parser)
    options = parser.parse_args()
    machine = _record.machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, options.rows)
        first, expected = under_load(folder, options)
        second = refusing(folder, options, expected)
    document = {
        "connections": options.connections,
        "seconds": options.seconds,
        "rows": options.rows,
        "load": first,
        "short_queue": second,
        "machine": machine,
    }
    _record.finish(document, options.output)
    clean = all(not one["dropped_connections"] and not one["other_results_than_alone"]
                and not one["refusals_without_retry_after"] for one in (first, second))  # fmt: skip
    told = second["statuses"].get("429", 0) == second["refused_by_the_server"]
    right = set(first["statuses"]) == {"200"} and set(second["statuses"]) <= {"200", "429"}
    return 0 if clean and told and right and first["memory_growth"] <= 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())
