from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.adapting import features, hooks, same, train

from crossadapt import files
from crossadapt.adapters.attach import attach, detach, set_strength
from crossadapt.adapters.folder import load_adapter, read_adapter_config, save_adapter
from crossadapt.backbones import tiny
from crossadapt.errors import UserError
from crossadapt.methods.cross_modal_adapter import CrossModalAdapterConfig
from crossadapt.methods.full import FullConfig

CMA = CrossModalAdapterConfig(r=4, d_s=6)
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def trained():
    backbone = tiny("clip")
    train(backbone, attach(backbone, CMA))
    return backbone


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return save_adapter(trained, "default", tmp_path / "runs" / "door", run={"seed": 0})


def edit_config(folder: Path, **changes) -> None:
    """Change the config in both places where it is kept; None removes a key."""
    path = folder / CONFIG
    saved = json.loads(path.read_text())
    saved.update(changes)
    saved = {k: v for k, v in saved.items() if v is not None}
    path.write_text(json.dumps(saved))
    header = {"adapter_config": json.dumps(saved, sort_keys=True)}
    save_file(load_file(folder / TENSORS), folder / TENSORS, metadata=header)


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / TENSORS)
    with safe_open(folder / TENSORS, framework="pt") as file:
        header = file.metadata()
    change(tensors)
    save_file(tensors, folder / TENSORS, metadata=header)


def refuse(folder: Path, reason: str, backbone=None) -> UserError:
    """Loading fails for `reason`, says how to fix it, and changes nothing."""
    backbone = backbone or tiny("clip")
    base, count = features(backbone), hooks(backbone)
    with pytest.raises(UserError, match=reason) as caught:
        load_adapter(backbone, folder)
    assert caught.value.fix
    assert caught.value.where
    assert len(backbone.adapters) == 0
    assert hooks(backbone) == count
    assert same(features(backbone), base)
    return caught.value


def test_folder_holds_the_four_files(folder, trained) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", CONFIG, TENSORS, "run.json"]
    saved = read_adapter_config(folder)
    assert saved["method"] == "cross-modal-adapter"
    assert saved["config"]["r"] == 4
    assert saved["backbone"]["fingerprint"] == trained.fingerprint
    assert json.loads((folder / "run.json").read_text()) == {"seed": 0}
    assert "cross-modal-adapter" in (folder / "README.md").read_text()


def test_saving_twice_gives_the_same_bytes_and_keeps_other_files(folder, trained) -> None:
    before = (folder / TENSORS).read_bytes()
    (folder / "report.html").write_text("kept")
    for _ in range(5):
        save_adapter(trained, "default", folder, card="# mine")
        assert (folder / TENSORS).read_bytes() == before
    assert (folder / "README.md").read_text() == "# mine"
    assert (folder / "report.html").read_text() == "kept"
    assert (folder / "run.json").exists()


def test_the_dial_is_kept(folder, trained) -> None:
    saved = features(trained)
    set_strength(trained, 0.25)
    turned = features(trained)
    save_adapter(trained, "default", folder)
    set_strength(trained, 1.0)
    again = tiny("clip")
    assert load_adapter(again, folder).strength == 0.25
    assert same(features(again), turned)
    assert not same(turned, saved)
    set_strength(again, 1.0)
    assert same(features(again), saved)


def test_folders_of_before_the_dial_was_kept_are_at_full_strength(folder, trained) -> None:
    saved = json.loads((folder / CONFIG).read_text())
    del saved["strength"]
    (folder / CONFIG).write_text(json.dumps(saved))
    tensors = load_file(folder / TENSORS)
    header = {"adapter_config": json.dumps(saved, sort_keys=True)}
    save_file(tensors, folder / TENSORS, metadata=header)
    again = tiny("clip")
    assert load_adapter(again, folder).strength == 1.0
    assert same(features(again), features(trained))


def test_missing_folder_file_and_empty_folder(tmp_path) -> None:
    refuse(tmp_path / "no", "does not exist")
    (tmp_path / "file").write_text("x")
    refuse(tmp_path / "file", "is a file")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", f"no {CONFIG}")


def test_missing_tensor_file(folder) -> None:
    (folder / TENSORS).unlink()
    refuse(folder, f"no {TENSORS}")


@pytest.mark.parametrize("suffix", [".bin", ".pt"])
def test_pickles_are_never_opened(folder, tmp_path, suffix: str) -> None:
    marker = tmp_path / "ran"
    evil = pickle.dumps(Evil(str(marker)))
    (folder / TENSORS).unlink()
    (folder / f"adapter_model{suffix}").write_bytes(evil)
    refuse(folder, "pickled weights")
    refuse(folder / f"adapter_model{suffix}", "pickled weights")
    (folder / TENSORS).write_bytes(evil)
    refuse(folder, "pickled weights")
    (folder / CONFIG).unlink()
    refuse(folder, "pickled weights")
    assert not marker.exists()


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_torch_save_under_the_right_name_is_refused(folder) -> None:
    torch.save({"x": torch.zeros(3)}, folder / TENSORS)
    refuse(folder, "pickled weights")


@pytest.mark.parametrize("keep", [0, 5, 8, 100, 0.5, 0.999])
def test_truncated_tensor_file(folder, keep) -> None:
    data = (folder / TENSORS).read_bytes()
    size = keep if isinstance(keep, int) else int(keep * len(data))
    (folder / TENSORS).write_bytes(data[:size])
    refuse(folder, "truncated|damaged")


def test_garbage_tensor_file(folder) -> None:
    (folder / TENSORS).write_bytes(b"\x10" + b"\0" * 7 + b"x" * 100)
    refuse(folder, "damaged")


def test_other_backbone_is_named_with_what_to_do(folder) -> None:
    error = refuse(folder, "another backbone: tiny:clip", tiny("siglip"))
    assert "'tiny:clip'" in error.fix
    error = refuse(folder, "another backbone: tiny:clip", tiny("clip", seed=5))
    assert "changed since" in error.fix


def test_missing_tensor(folder) -> None:
    edit_tensors(folder, lambda t: t.pop("vision.0.mlp.down.weight"))
    refuse(folder, "1 tensors are missing, the first is vision.0.mlp.down.weight")


def test_extra_tensor(folder) -> None:
    edit_tensors(folder, lambda t: t.update(more=torch.zeros(2)))
    refuse(folder, "1 tensors are not part of the method, the first is more")


def test_mis_shaped_tensor(folder) -> None:
    edit_tensors(folder, lambda t: t.update({"vision.0.mlp.down.bias": torch.zeros(5)}))
    refuse(folder, r"shape \(5,\), \(4,\) is needed(.|\n)*vision.0.mlp.down.bias")


def test_mis_typed_tensor(folder) -> None:
    edit_tensors(folder, lambda t: t.update({"vision.0.mlp.down.bias": torch.zeros(4).half()}))
    refuse(folder, "float16, adapters are saved as float32")


def test_non_finite_tensor(folder) -> None:
    edit_tensors(folder, lambda t: t["vision.0.mlp.down.bias"].fill_(float("nan")))
    refuse(folder, "not finite(.|\n)*vision.0.mlp.down.bias")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format_version": 2}, "has format 2"),
        ({"strength": 1.5}, "'strength' is 1.5"),
        ({"strength": "half"}, "'strength' is 'half'"),
        ({"method": "cross-modal-adaptor"}, "no method 'cross-modal-adaptor'"),
        ({"config": {"r": 4, "d_s": 6, "gate": True}}, "no option 'gate'"),
        ({"config": {"r": "4"}}, "'4' is not of type int"),
        ({"method": None}, "the key 'method' is missing"),
        ({"backbone": None}, "the key 'backbone' is missing"),
        ({"backbone": {"source": "x"}}, "'backbone.family' is missing"),
        ({"seed": "zero"}, "'seed' should be a int"),
        ({"metod": "x"}, "unknown key 'metod'"),
        ({"peft_type": "LORA"}, "saved by PEFT"),
        ({"config": {"r": 5, "d_s": 6}}, "shape"),
    ],
)
def test_changed_config(folder, changes, reason: str) -> None:
    edit_config(folder, **changes)
    refuse(folder, reason)


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_config_that_is_not_json(folder, text: str) -> None:
    (folder / CONFIG).write_bytes(text.encode("utf-8", "surrogateescape"))
    refuse(folder, "JSON")


def test_config_and_tensors_must_belong_together(folder) -> None:
    saved = json.loads((folder / CONFIG).read_text())
    saved["config"]["dropout"] = 0.25
    (folder / CONFIG).write_text(json.dumps(saved))
    refuse(folder, "do not belong together")


def test_unknown_adapter_cannot_be_saved(trained, tmp_path) -> None:
    with pytest.raises(UserError, match="no adapter named 'defualt'"):
        save_adapter(trained, "defualt", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("victim", [TENSORS, CONFIG, "run.json"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_full_disk_leaves_the_old_files_intact(folder, monkeypatch, victim: str, code: int) -> None:
    before = contents(folder)
    real = files.write_bytes

    def write(path: Path, data: bytes) -> None:
        if victim not in path.name:
            return real(path, data)
        real(path, data[: len(data) // 2])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "write_bytes", write)
    other = tiny("clip")
    adapter = attach(other, CMA, seed=9)
    train(other, adapter)
    with pytest.raises(UserError, match="could not be saved") as caught:
        save_adapter(other, "default", folder, run={"seed": 9})
    assert str(folder) in caught.value.where
    assert contents(folder) == before
    load_adapter(tiny("clip"), folder)


def test_failed_first_save_leaves_nothing_loadable(trained, tmp_path, monkeypatch) -> None:
    def write(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(files, "write_bytes", write)
    with pytest.raises(UserError, match="the disk is full"):
        save_adapter(trained, "default", tmp_path / "new")
    assert contents(tmp_path / "new") == {}


def test_folder_that_cannot_be_made(trained, tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot create a folder"):
        save_adapter(trained, "default", tmp_path / "file" / "run")


@pytest.mark.skipif(os.name == "nt", reason="file size limits are a POSIX matter")
def test_a_real_write_error_leaves_the_old_files_intact(folder) -> None:
    """The system itself refuses to write on, half-way through the tensor file."""
    before = contents(folder)
    code = f"""
        import resource
        from pathlib import Path
        from crossadapt.files import replace_files
        from crossadapt.errors import UserError
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            replace_files(Path({str(folder)!r}), {{{TENSORS!r}: b"x" * 10000, {CONFIG!r}: b"y"}})
        except UserError as error:
            print(error)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert "the file would exceed the allowed file size" in ran.stdout
    assert contents(folder) == before


def test_full_adapter_round_trip_and_name(tmp_path) -> None:
    backbone = tiny("siglip")
    train(backbone, attach(backbone, FullConfig(), name="tuned"))
    expected = features(backbone)
    save_adapter(backbone, "tuned", tmp_path)
    detach(backbone, "tuned")
    assert load_adapter(backbone, tmp_path, name="other").name == "other"
    assert same(features(backbone), expected)
    with pytest.raises(UserError, match="already attached"):
        load_adapter(backbone, tmp_path, name="other")
