"""Texts: real lengths for CLIP, full lengths for SigLIP, features as the padded reference."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from crossadapt import backbones
from crossadapt.backbones import load, tiny
from crossadapt.backbones.bpe import END, START, train_bpe
from crossadapt.errors import UserError

TEXTS = ["a red door", "Two BLUE birds,  café 漢字 🙂", "x", ""]
PICO_TOKENS = "fc8a27c198beda32904a5df57ea438a32840dca499dc9c7f76b5817049e1218d"
LONG = "a photo of a red door " * 20


def test_clip_cut_equals_padded(clip_folder):
    backbone = load(str(clip_folder))
    batch = backbone.tokenize(TEXTS)
    padded = AutoTokenizer.from_pretrained(clip_folder)(
        TEXTS, padding="max_length", max_length=32, truncation=True, return_tensors="pt"
    )
    assert batch.ids.shape[1] < padded["input_ids"].shape[1] == 32
    assert batch.ids.dtype == torch.int64
    assert batch.mask.dtype == torch.bool
    assert batch.mask.sum(1).tolist() == padded["attention_mask"].sum(1).tolist()
    length = batch.ids.shape[1]
    assert torch.equal(batch.ids, padded["input_ids"][:, :length])
    expected = backbone.model.get_text_features(**padded).pooler_output
    torch.testing.assert_close(
        backbone.encode_text(batch.ids, batch.mask), expected, atol=1e-5, rtol=0
    )


def test_clip_features_do_not_depend_on_the_rest_of_the_batch():
    backbone = tiny("clip")
    alone = backbone.tokenize(["x"])
    together = backbone.tokenize(["x", LONG])
    torch.testing.assert_close(
        backbone.encode_text(alone.ids, alone.mask)[0],
        backbone.encode_text(together.ids, together.mask)[0],
        atol=1e-5,
        rtol=0,
    )


def test_clip_long_text_keeps_its_end():
    backbone = tiny("clip")
    batch = backbone.tokenize([LONG, "x"])
    eos = backbone.tokenize.tokenizer.eos_token_id
    assert batch.ids.shape == (2, 32)
    assert batch.ids[0, -1] == eos
    assert (batch.ids[0, :-1] != eos).all()
    assert backbone.encode_text(batch.ids, batch.mask).shape == (2, 12)


def test_clip_rows_begin_once_and_end_once():
    """The end is also the largest id, which is where checkpoints with an old config pool."""
    backbone = tiny("clip")
    tokenizer = backbone.tokenize.tokenizer
    batch = backbone.tokenize([*TEXTS, LONG])
    assert batch.ids.shape == batch.mask.shape
    assert batch.ids.shape[1] <= backbone.tokens("text")
    for ids, mask in zip(batch.ids, batch.mask, strict=True):
        words = ids[mask].tolist()
        assert words[0] == tokenizer.bos_token_id
        assert words.index(tokenizer.eos_token_id) == len(words) - 1 == int(ids.argmax())


def test_siglip_equals_the_padded_reference(siglip_folder):
    backbone = load(str(siglip_folder))
    texts = [*TEXTS, LONG]
    batch = backbone.tokenize(texts)
    assert batch.ids.shape == (5, 24)
    assert batch.mask.all()
    padded = AutoTokenizer.from_pretrained(siglip_folder)(
        texts, padding="max_length", max_length=24, truncation=True, return_tensors="pt"
    )
    assert torch.equal(batch.ids, padded["input_ids"])
    expected = backbone.model.get_text_features(padded["input_ids"]).pooler_output
    torch.testing.assert_close(backbone.encode_text(batch.ids), expected, atol=1e-6, rtol=0)


def test_legacy_end_token_pools_at_the_largest_id():
    """Checkpoints from before 2023 say eos_token_id 2 and mean the largest id."""
    backbone = tiny("clip")
    tokens = type(backbone.tokenize)(backbone.tokenize.tokenizer, 32, 2, "memory")
    batch = tokens(TEXTS)
    expected = backbone.encode_text(batch.ids)
    backbone.model.text_model.eos_token_id = 2
    assert torch.equal(backbone.encode_text(batch.ids), expected)


def test_an_end_token_that_does_not_fit_is_an_error():
    backbone = tiny("clip")
    with pytest.raises(UserError, match="pools at token 7"):
        type(backbone.tokenize)(backbone.tokenize.tokenizer, 32, 7, "memory")


@pytest.mark.parametrize("texts", ["a red door", [], [1, 2]])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_what_is_not_a_list_of_texts_is_an_error(family, texts):
    with pytest.raises(UserError, match="list of texts"):
        tiny(family).tokenize(texts)


def test_bpe_is_deterministic_and_complete():
    corpus = ["a red door", "the red doors", "café"] * 3
    vocabulary, merges = train_bpe(corpus, 600)
    again, _ = train_bpe(list(reversed(corpus)), 600)
    assert vocabulary == again
    assert list(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(vocabulary) <= 600
    assert vocabulary[START], vocabulary[END] == (len(vocabulary) - 2, len(vocabulary) - 1)
    assert len(merges) == len(vocabulary) - 514
    capped, _ = train_bpe(corpus, 518)
    assert len(capped) == 518


BPE_SCRIPT = """
import json
from crossadapt.backbones.bpe import train_bpe
corpus = ["a red door", "two green birds on a boat", "xq zk jj vv ww bb", "the café in Çeşme"]
print(json.dumps(train_bpe(corpus, 700)))
"""


def test_bpe_is_the_same_in_every_process():
    """With many ties, which a hash table's order must not decide."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", BPE_SCRIPT],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "1", "77")
    ]
    found = [run.communicate(timeout=60)[0] for run in runs]
    assert all(run.returncode == 0 for run in runs)
    vocabulary, merges = json.loads(found[0])
    assert len(merges) > 30
    assert len(vocabulary) == len(merges) + 514
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_the_bundled_tokenizer_is_the_one_that_was_published():
    """Whatever `train_bpe` does today: the weights belong to these tokens."""
    file = Path(backbones.__file__).parents[1] / "assets" / "pico-clip" / "tokenizer.json"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == PICO_TOKENS


@pytest.mark.parametrize(("corpus", "size"), [(["a"], 100), ([], 600)])
def test_bpe_refuses_what_cannot_work(corpus, size):
    with pytest.raises(UserError):
        train_bpe(corpus, size)
