"""The frozen text tower's vectors of some words, as a start for prompt tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossadapt.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from crossadapt.backbones.base import Backbone


def word_vectors(backbone: Backbone, words: str, count: int) -> Tensor | None:
    """Token embeddings (count, width) of the first `count` tokens of `words`.

    None when there is nothing to start from: no words given, a model without weights, or one seen
    through PEFT, whose plan is only looked at.

    Raises:
        UserError: the backbone takes no prompts in texts, the words have fewer tokens, or it has no
            tokenizer.
    """
    if "text" not in backbone.prompt_towers:
        raise UserError(
            "this backbone takes no prompt tokens in its text tower: its layer norm follows the "
            "embedding, where a prompt would enter",
            where=backbone.source,
            fix="use vpt (prompts in the vision tower), a CLIP or SigLIP backbone, or another "
            "method such as uniadapter",
        )
    if not words or backbone.tokenize is None:
        return None
    site = next(s for s in backbone.sites() if s.name == "text.embedding")
    embeddings: Any = backbone.model.get_submodule(site.path)
    table = embeddings.token_embedding.weight
    if table.is_meta:
        return None
    backbone.tokenize([words])  # the error of a backbone without tokenizer
    ids = backbone.tokenize.words(words)
    if len(ids) < count:
        raise UserError(
            f"{words!r} has {len(ids)} tokens, {count} are to start from them",
            where="words",
            fix="give more words or fewer tokens, or words='' for a random start",
        )
    return table.detach()[ids[:count]].float()
