"""The picture part of the report: queries with their results before and after, and failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from crossadapt.evaluation.examples import Example, Hit
from crossadapt.evaluation.html import Markup, data_uri, join, section, tag

THUMB = 112
_KINDS = {
    "improved": ("Largest gains", "ranks that fell most"),
    "typical": ("Typical queries", "ranks around the median after adaptation"),
    "worsened": ("Largest losses", "ranks that rose most"),
}


def gallery(
    examples: Sequence[Example],
    thumbnails: Any,
    image_names: Sequence[str] | None,
    names: tuple[str, str],
) -> Markup | None:
    """Queries with their first results before and after, by kind."""
    parts: list[Markup] = []
    for kind, (title, meaning) in _KINDS.items():
        chosen = [e for e in examples if e.kind == kind]
        if chosen:
            cards = [_card(e, thumbnails, image_names, names) for e in chosen]
            parts += [
                tag("h3", title, " ", tag("span", f"— {meaning}", class_="muted")),
                tag("div", cards, class_="queries"),
            ]
    lead = (
        "Chosen by rule, not by hand. Each query shows its own picture, then the first results "
        "before and after; a tick marks a right one."
    )
    return section("Queries, before and after", parts, lead=lead) if parts else None


def failures(
    examples: Sequence[Example],
    thumbnails: Any,
    image_names: Sequence[str] | None,
    names: tuple[str, str],
) -> Markup | None:
    """The queries with the worst ranks after adaptation."""
    cards = [_card(e, thumbnails, image_names, names) for e in examples if e.kind == "failure"]
    if not cards:
        return None
    return section(
        "Worst failures",
        tag("div", cards, class_="queries"),
        lead="The queries with the worst ranks after adaptation.",
    )


def _card(
    e: Example, thumbnails: Any, image_names: Sequence[str] | None, names: tuple[str, str]
) -> Markup:
    def picture(image: int, right: bool) -> Markup:
        label = image_names[image] if image_names is not None else f"image {image}"
        return tag(
            "span",
            _picture(image, label, thumbnails),
            tag("span", ", right", class_="hidden") if right else None,
            class_="thumb right" if right else "thumb",
        )

    def strip(name: str, hits: Sequence[Hit], kind: str) -> Markup:
        items = [tag("li", picture(h.image, h.correct)) for h in hits]
        return tag("div", tag("p", name), tag("ol", items), class_=f"strip {kind}")

    mood = "good" if e.rank_after < e.rank_before else "bad" if e.rank_after > e.rank_before else ""
    ranks = join(
        "rank ",
        tag("span", f"{e.rank_before:,.10g} → {e.rank_after:,.10g}", class_=f"pill {mood}".strip()),
    )
    return tag(
        "article",
        tag(
            "header",
            picture(e.answer, False),
            tag("div", tag("h4", f"“{e.text}”"), tag("p", ranks, class_="ranks")),
        ),
        strip(names[0], e.before, "before"),
        strip(names[1], e.after, "after"),
        class_="query",
    )


def _picture(image: int, label: str, thumbnails: Any) -> Markup:
    if thumbnails is None:
        return tag("span", label, class_="none")
    fetch: Callable[[int], Any] = thumbnails if callable(thumbnails) else thumbnails.__getitem__
    try:
        # A picture that has vanished since training must not cost the whole report.
        source = data_uri(fetch(image), THUMB)
    except OSError:
        return tag("span", f"{label} (cannot be read)", class_="none")
    return tag("img", src=source, alt=label, width=THUMB, height=THUMB)
