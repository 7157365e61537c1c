"""`load`: one name for every way to get a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch

from crossadapt.backbones.attention import AttentionChoice
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.resolution import at_resolution, split_resolution
from crossadapt.errors import UserError, did_you_mean

BUNDLED = ("pico-clip",)


def load(
    source: str,
    *,
    attention: AttentionChoice = "auto",
    dtype: str | torch.dtype | None = None,
    weights: bool = True,
    tokenizer: str | None = None,
    corpus: Sequence[str] | None = None,
    seed: int | None = None,
) -> HFBackbone:
    """Load a frozen backbone.

    Args:
        source: one of

            * ``pico-clip``, the demonstration model inside this package;
            * a local directory in Hugging Face layout (CLIP, SigLIP, fixed-resolution SigLIP 2,
              BLIP for retrieval), or in open_clip's;
            * a hub id such as ``openai/clip-vit-base-patch32``: the only source that may use the
              network, and only for that repository; files already in the cache are used offline;
            * ``open_clip:DIRECTORY`` or ``open_clip:HUB_ID``, a model in open_clip's layout, also
              where the same place holds it in Hugging Face layout;
            * ``config:NAME``, the true architecture with random weights, see `config_names`, and
              ``config:open_clip/NAME`` for open_clip's own list;
            * ``new:FILE``, random weights and an own tokenizer as a YAML file describes;
            * ``tiny:clip``, ``tiny:siglip``, ``tiny:open_clip`` or ``tiny:blip``, for tests;
            * ``fuse:A+B``, two or more of these as one backbone, see `fused`;
            * any of these but ``new:`` and ``fuse:`` with ``@PIXELS`` behind it, such as
              ``pico-clip@72``: at another picture size, see `resolution`.
        attention: ``eager``, ``sdpa`` or ``auto``: what `choose_attention` picks per tower. The
            result is in `backbone.attention`.
        dtype: of the frozen weights, float32 unless given (half-precision files are cast).
        weights: False builds the architecture alone, for counting: no memory, no time, and no
            encoding.
        tokenizer: directory of a tokenizer, for ``config:`` sources or to replace a directory's.
        corpus: texts to train the tokenizer of a ``new:`` source on.
        seed: of random weights, for ``config:``, ``new:`` and ``tiny:`` sources.

    Returns:
        The backbone, frozen and in evaluation mode, on the CPU.

    Raises:
        UserError: whatever is missing, damaged or unsupported, with the file and the fix.
    """
    kind = _dtype(dtype)
    # Tensors created under inference mode could never take part in training later.
    with torch.inference_mode(False):
        backbone = _read(source, kind, weights, tokenizer, corpus, seed)
        backbone.to(kind)
    backbone.use_attention(attention)
    return backbone


def _read(
    source: str,
    dtype: torch.dtype,
    weights: bool,
    tokenizer: str | None,
    corpus: Sequence[str] | None,
    seed: int | None,
) -> HFBackbone:
    scheme, colon, rest = source.partition(":")
    if corpus is not None and scheme != "new":
        raise UserError("Only new: sources train a tokenizer from a corpus.", where=source)
    plain, pixels = split_resolution(source)
    if pixels is not None:
        return at_resolution(_read(plain, dtype, weights, tokenizer, corpus, seed), pixels, source)
    if colon and scheme == "config" and rest.startswith("open_clip/"):
        from crossadapt.backbones.open_clip_building import load_architecture

        return load_architecture(rest.removeprefix("open_clip/"), seed=seed or 0, weights=weights)
    if colon and scheme == "config":
        from crossadapt.backbones.architectures import load_config

        return load_config(rest, seed=seed, weights=weights, tokenizer=tokenizer)
    if colon and scheme == "new":
        from crossadapt.backbones.new import load_new

        return load_new(rest, corpus=corpus, seed=seed, weights=weights)
    if colon and scheme == "tiny":
        from crossadapt.backbones.miniature import tiny

        return tiny(rest, seed=seed or 0, weights=weights)
    if colon and scheme == "fuse":
        from crossadapt.backbones.fused import load_fused

        if tokenizer is not None:
            raise UserError(
                "a fused backbone takes the tokenizers of its members",
                where=source,
                fix="leave tokenizer out",
            )
        return load_fused(rest, lambda name: _read(name, dtype, weights, None, None, seed))
    packed = bool(colon) and scheme == "open_clip"
    folder = _locate(rest, packed=True) if packed else _locate(source)
    if packed or _is_open_clip(folder):
        from crossadapt.backbones.open_clip_files import load_open_clip

        return load_open_clip(
            folder, source=source, dtype=dtype, weights=weights, tokenizer=tokenizer
        )
    from crossadapt.backbones.directory import load_directory

    return load_directory(folder, source=source, dtype=dtype, weights=weights, tokenizer=tokenizer)


def _is_open_clip(folder: Path) -> bool:
    """Whether a directory holds a model in open_clip's layout and not in Hugging Face's."""
    return (folder / "open_clip_config.json").is_file() and not (folder / "config.json").is_file()


def _locate(source: str, *, packed: bool = False) -> Path:
    if source in BUNDLED:
        folder = Path(str(files("crossadapt") / "assets" / source))
        if not folder.is_dir():
            raise UserError(
                f"The bundled model {source!r} is not in this installation.",
                where=str(folder),
                fix="install the released package, or name a directory or a hub id",
            )
        return folder
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return folder
    if source and folder.exists():
        raise UserError(
            "A backbone is a directory, not a file.",
            where=source,
            fix="give the directory; write new:FILE for an architecture file",
        )
    if source.count("/") == 1 and not source.startswith((".", "/", "~")) and ":" not in source:
        from crossadapt.backbones.hub import fetch

        return fetch(source, open_clip=packed)
    if not source or "/" in source or "\\" in source:
        raise UserError(
            "The backbone directory does not exist.",
            where=source or "an empty name",
            fix="check the path",
        )
    from crossadapt.backbones.architectures import config_names

    tiny_names = [f"tiny:{family}" for family in ("clip", "siglip", "open_clip", "blip")]
    names = [*BUNDLED, *(f"config:{name}" for name in config_names()), *tiny_names]
    raise UserError(
        f"Unknown backbone {source!r}: no such directory and no such name.",
        where=source,
        fix=did_you_mean(source, names),
    )


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in kinds:
        raise UserError(f"Unknown dtype {name!r}.", fix="use float32, bfloat16 or float16")
    return kinds[name]
