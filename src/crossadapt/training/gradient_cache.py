"""The exact gradient of a batch loss, holding the activations of one chunk at a time.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv
2101.06983. A contrastive loss needs all features of the batch but each feature needs only its own
row, so the gradient is computed in two halves:

1. encode every chunk without a graph, keep only the features;
2. loss and its gradient with respect to the features (and to what the loss itself uses, such as
   the logit scale or a task's heads);
3. encode every chunk again, with a graph, and send the stored feature gradient through it.

The second encoding replays the random numbers of the first, so dropout and token dropping change
nothing: value and every gradient equal those of the plain loss over the same chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Encode = Callable[[str, tuple[Tensor, ...]], Tensor]
Loss = Callable[[dict[str, Tensor]], tuple[Tensor, Mapping[str, float]]]


def backward(
    encode: Encode, loss: Loss, inputs: Mapping[str, tuple[Tensor, ...]], chunk: int | None
) -> tuple[float, Mapping[str, float]]:
    """Add the gradient of `loss` to every parameter it reaches; return value and logged parts.

    Args:
        encode: (stream name, tensors of some rows) to features (rows, D).
        loss: features per stream to (scalar, parts).
        inputs: per stream, the tensors of the whole batch.
        chunk: rows encoded at a time; None, or at least as many as there are rows, means one plain
            forward and backward pass.
    """
    if chunk is None or all(len(tensors[0]) <= chunk for tensors in inputs.values()):
        value, parts = loss({name: encode(name, tensors) for name, tensors in inputs.items()})
        value.backward()
        return float(value.detach()), parts

    pieces = [
        (name, piece)
        for name, tensors in inputs.items()
        for piece in zip(*(x.split(chunk) for x in tensors), strict=True)
    ]
    states, encoded = [], []
    with torch.no_grad():
        for name, piece in pieces:
            states.append(_random_state(piece[0]))
            encoded.append(encode(name, piece))
    features = {
        name: torch.cat([y for (n, _), y in zip(pieces, encoded, strict=True) if n == name])
        for name in inputs
    }
    for feature in features.values():
        feature.requires_grad_()
    value, parts = loss(features)
    value.backward()
    end = _random_state(pieces[0][1][0])

    used = dict.fromkeys(inputs, 0)
    for (name, piece), state in zip(pieces, states, strict=True):
        start, used[name] = used[name], used[name] + len(piece[0])
        gradient = features[name].grad
        if gradient is None:
            continue
        _set_random_state(state)
        output = encode(name, piece)
        if output.requires_grad:
            output.backward(gradient[start : used[name]])
    _set_random_state(end)
    return float(value.detach()), parts


def _random_state(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """State of the generators an encoder on `x`'s device draws from."""
    cuda = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
    return torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
