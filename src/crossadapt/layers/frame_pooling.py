"""How a clip of F frames is compared with a text: the similarity heads. None has parameters.

`MeanPooling` is CLIP4Clip's ``meanP`` (arXiv 2104.08860): frames are scaled to length one,
averaged over those that are there, and scaled again. A clip is one vector, so a search is one
product of N x M x D multiplications.

`TextConditionedPooling` is the "parameter-free similarity calculator" of the Cross-Modal Adapter
(arXiv 2211.09623, after CLIP-Hitchhiker, arXiv 2205.08508). On features as they come, not scaled:

    w[n, m, :] = softmax_f( <t_n, f_mf> / temperature )
    v[n, m]    = sum_f w[n, m, f] f_mf
    S[n, m]    = cos(t_n, v[n, m])

Every clip has another vector for every text, so all F frames of all M clips are kept and compared:
N M F (D + F) multiplications, about F times those of mean pooling; encoding is not repeated. The
vectors v are never formed: ``<t, v> = sum_f w_f <t, f_f>`` and ``|v|^2 = w^T G w`` with G the
(F, F) matrix of products of a clip's frames, so N M F numbers are held instead of N M D, and of
those only one block of texts at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossadapt.errors import UserError, did_you_mean

BLOCK = 2**22
"""Frame scores held at once by `TextConditionedPooling`: 16 MiB of float32."""


def mean_pooled(frames: Tensor, mask: Tensor) -> Tensor:
    """Clip features (M, D) of length one, as CLIP4Clip pools them; zero for a clip without frame.

    Args:
        frames: features (M, F, D) of any length.
        mask: bool (M, F), True where there is a frame.
    """
    weights = mask.to(frames.device, torch.float32)
    total = (functional.normalize(frames.float(), dim=-1) * weights[..., None]).sum(1)
    return functional.normalize(total / weights.sum(1).clamp_min(1)[:, None], dim=-1)


class MeanPooling(nn.Module):
    """Cosine of a text and the mean of the frames' directions."""

    name = "mean"

    def forward(self, texts: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Cosines (N, M) of texts (N, D) and clips (M, F, D) with mask bool (M, F)."""
        return functional.normalize(texts.float(), dim=-1) @ mean_pooled(frames, mask).T


class TextConditionedPooling(nn.Module):
    """Cosine of a text and the frames weighted by their likeness to it.

    Args:
        temperature: of the softmax over frames. Near 0 the best frame alone counts; a very large
            one gives the plain mean of the frames (not scaled to length one first).
        block: frame scores held at once.
    """

    name = "text-conditioned"

    def __init__(self, temperature: float = 5.0, block: int = BLOCK) -> None:
        super().__init__()
        if not (temperature > 0 and math.isfinite(temperature)):
            raise UserError(
                f"temperature is {temperature}", where="temperature", fix="give a number above 0"
            )
        self.temperature, self.block = temperature, block

    def forward(self, texts: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Cosines (N, M) of texts (N, D) and clips (M, F, D) with mask bool (M, F).

        Both features unscaled. A clip without frame scores 0.
        """
        mask = mask.to(frames.device)
        texts = texts.float()
        frames = frames.float() * mask[..., None]
        products = frames @ frames.transpose(1, 2)
        rows = max(1, self.block // max(1, mask.numel()))
        parts = [self._scores(part, frames, mask, products) for part in texts.split(rows)]
        return torch.cat(parts)

    def _scores(self, texts: Tensor, frames: Tensor, mask: Tensor, products: Tensor) -> Tensor:
        scores = torch.einsum("nd,mfd->nmf", texts, frames)
        logits = (scores / self.temperature).masked_fill(~mask, -torch.inf)
        # All-masked clips get equal weights here and the score 0 below, instead of NaN.
        empty = ~mask.any(1)
        weights = logits.masked_fill(empty[:, None], 0.0).softmax(-1)
        dot = (weights * scores).sum(-1)
        square = torch.einsum("nmf,mfg,nmg->nm", weights, products, weights)
        smallest = torch.finfo(torch.float32).tiny
        lengths = square.clamp_min(smallest).sqrt() * texts.norm(dim=-1).clamp_min(1e-12)[:, None]
        return (dot / lengths).masked_fill(empty, 0.0)


POOLINGS = (MeanPooling.name, TextConditionedPooling.name)
"""Names of the similarity heads."""


def make_pooling(name: str, temperature: float = 5.0) -> MeanPooling | TextConditionedPooling:
    """The head called `name`; `temperature` is for the text-conditioned one.

    Raises:
        UserError: no such head; names the nearest.
    """
    if name == MeanPooling.name:
        return MeanPooling()
    if name == TextConditionedPooling.name:
        return TextConditionedPooling(temperature)
    raise UserError(
        f"there is no frame pooling {name!r}", where="pooling", fix=did_you_mean(name, POOLINGS)
    )
