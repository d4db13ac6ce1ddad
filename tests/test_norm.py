"""The VAE's activation: the reference against its formula, and the Triton kernel against the reference.

The kernel runs here in Triton's interpreter, in a process of its own; on a GPU, `pytest -m gpu`, for real.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from engine.codecs.norm import activate_reference, choose
from tests.interpreter import interpreted_outputs, run_python
from tests.norm_cases import CASES, PAST, inputs

TOLERANCE = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.06}
needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")


def expected(name: str) -> Tensor:
    """silu(x / |x| sqrt(C) gamma) in float64, behind frames that are as they were."""
    x, gamma, room = (tensor.double() for tensor in inputs(name))
    length = x.pow(2).sum(1, keepdim=True).sqrt().clamp_min(1e-12)
    y = x / length * x.shape[1] ** 0.5 * gamma
    return torch.cat([room[:, :, :PAST], y * y.sigmoid()], dim=2)


def near(got: Tensor, name: str) -> None:
    torch.testing.assert_close(got.double(), expected(name), atol=TOLERANCE[got.dtype], rtol=0)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[str, Tensor]:
    """What the kernel makes of every case, in Triton's interpreter."""
    return interpreted_outputs("tests.norm_cases", tmp_path_factory.mktemp("norm") / "outputs.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_the_formula(name):
    x, gamma, room = inputs(name)
    activate_reference(x, gamma, room[:, :, PAST:])
    near(room, name)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_formula_and_writes_nowhere_else(name, interpreted):
    near(interpreted[name], name)


def test_a_cpu_and_float32_get_the_reference():
    assert choose(torch.device("cpu"), torch.bfloat16) is activate_reference
    assert choose(torch.device("cuda"), torch.float32) is activate_reference


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from types import SimpleNamespace
from engine.codecs.norm_kernel import launch, norm_silu
from tests.norm_cases import PAST, inputs

target = GPUTarget("cuda", {capability}, 32)
device = dict(get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda _: 0)
driver.set_active(SimpleNamespace(**device))
for name in ("bf16", "widest"):
    x, gamma, room = inputs(name)
    grid, arguments, options = launch(x, gamma, room[:, :, PAST:])
    kernel = norm_silu.warmup(*arguments, grid=grid, **options)
    assert ".local" not in kernel.asm["ptx"], "registers are spilled"
    assert kernel.metadata.shared <= 48 * 1024, kernel.metadata.shared
"""


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_for_gpus_that_are_not_here(capability, tmp_path):
    code = COMPILE.format(capability=capability)
    run = run_python("-c", code, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert run.returncode == 0, run.stderr


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_formula_on_a_gpu(name):
    from engine.codecs.norm_kernel import activate_triton

    x, gamma, room = inputs(name, "cuda")
    activate_triton(x, gamma, room[:, :, PAST:])
    near(room.cpu(), name)
