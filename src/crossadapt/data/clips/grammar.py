"""Sentences and questions about a scene, all of which follow from what is drawn."""

from __future__ import annotations

from random import Random

from crossadapt.data.clips.cast import Picture
from crossadapt.data.clips.scenes import NUMBERS, Background, Scene

_FORMS: dict[str, tuple[str, ...]] = {
    "move": (
        "{a} moves {to}",
        "{a} slides {path}",
        "{a} travels {path}",
        "there is {a} going {to}",
        "we see {a} on its way {to}",
    ),
    "enter": (
        "{a} enters {at}",
        "{a} comes into view {at}",
        "{a} appears {at}",
        "there is {a} coming in {at}",
    ),
    "leave": (
        "{a} leaves {at}",
        "{a} goes out of view {at}",
        "{a} disappears {at}",
        "there is {a} going out {at}",
    ),
    "grow": (
        "{a} grows",
        "{a} gets bigger",
        "{a} becomes larger and larger",
        "there is {a} growing",
    ),
    "shrink": (
        "{a} shrinks",
        "{a} gets smaller",
        "{a} becomes smaller and smaller",
        "there is {a} shrinking",
    ),
    "sequence": (
        "{a}, then {b}",
        "first {a}, then {b}",
        "{a} is there before {b}",
        "{b} comes after {a}",
        "{a} makes way for {b}",
    ),
    "follow": (
        "{a} follows {b} {to}",
        "{b} moves {to} with {a} behind",
        "{a} runs after {b} {path}",
    ),
    "pass": (
        "{a} moves {to} past {b}",
        "{a} passes {b} {path}",
        "while {b} stays, {a} goes {to}",
    ),
    "group": (
        "{n} {plural}",
        "there are {n} {plural}",
        "{n} {plural} swaying together",
        "we see {n} {plural}",
    ),
}
_TO = {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}
_PATH = {
    "left": "from right to left",
    "right": "from left to right",
    "up": "from the bottom to the top",
    "down": "from the top to the bottom",
}
_VOWELS = "aeiou"
_LONG_U = ("uni", "eu", "use", "ute", "ufo", "one")
_PLURAL_VERBS = {
    "moves": "move",
    "slides": "slide",
    "travels": "travel",
    "enters": "enter",
    "comes": "come",
    "appears": "appear",
    "leaves": "leave",
    "goes": "go",
    "disappears": "disappear",
    "grows": "grow",
    "gets": "get",
    "becomes": "become",
    "shrinks": "shrink",
    "follows": "follow",
    "runs": "run",
    "passes": "pass",
    "stays": "stay",
    "makes": "make",
    "is": "are",
}


def forms(scene: Scene) -> int:
    """How many ways there are to say what happens in a scene."""
    return len(_FORMS[scene.action])


def sentence(scene: Scene, form: int, *, background: bool) -> str:
    """One sentence about a scene.

    The same `form` for a scene and its reverse gives sentences that differ in the order of the
    pictures, or in the words for a direction, only.

    Args:
        scene: what is drawn.
        form: from 0 to `forms` - 1.
        background: whether to name the background too.
    """
    first = scene.actors[0].picture
    second = scene.actors[-1].picture
    pattern = _FORMS[scene.action][form]
    words = {
        "to": _TO.get(scene.way, ""),
        "path": _PATH.get(scene.way, ""),
        "at": f"at the {scene.way}",
        "n": NUMBERS.get(len(scene.actors), ""),
        "plural": plural(first.name),
        "a": noun(first),
        "b": noun(second),
    }
    for letter, picture in (("a", first), ("b", second)):
        if picture.plural:
            pattern = _agree(pattern, letter)
    said = pattern.format(**words)
    return f"{said} {_behind(scene.background)}" if background else said


def captions(scene: Scene, count: int, random: Random) -> list[str]:
    """`count` different sentences, some of which name the background."""
    ways = [(form, named) for form in range(forms(scene)) for named in (False, True)]
    chosen = random.sample(ways, count)
    return [sentence(scene, form, background=named) for form, named in chosen]


def questions(scene: Scene) -> list[dict[str, str]]:
    """Questions with their answers, each with its kind."""
    first, second = scene.actors[0].picture, scene.actors[-1].picture
    listed = [("colour", "what colour is the background?", scene.background.colour)]
    if scene.action == "group":
        number = NUMBERS[len(scene.actors)]
        listed.append(("count", f"how many {plural(first.name)} are there?", number))
        listed.append(("what", "what is there?", first.name))
    elif scene.action == "sequence":
        listed.append(("first", "what is there first?", first.name))
        listed.append(("last", "what is there last?", second.name))
    elif scene.action == "follow":
        listed.append(("behind", "what is behind?", first.name))
        listed.append(("ahead", "what is ahead?", second.name))
    else:
        done = {"move": "moves", "pass": "moves", "enter": "enters", "leave": "leaves"}
        verb = done.get(scene.action, f"{scene.action}s")
        listed.append(("what", f"what {verb}?", first.name))
    if scene.way:
        there = scene.action in ("enter", "leave")
        asked = "on which side does it happen?" if there else "which way does it go?"
        listed.append(("side" if there else "direction", asked, scene.way))
    if scene.action in ("pass", "sequence", "follow"):
        listed.append(("count", "how many things are there?", "two"))
    return [{"kind": kind, "question": asked, "answer": said} for kind, asked, said in listed]


def noun(picture: Picture) -> str:
    """The name with its article."""
    if picture.plural:
        return picture.name
    vowel = picture.name[0] in _VOWELS and not picture.name.startswith(_LONG_U)
    return f"{'an' if vowel else 'a'} {picture.name}"


def plural(name: str) -> str:
    """The plural of a noun, by the rules and the few exceptions that occur."""
    head, _, last = name.rpartition(" ")
    odd = {"mouse": "mice", "leaf": "leaves", "foot": "feet", "tooth": "teeth", "goose": "geese"}
    if last in odd:
        last = odd[last]
    elif last.endswith(("s", "x", "ch", "sh", "z")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in _VOWELS:
        last = last[:-1] + "ies"
    elif last.endswith("fe"):
        last = last[:-2] + "ves"
    else:
        last += "s"
    return f"{head} {last}".strip()


def _behind(background: Background) -> str:
    if background.pattern == "plain":
        return f"on a {background.colour} background"
    if background.pattern == "shade":
        return f"in front of a shade of {background.colour}"
    return f"in front of {background.colour} {background.pattern}"


def _agree(pattern: str, letter: str) -> str:
    """The pattern with the verb behind ``{a}`` or ``{b}`` in the plural."""
    before, mark, after = pattern.partition(f"{{{letter}}}")
    words = after.split(" ")
    if len(words) > 1 and words[1] in _PLURAL_VERBS:
        words[1] = _PLURAL_VERBS[words[1]]
    if before.endswith("there is "):
        before = before.removesuffix("is ") + "are "
    return before + mark + " ".join(words)
