"""What happens in a clip: actors with a pose for every frame, in front of a background."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from crossadapt.data.clips.cast import Picture

SIZE = 96
"""Width and height of a clip in pixels."""
TIMINGS = ((9, 4), (13, 4), (11, 5), (13, 6))
"""(frames, frames a second). The number is odd and one more than a multiple of the rate, so that
``1fps`` (while F is not exceeded) and ``segments`` take mirrored frames of a reversed clip."""

SIDES = ("left", "right", "top", "bottom")
DIRECTIONS = ("left", "right", "up", "down")
COLOURS = {
    "red": (244, 150, 140),
    "orange": (250, 190, 120),
    "yellow": (248, 230, 130),
    "green": (160, 220, 150),
    "blue": (150, 190, 245),
    "purple": (200, 165, 235),
    "pink": (250, 185, 215),
    "grey": (190, 190, 190),
}
PATTERNS = ("plain", "stripes", "checks", "dots", "shade")
NUMBERS = {2: "two", 3: "three", 4: "four"}

SINGLE = (
    *(f"move-{way}" for way in DIRECTIONS),
    *(f"enter-{side}" for side in SIDES),
    *(f"leave-{side}" for side in SIDES),
    "grow",
    "shrink",
)
SEVERAL = ("sequence", *(f"follow-{way}" for way in DIRECTIONS), "group")
EVENTS = (*SINGLE, *SEVERAL, *(f"pass-{way}" for way in DIRECTIONS))
"""Everything that can happen; the part behind the dash is where to."""

_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
_STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_AT = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
PROBE_EVENTS = (
    "sequence",
    "sequence",
    "move-left",
    "move-up",
    "enter-left",
    "enter-top",
    "enter-right",
    "enter-bottom",
    "grow",
)
"""One event of each pair of the probe; the other is `reversed_event` of it."""


class Pose(NamedTuple):
    """Where a picture is: its centre and its side, in pixels."""

    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Actor:
    """A picture and its pose in every frame, None where it is not there."""

    picture: Picture
    poses: tuple[Pose | None, ...]


@dataclass(frozen=True)
class Background:
    """A named colour in a pattern."""

    colour: str
    pattern: str


@dataclass(frozen=True)
class Scene:
    """One clip. Actors come in the order in which the sentences name them."""

    event: str
    actors: tuple[Actor, ...]
    background: Background
    frames: int
    rate: int

    @property
    def action(self) -> str:
        """The event without its direction."""
        return self.event.partition("-")[0]

    @property
    def way(self) -> str:
        """The direction or side, empty where there is none."""
        return self.event.partition("-")[2]


def make_scene(
    event: str, pictures: list[Picture], background: Background, random: Random
) -> Scene:
    """A scene with the given event.

    Args:
        event: one of `EVENTS`.
        pictures: whom to choose from.
        background: what is behind.
        random: source of every choice.
    """
    frames, rate = random.choice(TIMINGS)
    action, _, way = event.partition("-")
    actors = _MAKERS[action](way, pictures, frames, random)
    return Scene(event, actors, background, frames, rate)


def reversed_event(event: str) -> str:
    """What is seen when the clip of `event` runs backwards.

    Only events of `PROBE_EVENTS` and their opposites have one.
    """
    action, _, way = event.partition("-")
    if action == "move":
        return f"move-{_OPPOSITE[way]}"
    return {
        "enter": f"leave-{way}",
        "leave": f"enter-{way}",
        "grow": "shrink",
        "shrink": "grow",
        "sequence": "sequence",
    }[action]


def reverse(scene: Scene) -> Scene:
    """The same frames in the opposite order, and the event that is seen then."""
    actors = tuple(replace(actor, poses=actor.poses[::-1]) for actor in scene.actors)
    # The one who came last is named first now.
    return replace(scene, event=reversed_event(scene.event), actors=actors[::-1])


def holds_out(event: str, background: Background) -> bool:
    """Whether this event is never seen before this background in training: a quarter of them."""
    place = EVENTS.index(event) + 3 * list(COLOURS).index(background.colour)
    return place % 4 == 0


def _along(start: Pose, end: Pose, frames: int) -> tuple[Pose, ...]:
    steps = [i / (frames - 1) for i in range(frames)]
    return tuple(Pose(*(a + (b - a) * s for a, b in zip(start, end, strict=True))) for s in steps)


def _place(random: Random, side: float) -> Pose:
    """Somewhere wholly inside."""
    low, high = side / 2 + 2, SIZE - side / 2 - 2
    return Pose(random.uniform(low, high), random.uniform(low, high), side)


def _crossing(way: str, side: float, across: float) -> tuple[Pose, Pose]:
    """Start and end of a way through the clip at `across` pixels from its edge."""
    dx, dy = _STEP[way]
    reach = SIZE / 2 - side / 2 - 2
    middle = Pose(SIZE / 2 if dx else across, SIZE / 2 if dy else across, side)
    start = Pose(middle.x - dx * reach, middle.y - dy * reach, side)
    return start, Pose(middle.x + dx * reach, middle.y + dy * reach, side)


def _move(way: str, pictures: list[Picture], frames: int, random: Random) -> tuple[Actor, ...]:
    side = random.uniform(40, 52)
    start, end = _crossing(way, side, random.uniform(side / 2 + 2, SIZE - side / 2 - 2))
    return (Actor(random.choice(pictures), _along(start, end, frames)),)


def _enter(way: str, pictures: list[Picture], frames: int, random: Random) -> tuple[Actor, ...]:
    side = random.uniform(40, 52)
    dx, dy = _AT[way]
    end = Pose(SIZE / 2 + random.uniform(-6, 6), SIZE / 2 + random.uniform(-6, 6), side)
    outside = SIZE / 2 + side / 2 + 2
    start = Pose(
        SIZE / 2 + dx * outside if dx else end.x, SIZE / 2 + dy * outside if dy else end.y, side
    )
    return (Actor(random.choice(pictures), _along(start, end, frames)),)


def _leave(way: str, pictures: list[Picture], frames: int, random: Random) -> tuple[Actor, ...]:
    (actor,) = _enter(way, pictures, frames, random)
    return (replace(actor, poses=actor.poses[::-1]),)


def _grow(way: str, pictures: list[Picture], frames: int, random: Random) -> tuple[Actor, ...]:
    large = random.uniform(62, 76)
    x, y = (random.uniform(SIZE / 2 - 8, SIZE / 2 + 8) for _ in range(2))
    poses = _along(Pose(x, y, random.uniform(20, 28)), Pose(x, y, large), frames)
    return (Actor(random.choice(pictures), poses),)


def _shrink(way: str, pictures: list[Picture], frames: int, random: Random) -> tuple[Actor, ...]:
    (actor,) = _grow(way, pictures, frames, random)
    return (replace(actor, poses=actor.poses[::-1]),)


def _sequence(way: str, pictures: list[Picture], frames: int, random: Random) -> tuple[Actor, ...]:
    """One picture, an empty frame, another picture at the same place."""
    half = frames // 2
    pose = _place(random, random.uniform(46, 58))
    first, second = random.sample(pictures, 2)
    return (
        Actor(first, (pose,) * half + (None,) * (frames - half)),
        Actor(second, (None,) * (frames - half) + (pose,) * half),
    )


def _follow(way: str, pictures: list[Picture], frames: int, random: Random) -> tuple[Actor, ...]:
    """The second goes ahead, the first follows in its track."""
    side = random.uniform(30, 36)
    start, end = _crossing(way, side, random.uniform(side / 2 + 2, SIZE - side / 2 - 2))
    dx, dy = _STEP[way]
    gap = side + 2
    behind, ahead = random.sample(pictures, 2)
    stop = Pose(end.x - dx * gap, end.y - dy * gap, side)
    begin = Pose(start.x + dx * gap, start.y + dy * gap, side)
    return (
        Actor(behind, _along(start, stop, frames)),
        Actor(ahead, _along(begin, end, frames)),
    )


def _pass(way: str, pictures: list[Picture], frames: int, random: Random) -> tuple[Actor, ...]:
    """The first moves past the second, which stays."""
    side = random.uniform(34, 42)
    near, far = side / 2 + 2, SIZE - side / 2 - 2
    lane, other = random.choice([(near, far), (far, near)])
    start, end = _crossing(way, side, lane)
    still = Pose(SIZE / 2, other, side) if _STEP[way][0] else Pose(other, SIZE / 2, side)
    mover, stayer = random.sample(pictures, 2)
    return Actor(mover, _along(start, end, frames)), Actor(stayer, (still,) * frames)


def _group(way: str, pictures: list[Picture], frames: int, random: Random) -> tuple[Actor, ...]:
    """Two to four of the same, each swaying at its place."""
    singular = [picture for picture in pictures if not picture.plural]
    picture = random.choice(singular)
    count = random.choice(list(NUMBERS))
    corners = random.sample([(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)], count)
    phases = [random.uniform(0, 2 * math.pi) for _ in corners]
    return tuple(
        Actor(
            picture,
            tuple(
                Pose(SIZE * x + 2.5 * math.sin(phase + i), SIZE * y + 2.5 * math.cos(phase + i), 36)
                for i in range(frames)
            ),
        )
        for (x, y), phase in zip(corners, phases, strict=True)
    )


_Maker = Callable[[str, list[Picture], int, Random], tuple[Actor, ...]]
_MAKERS: dict[str, _Maker] = {
    "move": _move,
    "enter": _enter,
    "leave": _leave,
    "grow": _grow,
    "shrink": _shrink,
    "sequence": _sequence,
    "follow": _follow,
    "pass": _pass,
    "group": _group,
}
