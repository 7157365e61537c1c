"""A server under load: 64 connections ask mixed searches for 30 seconds.

A collection of rendered pictures with the frozen view and two adapters is made, served by
`crossadapt serve` in a process of its own, and asked for texts, pictures, filters, blends and both
adapters over kept-alive connections. Prints throughput, latencies, statuses and the server's
memory along the way; exits with 1 if anything but 200 came back or a connection was dropped.

Usage: python bench/serve_load.py [--seconds 30] [--connections 64] [--rows 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlencode

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
def served(folder: Path):
    """(process, port) of a running server."""
    command = [sys.executable, "-m", "crossadapt.cli.main", "serve", "load", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--store", str(folder / "store")], stdout=subprocess.PIPE, text=True
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
        process.wait(30)


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


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes):
    """(status, body) of one request on an open connection."""
    writer.write(request)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.I)
    body = await reader.readexactly(int(length[1])) if length else b""
    return int(head.split(b" ", 2)[1]), body


async def load(port: int, connections: int, seconds: float, asked: list[bytes]):
    """Statuses, latencies and dropped connections of the whole run; answers are compared."""
    statuses: Counter[int] = Counter()
    latencies: list[float] = []
    problems: Counter[str] = Counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    expected = [top(await ask(reader, writer, request)) for request in asked]
    writer.close()
    until = time.monotonic() + seconds

    async def one(seed: int) -> None:
        choose = random.Random(seed)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while time.monotonic() < until:
                number = choose.randrange(len(asked))
                began = time.perf_counter()
                answer = await ask(reader, writer, asked[number])
                latencies.append(time.perf_counter() - began)
                statuses[answer[0]] += 1
                if answer[0] == 200 and top(answer) != expected[number]:
                    problems["another result than alone"] += 1
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            problems["dropped connections"] += 1

    await asyncio.gather(*(one(seed) for seed in range(connections)))
    return statuses, sorted(latencies), problems


def top(answer: tuple[int, bytes]) -> list[tuple[str, float]]:
    """Ids and rounded cosines of an answer."""
    hits = json.loads(answer[1]).get("hits", [])
    return [(hit["id"], round(hit["cosine"], 4)) for hit in hits]


def memory(pid: int) -> float:
    """Resident megabytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def sample(pid: int, sizes: list[float], stop: threading.Event) -> None:
    """Note the memory of a process every second."""
    while not stop.wait(1.0):
        sizes.append(memory(pid))


def main() -> int:
    """Build, serve, ask, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rows", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, options.rows)
        with served(folder) as (process, port):
            asked = requests(["frozen", "a", "b"])
            asyncio.run(load(port, options.connections, 3, asked))  # warm
            sizes = [memory(process.pid)]
            stop = threading.Event()
            watch = threading.Thread(target=sample, args=(process.pid, sizes, stop))
            watch.start()
            found = asyncio.run(load(port, options.connections, options.seconds, asked))
            stop.set()
            watch.join()
            sizes.append(memory(process.pid))
    statuses, latencies, problems = found
    count = len(latencies)
    print(f"{options.connections} connections, {options.seconds:g} s, {options.rows} rows")
    print(f"answers      {count}  ({count / options.seconds:.0f} per second)")
    for share in (50, 95, 99):
        print(f"p{share}          {latencies[min(count - 1, count * share // 100)] * 1000:.0f} ms")
    print("statuses    ", ", ".join(f"{s}: {n}" for s, n in sorted(statuses.items())))
    print("problems    ", ", ".join(f"{n} {what}" for what, n in problems.items()) or "none")
    shown = [sizes[round(n * (len(sizes) - 1) / 6)] for n in range(7)]
    print("memory      ", " ".join(f"{size:.0f}" for size in shown), "MB, from start to end")
    return 0 if set(statuses) == {200} and not problems else 1


if __name__ == "__main__":
    sys.exit(main())
