"""Shapes of requests and answers; /openapi.json is made of them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from crossadapt.search.request import LIMITS, Query
from crossadapt.search.server.settings import MOST_JUDGED

# Said in the schema and checked by `crossadapt.search.request`, whose errors say what to do.
_SHARE: JsonDict = {"minimum": 0, "maximum": 1}


class SearchParams(BaseModel):
    """One search. Give at least one of ``q``, ``like`` and (with POST) ``image``."""

    model_config = ConfigDict(extra="forbid")

    collection: str = Field(
        "", description="Name; may be left out when one is served.", examples=["photos"]
    )
    q: str = Field(
        "",
        description="Words to look for.",
        examples=["a red door"],
        json_schema_extra={"maxLength": LIMITS.max_text},
    )
    k: int = Field(
        10,
        description="How many hits.",
        json_schema_extra={"minimum": 1, "maximum": LIMITS.max_k},
    )
    filter: str = Field(
        "",
        description='Only items that pass, for example `colour = "red" and year >= 2020`.',
    )
    view: str = Field("", description="`frozen` or an adapter; the collection's default if empty.")
    strength: float = Field(
        1.0,
        description="0 is the frozen model, 1 the adapter, between them a blend.",
        json_schema_extra=_SHARE,
    )
    like: str = Field("", description="Id of an item: more like this.")
    exclude: str = Field(
        "",
        description="Words whose direction is taken out of the query.",
        json_schema_extra={"maxLength": LIMITS.max_text},
    )
    weight: float = Field(
        0.5,
        description="Share of the text when there is a text and a picture.",
        json_schema_extra=_SHARE,
    )
    exact: bool = Field(False, description="Compare with every item although there is an index.")
    compare: bool = Field(False, description="Also what the frozen model finds, with its ranks.")
    rerank: int = Field(
        0,
        description="How many of the nearest items the fusion tower judges and sorts anew; 0 for "
        "none. For words alone, where a collection says `rerank`.",
        json_schema_extra={"minimum": 0, "maximum": MOST_JUDGED},
    )

    def query(self, image: bytes | None = None) -> Query:
        """The query it stands for."""
        return Query(
            text=self.q,
            image=image,
            like=self.like,
            exclude=self.exclude,
            weight=self.weight,
            k=self.k,
            filter=self.filter,
            view=self.view or None,
            strength=self.strength,
            exact=self.exact,
            compare=self.compare,
            rerank=self.rerank,
        )


class HitOut(BaseModel):
    """One item found."""

    id: str
    name: str = Field(description="Last part of its path.")
    rank: int = Field(description="1 is the best.")
    cosine: float
    calibrated: float | None = Field(
        description="Share of unrelated queries that find nothing this striking, 0 to 1."
    )
    kind: str = Field(description="`image` or `video`.")
    texts: list[str]
    attributes: dict[str, Any]
    width: int
    height: int
    duration: float = Field(description="Seconds; 0 for pictures.")
    frozen_rank: int | None = Field(description="Rank by the frozen model; only with `compare`.")
    match: float | None = Field(
        description="Match logit of the fusion tower, which `rerank` sorts by; else null."
    )
    start: float | None = Field(description="Where in a video the best frame is, in seconds.")
    thumbnail: str = Field(description="Address of its small picture.")


class TookOut(BaseModel):
    """Milliseconds."""

    embed: float
    search: float
    rerank: float = Field(description="What the second stage added; 0 without `rerank`.")
    total: float


class SearchOut(BaseModel):
    """What a search found."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "collection": "photos",
                    "view": "default",
                    "strength": 1.0,
                    "k": 1,
                    "plan": "exact",
                    "searched": 4173,
                    "passing": 4173,
                    "took_ms": {"embed": 6.1, "search": 3.4, "rerank": 0.0, "total": 10.2},
                    "notes": [],
                    "hits": [
                        {
                            "id": "1f0a6d2c9b7e4f5aa0c3d1e2b4f6a8c0",
                            "name": "door-17.jpg",
                            "rank": 1,
                            "cosine": 0.3121,
                            "calibrated": 0.98,
                            "kind": "image",
                            "texts": ["a red door in a white wall"],
                            "attributes": {"colour": "red", "year": 2021},
                            "width": 1600,
                            "height": 1200,
                            "duration": 0.0,
                            "frozen_rank": None,
                            "match": None,
                            "start": None,
                            "thumbnail": "/thumbnail/1f0a6d2c9b7e4f5aa0c3d1e2b4f6a8c0"
                            "?collection=photos",
                        }
                    ],
                    "frozen_hits": None,
                }
            ]
        }
    )

    collection: str
    view: str
    strength: float
    k: int
    plan: str = Field(description="`exact`, `exact on filtered rows` or `index`.")
    searched: int = Field(description="Items compared.")
    passing: int = Field(description="Items that pass the filter.")
    took_ms: TookOut
    notes: list[str]
    hits: list[HitOut]
    frozen_hits: list[HitOut] | None


class ViewOut(BaseModel):
    """One set of embeddings."""

    name: str
    method: str
    trained: int = Field(description="Trained parameters.")
    fingerprint: str


class LedgerOut(BaseModel):
    """Items that could not be embedded."""

    count: int
    reasons: dict[str, int]


class HealthOut(BaseModel):
    """How a collection is."""

    index: str
    indexed_rows: int
    unindexed_rows: int
    recall: float | None = Field(description="Measured against exact search.")
    version: int
    ledger: LedgerOut
    backbone: str
    fingerprint: str
    notes: list[str]
    problem: str | None = Field(description="Why a newer version is not served.")


class CollectionOut(BaseModel):
    """A collection that can be searched."""

    name: str
    rows: int
    dim: int
    default_view: str
    views: list[ViewOut]
    attributes: dict[str, str]
    rerank: bool = Field(description="Whether its model has a fusion tower, for `rerank`.")
    examples: list[str] = Field(description="Captions of its items, to try.")
    health: HealthOut


class FacetOut(BaseModel):
    """A value and how many items have it."""

    value: Any
    count: int


class FacetsOut(BaseModel):
    """Values of the attributes among the items that pass."""

    facets: dict[str, list[FacetOut]]
    passing: int


class ItemOut(BaseModel):
    """Everything stored about an item, and what is near it."""

    id: str
    name: str
    kind: str
    texts: list[str]
    group: str | None
    attributes: dict[str, Any]
    width: int
    height: int
    duration: float
    bytes: int
    modified: float
    added: str | None
    thumbnail: str
    file: str
    neighbours: list[HitOut]


class AdapterOut(BaseModel):
    """An adapter in use."""

    name: str
    method: str
    trained: int
    share: float = Field(description="Trained parameters / parameters of the backbone.")
    fingerprint: str
    collections: list[str]


class ServerOut(BaseModel):
    """Whether the server works."""

    status: str
    version: str


class ErrorBody(BaseModel):
    """What went wrong, where, and how to fix it."""

    what: str
    where: str
    fix: str


class ErrorOut(BaseModel):
    """Every answer that is no success."""

    error: ErrorBody
