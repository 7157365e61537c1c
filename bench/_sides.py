"""Sides of a measurement: one process each, all alive, measured in turn.

A side is a script that prepares itself, says it is ready and then does its work once for every
line it is sent (``serve``). Whoever compares starts one process for each side (``Side``), in the
project's environment or in that of the peers (``_peers.python``), and sends the lines alternately
(``alternate``), so that a machine that slows down slows all sides alike.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Round = Mapping[str, float]


def serve(work: Callable[[], Mapping[str, float] | None]) -> None:
    """Do `work` once for every line on standard input; answer with its seconds and peak memory.

    What `work` returns is added to the answer (``{"count": 32}``, say); a ``seconds`` of its own
    replaces the time of the whole call. Anything else printed meanwhile goes to standard error.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        found = work() or {}
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer = {"seconds": seconds, "peak_mib": peak, **found}
        print(json.dumps(answer), file=answers, flush=True)


class Side:
    """A running side.

    Args:
        name: how the results call it.
        words: script and its arguments; a script's name is taken from this folder.
        python: the interpreter of its environment.
        threads: of every library that counts them; all sides of a measurement get the same.

    Raises:
        RuntimeError: the process ended before it was ready, or in the middle of a round.
    """

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        *,
        python: str | Path = sys.executable,
        threads: int | None = None,
    ) -> None:
        self.name = name
        count = str(threads or len(os.sched_getaffinity(0)))
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {
            **os.environ,
            **dict.fromkeys(variables, count),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "true",
        }
        script, *rest = words
        self.process = subprocess.Popen(
            [str(python), str(HERE / script), *rest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"side {self.name!r} ended with {self.process.wait()}")
        return json.loads(line)

    def run(self) -> dict[str, float]:
        """One round: at least ``seconds`` and ``peak_mib``."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def alternate(
    sides: Sequence[Side], rounds: int, *, warm_up: int = 1
) -> dict[str, list[dict[str, float]]]:
    """Run all sides in turn, `rounds` times, after `warm_up` rounds that are not kept."""
    found: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    for index in range(warm_up + rounds):
        for side in sides:
            answer = side.run()
            print(f"{side.name}: {answer['seconds']:.4g} s", file=sys.stderr)
            if index >= warm_up:
                found[side.name].append(answer)
    return found


def claim(
    text: str,
    numerator: Sequence[float],
    denominator: Sequence[float],
    *,
    names: tuple[str, str],
    unit: str,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
    missed: str = "",
) -> dict[str, Any]:
    """One line of the results: the ratio of two sides, round by round.

    Args:
        text: what is claimed.
        numerator, denominator: a figure of each side per round, in `unit`, in the same order.
        names: of the two sides.
        unit: ``"s"``, ``"MiB"``, ``"images/s"``.
        at_least, at_most: the target of the ratio; give one, or none where nothing is promised.
        note: what a reader must know in any case.
        missed: what bounds it and what was tried; part of the note where the target is missed.

    Returns:
        A document; ``ratio`` is the median of the rounds' ratios and ``range`` their least and
        greatest, which for five rounds is the 94 % interval of the median and for six the 97 % one.
    """
    ratios = [above / below for above, below in zip(numerator, denominator, strict=True)]
    ratio = statistics.median(ratios)
    met = (at_least is None or ratio >= at_least) and (at_most is None or ratio <= at_most)
    return {
        "claim": text,
        "sides": list(names),
        "unit": unit,
        "medians": [statistics.median(numerator), statistics.median(denominator)],
        "ratio": round(ratio, 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "rounds": len(ratios),
        "target": {
            name: bound
            for name, bound in (("at_least", at_least), ("at_most", at_most))
            if bound is not None
        },
        "met": met,
        "note": " ".join(part for part in (note, "" if met else missed) if part),
    }
