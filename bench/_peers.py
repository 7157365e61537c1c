"""The environment of the tools we are compared with.

It lies in the user's cache, is named after what it holds, and is made the first time a bench asks
for it: ``bench/peers.txt`` beside the torch of ``constraints.txt``. Nothing of it reaches the
project's own environment.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE.parent / "constraints.txt"
REQUIREMENTS = HERE / "peers.txt"
CACHE = Path.home() / ".cache" / "crossadapt-bench"
ALONE = "--no-deps"


def python() -> Path:
    """The peers' interpreter; makes the environment if it is not there."""
    content = REQUIREMENTS.read_bytes() + CONSTRAINTS.read_bytes() + sys.version.encode()
    place = CACHE / f"peers-{hashlib.sha256(content).hexdigest()[:12]}"
    interpreter = place / "bin" / "python"
    done = place / "done"
    if not done.is_file():
        print(f"making the peers' environment in {place}", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        install = [interpreter, "-m", "pip", "install", "-q", "-c", CONSTRAINTS]
        subprocess.run([*install, "torch"], check=True)
        lines = [line.split("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
        alone = [line.removesuffix(ALONE).strip() for line in lines if line.endswith(ALONE)]
        usual = [line for line in lines if line and not line.endswith(ALONE)]
        subprocess.run([*install, *usual], check=True)
        # These would bring a torchvision that does not fit this torch.
        subprocess.run([*install, ALONE, *alone], check=True)
        done.touch()
    return interpreter


def module(name: str) -> Any:
    """A peer's module inside this process, where it has to answer beside ours query by query.

    Last on the path: whatever both environments have, numpy for one, stays the one of ours.
    """
    if (place := _packages()) not in sys.path:
        sys.path.append(place)
        importlib.invalidate_caches()
    return importlib.import_module(name)


def version(package: str) -> str:
    """Of a package in the peers' environment."""
    (found,) = importlib.metadata.distributions(name=package, path=[_packages()])
    return found.version


def _packages() -> str:
    return sysconfig.get_path("purelib", vars={"base": str(python().parents[1])})
