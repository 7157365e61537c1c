"""Room for prompt tokens in a text: what is moved, and what is cut when it must be."""

from __future__ import annotations

import copy

import torch
from tests.adapting import attach_prompts

from crossadapt.backbones import tiny


def test_room_in_a_clip_text_costs_words_only_when_it_must() -> None:
    tokens = tiny("clip").tokenize
    short = tokens(["a red door", "a"])
    longer = tokens.make_room(short.ids, 4)
    assert longer.shape[1] == short.ids.shape[1] + 4
    assert torch.equal(longer[:, 5:], short.ids[:, 1:])
    assert (longer[:, :5] == short.ids[0, 0]).all()
    # As many tokens as there are places: the last words go, start and end stay.
    full = tokens(["bird " * 60, "a red door"])
    assert full.ids.shape[1] == tokens.max_length
    placed = tokens.make_room(full.ids, 4)
    assert placed.shape == full.ids.shape
    ends = (placed == tokens.eos).int().argmax(1)
    assert ends.tolist() == [tokens.max_length - 1, int(full.mask[1].sum()) - 1 + 4]
    assert torch.equal(placed[0, 5:-1], full.ids[0, 1 : tokens.max_length - 5])
    # Checkpoints with eos_token_id 2 pool at the largest id: no placeholder may be that.
    assert torch.equal(placed.argmax(1), ends)


def test_room_in_a_siglip_text_comes_from_padding_first() -> None:
    tokens = tiny("siglip").tokenize
    found = tokens(["a red door", "x" * 40])
    placed = tokens.make_room(found.ids, 4)
    assert placed.shape == found.ids.shape
    assert torch.equal(placed[0, 4:], found.ids[0, :-4])
    eos = tokens.tokenizer.eos_token_id
    assert torch.equal(placed[1, 4:-1], found.ids[1, : tokens.max_length - 5])
    assert placed[1, -1] == eos


def test_room_keeps_the_end_where_padding_is_another_token() -> None:
    """SigLIP 2 pads with a token that does not end texts."""
    tokens = copy.copy(tiny("siglip").tokenize)
    eos = tokens.tokenizer.eos_token_id

    class Other:
        pad_token_id, eos_token_id = 0, eos

    tokens.tokenizer = Other()
    words = torch.full((2, tokens.max_length), 7)
    words[0, 5:], words[0, 5] = 0, eos
    words[1, -1] = eos
    placed = tokens.make_room(words, 3)
    assert torch.equal(placed[0, 3:], words[0, :-3])
    assert placed[1, -1] == eos
    assert (placed[1, 3:-1] == 7).all()


def test_a_long_caption_with_the_same_beginning_is_read_to_the_cut() -> None:
    backbone = tiny("clip")
    attach_prompts(backbone, "text", count=4, depth=1)
    words = ["bird"] * 60
    long = [" ".join(words), " ".join([*words, "door"]), " ".join(["door", *words])]
    tokens = backbone.tokenize(long)
    with torch.no_grad():
        a, b, c = backbone.encode_text(tokens.ids, tokens.mask)
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)
