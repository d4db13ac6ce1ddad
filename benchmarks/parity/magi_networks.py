"""Recorded single runs of MAGI-1's denoiser: one without a cache, successive cached ones, and its fp8 linears.

Legend: N worlds, c chunks, C T H W latent, S tokens of a chunk, L tokens of a text, D width.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.parity.case import Case
from benchmarks.parity.magi import load, network_of
from benchmarks.parity.magi_view import RangesView
from engine.conditioning import Condition, Context
from engine.fp8 import SmoothLinear, TensorLinear, codes
from engine.models.magi import MagiDiT


def replay_forward(case: Case, device: str = "cpu") -> None:
    """Replay three calls on one input: with texts, told that they were dropped, and every chunk alone."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        given = on(device, case["in"])
        network = network_of(load(case, Path(folder), device, size_of(given["x"])))
        x, times, ranges = given["x"], given["t"], [tuple(pair) for pair in case["in"]["kv_range_tokens"].tolist()]
        chunks, width = contexts_of(network, given), x.shape[2] // times.shape[1]
        for name, dropped in (("text", False), ("null", True)):
            watch = Watch(network)
            velocity = predict(case, network, x, times, (chunks,), RangesView(ranges), dropped)
            compare_all(case, name, {"velocity": velocity, **watch.take()})
        packed = [network.y_embedder(rows[0][keep[0] > 0][None])[0] for rows, keep in rows_of(given)]
        case.compare("text.y_xattn_flat", torch.cat(packed))
        case.compare("null.y_xattn_flat", torch.cat(packed))
        apart, rows = torch.cat(x.split(width, dim=2)), tuple((context,) for context in chunks)
        watch, own = Watch(network), RangesView([(0, width * tokens_of(network, x))])
        velocity = predict(case, network, apart, times.T, rows, own, True)
        compare_all(case, "alone", {"velocity": velocity, **watch.take()})


def replay_cached(case: Case, device: str = "cpu") -> None:
    """Replay calls that share a cache, each over the chunks from where it is sliced."""
    call, past = case.info["call"], dict[int, tuple[Tensor, Tensor]]()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        network = network_of(load(case, Path(folder), device, size_of(case["in"]["call0.x"])))
        for n, told in enumerate(call["calls"]):
            given = on(device, part(case["in"], f"call{n}."))
            size = tokens_of(network, given["x"]) * call["chunk_width"]
            ranges = [(first * size, last * size) for first, last in given["kv_range_chunks"].tolist()]
            view = RangesView(ranges, past, told["slice_point"] * size)
            first, chunks = told["slice_point"] * call["chunk_width"], contexts_of(network, given)
            dropped = call["dropped_flag"]
            velocity = predict(case, network, given["x"], given["t"], (chunks,), view, dropped, first)
            case.compare(f"call{n}.velocity", velocity)
            for layer, pair in view.seen.items():
                case.compare(f"call{n}.kv_cache.layer{layer}", torch.cat(pair, dim=-1)[0])
            past = view.seen


def replay_fp8(case: Case, device: str = "cpu") -> None:
    """Replay the two fp8 linears: the codes of their inputs, and what they make."""
    for scheme, kind in (("T", TensorLinear), ("S", SmoothLinear)):
        weights, x = part(case["weights"], f"{scheme}."), case["in"][f"{scheme}.x"].to(device)
        _, outputs, inputs = weights["weight"].shape
        with torch.device("meta"):
            linear = kind(inputs, outputs)
        linear.load_state_dict(weights, strict=True, assign=True)
        linear.to(device)
        scale = linear.input_scale if isinstance(linear, TensorLinear) else linear.smooth_scale[0]
        case.compare(f"{scheme}.x_fp8", codes(x, scale).view(torch.uint8))
        case.compare(f"{scheme}.y", linear(x))


class Watch:
    """Keeps what a denoiser makes on the way in its next run, by the names of recordings."""

    def __init__(self, network: MagiDiT):
        self.network, self.seen, self.shared = network, dict[str, Tensor](), list[Any]()
        self.handles = [network.x_embedder.register_forward_hook(self._note("x_embed"))]
        self.handles += [layer.register_forward_hook(self._note(f"layer{i}")) for i, layer in enumerate(network.layers)]

    def _note(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self.seen[name] = output.transpose(0, 1)
            self.shared += inputs[1:]

        return hook

    def take(self) -> dict[str, Tensor]:
        """What was seen."""
        for handle in self.handles:
            handle.remove()
        shared = self.shared[0]
        rotary, chunks = shared.rotary, shared.condition.shape[1]
        turns = torch.cat([rotary.sin, rotary.cos], dim=-1)[0, :, 0]
        tokens = len(self.seen["x_embed"]) // chunks
        places = torch.arange(chunks).repeat_interleave(tokens)[:, None]
        return {**self.seen, "condition": shared.condition, "condition_map": places, "rope": turns}


def predict(
    case: Case,
    network: MagiDiT,
    x: Tensor,
    times: Tensor,
    chunks: tuple[tuple[Context, ...], ...],
    view: RangesView,
    dropped: bool,
    first: int = 0,
) -> Tensor:
    """The velocity [N, C, T, H, W] of latents as long, at times [N, c], from latent frame `first` on."""
    n, _, frames = x.shape[:3]
    none = torch.zeros(n, frames, 0, device=x.device)
    size = step_size(case) if network.spec.distill else None
    flags = torch.full(times.shape, dropped, device=x.device)
    told = Condition(none, none, chunks=chunks, dropped=flags, step_size=size)
    positions = torch.arange(first, first + frames, device=x.device).expand(n, -1)
    each = times.repeat_interleave(frames // times.shape[1], dim=1)
    velocity, _ = network(x.transpose(1, 2), each, positions, told, view)
    return velocity.transpose(1, 2)


def step_size(case: Case) -> float:
    """What a distilled model is told of its steps: half of as many as there are, of 12 by how long each is."""
    call = case.info["call"]
    steps = call.get("num_steps", case.info["config"]["runtime_config"]["num_steps"])
    return 8 / call.get("distill_interval", 1) if steps == 12 else steps / 2


def compare_all(case: Case, call: str, made: dict[str, Tensor]) -> None:
    for name, x in made.items():
        case.compare(f"{call}.{name}", x)


def contexts_of(network: MagiDiT, given: dict[str, Tensor]) -> tuple[Context, ...]:
    """What each chunk reads: the rows that its mask leaves."""
    return tuple(network.contextualise(rows[0][keep[0] > 0]) for rows, keep in rows_of(given))


def rows_of(given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Texts [1, L, D] and masks [1, L] of all chunks."""
    return list(zip(given["y"], given["mask"], strict=True))


def tokens_of(network: MagiDiT, x: Tensor) -> int:
    """Tokens of a latent frame."""
    return x.shape[-2] * x.shape[-1] // network.spec.patch**2


def size_of(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, without that."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def on(device: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.to(device) for name, x in tensors.items()}
