import pytest
import torch

from crossadapt.backbones import precision as module
from crossadapt.backbones.precision import choose_precision
from crossadapt.errors import UserError


@pytest.mark.parametrize(("has", "name"), [(True, "bf16"), (False, "fp32")])
def test_the_cpu_decides(monkeypatch, has, name):
    monkeypatch.setattr(module, "_cpu_has_bf16", lambda: has)
    assert choose_precision("auto", "cpu").name == name
    assert choose_precision("fp32", "cpu").name == "fp32"
    assert choose_precision("bf16", "cpu").name == "bf16"


def test_only_matrix_products_change():
    x, weight = torch.randn(2, 4), torch.randn(4, 4)
    with choose_precision("bf16").autocast():
        assert (x @ weight).dtype == torch.bfloat16
    with choose_precision("fp32").autocast():
        assert (x @ weight).dtype == torch.float32


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="unknown precision 'bf61'") as error:
        choose_precision("bf61")
    assert "did you mean 'bf16'" in str(error.value)
