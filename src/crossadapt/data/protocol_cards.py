"""What the published text-video data sets hold, by split, and how their sentences are used.

Sizes and rules: CLIP4Clip (arXiv 2104.08860) with its released loaders, and the READMEs of
albanie/collaborative-experts. A size that no source we read confirms is None: it is counted and
shown, but nothing is said about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ProtocolCard:
    """One data set under one protocol.

    Attributes:
        name: of the reader.
        title: for people.
        videos: videos of each of our splits; None where no number is confirmed.
        sentences: how captions become rows.
        protocol: name of the evaluation protocol of the test split.
        frames: F of the published runs, taken by ``1fps``.
        words: token rows of the published runs.
        notes: differences between sources, and between them and this reader.
        alternatives: other sizes that are in use for a split.
    """

    name: str
    title: str
    videos: Mapping[str, int | None]
    sentences: str
    protocol: str
    frames: int = 12
    words: int = 32
    notes: tuple[str, ...] = ()
    alternatives: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def compare(self, found: Mapping[str, int]) -> list[str]:
        """A line for each split: complete, or by how much the data differ from the protocol.

        Args:
            found: videos of each split that were found on disk.
        """
        lines = []
        for split, wanted in self.videos.items():
            count = found.get(split, 0)
            allowed = {wanted, *self.alternatives.get(split, ())}
            if wanted is None:
                lines.append(f"{self.title}, {split}: {count:,} videos")
            elif count in allowed:
                lines.append(f"{self.title}, {split}: complete, {count:,} videos")
            else:
                lines.append(
                    f"{self.title}, {split}: {count:,} of {wanted:,} videos; "
                    "results are not comparable with published ones"
                )
        return lines


_ALL = "every sentence is a row; a text repeated for a video is kept once"
_ONE = "train: every sentence is a row, about 20 a video; test: one sentence a video, from the list"
_PARAGRAPH = "all sentences of a video, in file order, joined by spaces: one row a video"
_NO_VALIDATION = (
    "there is no validation split: published numbers are the best epoch on the test split; here a "
    "tenth of train is kept aside for that choice"
)

CARDS: dict[str, ProtocolCard] = {
    card.name: card
    for card in (
        ProtocolCard(
            "msrvtt",
            "MSR-VTT 1k-A, trained on 9k",
            {"train": 9000, "test": 1000},
            _ONE,
            "msrvtt-1k-a",
            notes=(_NO_VALIDATION,),
        ),
        ProtocolCard(
            "msrvtt-7k",
            "MSR-VTT 1k-A, trained on 7k",
            {"train": 7010, "test": 1000},
            _ONE,
            "msrvtt-1k-a",
            notes=(_NO_VALIDATION,),
        ),
        ProtocolCard(
            "msrvtt-full",
            "MSR-VTT full",
            {"train": 6513, "val": 497, "test": 2990},
            _ALL,
            "msrvtt-full",
        ),
        ProtocolCard("msvd", "MSVD", {"train": 1200, "val": 100, "test": 670}, _ALL, "msvd"),
        ProtocolCard(
            "didemo",
            "DiDeMo",
            {"train": 8395, "val": 1065, "test": 1004},
            _PARAGRAPH,
            "didemo",
            frames=64,
            words=64,
            notes=("seconds 0 to 31 of each video count, as its annotators saw it",),
            alternatives={"train": (8392,)},
        ),
        ProtocolCard(
            "activitynet",
            "ActivityNet Captions",
            {"train": 10009, "test": 4917},
            _PARAGRAPH,
            "activitynet",
            frames=64,
            words=64,
            notes=("the test split is val_1", _NO_VALIDATION),
        ),
        ProtocolCard(
            "lsmdc",
            "LSMDC",
            {"train": None, "val": None, "test": 1000},
            _ALL,
            "lsmdc",
            notes=("101,079 lines of training annotation were published",),
        ),
        ProtocolCard(
            "vatex",
            "VATEX",
            {"train": 25991, "val": 1500, "test": 1500},
            "every English sentence is a row, ten a video",
            "vatex",
            notes=(
                "validation and test are two parts of the authors' validation file, named by lists",
            ),
        ),
    )
}
"""Cards by reader."""
