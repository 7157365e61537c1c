from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from crossadapt.cli import options as cli_options
from crossadapt.cli.options import parse
from crossadapt.errors import UserError


@dataclass(frozen=True)
class Example:
    """An example command."""

    data: str
    """A folder."""
    lr: float = 1e-3
    """Learning rate."""
    batch_size: int = 8
    """Pairs per step."""
    seeds: tuple[int, ...] = (0,)
    """Seeds."""
    resume: bool = False
    """Go on."""
    recipe: str | None = None
    """A recipe."""


def read(*args: str) -> Example:
    parsed = parse(Example, args, "example")
    assert parsed is not None
    return parsed


def with_recipe(*args: object) -> list[str]:
    return cli_options.with_recipe([str(arg) for arg in args], Example, {})[0]


def test_dashes_and_underscores_are_the_same() -> None:
    assert read("--data", "x", "--batch_size", "4") == read("--data=x", "--batch-size=4")


def test_several_values() -> None:
    assert read("--data", "x", "--seeds", "1", "2").seeds == (1, 2)


def test_a_negative_value_is_a_value() -> None:
    assert read("--data", "x", "--lr", "-1.5").lr == -1.5


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("--dta", "--data"), ("--batchsize", "--batch-size"), ("--resum", "--resume")],
)
def test_unknown_option_names_the_nearest_even_when_another_is_missing(
    typed: str, nearest: str
) -> None:
    with pytest.raises(UserError, match=f"unknown option {typed}\n(.*\n)*.*'{nearest}'"):
        parse(Example, [typed, "1"], "example")


def test_missing_option_says_which_and_what_it_is() -> None:
    with pytest.raises(UserError, match=r"--data STR") as error:
        parse(Example, [], "example")
    assert "A folder." in str(error.value)
    assert "│" not in str(error.value)


def test_wrong_value_says_which() -> None:
    with pytest.raises(UserError, match="--lr"):
        parse(Example, ["--data", "x", "--lr", "fast"], "example")


def test_help_is_printed_and_nothing_is_returned(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Example, ["--help"], "example") is None
    out = capsys.readouterr().out
    assert "Pairs per step." in out
    assert "crossadapt example" in out


class TestRecipe:
    def recipe(self, tmp_path: Path, text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    def test_typed_options_win(self, tmp_path: Path) -> None:
        path = self.recipe(tmp_path, "lr: 0.5\nbatch_size: 4\nseeds: [3, 4]\nresume: true\n")
        args = with_recipe("--recipe", path, "--data", "x", "--lr", "2", "--no-resume")
        assert read(*args) == Example("x", 2.0, 4, (3, 4), False, str(path))

    def test_values_are_checked_like_typed_ones(self, tmp_path: Path) -> None:
        path = self.recipe(tmp_path, "data: x\nlr: fast\n")
        with pytest.raises(UserError, match="--lr"):
            read(*with_recipe("--recipe", path))

    def test_unknown_key_names_the_nearest(self, tmp_path: Path) -> None:
        path = self.recipe(tmp_path, "batchsize: 4\n")
        with pytest.raises(UserError, match="did you mean 'batch_size'") as error:
            with_recipe("--recipe", path)
        assert str(path) in str(error.value)

    @pytest.mark.parametrize("text", ["- 1\n- 2\n", "lr: [1\n", ""])
    def test_not_a_mapping(self, tmp_path: Path, text: str) -> None:
        path = self.recipe(tmp_path, text)
        with pytest.raises(UserError, match="recipe"):
            with_recipe("--recipe", path)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no such recipe"):
            with_recipe("--recipe", tmp_path / "no.yaml")

    def test_exponents_without_a_dot_are_numbers(self, tmp_path: Path) -> None:
        # YAML 1.1 reads 3e-3 as a string; read as if typed, it is a number all the same.
        path = self.recipe(tmp_path, "data: x\nlr: 3e-3\n")
        assert read(*with_recipe("--recipe", path)).lr == 3e-3


def test_last_value() -> None:
    assert cli_options.last_value(["--method", "a", "--method=b"], "--method") == "b"
    assert cli_options.last_value(["--method.r", "3"], "--method") is None


def test_compare_reads_a_recipe_and_what_is_typed_wins() -> None:
    from crossadapt.cli.compare import parse as parse_compare

    found = parse_compare(["--recipe", "compare-openmoji", "--seeds", "7", "--smoke"])
    assert found is not None
    assert found.seeds == (7,)
    assert found.methods[0] == "cross-modal-adapter:lr=1.5e-3"
    assert (found.task_options, found.epochs) == ({"token_drop": 0.5}, 1)
