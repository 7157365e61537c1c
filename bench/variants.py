"""One embedder's variants: with an adapter beside the frozen backbone, and by other runtimes.

    python bench/variants.py [--rounds 9] [--output FILE]

CLIP ViT-B/32 with random weights, one process, short turns of all variants: prepared pictures in
batches of 32 and, for the adapter, captions of 8 to 15 tokens. The adapter is the Cross-Modal
Adapter at its usual size, its weights not those it starts with.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _model
import _peers
import _record
from _sides import Side, alternate, claim

_NOISE = 0.02
_PICTURES = 128
"""Pictures on which runtimes are compared: four batches of their pace, prepared before."""
_CAPTIONS = 256


def make_adapter(model: Path) -> None:
    """A Cross-Modal Adapter whose weights are not what they start with, beside the model."""
    import torch

    from crossadapt import CrossModalAdapterConfig, attach, load, save_adapter

    backbone = load(str(model))
    adapter = attach(backbone, CrossModalAdapterConfig(r=8))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=_NOISE)
    save_adapter(backbone, "default", model.parent / "adapter")


def measured(
    work: Path, part: str, inputs: list[str], rounds: int, warm_up: int
) -> list[dict[str, float]]:
    """What the process of ours/embedding.py says, round by round."""
    listed = work / f"{part}.json"
    listed.write_text(json.dumps(inputs))
    side = Side(part, ["ours/embedding.py", part, str(work / "model"), str(listed)])
    try:
        return alternate([side], rounds, warm_up=warm_up)[part]
    finally:
        side.close()


def overhead(found: list[dict[str, float]]) -> dict[str, Any]:
    """The claim about the adapter's cost."""
    return claim(
        "embedding with an adapter against the frozen backbone, pictures and texts",
        [r["adapter"] for r in found], [r["frozen"] for r in found],
        names=("with the adapter", "frozen"), unit="s", at_most=1.04,
    )  # fmt: skip


def runtimes(found: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Each runtime beside PyTorch. Nothing is promised: ``auto`` measures before it chooses."""
    speed = {
        name: [r["count"] / r[name] for r in found]
        for name in ("torch", "openvino", "onnx", "onnx-int8")
    }
    return [
        claim(
            f"pictures/s of the frozen model by the runtime {name} against PyTorch, batch 32",
            values, speed["torch"], names=(name, "torch"), unit="pictures/s",
            note=f"least cosine {found[-1][name + ' cosine']:.5f}, "
            + ("passes the gate" if found[-1][name + " passed"] else "refused by the gate"),
        )
        for name, values in speed.items() if name != "torch"
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    _record.output_option(parser)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--smoke", action="store_true", help="a few inputs, one round")
    args = parser.parse_args()
    rounds, warm_up = (1, 0) if args.smoke else (args.rounds, 1)
    machine = _record.machine()
    from crossadapt.backbones.precision import choose_precision

    with tempfile.TemporaryDirectory(prefix="crossadapt-bench-") as folder:
        work = Path(folder)
        os.environ["CROSSADAPT_CACHE"] = str(work / "cache")  # exports and verdicts of this run
        _model.make_model(work / "model", _peers.python())
        make_adapter(work / "model")
        captions = _model.captions(32 if args.smoke else _CAPTIONS)
        pictures = _model.make_pictures(work / "pictures", 32 if args.smoke else _PICTURES)
        claims = [
            overhead(measured(work, "overhead", captions, rounds, warm_up)),
            *runtimes(measured(work, "runtimes", pictures, rounds, warm_up)),
        ]
    _record.finish(
        {
            "machine": machine,
            "precision": choose_precision().name,
            "command": f"python bench/variants.py --rounds {args.rounds}",
            "versions": {
                name: version(name) for name in ("torch", "transformers", "openvino", "onnxruntime")
            },
            "claims": claims,
            "floor": [],
        },
        args.output,
    )


if __name__ == "__main__":
    main()
