"""PEFT in both directions.

Importing this package registers crossadapt with PEFT, so that
``get_peft_model(clip, CrossAdaptConfig(method=...))`` and ``PeftModel.from_pretrained`` work; and
it answers for the ``peft:…`` methods inside crossadapt. Only this package touches what PEFT does
not document.
"""

from __future__ import annotations

from crossadapt.errors import UserError

try:
    import peft
except ImportError as error:
    raise UserError(
        "PEFT is not installed",
        where="crossadapt.integrations.peft",
        fix="pip install 'crossadapt[peft]'",
    ) from error

if tuple(int(part) for part in peft.__version__.split(".")[:2]) < (0, 21):
    # Earlier releases name and match saved tensors differently, without saying so.
    raise UserError(
        f"PEFT {peft.__version__} is too old",
        where="crossadapt.integrations.peft",
        fix="pip install 'peft>=0.21'",
    )

from crossadapt.integrations.peft.bridge import CrossAdaptConfig, CrossAdaptTuner
from crossadapt.integrations.peft.budget import rank_for_budget
from crossadapt.integrations.peft.configs import (
    PeftDoraConfig,
    PeftHraConfig,
    PeftIA3Config,
    PeftLohaConfig,
    PeftLoraConfig,
    PeftOftConfig,
    PeftVeraConfig,
)
from crossadapt.integrations.peft.methods import peft_method, peft_method_names

__all__ = [
    "CrossAdaptConfig",
    "CrossAdaptTuner",
    "PeftDoraConfig",
    "PeftHraConfig",
    "PeftIA3Config",
    "PeftLohaConfig",
    "PeftLoraConfig",
    "PeftOftConfig",
    "PeftVeraConfig",
    "peft_method",
    "peft_method_names",
    "rank_for_budget",
]
