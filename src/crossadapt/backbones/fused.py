"""``fuse:A+B``: several frozen backbones as one, whose embedding is a weighted mix of theirs.

A fused embedding has ``ROOM + D_1 + ... + D_n`` channels of length one:

    [ sqrt(a_0) z ; sqrt(a_1) e_1 ; ... ; sqrt(a_n) e_n ]        sum of a = 1

where e_i is member i's unit embedding and z, padded with zeros to ROOM channels, the unit vector
of a trained fusion (method `hada`). A cosine of two such vectors is therefore exactly

    a_0 cos(z) + a_1 cos(e_1) + ... + a_n cos(e_n),

so one ordinary vector in an ordinary index holds any mix of similarities, and the size does not
depend on what is trained. Without adapter, and at strength 0, a is (0, 1/n, ..., 1/n): the mean of
the members' cosines. An adapter at strength s uses ``a_s = (1 - s) a_frozen + s a_trained``.

The cut. Everything above works with the one `Backbone` contract, so the fusion is a backbone: the
members' own preparation, packed into one pixel and one id tensor (`packing`), comes in, one vector
goes out, and caches, training, evaluation, indexing and adapter folders need not know. It derives
from `HFBackbone` for the part that is equal (frozen modules, adapters, frames), with all members'
modules under ``model``. It has no sites: members are fused as they are. To fuse adapted models,
adapt and merge one first and name its folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossadapt.backbones.attention import AttentionChoice
from crossadapt.backbones.base import Site, Tower
from crossadapt.backbones.hf import HFBackbone
from crossadapt.backbones.packing import PackedPreprocess, PackedTokens
from crossadapt.backbones.tower_tokens import TokenFeatures, offers_tokens
from crossadapt.errors import UserError

SCHEME = "fuse"
ROOM = 512
"""Channels kept for a trained fusion: the output width HADA was published with."""


class Joined(Protocol):
    """What an adapter that fuses the members' features needs from the encode functions."""

    @property
    def on(self) -> bool:
        """Whether it takes part now; at strength 0 it does not."""
        ...

    def encode(self, tower: Literal["vision", "text"], seen: Sequence[TokenFeatures]) -> Tensor:
        """Unit vectors (B, P), P at most `ROOM`, from what the members see."""
        ...

    def weights(self, frozen: Tensor) -> Tensor:
        """Weights (1 + n,) of the mix at the present strength; `frozen` are those without it."""
        ...


class FusedBackbone(HFBackbone):
    """Two or more frozen backbones as one; see the module's text.

    Args:
        members: in order of importance; the first one's logit scale is used. None of them may
            have adapters or be fused itself.
        source: what `load` was given.

    Raises:
        UserError: fewer than two, one twice, or one that cannot be a member.
    """

    family: ClassVar[str] = SCHEME
    class_token: ClassVar[bool] = False
    causal_text: ClassVar[bool] = False
    joining: Joined | None

    def __init__(self, members: Sequence[HFBackbone], *, source: str) -> None:
        _check(members, source)
        preprocess = PackedPreprocess(tuple(m.preprocess for m in members))
        tokens = PackedTokens([m.tokenize for m in members], [m.tokens("text") for m in members])
        super().__init__(
            nn.ModuleList([m.model for m in members]),
            source=source,
            preprocess=cast("Any", preprocess),
            tokenize=tokens,
        )
        self.packed, self.packed_tokens = preprocess, tokens
        self.joining = None
        # A tuple is no child: the members' weights have one name each, under `model`.
        self.members = tuple(members)

    # -- encoding -----------------------------------------------------------------------------

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised canvases (B, 3, H, W) to fused embeddings (B, D) of length one."""
        if self.joining is not None and self.joining.on:
            return self._joined("vision", self.joining, self.look_at_images(pixels))
        return self.compose(None, self._each_image("encode_image", pixels), self.frozen_weights)

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Packed ids and mask (B, L) to fused embeddings (B, D) of length one."""
        if mask is None:
            raise UserError(
                "packed ids say nothing without their mask", fix="pass ids and mask of `tokenize`"
            )
        if self.joining is not None and self.joining.on:
            return self._joined("text", self.joining, self.look_at_texts(ids, mask))
        return self.compose(None, self._each_text("encode_text", ids, mask), self.frozen_weights)

    def look_at_images(self, pixels: Tensor) -> list[TokenFeatures]:
        """What each member makes of normalised canvases (B, 3, H, W)."""
        return self._each_image("image_tokens", pixels)

    def look_at_texts(self, ids: Tensor, mask: Tensor) -> list[TokenFeatures]:
        """What each member makes of packed ids and mask (B, L)."""
        return self._each_text("text_tokens", ids, mask)

    def _each_image(self, function: str, pixels: Tensor) -> list[Any]:
        parts = zip(self.members, self.packed.split(pixels), strict=True)
        return [getattr(member, function)(part.contiguous()) for member, part in parts]

    def _each_text(self, function: str, ids: Tensor, mask: Tensor) -> list[Any]:
        parts = zip(self.members, self.packed_tokens.split(ids, mask), strict=True)
        return [
            getattr(member, function)(part.ids.to(self.device), part.mask.to(self.device))
            for member, part in parts
        ]

    def _joined(
        self, tower: Literal["vision", "text"], joining: Joined, seen: Sequence[TokenFeatures]
    ) -> Tensor:
        z = joining.encode(tower, seen)
        return self.compose(z, [s.embedding for s in seen], joining.weights(self.frozen_weights))

    @property
    def frozen_weights(self) -> Tensor:
        """Weights (1 + n,) without a trained fusion: all members alike."""
        count = len(self.members)
        return torch.tensor([0.0] + [1 / count] * count, device=self.device)

    def compose(self, z: Tensor | None, embeddings: Sequence[Tensor], weights: Tensor) -> Tensor:
        """The fused embedding (B, D).

        Args:
            z: unit vectors (B, P) of a trained fusion; zeros when None.
            embeddings: (B, D_i) of each member, of any length.
            weights: (1 + n,), a point of the simplex.
        """
        units = [F.normalize(e.float(), dim=-1) for e in embeddings]
        first = units[0].new_zeros(units[0].shape[0], ROOM) if z is None else _padded(z.float())
        # Zero times the root's infinite slope at 0 would be NaN in a gradient.
        roots = [w.sqrt() if float(w.detach()) > 0 else w.detach() for w in weights]
        return torch.cat([r * x for r, x in zip(roots, [first, *units], strict=True)], dim=-1)

    # -- shape and identity -------------------------------------------------------------------

    @property
    def embedding_dim(self) -> int:
        """Size of the fused embedding, ROOM and the members' sizes."""
        return ROOM + sum(m.embedding_dim for m in self.members)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the canvas."""
        return self.packed.size

    @property
    def device(self) -> torch.device:
        """Where the frozen weights are."""
        return self.members[0].device

    @property
    def logit_scale(self) -> Tensor:
        """The first member's."""
        return self.members[0].logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        """None: cosines are mixed, not logits."""
        return None

    def sites(self) -> list[Site]:
        """None: members are fused as they are."""
        return []

    def tower_config(self, tower: Tower) -> Any:
        """Always raises `UserError`: there is no one tower."""
        raise UserError(
            f"a fused backbone has no {tower} tower of its own to adapt",
            where=self.source,
            fix="use the method hada, or adapt one of its members alone",
        )

    def tokens(self, tower: Tower) -> int:
        """Always raises `UserError`: there is no one tower."""
        return self.tower_config(tower)

    def use_attention(self, choice: AttentionChoice = "auto") -> dict[str, str]:
        """Set the attention implementation of every member, and return it as ``0.vision`` etc."""
        for index, member in enumerate(self.members):
            picked = member.use_attention(choice)
            self.attention |= {f"{index}.{tower}": kind for tower, kind in picked.items()}
        return dict(self.attention)

    @property
    def fingerprint(self) -> str:
        """Hash over the members' fingerprints, in order, and the layout of the embedding."""
        parts = [SCHEME, str(ROOM), *(m.fingerprint for m in self.members)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a run record says about the backbone."""
        described = [m.describe() for m in self.members]
        return {
            "source": self.source,
            "family": self.family,
            "fingerprint": None if self.device.type == "meta" else self.fingerprint,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "dtype": described[0]["dtype"],
            "embedding_dim": self.embedding_dim,
            "image_size": list(self.image_size),
            "attention": dict(self.attention),
            "members": described,
        }


def load_fused(rest: str, read: Callable[[str], HFBackbone]) -> FusedBackbone:
    """The backbone that ``fuse:`` and `rest`, ``A+B`` or ``A+B+C``, name.

    Args:
        rest: sources of the members joined by ``+``; a path with a plus sign cannot be named.
        read: loads one source.

    Raises:
        UserError: as `FusedBackbone`, or whatever is wrong with a member.
    """
    source = f"{SCHEME}:{rest}"
    names = [name.strip() for name in rest.split("+")]
    if len(names) < 2 or not all(names):
        raise UserError(
            "a fused backbone needs two or more members",
            where=source,
            fix="join their sources with '+': fuse:pico-clip+models/other",
        )
    for name in names:
        scheme = name.partition(":")[0] if ":" in name else ""
        if scheme in (SCHEME, "new"):
            raise UserError(
                f"{name!r} cannot be a member of a fused backbone",
                where=source,
                fix="name all members in one list"
                if scheme == SCHEME
                else "train it first, then name its folder",
            )
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UserError(
            f"{twice!r} is named twice", where=source, fix="fuse different models: it adds nothing"
        )
    return FusedBackbone([read(name) for name in names], source=source)


def _check(members: Sequence[HFBackbone], source: str) -> None:
    """Refuse what cannot be fused."""
    if len(members) < 2:
        raise UserError(f"{len(members)} backbone cannot be fused", where=source, fix="give two")
    for member in members:
        if isinstance(member, FusedBackbone) or not offers_tokens(member):
            raise UserError(
                f"{member.source} ({member.family}) offers no token features to fuse",
                where=source,
                fix="fuse CLIP, SigLIP and BLIP models, or others that offer `image_tokens` and "
                "`text_tokens`",
            )
        if len(member.adapters):
            raise UserError(
                f"{member.source} has an adapter attached: {', '.join(member.adapters)}",
                where=source,
                fix="detach it, or merge it and save the backbone",
            )


def _padded(z: Tensor) -> Tensor:
    """z (B, P) with zeros behind it, up to `ROOM` channels."""
    return F.pad(z, (0, ROOM - z.shape[-1]))
