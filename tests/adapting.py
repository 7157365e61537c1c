"""What the tests of adapters and methods share: a fixed batch, a loss, a few real steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossadapt.adapters.adapter import AttachedAdapter
from crossadapt.adapters.attach import active, install
from crossadapt.adapters.companion import pair_scores
from crossadapt.adapters.plan import Prompts
from crossadapt.adapters.validate import check_plan
from crossadapt.backbones import tiny
from crossadapt.backbones.blip import BlipBackbone
from crossadapt.backbones.fused import FusedBackbone
from crossadapt.layers.prompts import PromptBank
from crossadapt.methods.cross_modal_adapter import CrossModalAdapterConfig

CMA = CrossModalAdapterConfig(r=4, d_s=6)
WEIGHT = "text_model.final_layer_norm.weight"
TEXTS = ["a red door", "two green birds on a boat", "the small white house"]


def small(family: str, *, seed: int = 0, weights: bool = True, **shape: int):
    """A tiny backbone of a family; ``fuse`` is a CLIP and a SigLIP as one."""
    if family != "fuse":
        return tiny(family, seed=seed, weights=weights, **shape)
    members = [
        tiny(f, seed=seed + i, weights=weights, **shape) for i, f in enumerate(("clip", "siglip"))
    ]
    return FusedBackbone(members, source="tiny:clip+tiny:siglip")


def batch(backbone, seed: int = 0):
    """Three pictures of noise and three texts: pixels (3, 3, H, W) and a `TokenBatch`."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(3, 3, *backbone.preprocess.size, generator=generator)
    return pixels, backbone.tokenize(TEXTS)


def features(backbone) -> tuple[Tensor, Tensor]:
    """Image and text features of the fixed batch, without gradient."""
    pixels, tokens = batch(backbone)
    with torch.no_grad():
        image = backbone.encode_image(pixels)
        return image, backbone.encode_text(tokens.ids, tokens.mask)


def loss(backbone) -> Tensor:
    """A contrastive loss in which every parameter of the model takes part."""
    pixels, tokens = batch(backbone)
    image = functional.normalize(backbone.encode_image(pixels), dim=-1)
    text = functional.normalize(backbone.encode_text(tokens.ids, tokens.mask), dim=-1)
    logits = backbone.logit_scale.exp() * pair_scores(backbone, image, text).T
    labels = torch.arange(len(logits))
    total = functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)
    if isinstance(backbone, BlipBackbone):
        total = total + matching_loss(backbone, pixels, tokens)
    if backbone.logit_bias is not None:
        signs = 2 * torch.eye(len(logits)) - 1
        total = total - functional.logsigmoid(signs * (logits + backbone.logit_bias)).mean()
    adapter = active(backbone)
    if adapter is not None and adapter.join is not None:
        # A fusion's matching head is not part of the embedding; its vectors are in front.
        size = adapter.join.config.output
        judged = adapter.join.matching(image[:, :size], text[:, :size])
        total = total - functional.logsigmoid(judged).mean()
    return total


def matching_loss(backbone, pixels, tokens) -> Tensor:
    """Each text with its own picture (a match) and with the next one (none)."""
    seen = backbone.encode_image_tokens(pixels)
    found = [
        functional.cross_entropy(
            backbone.match(tokens.ids, tokens.mask, seen.roll(shift, 0)),
            torch.full((len(seen),), int(shift == 0)),
        )
        for shift in (0, 1)
    ]
    return found[0] + found[1]


def train(backbone, adapter, steps: int = 2, rate: float = 0.02) -> None:
    """A few optimisation steps on the fixed batch."""
    optimiser = torch.optim.Adam(list(adapter.trained().values()), lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(backbone).backward()
        optimiser.step()


def attach_prompts(backbone, tower: str, count: int, depth: int, name: str = "default"):
    """Attach prompts of one tower, drawn at unit scale so that they matter."""
    bank = PromptBank(depth, count, backbone.width(tower), std=1.0)
    plan = [Prompts(tower, count, depth, bank)]
    check_plan(backbone, plan, "prompts")
    adapter = AttachedAdapter(backbone, plan, name=name, method="prompts", config=None, seed=0)
    return install(backbone, adapter)


def snapshot(backbone) -> dict[str, Tensor]:
    """A copy of everything in the frozen model."""
    return {key: value.clone() for key, value in backbone.model.state_dict().items()}


def same(a, b) -> bool:
    """Bit-equality of tensors, or of equally keyed or ordered collections of them."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def hooks(backbone) -> int:
    """How many forward hooks stand on the frozen model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.model.modules())


class Scale(nn.Module):
    """y = gain * x, whatever the width."""

    def __init__(self, gain: float = 2.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x):
        return self.gain * x


def site(backbone, name: str):
    """The site called `name`."""
    return next(s for s in backbone.sites() if s.name == name)
