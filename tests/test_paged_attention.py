"""Paged attention: the reference against a softmax written out, and each kernel against the reference.

The Triton kernel runs here in Triton's interpreter, in a process of its own (see tests/paged_cases.py); on a GPU,
`pytest -m gpu`, it and flash-attn run for real.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks import paged_attention as benchmark
from engine import paged_attention
from engine.paged_attention import attend_flash, attend_reference, choose, paged_attend
from tests.interpreter import interpreted_outputs, run_python
from tests.paged_cases import CASES, TOGETHER, Case, alone

CUDA, BF16, FP8 = torch.device("cuda"), torch.bfloat16, torch.float8_e4m3fn
needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed: pip install triton")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
# One step of the output's precision, relative.
STEPS = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def dense(inputs: dict[str, Tensor]) -> Tensor:
    """World by world and head by head, in fp64: softmax(q k^T / sqrt(d)) v."""
    out = torch.zeros_like(inputs["q"], dtype=torch.float64)
    for n, count in enumerate(inputs["counts"].tolist()):
        row = inputs["pages"][n].tolist()
        pages = row[len(row) - count :]
        for head in range(out.shape[2]):
            k, v = (
                torch.cat(
                    [*(page_of(inputs, name, p, head) for p in pages), inputs[f"own_{name}"][n, :, head].double()]
                )
                for name in ("keys", "values")
            )
            weights = (inputs["q"][n, :, head].double() @ k.T / math.sqrt(k.shape[1])).exp()
            out[n, :, head] = weights @ v / weights.sum(1, keepdim=True)
    return out


def page_of(inputs: dict[str, Tensor], name: str, page: int, head: int) -> Tensor:
    scales = inputs.get(f"{name.removesuffix('s')}_scales")
    codes = inputs[name][page, :, head].double()
    return codes if scales is None else codes * scales[page, :, head].double()


def near(made: Tensor, true: Tensor) -> None:
    step = STEPS[made.dtype]
    torch.testing.assert_close(made.double(), true.double(), rtol=step, atol=step / 50 + 1e-6)


def relative(made: Tensor, true: Tensor) -> float:
    assert made.isfinite().all()
    return float((made.float() - true.float()).norm() / true.float().norm())


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[str, Tensor]:
    """What the Triton kernel makes of every case, in Triton's interpreter."""
    return interpreted_outputs("tests.paged_cases", tmp_path_factory.mktemp("paged") / "outputs.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_a_softmax_over_the_real_pages_and_the_block(name):
    inputs = CASES[name].inputs()
    near(paged_attend(**inputs), dense(inputs))


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_triton_kernel_agrees_with_the_reference(name, interpreted):
    near(interpreted[name], attend_reference(**CASES[name].inputs()))


@needs_triton
@pytest.mark.parametrize("name", TOGETHER)
def test_a_world_has_the_same_bits_alone_and_with_a_shorter_table(name, interpreted):
    together = interpreted[name]
    for row in range(len(together)):
        assert torch.equal(interpreted[f"{name}, world {row} alone"][0], together[row])


def test_pages_lie_head_by_head_in_memory():
    """Or the cases would not show that strides are heeded."""
    inputs = CASES["small"].inputs()
    assert inputs["keys"].stride()[2] > inputs["keys"].stride()[0] > inputs["keys"].stride()[1]
    assert not inputs["own_keys"].is_contiguous()
    rows = {name: x.contiguous() for name, x in inputs.items()}
    near(attend_reference(**rows), attend_reference(**inputs))


def kvcache_written_out(
    q, keys, values, cache_seqlens=None, block_table=None, num_splits=0, return_softmax_lse=False
) -> tuple[Tensor, Tensor]:
    """What flash-attn 2 documents of `flash_attn_with_kvcache`, and the checks that it makes."""
    assert num_splits == 1
    assert return_softmax_lse
    assert q.dtype == keys.dtype == values.dtype == BF16
    if block_table is not None:
        assert keys.shape[1] % 256 == 0
        assert block_table.dtype == cache_seqlens.dtype == torch.int32
        seen = torch.arange(block_table.shape[1] * keys.shape[1]) < cache_seqlens[:, None]
        keys, values = (x[block_table].flatten(1, 2) for x in (keys, values))
    else:
        seen = torch.ones(keys.shape[:2], dtype=torch.bool)
    values = values.float().masked_fill(~seen[..., None, None], 0)
    scores = torch.einsum("nqhd,nkhd->nhqk", q.float(), keys.float()) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    weights = scores.softmax(-1).nan_to_num()  # a row without keys is zero, its log-sum-exp infinite
    lse = scores.logsumexp(-1)
    return torch.einsum("nhqk,nkhd->nqhd", weights, values).to(q.dtype), lse.masked_fill(lse == -torch.inf, torch.inf)


@pytest.mark.parametrize("counts", [(2, 0, 1), (0, 0)])
def test_history_and_block_are_joined_by_their_log_sum_exps(counts, monkeypatch):
    """The kernel itself needs a GPU: here the same calls are written out."""
    module = SimpleNamespace(flash_attn_with_kvcache=kvcache_written_out)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    for table in (2, max(counts)):
        inputs = Case(counts, tokens=256, width=8, heads=1, queries=6, own=7, table=table, dtype=BF16).inputs()
        made, true = attend_flash(**inputs), attend_reference(**inputs)
        assert float((made - true).norm() / true.norm()) < 5e-3


CHOICES = [
    # device, dtype, width, tokens, code, installed, capability -> kernel
    ("cuda", BF16, 128, 1560, None, {"triton", "flash_attn"}, (9, 0), "attend_triton"),
    ("cuda", BF16, 64, 48, None, {"triton", "flash_attn"}, (9, 0), "attend_triton"),
    ("cuda", BF16, 128, 880, None, {"triton", "flash_attn"}, (9, 0), "attend_triton"),
    ("cuda", BF16, 128, 880, None, {"flash_attn"}, (9, 0), None),
    ("cuda", BF16, 128, 1536, None, {"triton", "flash_attn"}, (9, 0), "attend_flash"),
    ("cuda", torch.float16, 128, 1536, None, {"flash_attn"}, (8, 0), "attend_flash"),
    ("cuda", torch.float16, 128, 1536, None, {"triton", "flash_attn"}, (7, 5), "attend_triton"),
    ("cuda", BF16, 60, 1536, None, {"triton", "flash_attn"}, (9, 0), "attend_triton"),
    ("cuda", BF16, 128, 1536, torch.int8, {"triton", "flash_attn"}, (8, 0), "attend_triton"),
    ("cuda", BF16, 128, 1536, FP8, {"triton", "flash_attn"}, (8, 9), "attend_triton"),
    ("cuda", BF16, 128, 1536, FP8, {"triton", "flash_attn"}, (8, 6), None),
    ("cuda", torch.float32, 128, 1536, None, {"triton", "flash_attn"}, (9, 0), None),
    ("cuda", BF16, 128, 1560, None, set(), (9, 0), None),
    ("cpu", BF16, 128, 1536, None, {"triton", "flash_attn"}, (9, 0), None),
]


@needs_triton
@pytest.mark.parametrize(("device", "dtype", "width", "tokens", "code", "installed", "capability", "expected"), CHOICES)
def test_a_kernel_is_chosen_that_reads_such_pages(
    device, dtype, width, tokens, code, installed, capability, expected, monkeypatch
):
    monkeypatch.setattr(paged_attention, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    kernel = choose.__wrapped__(torch.device(device), dtype, width, tokens, code)
    assert (kernel.__name__ if kernel else None) == expected


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q", lambda x: x[0], r"q \[5, 2, 16\]: expected 4 dimensions"),
        ("own_keys", lambda x: x[:, :0], r"own_keys \[3, 0, 2, 16\] .*: expected \[3, 1, 2, 16\]"),
        ("own_values", lambda x: x[:, 1:], r"own_values \[3, 4, 2, 16\] .*: expected \[3, 5, 2, 16\]"),
        ("values", lambda x: x[..., 1:], r"values \[13, 5, 2, 15\] .*: expected \[13, 5, 2, 16\]"),
        ("pages", lambda x: x[1:], r"pages \[2, 4\] .*: expected \[3, 4\]"),
        ("pages", lambda x: x.float(), r"pages or counts of torch.float32: expected torch.int32 or"),
        ("counts", lambda x: x[:2], r"counts \[2\] .*: expected \[3\]"),
        ("q", lambda x: x.to(BF16), r"keys or values of torch.float32 with queries of torch.bfloat16"),
        ("keys", lambda x: x.to(torch.int8), r"torch.int8 keys without scales .*: give both with 8-bit codes"),
        ("key_scales", lambda _: torch.ones(13, 1, 2, 1), r"keys with scales .*: give both with 8-bit codes"),
        ("key_scales", lambda _: torch.ones(13, 1, 2, 3), r"key_scales \[13, 1, 2, 3\] .*: expected \[13, 1, 2, 16\]"),
    ],
)
def test_what_does_not_fit_is_refused(name, change, message):
    inputs = CASES["small"].inputs()
    inputs[name] = change(inputs.get(name))
    with pytest.raises(ValueError, match=message):
        paged_attend(**inputs)


COMPILE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from types import SimpleNamespace
from engine.paged_kernel import attend_pages, launch
from tests.paged_cases import Case

target = GPUTarget("cuda", {capability}, 32)
device = dict(get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda _: 0)
driver.set_active(SimpleNamespace(**device))
for tokens, width, code in ((1560, 128, None), (48, 64, torch.int8)):
    case = Case(counts=(1,), table=1, tokens=tokens, width=width, heads=1, code=code, dtype=torch.bfloat16)
    given = {{"key_scales": None, "value_scales": None, **case.inputs()}}
    grid, arguments, options = launch(torch.empty_like(given["q"]), **given)
    kernel = attend_pages.warmup(*arguments, grid=grid, **options)
    assert kernel.metadata.shared <= 99 * 1024, kernel.metadata.shared
    assert "mma" in kernel.asm["ptx"]
"""


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_triton_kernel_compiles_for_gpus_that_are_not_here(capability, tmp_path):
    """With tensor cores, and in less shared memory than the smallest of them has."""
    code = COMPILE.format(capability=capability)
    run = run_python("-c", code, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert run.returncode == 0, run.stderr


def test_the_benchmark_needs_cuda(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["paged_attention"])
    with pytest.raises(SystemExit) as left:
        benchmark.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines() == ["benchmarks.paged_attention needs a CUDA GPU: none is here"]


@pytest.mark.parametrize("ragged", [True, False])
def test_the_benchmark_gathers_what_the_reference_reads(ragged):
    shape = benchmark.Shape(tokens=6, heads=2, width=16, pages=3, frames=2)
    ways = benchmark.contenders(shape, 4, ragged, torch.device("cpu"))
    assert list(ways) == ["gather", "gather_again"]
    inputs = benchmark.drawn(shape, 4, ragged, torch.device("cpu"))
    for way in ways.values():
        assert relative(way(), attend_reference(**inputs)) < 0.01


def test_the_benchmark_says_none_of_ways_that_there_are_not():
    shape, config = benchmark.Shape(tokens=6, heads=2, width=16, pages=3, frames=2), benchmark.PagedConfig(lap_ms=0.1)
    row = benchmark.measure(config, shape, 2, True, torch.device("cpu"))
    assert min(row["gather_us"], row["gather_again_us"]) > 0
    assert {value for name, value in row.items() if not name.startswith("gather")} == {None}
    with pytest.raises(ValueError, match="expected at least one N"):
        benchmark.PagedConfig(worlds=())


REAL = [
    Case(counts=(7, 0, 3), table=7, tokens=1560, heads=12, width=128, dtype=BF16),
    Case(counts=tuple(n % 13 for n in range(64)), table=12, tokens=48, heads=4, width=64, dtype=BF16),
]


@pytest.mark.gpu
@needs_cuda
@needs_triton
@pytest.mark.parametrize("case", REAL, ids=["1560 tokens", "64 worlds"])
@pytest.mark.parametrize(("code", "per_channel"), [(None, True), (torch.int8, True), (torch.int8, False), (FP8, True)])
def test_the_triton_kernel_agrees_on_a_gpu(case, code, per_channel):
    kernel = choose(CUDA, BF16, case.width, case.tokens, code)
    if kernel is None:
        pytest.skip("no kernel reads fp8 pages on this GPU")
    inputs = replace(case, code=code, per_channel=per_channel).inputs("cuda")
    assert relative(paged_attend(**inputs, kernel=kernel), attend_reference(**inputs)) < 0.01


@pytest.mark.gpu
@needs_cuda
@needs_triton
@pytest.mark.parametrize("case", REAL, ids=["1560 tokens", "64 worlds"])
def test_a_world_has_the_same_bits_alone_on_a_gpu(case):
    inputs, kernel = case.inputs("cuda"), choose(CUDA, BF16, case.width, case.tokens)
    together = paged_attend(**inputs, kernel=kernel)
    for row in range(0, len(together), max(1, len(together) // 6)):
        assert torch.equal(paged_attend(**alone(inputs, row), kernel=kernel)[0], together[row])


@pytest.mark.gpu
@needs_cuda
@pytest.mark.skipif(not find_spec("flash_attn"), reason="flash-attn is not installed: pip install flash-attn")
def test_flash_attn_agrees_on_a_gpu_and_gives_a_world_the_same_bits_alone():
    case = Case(counts=(7, 0, 3), table=7, tokens=1536, heads=12, width=128, dtype=BF16)
    inputs = case.inputs("cuda")
    assert choose(CUDA, BF16, case.width, case.tokens) is attend_flash
    together = attend_flash(**inputs)
    assert relative(together, attend_reference(**inputs)) < 0.01
    for row in range(3):
        assert torch.equal(attend_flash(**alone(inputs, row))[0], together[row])
