"""What a method asks for: insertions, prompts, a fusion, trained copies, or a tuned copy.

A method's ``plan(backbone, config)`` returns a list of these. It only describes; the engine in
`crossadapt.adapters.attach` validates the whole list and then carries it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import nn

    from crossadapt.backbones.base import Site, Tower


@dataclass(frozen=True)
class Insertion:
    """Run `module` on the output of `site`.

    `module` maps (..., site.width) to the same shape: the new output of the site, residual
    included. One module object may stand at several sites; it is then shared, trained once,
    counted once and saved once. Shared children of different modules work the same way.
    Its parameters are float32; x may be half precision (autocast, or a backbone loaded so), and
    the engine casts the result back to x's dtype. What the module holds beside trained parameters
    is not saved and must follow from config and seed. A module that treats every token by itself
    says so by an attribute `by_token` that is true; towers then compute their last MLP for the
    pooled token only.

    With `parallel` the module works beside the site instead of behind it: it maps the site's
    *input* (or what the site's `source` says) to what is added to the output. Only for `mlp`,
    `block`, `residual`, `key` and `value` sites, whose input is the first positional argument in
    every family; `residual` sites take no other insertions.
    """

    site: Site
    module: nn.Module
    parallel: bool = False


@dataclass(frozen=True)
class Heads:
    """Run `module` on the heads of the attention at `site`, in front of its output projection.

    ``module(heads, x)`` maps all heads side by side (..., T, width) and the attention's input
    (..., T, width) to new heads. If its attribute `wants_mass` is true it is also given
    ``mass`` (..., heads, T): for every head and query the log of the sum of the exponentials of
    the attention logits.
    """

    site: Site
    module: nn.Module

    @property
    def name(self) -> str:
        """Its key: ``vision.3.heads``."""
        return f"{self.site.tower}.{self.site.layer}.heads"


@dataclass(frozen=True)
class Stream:
    """Add ``module(y)`` to the residual stream y (..., width) behind the attention at `site`.

    Unlike an `Insertion`, the module sees the stream itself: the attention's output and what it
    is added to.
    """

    site: Site
    module: nn.Module

    @property
    def name(self) -> str:
        """Its key: ``vision.3.stream``."""
        return f"{self.site.tower}.{self.site.layer}.stream"


@dataclass(frozen=True)
class Prompts:
    """Lengthen the token sequence of one tower by `count` learned tokens.

    ``module(layer)`` gives the tokens (count, width) for the input of that layer, for each layer
    in ``range(depth)``. Those of layer 0 join the sequence, those of later layers replace what
    the earlier ones have become; from layer `depth` on they are carried along.

    In the vision tower they follow the patches, without position embedding, and are gone after
    the last block: their place does not matter there, and pooling sees the patches only. In the
    text tower they stand between the start token and the words, and take the positions from
    there on; see `crossadapt.adapters.prompting`.
    """

    tower: Tower
    count: int
    depth: int
    module: nn.Module


@dataclass(frozen=True)
class Companion:
    """A trained module that works on features, beside the towers; at most one per plan.

    Encoding does not call it, a task does. It scores pairs (`crossadapt.adapters.companion`) or
    named classes (`crossadapt.adapters.classifier`). Its persistent buffers and untrained
    parameters are saved with it, so it may hold what was taken from data; their shapes must follow
    from config and backbone.
    """

    module: nn.Module


@dataclass(frozen=True)
class Join:
    """Encode with a trained fusion of what the members of a fused backbone see.

    At most one per plan, on a `crossadapt.backbones.fused.FusedBackbone` only. For what `module`
    must offer see `crossadapt.adapters.joining`. Its parameters under ``branches.vision`` and
    ``branches.text`` belong to a tower, the others to both.
    """

    module: nn.Module


@dataclass(frozen=True)
class Override:
    """Use a trained float32 copy of one backbone parameter instead of the frozen one.

    `parameter` is its dotted name in ``backbone.model``, as in ``named_parameters()``. It is
    trained at `lr_scale` times the run's learning rate.
    """

    parameter: str
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Shadow:
    """Encode with a tuned structural copy of the model; the only item of its plan.

    This is how tuners that wrap the backbone's own layers (PEFT) run without changing it.

    Args:
        build: takes ``backbone.model`` and returns a copy of its module tree that shares the
            same `Parameter` objects, carries no forward hooks, and has the tuners injected.
            It must leave the given model as it was: names, values, ``requires_grad``. It is
            called once per attach, with the random state fixed by the attach seed.
        trained: takes the built copy and returns its trained parameters by stable names
            (a tuner's dotted name; ``vision_…``/``visual_…`` and ``text_…`` prefixes tell the
            tower in summaries). None of them may be a parameter of the backbone itself.
        set_strength: takes the built copy and a strength in (0, 1]; 1.0 must give exactly the
            output of the trained copy. Strength 0 needs no support: the engine then runs the
            frozen model.
    """

    build: Callable[[nn.Module], nn.Module]
    trained: Callable[[nn.Module], Mapping[str, nn.Parameter]]
    set_strength: Callable[[nn.Module, float], None]


Plan: TypeAlias = list[Insertion | Heads | Stream | Prompts | Companion | Join | Override | Shadow]
"""A method's whole request, in a fixed order."""
