"""Frame cache: an epoch of training on cached frames, against one that decodes each clip again.

    python bench/frame_cache.py [--size 1280 720] [--videos 6] [--seconds 15] [--rounds 3]

Both sides run the same epoch, alternately, in one process: batches of clips through the frozen
backbone with an adapter, mean pooling, the contrastive loss, an update. *Cached* reads frames from
the memory-mapped shards that `open_frames` wrote on its first pass; *decoding* seeks and decodes
the H.264 files each time. The videos (25 frames a second, a key frame every two seconds) are
written first and are not timed. The ratio grows with their size and length and falls with the cost
of the backbone. Prints seconds of each epoch by the clock and by the processor, which other work on
the machine does not stretch, the ratios of the medians, and the same for loading alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from crossadapt import CrossModalAdapterConfig, attach, load
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.precision import choose_precision
from crossadapt.data.frame_store import FrameStore
from crossadapt.data.frames import open_frames
from crossadapt.tasks.objectives import info_nce
from crossadapt.training.config import make_recipe
from crossadapt.training.optimisers import make_optimiser

RATE = 25


def write_videos(folder: Path, count: int, seconds: int, size: tuple[int, int]) -> list[str]:
    """Files in which a random picture glides past."""
    paths = []
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (90, 320, 3), dtype=np.uint8)
        wide = Image.fromarray(coarse).resize((2 * size[0], size[1]), Image.Resampling.BICUBIC)
        pixels = np.asarray(wide)
        path = folder / f"{number}.mp4"
        options = {"preset": "veryfast", "g": str(2 * RATE), "threads": "1"}
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=RATE, options=options)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for i in range(seconds * RATE):
                part = np.ascontiguousarray(pixels[:, 2 * i : 2 * i + size[0]])
                frame = av.VideoFrame.from_ndarray(part, format="rgb24")
                frame.pts = i
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        paths.append(str(path))
    return paths


def epoch(backbone: HFBackbone, store: FrameStore, batch: int) -> Callable[[], None]:
    """One pass over the clips with an update per batch."""
    trained = backbone.adapters["default"].trained()
    optimiser = make_optimiser(trained, make_recipe())
    precision = choose_precision("auto", str(backbone.device))
    words = backbone.tokenize([f"clip number {i}" for i in range(len(store))])

    def run() -> None:
        for start in range(0, len(store), batch):
            places = np.arange(start, min(start + batch, len(store)))
            pixels, mask = (torch.from_numpy(array) for array in store.batch(places))
            ids, attended = words.ids[places], words.mask[places]
            with precision.autocast():
                frames = backbone.encode_frames(backbone.preprocess.normalise(pixels), mask)
                texts = backbone.encode_text(ids, attended)
            frames = F.normalize(frames.float(), dim=-1) * mask[:, :, None]
            clips = frames.sum(dim=1) / mask.sum(dim=1, keepdim=True)
            info_nce(clips, texts.float(), backbone.logit_scale.exp()).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    return run


def loading(store: FrameStore) -> Callable[[], None]:
    """One pass that only reads."""

    def run() -> None:
        for place in range(len(store)):
            store.batch([place])

    return run


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds of one call: by the clock, and of the processor."""
    start, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - used


def compare(cached: Callable[[], None], decoding: Callable[[], None], rounds: int) -> dict:
    """Alternate both sides: seconds of each round, and the ratios of the medians."""
    pairs = [(timed(cached), timed(decoding)) for _ in range(rounds)]
    result = {}
    for place, name in enumerate(("clock", "processor")):
        ours, theirs = ([side[place] for side in sides] for sides in zip(*pairs, strict=True))
        result[name] = {
            "cached_seconds": [round(s, 4) for s in ours],
            "decoding_seconds": [round(s, 4) for s in theirs],
            "ratio_of_medians": round(statistics.median(theirs) / statistics.median(ours), 2),
        }
    return result


def main() -> None:
    """Write videos, time both sides, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="pico-clip")
    parser.add_argument("--videos", type=int, default=6)
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 720), metavar=("W", "H"))
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    backbone = load(arguments.backbone)
    attach(backbone, CrossModalAdapterConfig())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = (arguments.size[0], arguments.size[1])
        items = write_videos(folder, arguments.videos, arguments.seconds, size)
        stores = [
            open_frames(
                items,
                backbone.preprocess.pixels,
                key="bench",
                frames=arguments.frames,
                cache=cache,
                workers=0,
            )
            for cache in (folder / "cache", False)
        ]
        cached, decoding = (epoch(backbone, store, arguments.batch) for store in stores)
        cached()  # warm-up
        result = {
            "backbone": arguments.backbone,
            "videos": arguments.videos,
            "video": f"{size[0]}x{size[1]} H.264, {arguments.seconds} s at {RATE} a second",
            "frames": arguments.frames,
            "training_epoch": compare(cached, decoding, arguments.rounds),
            "loading_only": compare(loading(stores[0]), loading(stores[1]), arguments.rounds),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
