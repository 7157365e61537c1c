from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from crossadapt.adapters import registry
from crossadapt.adapters.registry import (
    get_method,
    make_config,
    method_names,
    method_of,
    register,
)
from crossadapt.errors import UserError
from crossadapt.methods.cross_modal_adapter import CrossModalAdapterConfig


@dataclass(frozen=True)
class SampleConfig:
    size: int
    rate: float = 0.1
    names: tuple[str, ...] = ()
    mode: Literal["a", "b"] = "a"
    limit: int | None = None
    flag: bool = False


@pytest.fixture
def sample(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(registry, "_BY_CONFIG", dict(registry._BY_CONFIG))

    @register("sample", SampleConfig)
    def plan(backbone: Any, config: SampleConfig) -> list:
        """A method for tests."""
        return []

    return plan


def test_built_in_methods_are_found_by_file() -> None:
    assert {"cross-modal-adapter", "full", "partial", "projection"} <= set(method_names())
    for name in method_names():
        method = get_method(name)
        assert method.name == name
        assert method.doc
        assert method_of(make_config(name)) is method


def test_listing_methods_does_not_import_torch() -> None:
    code = (
        "import sys; from crossadapt.adapters.registry import method_names; "
        "assert 'full' in method_names(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_option_of_every_method_is_documented() -> None:
    """The text under each field is the help of the command line."""
    import ast
    import inspect
    import itertools
    from dataclasses import fields

    for name in method_names():
        config = get_method(name).config_class
        body = ast.parse(inspect.getsource(config)).body[0].body
        documented = {
            a.target.id
            for a, b in itertools.pairwise(body)
            if isinstance(a, ast.AnnAssign)
            and isinstance(b, ast.Expr)
            and isinstance(b.value, ast.Constant)
        }
        assert documented == {f.name for f in fields(config)}, name


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no method 'ful'(.|\n)*did you mean 'full'"):
        get_method("ful")


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no option 'drop_out'(.|\n)*did you mean 'dropout'"):
        make_config("cross-modal-adapter", {"drop_out": 0.1})
    with pytest.raises(UserError, match="takes no options"):
        make_config("projection", {"r": 1})


def test_options_are_fitted_to_their_types(sample) -> None:
    config = make_config("sample", {"size": 3, "rate": 1, "names": ["x"], "limit": None})
    assert config == SampleConfig(size=3, rate=1.0, names=("x",), limit=None)
    assert isinstance(config.rate, float)
    assert make_config("sample", {"size": 3, "limit": 5}).limit == 5


@pytest.mark.parametrize(
    "options",
    [
        {"size": "3"},
        {"size": True},
        {"size": 3.0},
        {"size": 3, "rate": "fast"},
        {"size": 3, "names": "x"},
        {"size": 3, "names": [1]},
        {"size": 3, "mode": "c"},
        {"size": 3, "limit": "x"},
        {"size": 3, "flag": 1},
        {},
    ],
)
def test_wrong_types_and_missing_options_are_errors(sample, options) -> None:
    with pytest.raises(UserError):
        make_config("sample", options)


def test_a_config_that_no_method_registered_is_an_error() -> None:
    @dataclass(frozen=True)
    class Stray:
        pass

    with pytest.raises(UserError, match="Stray is not the config"):
        method_of(Stray())


def test_registering_twice_or_mutable_is_refused(sample) -> None:
    with pytest.raises(ValueError, match="registered twice"):
        register("sample", CrossModalAdapterConfig)(sample)
    with pytest.raises(ValueError, match="registered twice"):
        register("other", SampleConfig)(sample)

    @dataclass
    class Mutable:
        pass

    with pytest.raises(ValueError, match="frozen dataclass"):
        register("mutable", Mutable)(sample)


def test_peft_methods_come_from_the_bridge() -> None:
    pytest.importorskip("peft")
    method = get_method("peft:lora")
    assert method.name == "peft:lora"
    assert method_of(make_config("peft:lora")).name == "peft:lora"
