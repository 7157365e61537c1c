"""HTML by construction: every string is escaped unless it was built by `tag`."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from PIL import Image

VOID = frozenset({"meta", "img", "br", "hr"})
# The page may not load or run anything: even a mistake in escaping could not reach the network.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"


class Markup(str):
    """Text that already is HTML; made by `tag` and `join`, never from outside text."""

    __slots__ = ()


# Recursive, hence the quotes: nodes may be nested in any iterable.
Node: TypeAlias = "str | int | float | Iterable[Node] | None"


def join(*children: Node) -> Markup:
    """Children one after the other; plain strings are escaped, None is nothing."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str | int | float):
            # A file name with undecodable bytes carries lone surrogates that UTF-8 cannot hold.
            text = str(child).encode("utf-8", "replace").decode("utf-8")
            parts.append(html.escape("".join(c for c in text if c >= " " or c in "\t\n")))
        elif child is not None:
            parts.append(join(*child))
    return Markup("".join(parts))


def tag(name: str, /, *children: Node, **attributes: str | float | bool | None) -> Markup:
    """One element. ``class_`` becomes ``class``, other underscores hyphens; None drops one."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{join(value)}"')
    head = f"<{' '.join(words)}>"
    return Markup(head if name in VOID else f"{head}{join(*children)}</{name}>")


def table(
    header: Iterable[Node], rows: Iterable[Iterable[Node]], *, caption: str, class_: str = ""
) -> Markup:
    """A table with a caption, column heads and a row head in the first column."""
    body = []
    for row in rows:
        first, *rest = row
        body.append(tag("tr", tag("th", first, scope="row"), [tag("td", c) for c in rest]))
    grid = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", [tag("th", h, scope="col") for h in header])),
        tag("tbody", body),
        class_=class_ or None,
    )
    # Focusable, so that a wide table can be scrolled from the keyboard.
    return tag("div", grid, class_="scroll", tabindex="0", role="region", aria_label=caption)


def section(title: str, *children: Node, lead: Node = None) -> Markup:
    """A titled section with an optional opening sentence."""
    name = "".join(c if c.isalnum() else "-" for c in title.lower())
    opening = None if lead is None else tag("p", lead, class_="lead")
    return tag("section", tag("h2", title, id=name), opening, *children, aria_labelledby=name)


def details(summary: str, *children: Node, open_: bool = False) -> Markup:
    """A part that unfolds."""
    return tag("details", tag("summary", summary), *children, open=open_)


def page(title: str, *children: Node) -> str:
    """A whole document with its style inside and nothing outside."""
    style = resources.files("crossadapt.evaluation").joinpath("report.css").read_text("utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", **{"http-equiv": "Content-Security-Policy"}, content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content="crossadapt"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *children), lang='en')}\n"


def data_uri(image: Image.Image, size: int) -> str:
    """A picture, shrunk to fit a square of `size` pixels, as a WebP data URI."""
    thumb = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    thumb.thumbnail((size, size))
    buffer = io.BytesIO()
    thumb.save(buffer, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
