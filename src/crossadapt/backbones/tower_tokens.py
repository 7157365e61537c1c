"""Token features of a frozen model: what a fused backbone reads of its members.

A member offers `image_tokens` and `text_tokens` (`TokenSource`). Both run its tower once and give
the projected embedding together with the tokens behind it. The first token is the *hub*: the vector
that stands for the whole input before projection, of the tower's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from crossadapt.errors import UserError


@dataclass(frozen=True)
class TokenFeatures:
    """What one member makes of B inputs.

    `embedding` (B, D) is projected and of any length; `tokens` (B, N, W) has the hub first;
    `mask` bool (B, N) is False at padding and always True at the hub.
    """

    embedding: Tensor
    tokens: Tensor
    mask: Tensor


class TokenSource(Protocol):
    """A backbone that can be a member of a fused one."""

    def image_tokens(self, pixels: Tensor) -> TokenFeatures:
        """Features of normalised pixels (B, 3, H, W)."""
        ...

    def text_tokens(self, ids: Tensor, mask: Tensor) -> TokenFeatures:
        """Features of token ids and mask (B, L)."""
        ...


def offers_tokens(backbone: object) -> bool:
    """Whether a backbone is a `TokenSource`."""
    return all(callable(getattr(backbone, name, None)) for name in ("image_tokens", "text_tokens"))


class TowerTokens:
    """`TokenSource` for Hugging Face dual encoders, one file of a family saying what is the hub."""

    model: Any
    shadow: Any
    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Tensor, Tensor], Tensor]

    def hub_and_rest(
        self, tower: Literal["vision", "text"], hidden: Tensor, pooled: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The hub (B, W), the other tokens (B, N, W), and which of them exist (B, N).

        Args:
            tower: which tower.
            hidden: its last hidden state (B, L, W), after the final norm where there is one.
            pooled: what the tower pooled (B, W'), before the projection.
            mask: bool (B, L); all True for pictures.
        """
        raise NotImplementedError

    def image_tokens(self, pixels: Tensor) -> TokenFeatures:
        """See `TokenSource`."""
        embedding, output = self._run("vision", lambda: self.encode_image(pixels))
        hidden = output[0]
        everywhere = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return self._features("vision", embedding, output, everywhere)

    def text_tokens(self, ids: Tensor, mask: Tensor) -> TokenFeatures:
        """See `TokenSource`."""
        embedding, output = self._run("text", lambda: self.encode_text(ids, mask))
        return self._features("text", embedding, output, mask.to(output[0].device))

    def _features(
        self,
        tower: Literal["vision", "text"],
        embedding: Tensor,
        output: tuple[Tensor, Tensor],
        mask: Tensor,
    ) -> TokenFeatures:
        hub, rest, there = self.hub_and_rest(tower, *output, mask)
        first = torch.ones_like(there[:, :1])
        return TokenFeatures(
            embedding, torch.cat([hub[:, None], rest], 1), torch.cat([first, there], 1)
        )

    def _run(
        self, tower: str, encode: Callable[[], Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The embedding, and the tower's last hidden state and pooled vector on the way to it."""
        seen: list[tuple[Tensor, Tensor]] = []

        def keep(module: Any, inputs: Any, output: Any) -> None:
            # Taken now: the model writes the projected vector over the pooled one.
            seen.append((output.last_hidden_state, output.pooler_output))

        model = self.model if self.shadow is None else self.shadow
        handle = model.get_submodule(f"{tower}_model").register_forward_hook(keep)
        try:
            embedding = encode()
        finally:
            handle.remove()
        if len(seen) != 1:
            raise UserError(
                f"the {tower} tower ran {len(seen)} times for one input",
                fix="read token features of a backbone without active adapter",
            )
        return embedding, seen[0]
