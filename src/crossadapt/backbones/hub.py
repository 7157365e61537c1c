"""Fetch the one hub repository the user named."""

from __future__ import annotations

from pathlib import Path

from crossadapt.errors import UserError

_SETTINGS = ["*.json", "*.txt", "*.model"]
_SAFE = ["model.safetensors", "model-*.safetensors"]
_OLD = ["pytorch_model.bin", "pytorch_model-*.bin"]
_OPEN_CLIP_SAFE = ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"]
_OPEN_CLIP_OLD = ["open_clip_pytorch_model.bin"]


def fetch(repository: str, *, open_clip: bool = False) -> Path:
    """Directory of a hub repository such as ``openai/clip-vit-base-patch32``.

    Files in the local cache are used as they are when the hub cannot be reached. Weights in
    safetensors are preferred; older repositories that have none give ``pytorch_model.bin``, which
    is read with pickle's code execution switched off. With `open_clip` the weights in that
    library's layout are fetched, and those in Hugging Face's are not.

    Raises:
        UserError: an unknown, private or malformed id, or no network and nothing cached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    safe, old = (_OPEN_CLIP_SAFE, _OPEN_CLIP_OLD) if open_clip else (_SAFE, _OLD)
    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*_SETTINGS, *safe]))
        if not any(file for pattern in safe for file in folder.glob(pattern)):
            folder = Path(snapshot_download(repository, allow_patterns=[*_SETTINGS, *old]))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"There is no directory {repository!r}, and no such hub repository could be fetched.",
            where=f"{repository}: {reason}",
            fix="check the path or id; without network, download the model elsewhere and give "
            "its directory",
        ) from error
    return folder
