import json
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from crossadapt import backbones
from crossadapt.adapters.folder import load_adapter
from crossadapt.errors import UserError
from crossadapt.training.job import TrainJob
from crossadapt.training.run import run_training

ARCHITECTURE = """
projection_dim: 16
vision: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
  patch_size: 8}
text: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
  max_position_embeddings: 16}
tokenizer: {type: bpe, vocab_size: 600}
image: {size: 16}
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty coloured pictures with a caption each, one of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(40):
        colour = (n * 6, 255 - n * 6, n * 37 % 256)
        Image.new("RGB", (20 + n, 30), colour).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(f"picture number {n} of forty")
    (folder / "7.png").write_bytes(b"not a picture")
    return folder


def job(photos, output, **changes) -> TrainJob:
    settings = {"backbone": "tiny:clip", "batch_size": 8, "epochs": 2, "guard": 0, "quiet": True}
    return TrainJob(str(photos), output=output, **{**settings, **changes})


def test_from_a_folder_to_an_adapter(photos, tmp_path):
    result = run_training(job(photos, tmp_path, method_options={"r": 4, "d_s": 4}))
    assert result.fit.status == "finished"
    assert [entry.item for entry in result.ledger] == [str(photos / "7.png")]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["recipe"]["batch_size"] == 8
    assert record["identity"]["config"]["r"] == 4
    assert record["protocol"] == "pairs"
    assert record["after"]["rsum"] == result.after.result.rsum
    assert record["trained"] == result.fit.trained
    results = json.loads((tmp_path / "results.json").read_text())
    assert (
        len(results["after"]["ranks"]["text_to_image"]["optimistic"]) == result.after.result.texts
    )
    card = (tmp_path / "README.md").read_text()
    assert "| text → image | after |" in card
    backbone = backbones.load("tiny:clip")
    loaded = load_adapter(backbone, tmp_path)
    assert loaded.count() == record["trained"]

    with pytest.raises(UserError, match="already holds a run"):
        run_training(job(photos, tmp_path, method_options={"r": 4, "d_s": 4}))
    with pytest.raises(UserError, match=r"cannot resume.*config"):
        run_training(job(photos, tmp_path, method_options={"r": 8, "d_s": 4}, resume=True))
    again = run_training(job(photos, tmp_path, method_options={"r": 4, "d_s": 4}, resume=True))
    assert again.fit.best == result.fit.best
    assert again.after.result == result.after.result


def test_another_picture_size_is_compared_with_the_model_as_it_ships(photos, tmp_path, capsys):
    from crossadapt.cli.train import run
    from crossadapt.training.compared import zero_shots
    from crossadapt.training.contender import measure
    from crossadapt.training.measure import run_evaluation

    plain = run_training(job(photos, tmp_path / "own", epochs=1))
    sized = run_training(job(photos, tmp_path / "sized", epochs=1, backbone="tiny:clip@40"))
    assert plain.resized is None
    assert plain.record["before_resized"] is None
    assert sized.before.result == plain.before.result
    assert torch.equal(sized.before.images, plain.before.images)
    assert not torch.equal(sized.resized.images, plain.before.images)
    frozen = run_evaluation(str(photos), backbone="tiny:clip@40").frozen.result
    assert sized.resized.result == frozen
    rows = zero_shots({("a", 0): measure({**asdict(job(photos, tmp_path / "row", epochs=1)),
                                          "backbone": "tiny:clip@40"})})  # fmt: skip
    assert list(rows) == ["zero-shot", "zero-shot, resized"]
    assert [part[when]["rsum"] for part, when in rows.values()] == [
        plain.before.result.rsum,
        frozen.rsum,
    ]
    found = run_evaluation(str(photos), adapter=tmp_path / "sized")
    assert found.frozen.result == plain.before.result
    assert found.resized.result == frozen
    assert found.adapted.result == sized.after.result
    assert found.to_dict()["frozen_resized"] == frozen.to_dict()
    run(job(photos, tmp_path / "told", epochs=1, backbone="tiny:clip@40", quiet=False))
    assert "zero-shot, resized" in capsys.readouterr().out
    assert "at the run" in (tmp_path / "told" / "report.html").read_text()
    assert "| before, resized |" in (tmp_path / "told" / "README.md").read_text()


def test_from_scratch_to_a_backbone_folder(photos, tmp_path):
    (tmp_path / "new.yaml").write_text(ARCHITECTURE)
    new = f"new:{tmp_path / 'new.yaml'}"
    result = run_training(job(photos, tmp_path / "run", backbone=new, method="full"))
    assert result.record["share"] == 1
    assert result.fit.total == 8
    loaded = backbones.load(str(tmp_path / "run" / "backbone"))
    assert loaded.width("vision") == 16
    assert (tmp_path / "run" / "backbone" / "run.json").exists()


def test_what_it_refuses(photos, tmp_path):
    with pytest.raises(UserError, match="there is no task 'retrieve'") as error:
        run_training(job(photos, tmp_path / "a", task="retrieve"))
    assert "did you mean 'retrieval'" in str(error.value)
    with pytest.raises(UserError, match="has no option"):
        run_training(job(photos, tmp_path / "b", task_options={"x": 1}))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the output is a file"):
        run_training(job(photos, tmp_path / "file"))
    with pytest.raises(UserError, match="no CUDA"):
        run_training(job(photos, tmp_path / "c", device="cuda"))


def test_a_run_that_only_gets_worse_is_an_error(photos, tmp_path, monkeypatch):
    from crossadapt.tasks.retrieval import RetrievalTask

    calls = []

    def worse(self, backbone):
        calls.append(0)
        return {"rsum": 100.0 - len(calls)}

    monkeypatch.setattr(RetrievalTask, "validate", worse)
    with pytest.raises(UserError, match="made the model worse"):
        run_training(job(photos, tmp_path / "a", guard=2, epochs=3))
