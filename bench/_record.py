"""What every side-by-side measurement notes: the machine it ran on, and where its figures go."""

from __future__ import annotations

import json
import os
import platform
from argparse import ArgumentParser
from pathlib import Path
from typing import Any


def output_option(parser: ArgumentParser) -> None:
    """Add ``--output FILE``."""
    parser.add_argument("--output", type=Path, help="also write the JSON document to this file")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, versions, and how busy the machine was when asked.

    ``load_average`` is that of the last minute: above 0 at the start of a measurement, other work
    ran beside it or had ended just before, and its times may be too long.
    """
    import torch

    model = platform.processor() or platform.machine()
    memory = 0
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        for line in lines:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def finish(document: dict[str, Any], output: Path | None) -> None:
    """Print the document, and write it where it was asked for."""
    text = json.dumps(document, indent=1)
    print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n")
