"""Everything a person can get wrong: what, where, how to fix it, and exit code 1."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import QUICK
from tests.data.zoo import bomb, jpeg, picture

from crossadapt.cli.main import main

Said = Callable[..., str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Run a command that must end with exit code 1, and return its message."""

    def run(*args: object) -> str:
        capsys.readouterr()
        assert main([str(arg) for arg in args]) == 1
        err = capsys.readouterr().err
        assert "error: " in err
        assert "Traceback" not in err
        return err[err.index("error: ") :]

    return run


@pytest.fixture
def train(said: Said, tmp_path: Path) -> Said:
    def run(data: object, *more: object) -> str:
        return said("train", "--data", data, "--output", tmp_path / "out", *QUICK, *more)

    return run


def fill(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(jpeg(picture(number)))
        (folder / f"{number}.txt").write_text(f"picture {number}\n")
    return folder


def test_missing_path(train: Said, photos: Path) -> None:
    message = train(photos.with_name("photo"))
    assert "no such file or folder" in message
    assert "did you mean 'photos'?" in message


def test_empty_folder(train: Said, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in train(tmp_path / "empty")


def test_folder_without_captions(train: Said, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(picture()))
    assert "caption" in train(folder)


def test_one_item(train: Said, tmp_path: Path) -> None:
    assert "one item only" in train(fill(tmp_path / "one", 1))


def test_caption_without_image_and_image_without_caption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fill(tmp_path / "odd", 12)
    (folder / "lost.txt").write_text("a caption alone\n")
    (folder / "mute.jpg").write_bytes(jpeg(picture(99)))
    (folder / "huge.png").write_bytes(bomb())
    (folder / "huge.txt").write_text("too large to open\n")
    assert main(["data", "inspect", str(folder), "--json"]) == 0
    left_out = json.loads(capsys.readouterr().out)["left_out"]
    reasons = {Path(entry["item"]).stem: entry["reason"] for entry in left_out}
    assert set(reasons) == {"lost", "mute", "huge"}
    assert "caption without image" in reasons["lost"]
    assert "image without caption" in reasons["mute"]


def test_no_readable_picture(train: Said, tmp_path: Path) -> None:
    folder = fill(tmp_path / "broken", 6)
    for path in folder.glob("*.jpg"):
        path.write_bytes(b"")
    assert "can be read" in train(folder)


def test_wrong_column_names_the_nearest(train: Said, tmp_path: Path) -> None:
    folder = fill(tmp_path / "table", 3)
    for path in folder.glob("*.txt"):
        path.unlink()
    rows = "".join(f"{n}.jpg,picture {n}\n" for n in range(3))
    (folder / "metadata.csv").write_text("file_name,texxt\n" + rows)
    assert "texxt" in train(folder)
    assert "file_name" in train(folder, "--columns", "item", "file_nam", "text", "texxt")


def test_unknown_split(said: Said, photos: Path) -> None:
    args = ["evaluate", "--data", photos, "--backbone", "tiny:clip", "--split", "tset"]
    assert "did you mean 'test'?" in said(*args)


def test_unknown_protocol(said: Said, photos: Path) -> None:
    args = ["evaluate", "--data", photos, "--backbone", "tiny:clip", "--protocol", "pair"]
    assert "did you mean 'pairs'?" in said(*args)


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("--metod", "--method"), ("--method.ds", "--method.d-s"), ("--epoch", "--epochs")],
)
def test_unknown_option(train: Said, photos: Path, option: str, nearest: str) -> None:
    assert f"did you mean '{nearest}'?" in train(photos, option, "1")


def test_unknown_method_and_backbone(train: Said, photos: Path) -> None:
    message = train(photos, "--method", "cross-model-adapter")
    assert "did you mean 'cross-modal-adapter'?" in message
    assert "'pico-clip'" in train(photos, "--backbone", "pico-clib")


def test_impossible_numbers(train: Said, photos: Path) -> None:
    assert "no negatives" in train(photos, "--batch-size", "1")
    assert "d_s" in train(photos, "--method.d-s", "4000")
    assert "--lr" in train(photos, "--lr", "fast")


def test_diverging_training(train: Said, photos: Path) -> None:
    message = train(photos, "--method", "full", "--lr", "1e30", "--epochs", "4")
    assert "loss nan" in message
    assert "lower lr" in message


class TestAdapter:
    @pytest.fixture
    def copy(self, trained: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(trained, tmp_path / "adapter"))

    def evaluate(self, said: Said, photos: Path, adapter: Path, *more: str) -> str:
        return said("evaluate", "--data", photos, "--adapter", adapter, *more)

    def test_of_another_backbone(self, said: Said, photos: Path, copy: Path) -> None:
        assert "backbone" in self.evaluate(said, photos, copy, "--backbone", "tiny:siglip")

    def test_missing(self, said: Said, photos: Path, copy: Path) -> None:
        assert "does not exist" in self.evaluate(said, photos, copy / "no")

    def test_truncated(self, said: Said, photos: Path, copy: Path) -> None:
        file = copy / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        assert "adapter_model.safetensors" in self.evaluate(said, photos, copy)

    def test_pickled(self, said: Said, photos: Path, copy: Path) -> None:
        (copy / "adapter_model.safetensors").unlink()
        (copy / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))
        assert "pickle" in self.evaluate(said, photos, copy).lower()

    def test_config_with_an_unknown_key(self, said: Said, photos: Path, copy: Path) -> None:
        file = copy / "adapter_config.json"
        config = json.loads(file.read_text())
        config["config"]["rr"] = config["config"].pop("r")
        file.write_text(json.dumps(config))
        assert "'r'" in self.evaluate(said, photos, copy)


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("projektion", "did you mean 'projection'?"),
        ("partial:layer=1", "did you mean 'layers'?"),
        ("partial:layers", "key=value"),
        ("projection:budget=10", "budget"),
        ("partial:layers=99", "layers is 99"),
        ("full:epochs=0", "epochs"),
    ],
)
def test_compare_checks_every_method_before_training(
    said: Said, photos: Path, tmp_path: Path, method: str, part: str
) -> None:
    args = ["compare", "--data", photos, "--output", tmp_path, *QUICK, "--seeds", 0]
    assert part in said(*args, "--methods", "projection", method)
    assert not list(tmp_path.glob("runs/*.json"))


def test_disk_full_while_saving(
    train: Said, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossadapt.training import run

    def full(*args: object, **options: object) -> None:
        from crossadapt.errors import UserError

        raise UserError("no space left", where=str(tmp_path), fix="free some space")

    monkeypatch.setattr(run, "save_adapter", full)
    assert "no space left" in train(photos)
    # The checkpoints are whole: the same command goes on from them.
    monkeypatch.undo()
    out = tmp_path / "out"
    assert main(["train", "--data", str(photos), "--output", str(out), *QUICK, "--resume"]) == 0
