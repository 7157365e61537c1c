from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from crossadapt.cli import main as cli
from crossadapt.errors import UserError

HEAVY = {"torch", "transformers", "numpy", "pyarrow", "accelerate", "PIL", "rich", "tyro"}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


def test_help_imports_nothing_heavy() -> None:
    done = python(
        "import sys\nfrom crossadapt.cli.main import main\ncode = main(['--help'])\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\nprint('heavy:', heavy)\nsys.exit(code)"
    )
    assert done.returncode == 0
    assert "heavy: set()" in done.stdout
    for command in cli.COMMANDS:
        assert f"  {command}" in done.stdout


def test_importing_the_package_imports_no_torch() -> None:
    done = python("import sys, crossadapt; print({'torch', 'transformers'} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


def test_no_arguments_print_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "usage: crossadapt COMMAND" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("crossadapt ")


@pytest.mark.parametrize(("typed", "nearest"), [("trian", "train"), ("comprae", "compare")])
def test_unknown_command_names_the_nearest(
    typed: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([typed]) == 1
    assert f"did you mean '{nearest}'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_is_shown_and_has_its_two_functions(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--help"]) == 0
    assert f"\n  {command} " in capsys.readouterr().out
    module = cli.load(command)
    assert callable(module.parse)
    assert callable(module.run)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Make the command `plan` raise what the test wants."""

    def install(error: BaseException) -> None:
        def run(options: object) -> int:
            raise error

        module = types.SimpleNamespace(parse=lambda args: args, run=run)
        monkeypatch.setattr(cli, "load", lambda command: module)

    return install


def test_user_error_is_one_clean_message(failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(UserError("no such folder", where="photos", fix="check the path"))
    assert cli.main(["plan"]) == 1
    err = capsys.readouterr().err
    assert err == "error: no such folder\n  where: photos\n  fix: check the path\n"


def test_debug_shows_the_traceback(failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(UserError("no such folder"))
    assert cli.main(["plan", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_internal_error_keeps_the_traceback_in_a_file(
    failing, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(ZeroDivisionError("boom"))
    assert cli.main(["plan"]) == 2
    err = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: boom" in err
    assert "report" in err
    assert "Traceback" not in err
    [file] = tmp_path.glob("crossadapt-error-*.txt")
    assert str(file) in err
    assert "ZeroDivisionError: boom" in file.read_text()


def test_interrupt_is_130(failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(KeyboardInterrupt())
    assert cli.main(["plan"]) == 130
    assert capsys.readouterr().err.startswith("interrupted: ")


def test_a_reader_that_leaves_is_no_error() -> None:
    # A pipe closed at once, as `| head` does: no traceback, code 0.
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "crossadapt.cli.main"],
        stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
    )  # fmt: skip
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 0
