"""Dispatch: choose the command, import only its file, turn errors into exit codes.

Nothing heavy is imported here, so that ``crossadapt --help`` answers at once. A command is a
module of this package with ``parse(args) -> options`` and ``run(options) -> int``; it is listed in
`COMMANDS`.

Exit codes: 0 done, 1 something the user can fix, 2 a fault of the program, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from crossadapt.errors import UserError, did_you_mean

COMMANDS = {
    "demo": "see it work: adapt the bundled model to OpenMoji and measure the gain",
    "train": "adapt a frozen backbone to your own pictures and texts",
    "evaluate": "measure a backbone, frozen or adapted, by a published protocol",
    "compare": "train several methods with several seeds: one table, one plot",
    "plan": "show what a method would insert where, and how much it would train",
    "data": "make the built-in data set, or inspect a folder before training",
    "index": "embed a folder into a collection that can be searched",
    "search": "find items of a collection by text, picture or both",
    "label": "label a collection from a few examples, for filters",
    "serve": "the search page and HTTP API over collections",
    "collection": "list, inspect, maintain, export and import collections",
}

DONE, USER_ERROR, INTERNAL_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` defaults to the process's arguments."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        return _dispatch(args)
    except UserError as error:
        return _stop(USER_ERROR, f"error: {error}", debug)
    except KeyboardInterrupt as error:
        said = str(error) or "what was saved before stays as it is"
        return _stop(INTERRUPTED, f"interrupted: {said}", debug)
    except BrokenPipeError:
        # The reader of our output (`head`, a pager) left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        return _stop(INTERNAL_ERROR, _internal(error, debug), debug)


def load(command: str) -> Any:
    """The module of a command.

    Raises:
        UserError: there is no such command; the nearest one is named.
    """
    if command not in COMMANDS:
        what = f"unknown option {command}" if command.startswith("-") else "unknown command"
        raise UserError(
            what,
            where=f"crossadapt {command}",
            fix=f"{did_you_mean(command, COMMANDS)} See crossadapt --help.",
        )
    return importlib.import_module(f"crossadapt.cli.{command}")


def overview() -> str:
    """The text of ``crossadapt --help``."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: crossadapt COMMAND [options]      crossadapt COMMAND --help",
            "",
            "Adapt a frozen vision-language model to your own pictures and texts by training",
            "under 1 % of its weights, and measure what it gained.",
            "",
            "commands:",
            *rows,
            "",
            "anywhere:",
            "  --help     what a command does and every option it has",
            "  --debug    show the traceback of an error",
            "  --version  print the version",
            "",
            "exit codes: 0 done, 1 something you can fix, 2 a fault of crossadapt, 130 interrupted",
        ]
    )


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return DONE
    if args[0] == "--version":
        from importlib.metadata import version

        print(f"crossadapt {version('crossadapt')}")
        return DONE
    module = load(args[0])
    options = module.parse(args[1:])
    if options is None:  # the command's own --help has been printed
        return DONE
    return module.run(options)


def _stop(code: int, message: str, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(message, file=sys.stderr)
    return code


def _internal(error: Exception, debug: bool) -> str:
    """The message for a fault of ours; the traceback goes to a file unless it is shown anyway."""
    import tempfile
    import traceback

    lines = [f"internal error: {type(error).__name__}: {error}"]
    if not debug:
        with tempfile.NamedTemporaryFile(
            "w", prefix="crossadapt-error-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(f"crossadapt {' '.join(sys.argv[1:])}\n\n{traceback.format_exc()}")
        lines.append(f"  traceback: {file.name}")
    lines.append("  This is a fault of crossadapt, not of your data. Please report it with the")
    lines.append("  command you ran and the traceback (crossadapt ... --debug shows it here).")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
