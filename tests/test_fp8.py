"""Linears with fp8 weights and activations against what the published code computes."""

from __future__ import annotations

import pytest
import torch

from engine import fp8
from engine.fp8 import KINDS, SmoothLinear, TensorLinear, choose_product, codes, emulated_product, native_product
from tests.magi_cases import case, names

SCHEMES = {"T": TensorLinear, "S": SmoothLinear}


def linear_of(weights):
    """The linear of a case's weights, strictly."""
    made = SCHEMES["S" if "smooth_scale" in weights else "T"]
    _, outputs, inputs = weights["weight"].shape
    with torch.device("meta"):
        linear = made(inputs, outputs)
    linear.load_state_dict(weights, strict=True, assign=True)
    return linear


def scheme(c, group, kind):
    return {name[2:]: x for name, x in c[group].items() if name.startswith(f"{kind}.")}


def random_linear(kind, inputs=32, outputs=48):
    random = torch.Generator().manual_seed(3)
    linear = SCHEMES[kind](inputs, outputs)
    linear.weight.copy_(torch.randn(1, outputs, inputs, generator=random) * 100)
    linear.weight_scale.fill_(0.003)
    linear.input_scale.fill_(0.02)
    if kind == "S":
        linear.smooth_scale.copy_(0.01 + torch.rand(1, inputs, generator=random))
    return linear


@pytest.mark.parametrize("name", names("fp8_linear"))
@pytest.mark.parametrize("kind", SCHEMES)
def test_against_the_published_linear(name, kind):
    c = case(name)
    linear, x = linear_of(scheme(c, "weights", kind)), c["in"][f"{kind}.x"]
    scale = linear.input_scale if kind == "T" else linear.smooth_scale[0]
    assert torch.equal(codes(x, scale).view(torch.uint8), c["out"][f"{kind}.x_fp8"])
    out = linear(x)
    assert out.dtype == torch.bfloat16
    c.check(out, f"{kind}.y")


@pytest.mark.parametrize("kind", SCHEMES)
def test_product_is_that_of_the_decoded_numbers(kind):
    linear = random_linear(kind)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    scale = linear.input_scale[0] if kind == "T" else linear.smooth_scale[0]
    decoded = (x.double() / scale).clamp(-448, 448).bfloat16().to(torch.float8_e4m3fn).double()
    want = decoded @ linear.weight[0].double().T * float(linear.input_scale[0]) * float(linear.weight_scale)
    torch.testing.assert_close(linear(x).double(), want, rtol=2**-8, atol=1e-4)


def test_large_numbers_are_clamped_and_rounded_through_bf16():
    x = torch.tensor([1e6, -1e6, 1.0625, float(2**-9)])
    assert codes(x, torch.ones(1)).float().tolist() == [448.0, -448.0, 1.0, 2**-9]
    # 1.0629 is nearer to 1.125 than to 1; bf16 makes it 1.0625, which e4m3 rounds to the even 1.
    assert codes(torch.tensor([1.0629]), torch.ones(1)).float().item() == 1.0


def test_fp8_units_multiply_where_there_are_some(monkeypatch):
    device = torch.device("cuda")
    for capability, product in (((8, 0), emulated_product), ((8, 9), native_product), ((9, 0), native_product)):
        monkeypatch.setattr(fp8.torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert choose_product(device) is product
    assert choose_product(torch.device("cpu")) is emulated_product


def test_both_products_agree():
    """PyTorch computes the native one on a CPU too, by another way."""
    linear = random_linear("T")
    x = codes(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)), linear.input_scale)
    scale = linear.input_scale[:1] * linear.weight_scale
    native, emulated = (p(x, linear.weight[0], scale) for p in (native_product, emulated_product))
    torch.testing.assert_close(native, emulated, rtol=2**-7, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", SCHEMES)
def test_on_fp8_units(kind):
    if torch.cuda.get_device_capability() < fp8.UNITS:
        pytest.skip("this GPU does not multiply fp8")
    linear = random_linear(kind)
    x = torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(linear.cuda()(x.cuda()).cpu(), linear.cpu()(x), rtol=2**-7, atol=1e-3)


def test_nothing_but_the_stored_tensors():
    for kind in KINDS:
        linear = kind(16, 32)
        assert not list(linear.parameters())
        assert linear.weight.dtype == torch.float8_e4m3fn
        assert {name for name, x in linear.state_dict().items() if x.dtype == torch.float32} >= {
            "weight_scale",
            "input_scale",
        }
