"""Embedding: files to vectors and texts to vectors, against sentence-transformers and open_clip.

    python bench/embedding.py [--pictures 1000] [--captions 1000] [--rounds 5] [--output FILE]

All sides load CLIP ViT-B/32 with the same random weights from one directory (open_clip has random
weights of its own: there only the speed is compared) and read the same files and captions. The
vectors of both sides are compared after the last round. The floors are the matrix products of the
towers, bare, in the precision that the embedder chooses here, for texts at their own lengths.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

import _model
import _peers
import _products
import _record
from _sides import Side, alternate, claim

TEXT = _products.Tower(12, 512)
"""A caption of the mean length; its products are those of CLIP ViT-B/32."""


def floors(precision: str) -> dict[str, float]:
    """Pictures/s and texts/s of the bare products of both towers, batches of 32."""
    towers = {"images": _products.VISION, "texts": TEXT}
    return {
        part: _products.pace(_products.forward(tower), 32, precision)
        for part, tower in towers.items()
    }


BOUNDS = {
    "images": "The floor, bare products with no decoding and nothing between them, would be {:.1f} "
    "times as fast as the peer. More than that needs fewer bits than {}, and int8 has to pass the "
    "gate.",
    "texts": "The floor, bare products of the mean length, would be {:.1f} times as fast as the "
    "peer, which pads to the longest text of a batch, too, not to 77. More than that needs fewer "
    "bits than {}, and int8 has to pass the gate.",
}


def compare(
    work: Path, part: str, peer: str, inputs: list[str], rounds: int
) -> tuple[list[float], list[float], float]:
    """Items/s of both sides by round, and the least cosine of their vectors (or NaN)."""
    listed, ours, theirs = work / f"{part}.json", work / "ours.npy", work / "theirs.npy"
    listed.write_text(json.dumps(inputs))
    model = str(work / "model")
    sides = [
        Side("ours", ["ours/embedding.py", part, model, str(listed), str(ours)]),
        Side(peer, ["peers/embedding.py", peer, model, str(listed), str(theirs)],
             python=_peers.python()),
    ]  # fmt: skip
    found = alternate(sides, rounds)
    for side in sides:
        side.close()
    speeds = [[r["count"] / r["seconds"] for r in found[side.name]] for side in sides]
    if peer == "open-clip":
        return speeds[0], speeds[1], float("nan")
    a, b = np.load(ours), np.load(theirs)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return speeds[0], speeds[1], float(cosines.min())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    _record.output_option(parser)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a few inputs, one round")
    args = parser.parse_args()
    from crossadapt.backbones.precision import choose_precision

    if args.smoke:
        args.pictures, args.captions, args.rounds = 32, 256, 1
    machine, precision = _record.machine(), choose_precision().name
    pace = floors(precision)
    with tempfile.TemporaryDirectory(prefix="crossadapt-bench-") as folder:
        work = Path(folder)
        _model.make_model(work / "model", _peers.python())
        pictures = _model.make_pictures(work / "pictures", args.pictures)
        texts = _model.captions(args.captions)
        claims = []
        for what, part, peer, inputs, unit, target in (
            (f"pictures/s, {args.pictures} JPEG files of 640 x 480 to vectors, against "
             "sentence-transformers", "images", "st-images", pictures, "pictures/s", 5.0),
            (f"texts/s, {args.captions} captions of 8 to 15 tokens, against "
             "sentence-transformers", "texts", "st-texts", texts, "texts/s", 10.0),
            (f"texts/s, {args.captions} captions of 8 to 15 tokens, against open_clip",
             "texts", "open-clip", texts, "texts/s", 10.0),
        ):  # fmt: skip
            ours, theirs, cosine = compare(work, part, peer, inputs, args.rounds)
            agree = "other random weights" if np.isnan(cosine) else f"least cosine {cosine:.5f}"
            bound = BOUNDS[part].format(pace[part] / float(np.median(theirs)), precision)
            claims.append(claim(what, ours, theirs, names=("crossadapt", peer), unit=unit,
                                at_least=target, note=agree + ".", missed=bound))  # fmt: skip
    _record.finish(
        {
            "machine": machine,
            "command": f"python bench/embedding.py --pictures {args.pictures} "
            f"--captions {args.captions} --rounds {args.rounds}",
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "claims": claims,
            "floor": [
                {"what": f"bare matrix products of the vision tower, {precision}",
                 "value": round(pace["images"], 1), "unit": "pictures/s"},
                {"what": f"bare matrix products of the text tower, {precision}",
                 "value": round(pace["texts"], 1), "unit": "texts/s"},
            ],
        },
        args.output,
    )  # fmt: skip


if __name__ == "__main__":
    main()
