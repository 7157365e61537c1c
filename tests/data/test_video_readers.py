"""Miniature files in the formats the data sets' authors ship: rows, groups, frames, notes."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from tests.data import zoo
from tests.data.video_zoo import write_video

from crossadapt.data import Ledger, Manifest, read_manifest
from crossadapt.data.frames import manifest_spans, open_frames
from crossadapt.data.protocol_cards import CARDS
from crossadapt.errors import UserError
from crossadapt.evaluation import get_protocol

pytest.importorskip("av")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> bytes:
    """A video of 3.1 seconds at 10 frames a second."""
    return write_video(tmp_path_factory.mktemp("film") / "f.mp4", 31).read_bytes()


def videos(folder: Path, film: bytes, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(film)


def dump(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def table(path: Path, *rows: tuple[str, ...]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def listed(manifest: Manifest, split: str) -> dict[str, list[str]]:
    """Texts by group, of one split."""
    found: dict[str, list[str]] = {}
    for row in manifest.table.to_pylist():
        assert row["kind"] == "video"
        if row["split"] == split:
            found.setdefault(row["group"], []).append(row["text"])
    return found


def both(manifest: Manifest) -> dict[str, list[str]]:
    """Train with the part that was kept aside for choosing a checkpoint."""
    return listed(manifest, "train") | listed(manifest, "val")


def sampled(manifest: Manifest, frames: int = 12) -> dict[str, int]:
    """Frames at one a second of each video, at most `frames`."""
    spans = manifest_spans(manifest)
    store = open_frames(manifest.items, zoo.tiny, key="t", frames=frames, spans=spans, cache=False)
    return {Path(item).stem: int(store[i][1].sum()) for i, item in enumerate(manifest.items)}


def kinds(ledger: Ledger) -> dict[str, str]:
    return {Path(entry.item).name: entry.kind for entry in ledger}


def msrvtt(folder: Path, film: bytes) -> None:
    """Seven videos of two sentences, four in the 9k list, two of them in the 7k list."""
    ids = [f"video{n}" for n in range(7)]
    splits = ["train", "train", "validate", "test", "test", "test", "train"]
    sentences = [
        {"caption": f"{video} says {n}", "video_id": video, "sen_id": 2 * i + n}
        for i, video in enumerate(ids)
        for n in range(2)
    ]
    sentences.append({"caption": "video0 says 1", "video_id": "video0", "sen_id": 99})
    described = [
        {"video_id": video, "split": split, "url": "u", "start time": 1.0, "id": n}
        for n, (video, split) in enumerate(zip(ids, splits, strict=True))
    ]
    dump(folder / "MSRVTT_data.json", {"videos": described, "sentences": sentences, "info": {}})
    table(folder / "MSRVTT_train.9k.csv", ("video_id",), *((v,) for v in [*ids[:4], "video6"]))
    table(folder / "MSRVTT_train.7k.csv", ("video_id",), ("video0",), ("video1",))
    table(
        folder / "MSRVTT_JSFUSION_test.csv",
        ("key", "vid_key", "video_id", "sentence"),
        ("ret0", "msr4", "video4", "a man, running"),
        ("ret1", "msr5", "video5", "a cat"),
    )
    videos(folder / "videos", film, *(f"{v}.mp4" for v in ids[:5]), "deep/video5.webm")


def test_msrvtt_in_its_three_protocols(tmp_path, film) -> None:
    msrvtt(tmp_path, film)
    ledger = Ledger()
    manifest = read_manifest(tmp_path, ledger=ledger)
    assert both(manifest) == {f"video{n}": [f"video{n} says {i}" for i in (0, 1)] for n in range(4)}
    assert listed(manifest, "test") == {"video4": ["a man, running"], "video5": ["a cat"]}
    assert kinds(ledger) == {"video0.mp4": "repeated row", "video6": "missing video"}
    assert "MSR-VTT 1k-A, trained on 9k, train: 4 of 9,000 videos" in manifest.summary()
    assert "best epoch on the test split" in manifest.summary()
    seven = read_manifest(tmp_path, reader="msrvtt-7k")
    assert sorted(both(seven)) == ["video0", "video1"]
    assert listed(seven, "test") == listed(manifest, "test")
    full = read_manifest(tmp_path, reader="msrvtt-full")
    assert [sorted(listed(full, s)) for s in ("train", "val", "test")] == [
        ["video0", "video1"],
        ["video2"],
        ["video3", "video4", "video5"],
    ]
    assert len(full) == 12
    # Three seconds and a tenth: frames at seconds 0, 1, 2, 3.
    assert sampled(manifest) == {f"video{n}": 4 for n in range(6)}
    assert (len(manifest), len(manifest.group_names)) == (10, 6)


def test_msrvtt_test_videos_never_train(tmp_path, film) -> None:
    msrvtt(tmp_path, film)
    table(tmp_path / "MSRVTT_train.9k.csv", ("video_id",), ("video0",), ("video1",), ("video5",))
    ledger = Ledger()
    assert sorted(both(read_manifest(tmp_path, ledger=ledger))) == ["video0", "video1"]
    assert kinds(ledger)["video5"] == "leak"
    table(tmp_path / "MSRVTT_train.9k.csv", ("video",), ("video0",))
    with pytest.raises(UserError, match="no column 'video_id'"):
        read_manifest(tmp_path)


def test_msvd_joins_words_and_refuses_code_in_its_pickle(tmp_path, film) -> None:
    captions = {v: [["a", v, "runs"], ["it", "sits"], ["it", "sits"]] for v in ("a_1_2", "b_3_4")}
    captions |= {"c_5_6": [["caf\u00e9"]], "d_7_8": [["so"]]}
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))
    for split, ids in (("train", "a_1_2\nb_3_4\n"), ("val", "c_5_6\n"), ("test", "d_7_8\n\n")):
        (tmp_path / f"{split}_list.txt").write_text(ids)
    videos(tmp_path / "YouTubeClips", film, *(f"{v}.avi" for v in captions))
    manifest = read_manifest(tmp_path)
    assert listed(manifest, "train") == {
        "a_1_2": ["a a_1_2 runs", "it sits"],
        "b_3_4": ["a b_3_4 runs", "it sits"],
    }
    assert listed(manifest, "val") == {"c_5_6": ["caf\u00e9"]}
    assert listed(manifest, "test") == {"d_7_8": ["so"]}
    assert (len(manifest), len(manifest.group_names)) == (6, 4)
    assert sampled(manifest) == dict.fromkeys(captions, 4)
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"a": [Path("x")]}))
    with pytest.raises(UserError, match="it wants to run"):
        read_manifest(tmp_path)
    (tmp_path / "raw-captions.pkl").write_bytes(b"\x80\x02}q\x00(")
    with pytest.raises(UserError, match="cannot be read"):
        read_manifest(tmp_path)


def test_didemo_paragraphs_and_thirty_one_seconds(tmp_path, film) -> None:
    moments = [
        {"video": "1@N00_a.mp4", "description": "first it runs", "times": [[0, 0]], "dl_link": "x"},
        {"video": "2@N00_b.m4v", "description": "alone", "times": [[1, 1]]},
        {"video": "1@N00_a.mp4", "description": "then it sits", "times": [[2, 3], [2, 2]]},
        {"video": "unlisted.mp4", "description": "no", "times": [[0, 0]]},
    ]
    dump(tmp_path / "train_data.json", moments)
    dump(tmp_path / "val_data.json", [{"video": "3.mp4", "description": "c", "times": []}])
    dump(tmp_path / "test_data.json", [{"video": "4.mp4", "description": "d", "times": []}, {}])
    for split, names in (
        ("train", "1@N00_a.mp4\n2@N00_b.m4v"),
        ("val", "3.mp4"),
        ("test", "4.mp4"),
    ):
        (tmp_path / f"{split}_list.txt").write_text(names)
    videos(tmp_path, film, "v/1@N00_a.mp4", "v/2@N00_b.mp4", "v/3.mp4", "v/4.mp4")
    ledger = Ledger()
    manifest = read_manifest(tmp_path, ledger=ledger)
    assert listed(manifest, "train") == {
        "1@N00_a.mp4": ["first it runs then it sits"],
        "2@N00_b.m4v": ["alone"],
    }
    assert listed(manifest, "test") == {"4.mp4": ["d"]}
    assert kinds(ledger) == {"test_data.json#1": "broken entry"}
    assert set(manifest_spans(manifest).values()) == {(0.0, 31.0)}
    long = write_video(tmp_path / "v" / "4.mp4", 80, rate=2)  # forty seconds
    store = open_frames(
        [str(long)], zoo.tiny, key="t", frames=64, spans=manifest_spans(manifest), cache=False
    )
    assert (len(manifest), len(manifest.group_names)) == (4, 4)
    assert sampled(manifest, 64)["1@N00_a"] == 4
    assert np.nanmax(store.times(0)) == 31.0
    assert int(store[0][1].sum()) == 32


def test_activitynet_paragraphs(tmp_path, film) -> None:
    def entry(duration: float, *sentences: str) -> dict:
        stamps = [[0, 1]] * len(sentences)
        return {"duration": duration, "timestamps": stamps, "sentences": list(sentences)}

    dump(tmp_path / "train_ids.json", ["v_a", "v_b", "v_gone", "v_odd"])
    dump(
        tmp_path / "train.json",
        {
            "v_a": entry(2.4, "He runs. ", " He sits."),
            "v_b": entry(3.0, "x"),
            "v_gone": entry(1.0, "y"),
            "v_odd": {"duration": "?"},
        },
    )
    dump(tmp_path / "val_ids.json", ["v_c"])
    dump(tmp_path / "val_1.json", {"v_c": entry(82.73, "One.", "Two."), "v_x": entry(1, "no")})
    videos(tmp_path / "clips", film, "a.mp4", "b.mkv", "c.mp4", "odd.mp4")
    ledger = Ledger()
    manifest = read_manifest(tmp_path, ledger=ledger)
    assert both(manifest) == {"v_a": ["He runs.   He sits."], "v_b": ["x"]}
    assert listed(manifest, "test") == {"v_c": ["One. Two."]}
    assert kinds(ledger) == {"v_gone": "missing video", "v_odd": "broken entry"}
    spans = {Path(item).stem: span for item, span in manifest_spans(manifest).items()}
    assert spans == {"a": (0.0, 3.0), "b": (0.0, 3.0), "c": (0.0, 83.0)}
    assert (len(manifest), len(manifest.group_names)) == (3, 3)
    # Second 3 counts: the video has 3.1 of them.
    assert sampled(manifest, 64) == {"a": 4, "b": 4, "c": 4}


def test_lsmdc_tab_separated(tmp_path, film) -> None:
    def line(clip: str, text: str) -> str:
        return f"{clip}\t00:00:01\t00:00:03\t00:00:01\t00:00:04\t{text}\n"

    clips = [f"0001_American_Beauty_00.0{n}.51.926-00.00.54.129" for n in range(4)]
    train = line(clips[0], "SOMEONE runs.") + line(clips[1], "He, too.")
    train += line(clips[0], "SOMEONE sits.") + "broken\tline\n"
    (tmp_path / "LSMDC16_annos_training.csv").write_text(train)
    (tmp_path / "LSMDC16_annos_val.csv").write_text(line(clips[2], "A door."))
    (tmp_path / "LSMDC16_challenge_1000_publictect.csv").write_text(line(clips[3], "The end."))
    videos(tmp_path / "avi" / "0001_American_Beauty", film, *(f"{clip}.avi" for clip in clips))
    ledger = Ledger()
    manifest = read_manifest(tmp_path, ledger=ledger)
    assert listed(manifest, "train") == {
        clips[0]: ["SOMEONE runs.", "SOMEONE sits."],
        clips[1]: ["He, too."],
    }
    assert listed(manifest, "val") == {clips[2]: ["A door."]}
    assert listed(manifest, "test") == {clips[3]: ["The end."]}
    assert kinds(ledger) == {"LSMDC16_annos_training.csv:4": "broken line"}
    assert (len(manifest), len(manifest.group_names)) == (5, 4)
    assert sampled(manifest) == dict.fromkeys(clips, 4)
    assert "LSMDC, test: 1 of 1,000 videos" in manifest.summary()


def test_vatex_divides_its_validation_file_by_lists(tmp_path, film) -> None:
    def entry(video: str) -> dict:
        captions = [f"{video} {n}" for n in range(10)]
        return {"videoID": video, "enCap": captions, "chCap": ["\u72d7"] * 10}

    ids = [f"x{n}_000001_000011" for n in range(5)]
    dump(tmp_path / "vatex_training_v1.0.json", [entry(v) for v in ids[:2]])
    dump(tmp_path / "vatex_validation_v1.0.json", [entry(v) for v in ids[2:]])
    videos(tmp_path / "v", film, *(f"{v}.mp4" for v in ids))
    with pytest.raises(UserError, match="no list says"):
        read_manifest(tmp_path)
    (tmp_path / "test_list.txt").write_text(f"{ids[3]}\n{ids[4]}\n")
    (tmp_path / "val_list.txt").write_text(f"{ids[2]}\n{ids[3]}\n")
    ledger = Ledger()
    manifest = read_manifest(tmp_path, ledger=ledger)
    assert manifest.split_sizes == {"train": 20, "val": 20, "test": 10}
    assert listed(manifest, "test") == {ids[4]: [f"{ids[4]} {n}" for n in range(10)]}
    assert kinds(ledger) == {ids[3]: "leak"}
    assert len(manifest.group_names) == 5
    assert sampled(manifest) == dict.fromkeys(ids, 4)


def test_videos_elsewhere_and_nowhere(tmp_path, film) -> None:
    data = tmp_path / "annotations"
    data.mkdir()
    msrvtt(data, film)
    (data / "videos").rename(tmp_path / "films")
    with pytest.raises(UserError, match="none of the videos") as caught:
        read_manifest(data)
    assert "video0" in str(caught.value)
    assert len(read_manifest(data, root=tmp_path / "films").items) == 6
    with pytest.raises(UserError, match="fixed columns"):
        read_manifest(data, columns={"text": "caption"})


def test_cards_say_complete_and_incomplete() -> None:
    card = CARDS["didemo"]
    complete = card.compare({"train": 8392, "val": 1065, "test": 1004})
    assert complete[0] == "DiDeMo, train: complete, 8,392 videos"
    assert card.compare({"train": 8395, "val": 1065, "test": 1004})[0].endswith("8,395 videos")
    short = card.compare({"train": 8395, "val": 1065, "test": 1003})[2]
    assert short.startswith("DiDeMo, test: 1,003 of 1,004 videos; results are not comparable")
    assert (
        CARDS["lsmdc"].compare({"train": 5, "val": 2, "test": 1000})[0] == "LSMDC, train: 5 videos"
    )
    for name, card in CARDS.items():
        assert card.name == name
        assert get_protocol(card.protocol).name == card.protocol
