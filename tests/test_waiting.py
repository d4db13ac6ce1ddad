"""Inside a block the host asks the device for nothing and hands it nothing that it would have to wait for.

Run on the meta device: it has no numbers, so whatever reads one (item, bool, cpu, a mask as an index) raises; what is
sent there, other than by the engine's two functions that use pinned memory on CUDA, is caught on its way.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.meta import META
from benchmarks.models import random_codec, spec_of, unfilled_codec
from engine import PRESETS, Condition, Engine, Start, WorldModel, runner
from engine.kv import paged, pool
from engine.models.heads import Silent
from engine.models.wan import WanDiT

aten = torch.ops.aten
SENDS = {aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class Waits(TorchDispatchMode):
    """Raises where tensors of the host and of the device meet: on CUDA that is a copy that somebody waits for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        places = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim}
        target = kwargs.get("device")
        moved = func is aten._to_copy.default and target is not None and torch.device(target).type not in places
        if moved or (func in SENDS and len(places) > 1):
            raise AssertionError(f"{func} between the host and the device")
        return func(*args, **kwargs)


class Lists(TorchFunctionMode):
    """Raises where a tensor of the device is indexed by a list, or made of one: both are sent, and waited for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(i, list | np.ndarray) for i in index), "a list as an index"
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == META:
            raise AssertionError("a tensor made of numbers of the host")
        return func(*args, **kwargs)


@contextmanager
def no_waits():
    with Waits(), Lists():
        yield


def arrive(x, device):
    """What `send` and `upload` do, to a device without numbers."""
    shape = x.shape if isinstance(x, Tensor) else np.shape(x)
    return torch.empty(shape, dtype=x.dtype if isinstance(x, Tensor) else torch.int64, device=META)


def engine_on_meta(preset: str, num_worlds: int, codec: str = "vae", **options) -> Engine:
    """An engine of tiny or full width and two layers, whose device is meta."""
    run = PRESETS[preset]
    model = "tiny" if not run.mode else preset
    spec = spec_of(model, run, codec, (32, 48), "published")
    if run.mode:
        module = replace(spec.denoiser.actions, layers=(0,))
        spec = replace(spec, denoiser=replace(spec.denoiser, layers=2, actions=module))
    with META:
        denoiser = WanDiT(spec.denoiser).requires_grad_(False)
    made = random_codec(spec, codec, META, torch.float32) if codec == "preview" else unfilled_codec(spec.codec)
    return Engine(WorldModel(spec, denoiser, made, Silent(), META, torch.float32), max_worlds=num_worlds, **options)


def context_for(sim: Engine, value: float = 0.0):
    sizes, (_, h, w) = sim.spec.denoiser, sim.spec.latent
    text = torch.full((4, sizes.text_width), value) if sizes.text_tokens else None
    image = torch.zeros(sizes.image_tokens, sizes.image_width) if sizes.image_tokens else None
    beside = torch.zeros(4, sizes.in_channels - 16, h, w) if sizes.image_tokens else None
    return sim.contextualise(text, image, beside)


def act(sim: Engine, world):
    rows = np.zeros((sim.spec.frames_at(world.table.length), sim.spec.actions.width), np.float32)
    return Condition.of(rows)


@pytest.fixture(autouse=True)
def _pinned(monkeypatch):
    """`send` and `upload` are the ways by which nobody waits."""
    for module, name in ((pool, "upload"), (paged, "upload"), (runner, "send")):
        monkeypatch.setattr(module, name, arrive)


@pytest.mark.parametrize(
    ("preset", "num_worlds", "options", "codec"),
    [
        ("longlive", 1, {}, "vae"),
        ("longlive", 3, {"deterministic": False}, "vae"),
        ("longlive-infinity", 3, {}, "tiny"),
        ("longlive", 3, {"kv_dtype": "int8"}, "preview"),
    ],
)
def test_a_block_waits_for_nothing(preset, num_worlds, options, codec):
    sim = engine_on_meta(preset, num_worlds, codec, **options)
    worlds = [sim.open(Start.of(context_for(sim)), seed) for seed in range(num_worlds)]
    for _ in range(4):
        sim.step(worlds, [act(sim, world) for world in worlds])
    with no_waits():
        blocks = sim.step(worlds, [act(sim, world) for world in worlds])
    assert all(block.pictures.is_meta and block.pictures.shape == (12, 32, 48, 3) for block in blocks)


@pytest.mark.parametrize("num_worlds", [1, 2])
def test_nor_does_one_of_a_game(num_worlds):
    sim = engine_on_meta("matrix-game-2-universal", num_worlds, "preview")
    worlds = [sim.open(Start.of(context_for(sim)), seed) for seed in range(num_worlds)]
    for _ in range(3):
        sim.step(worlds, [act(sim, world) for world in worlds])
    with no_waits():
        sim.step(worlds, [act(sim, world) for world in worlds])


@pytest.mark.parametrize("codec", ["vae", "tiny"])
def test_nor_one_of_worlds_of_different_ages(codec):
    sim = engine_on_meta("self-forcing", 3, codec, deterministic=False)
    first = sim.open(Start.of(context_for(sim)), 0)
    sim.step([first], [act(sim, first)])
    worlds = [first, *(sim.open(Start.of(context_for(sim)), seed) for seed in (1, 2))]
    with no_waits():
        sim.step(worlds, [act(sim, world) for world in worlds])


@pytest.mark.parametrize("preset", ["self-forcing", "longlive"])
def test_nor_one_with_a_new_prompt(preset):
    sim = engine_on_meta(preset, 1, "preview")
    world = sim.open(Start.of(context_for(sim)), 0)
    for _ in range(5):
        sim.step([world], [act(sim, world)])
    condition = replace(act(sim, world), prompt=context_for(sim, 1.0))
    with no_waits():
        sim.step([world], [condition])


@pytest.mark.parametrize("wait", ["item", "cpu", "to", "list", "tensor", "mask", "index"])
def test_the_test_finds_what_waits(wait):
    x = torch.zeros(4, 2, device=META)
    ways = {
        "item": lambda: x.sum().item(),
        "cpu": lambda: x.cpu(),
        "to": lambda: torch.zeros(3).to(META),
        "list": lambda: x[[0, 2]],
        "tensor": lambda: torch.tensor([1.0, 2.0], device=META),
        "mask": lambda: x[x > 0],
        "index": lambda: x[torch.tensor([0, 1])],
    }
    with no_waits(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        ways[wait]()
