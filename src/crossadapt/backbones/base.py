"""What every backbone family offers: the `Backbone` contract and the words it uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image
    from torch import Tensor, nn

Tower = Literal["vision", "text", "fusion"]
SiteKind = Literal[
    "embedding", "attention", "mlp", "block", "residual", "cross-attention", "key", "value"
]


@dataclass(frozen=True)
class Site:
    """A named point in a tower: the output of one submodule.

    For ``attention`` and ``mlp`` that is before the residual is added, for ``block`` after the
    whole layer, for ``embedding`` (layer -1) the token sequence before the first layer. Attention
    modules return a tuple whose first element is the output. Embedding modules of text towers have
    a `token_embedding` and a `position_embedding`, those of vision towers a `patch_embedding`,
    each with its table as `weight`; a `class_embedding` says that a class token comes first.

    ``residual`` sites are for parallel insertions only: what they read is the residual stream
    behind a layer's attention, what they add joins the stream at the layer's end. In a fusion tower
    ``cross-attention`` is the output of the attention over picture tokens before its residual,
    ``key`` and ``value`` are that attention's projections of picture tokens, and ``residual`` reads
    the stream behind it.

    `name` reads ``vision.3.attention``; `path` is the dotted path of the submodule inside
    ``backbone.model``; `width` is the size of the last axis of its output. A parallel insertion
    reads the input of that submodule, or, where `source` is given, the input or output (`side`) of
    the submodule at that path; `read_width` is the size of its last axis, `width` when 0.
    """

    name: str
    tower: Tower
    layer: int
    kind: SiteKind
    path: str
    width: int
    source: str = ""
    side: Literal["input", "output"] = "input"
    read_width: int = 0


@dataclass(frozen=True)
class TokenBatch:
    """Tokenised texts: `ids` (B, L) int64 and `mask` (B, L) bool.

    L is the longest real length in the batch; for families that read padding as part of the text
    (SigLIP) it is the maximum length and the mask is True everywhere.
    """

    ids: Tensor
    mask: Tensor


class Preprocess(Protocol):
    """The checkpoint's own picture preparation, in an exact integer half and a cheap float half.

    ``preprocess(image)`` equals ``preprocess.normalise(preprocess.pixels(image)[None])[0]``.
    """

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a prepared picture."""
        ...

    @property
    def needs(self) -> tuple[int, int]:
        """Least width and height of a picture that is not enlarged."""
        ...

    def array(self, image: Image.Image) -> np.ndarray:
        """What `pixels` gives, as an array; needs no torch, for processes that decode."""
        ...

    def pixels(self, image: Image.Image) -> Tensor:
        """Resize and crop an RGB picture to uint8 (3, H, W); what caches store."""
        ...

    def normalise(self, pixels: Tensor) -> Tensor:
        """Scale and normalise uint8 (B, 3, H, W) to the float32 the vision tower expects."""
        ...

    def __call__(self, image: Image.Image) -> Tensor:
        """Both halves for one picture: float32 (3, H, W)."""
        ...


class Tokens(Protocol):
    """Texts to ids, as the family reads them; `tokenizer` is the library's own, if there is one."""

    tokenizer: Any

    @property
    def start(self) -> int:
        """Tokens in front of the words."""
        ...

    @property
    def fusion_start(self) -> int | None:
        """What replaces the first token in a fusion tower; None for the same."""
        ...

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Texts to ids and mask (B, L)."""
        ...

    def make_room(self, ids: Tensor, count: int) -> Tensor:
        """Put `count` placeholders behind the first `start` tokens of every text."""
        ...

    def words(self, text: str) -> list[int]:
        """Ids of the words alone, without start, end and padding."""
        ...


class Backbone(Protocol):
    """A frozen vision-language model. `model` is never changed; adapters live in `adapters`.

    `override_source` and `shadow` are where adapters that replace parameters or modules take
    effect: see `hf.HFBackbone`. `class_token` says whether the first token of the vision tower is
    one, `causal_text` whether a word sees only the words before it, `masked_text` whether texts of
    a batch are padded to its longest under a mask, so that modules that mix positions must mask
    too, `prompt_towers` which towers take prompt tokens. `attention` holds the implementation in
    use per tower.
    """

    family: ClassVar[str]
    class_token: ClassVar[bool]
    causal_text: ClassVar[bool]
    masked_text: ClassVar[bool]
    prompt_towers: ClassVar[tuple[str, ...]]
    source: str
    model: nn.Module
    adapters: nn.ModuleDict
    override_source: Callable[[], Mapping[str, Tensor]] | None
    shadow: nn.Module | None
    prompting: Any
    attention: dict[str, str]

    @property
    def embedding_dim(self) -> int:
        """Size D of the shared feature space."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the frozen weights are."""
        ...

    @property
    def preprocess(self) -> Preprocess:
        """The checkpoint's own picture preparation."""
        ...

    @property
    def tokenize(self) -> Tokens:
        """Texts to a `TokenBatch`, and room for prompt tokens in it."""
        ...

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) float to projected, un-normalised features (B, D)."""
        ...

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (B, L) to projected, un-normalised features (B, D)."""
        ...

    def encode_frames(self, pixels: Tensor, mask: Tensor) -> Tensor:
        """Pixels (B, F, 3, H, W) and mask (B, F) to features (B, F, D); masked frames are zero.

        Adapters made for clips see the frames of a clip together; others see single pictures.
        """
        ...

    def sites(self) -> list[Site]:
        """Every insertion point, vision first, then text, by layer."""
        ...

    def width(self, tower: Tower) -> int:
        """Hidden size of a tower."""
        ...

    def depth(self, tower: Tower) -> int:
        """Number of transformer layers of a tower."""
        ...

    def tokens(self, tower: Tower) -> int:
        """Longest token sequence a tower sees."""
        ...

    @property
    def logit_scale(self) -> Tensor:
        """Log of the similarity scale, a scalar, with any active override applied."""
        ...

    @property
    def logit_bias(self) -> Tensor | None:
        """Bias of the sigmoid loss where the family has one."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of configuration, weights, tokenizer and preprocessing, never of adapters."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a run record says about the backbone; plain JSON values."""
        ...
