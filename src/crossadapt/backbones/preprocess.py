"""Picture preparation equal to the checkpoint's own image processor, with Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from crossadapt.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_WHITE = (255, 255, 255, 255)
_SIZES = {"blip": 384}


@dataclass(frozen=True)
class ImagePreprocess:
    """Resize, centre crop, rescale, normalise; a small picklable value.

    Exactly one of `shortest_edge` (keep the aspect ratio) and `resize` ((height, width), ignore
    it) is set. `crop` is (height, width) or None; pictures smaller than the crop are padded with
    black, as the reference does. Where an odd number of rows or columns is cut, the crop starts
    at the lower half, or with `rounded_crop` at the even one (torchvision's rounding).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shortest_edge: int | None = None
    resize: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    resample: int = int(Image.Resampling.BICUBIC)
    rescale: float = 1 / 255
    rounded_crop: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every prepared picture, in pixels."""
        if self.crop is not None:
            return self.crop
        if self.resize is not None:
            return self.resize
        raise UserError(
            "The image processor does not bring pictures to one size.",
            where="preprocessor_config.json",
            fix="set 'crop_size', or 'size' with 'height' and 'width'",
        )

    @property
    def needs(self) -> tuple[int, int]:
        """Least width and height of a picture that is not enlarged by `array`."""
        if self.resize is not None:
            return self.resize[1], self.resize[0]
        edge = self.shortest_edge or max(self.size)
        return edge, edge

    def array(self, image: Image.Image) -> np.ndarray:
        """One picture of any mode and size to uint8 (3, H, W); transparency becomes white.

        Without torch, so that a process that only decodes does not load it.
        """
        image = _rgb(image)
        image = image.resize(self._target(image.size), resample=self.resample)
        if self.crop is not None:
            image = _centre_crop(image, self.crop, self.rounded_crop)
        return np.asarray(image).transpose(2, 0, 1).copy()

    def pixels(self, image: Image.Image) -> Tensor:
        """What `array` gives, as a tensor."""
        import torch

        return torch.from_numpy(self.array(image))

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to float32 (B, 3, H, W): ``(pixels * rescale - mean) / std``."""
        import torch

        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return (pixels.float() * self.rescale - mean) / std

    def __call__(self, image: Image.Image) -> Tensor:
        """One picture to float32 (3, H, W)."""
        return self.normalise(self.pixels(image)[None])[0]

    def _target(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after resizing."""
        if self.resize is not None:
            return self.resize[1], self.resize[0]
        edge = self.shortest_edge or min(size)
        width, height = size
        long = int(edge * max(size) / min(size))
        return (edge, long) if width <= height else (long, edge)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], family: str, where: str) -> ImagePreprocess:
        """Read a ``preprocessor_config.json``, of any age.

        Args:
            config: the parsed file.
            family: ``clip``, ``siglip`` or ``blip``; decides what an absent key means.
            where: the file, for messages.

        Raises:
            UserError: a step that is not supported, or pictures that would keep their own size.
        """
        try:
            prepared = cls._from_config(config, family)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                "The image processor is not understood.",
                where=f"{where}: {type(error).__name__} {error}",
                fix="it needs 'size' (and 'crop_size') in pixels, and three means and deviations",
            ) from error
        _ = prepared.size
        return prepared

    @classmethod
    def _from_config(cls, config: Mapping[str, Any], family: str) -> ImagePreprocess:
        clip = family == "clip"
        unsupported = [key for key in ("do_pad", "do_reduce_labels") if config.get(key)]
        if not config.get("do_resize", True):
            unsupported.append("do_resize=false")
        if unsupported:
            raise ValueError(f"{', '.join(unsupported)} is not supported")
        edge, resize = _size(config.get("size", _SIZES.get(family, 224)), keep_ratio=clip)
        crop = None
        if config.get("do_center_crop", clip):
            _, crop = _size(config.get("crop_size", 224), keep_ratio=False)
        normalise = config.get("do_normalize", True)
        halves = ((0.5,) * 3, (0.5,) * 3)
        default_mean, default_std = halves if family == "siglip" else (CLIP_MEAN, CLIP_STD)
        mean, std = config.get("image_mean") or default_mean, config.get("image_std") or default_std
        if len(mean) != 3 or len(std) != 3:
            raise ValueError("image_mean and image_std need three values each")
        return cls(
            mean=tuple(map(float, mean)) if normalise else (0.0,) * 3,
            std=tuple(map(float, std)) if normalise else (1.0,) * 3,
            shortest_edge=edge,
            resize=resize,
            crop=crop,
            resample=int(config.get("resample", Image.Resampling.BICUBIC)),
            rescale=config.get("rescale_factor", 1 / 255)
            if config.get("do_rescale", True)
            else 1.0,
        )

    def to_dict(self) -> dict[str, Any]:
        """The same values as a ``preprocessor_config.json`` that Hugging Face reads."""
        if self.resize is None:
            size = {"shortest_edge": self.shortest_edge}
        else:
            size = {"height": self.resize[0], "width": self.resize[1]}
        config = {
            "do_convert_rgb": True,
            "do_resize": True,
            "size": size,
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        if self.crop is not None:
            config["crop_size"] = {"height": self.crop[0], "width": self.crop[1]}
        if self.rounded_crop:
            config["rounded_crop"] = True
        return config


def _size(value: Any, *, keep_ratio: bool) -> tuple[int | None, tuple[int, int] | None]:
    """Shortest edge or (height, width) from an int or one of the dictionary spellings."""
    if isinstance(value, Mapping):
        if value.get("shortest_edge"):
            return int(value["shortest_edge"]), None
        return None, (int(value["height"]), int(value["width"]))
    if isinstance(value, (list, tuple)):
        return None, (int(value[0]), int(value[1]))
    return (int(value), None) if keep_ratio else (None, (int(value), int(value)))


def _rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _centre_crop(image: Image.Image, size: tuple[int, int], rounded: bool) -> Image.Image:
    """Crop around the centre; Pillow fills what lies outside with black.

    The offset rounds down when cropping and the padding rounds up, which is the same floor.
    """
    height, width = size
    spare = image.height - height, image.width - width
    top, left = (round(n / 2) if rounded else n // 2 for n in spare)
    return image.crop((left, top, left + width, top + height))
