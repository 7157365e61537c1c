"""Everything one training run needs to know, as one record; reading it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from crossadapt.errors import UserError
from crossadapt.training.config import METHOD_PRESET, Recipe, make_recipe, reject_unknown


@dataclass(frozen=True)
class TrainJob:
    """What to adapt, to what, how, and where to put the result."""

    data: str
    """A folder, a table (CSV, JSONL, Parquet), a Karpathy JSON file, or `openmoji`."""
    output: Path = Path("runs/adapter")
    """Folder of the result: adapter, model card, run record, events, checkpoints, ledger."""
    backbone: str = "pico-clip"
    """`pico-clip`, a model folder, a hub id, `config:NAME`, `fuse:A+B` for several as one, or
    `new:FILE` for a new model."""
    method: str = "cross-modal-adapter"
    """How to adapt; see the list of methods."""
    method_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method by name."""
    reader: str = "auto"
    """How to read the data; found out from the files when `auto`."""
    columns: Mapping[str, str] | None = None
    """Which column is which, as role to name: item, text, group, split."""
    split_seed: int = 0
    """Start of the split into train, val and test, for data that bring none."""
    preset: str | None = None
    """Set of training numbers: `default`, `paper`, `maple`, `few-shot` (caches) or `from-scratch`
    (for `new:`)."""
    lr: float | None = None
    """Peak learning rate: the first number to try. Default: the method's own."""
    epochs: int | None = None
    """Passes over the training data."""
    batch_size: int | None = None
    """Pairs per step over all processes; every other pair is a negative."""
    chunk: int | Literal["auto"] | None = None
    """Rows encoded at a time by the exact gradient cache: less memory, same result. `auto`: as
    many as fit into half of the free memory."""
    optimiser: Literal["bert-adam", "adamw", "sgd"] | None = None
    """`bert-adam` (the paper's: no bias correction), `adamw`, or `sgd` with momentum."""
    weight_decay: float | None = None
    """Decoupled weight decay of matrices."""
    warmup: float | None = None
    """Share of the steps over which the learning rate rises."""
    captions: Literal["one", "all"] | None = None
    """`one` random text per picture and epoch, or `all` of them."""
    evaluate_every: int | None = None
    """Epochs between two validations."""
    patience: int | None = None
    """Validations without a new best before stopping; 0 never stops early."""
    guard: int | None = None
    """Validations in a row below zero-shot before stopping; 0 never does."""
    strength: float | None = None
    """Dial at which the adapter is validated, measured and saved; training is at 1."""
    checkpoint_seconds: float | None = None
    """Longest time between two checkpoints."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints, in addition."""
    objective: Literal["info-nce", "sigmoid"] = "info-nce"
    """Contrastive loss; `sigmoid` needs a backbone with a logit bias (SigLIP)."""
    task: str = "auto"
    """What is learned: `retrieval`, `matching` (BLIP: contrast and matching of pairs),
    `video-retrieval`, `few-shot`, `multimodal` (classes, with further modalities), `pretraining`,
    `fusion`; by method, backbone and data when `auto`."""
    task_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the task by name."""
    frames: int | None = None
    """Videos: most frames taken of a clip; 12 when unset."""
    sampling: Literal["segments", "1fps", "starts", "head", "tail"] | None = None
    """Videos: which frames; `segments` (the middles of equal parts) when unset, `1fps` as
    published."""
    pooling: Literal["mean", "text-conditioned"] | None = None
    """Videos: how frames meet a text, in training and evaluation; `mean` when unset."""
    shots: int | None = None
    """Few-shot: pictures per class; 16 when unset."""
    label: str | None = None
    """Few-shot: column that names the class; `label` when unset."""
    protocol: str = "pairs"
    """Rule of the final evaluation; few-shot has few-shot, base-to-novel and tip-official."""
    seed: int = 0
    """Start of every random number: initial values, order of the data, dropout."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the encoders; bf16 where the hardware has it."""
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """Attention implementation; chosen by shape on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    workers: int | None = None
    """Processes that decode pictures; one per core when unset."""
    cache: Path | None = None
    """Folder of prepared pictures; the user's cache folder when unset."""
    resume: bool = False
    """Continue the run in `output` from its last checkpoint."""
    quiet: bool = False
    """Print nothing."""

    def __post_init__(self) -> None:
        """Refuse a number of frames that no clip can have, and half a new model."""
        if self.frames is not None and self.frames < 1:
            raise UserError(f"{self.frames} frames", where="frames", fix="take at least 1")
        if self.from_scratch and self.strength not in (None, 1.0):
            raise UserError(
                "a new model has no frozen state to be dialled to",
                where="strength",
                fix="leave it out for new: backbones",
            )

    def recipe(self) -> Recipe:
        """The training numbers: the preset's, with this job's changes."""
        usual = METHOD_PRESET.get(self.method, "default")
        preset = self.preset or ("from-scratch" if self.from_scratch else usual)
        names = {f.name for f in fields(Recipe)} & {f.name for f in fields(self)}
        return make_recipe(preset, self.method, **{name: getattr(self, name) for name in names})

    @property
    def from_scratch(self) -> bool:
        """Whether the product is a backbone, not an adapter."""
        return self.backbone.startswith("new:")


def make_job(settings: Mapping[str, Any], *, where: str = "settings") -> TrainJob:
    """A job from plain settings; an unknown one is an error that names the nearest.

    Keys may be written with dashes. Paths may be strings.
    """
    given = {str(key).replace("-", "_"): value for key, value in settings.items()}
    reject_unknown(given, [f.name for f in fields(TrainJob)], where=where)
    if "data" not in given:
        raise UserError("no data given", where=where, fix="set data to a folder or `openmoji`")
    for name in ("output", "cache"):
        if given.get(name) is not None:
            given[name] = Path(given[name])
    for name in ("method_options", "task_options"):
        given[name] = given.get(name) or {}
    for name in ("lr", "weight_decay", "warmup", "strength", "checkpoint_seconds"):
        given[name] = _number(name, given.get(name), where)
    return TrainJob(**given)


def load_recipe(path: str | Path, *, smoke: bool = False, **changes: Any) -> TrainJob:
    """The job a YAML recipe describes.

    Args:
        path: a mapping of `TrainJob`'s fields; ``smoke:`` holds changes that make it a short test.
        smoke: apply them.
        **changes: fields that win over the file.

    Raises:
        UserError: no such file, not a mapping, or an unknown key (the nearest one is named).
    """
    path = Path(path)
    content = read_recipe(path)
    short = content.pop("smoke", None) or {}
    reject_unknown(short, [f.name for f in fields(TrainJob)], where=f"{path}: smoke")
    job = make_job({**content, **(short if smoke else {})}, where=str(path))
    return replace(job, **changes)


def read_recipe(path: Path) -> dict[str, Any]:
    """The mapping in a YAML recipe, unchecked.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("no such recipe", where=str(path), fix="name a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe is not valid YAML: {error}", where=str(path)) from error
    if not isinstance(content, dict):
        raise UserError(
            "a recipe is a mapping of option names to values", where=str(path), fix="see recipes/"
        )
    return content


def _number(name: str, value: Any, where: str) -> float | None:
    """A float; YAML reads 1e-3 (no point) as text, which is what most people write."""
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be a number, not {value!r}", where=where) from error
