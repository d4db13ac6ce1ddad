"""A codec on a rank of its own: the others hand it latents and go on with the next block while it decodes.

The last rank of the default group decodes, the others denoise. Every request is made of all ranks: those that denoise
run it on an engine whose codec is a `CodecBeside` and then say `done()`; the last one calls `DecodingRank.serve()`,
which takes what the first rank sends until it is done, and returns frames. Latents are sent once a block, without
waiting, so a block's frames are there while the next one is in the making; a caller that needs each block's frames
before it acts gains nothing. Worlds keep the number of their codec state, which lives with the codec; `whole` and
`share` fetch and give it, for snapshots.

Messages are a length and a safetensors blob; nothing is unpickled. Knows torch.distributed and codecs; no worlds.

Shapes: N worlds, T frames, F latent frames, C channels, H W pixels, h w latents.
"""

from __future__ import annotations

import itertools
import json
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from engine.parallel.agreement import agree, wire
from engine.parallel.layout import Exchange
from engine.parallel.mesh import Mesh, Ranks, ranks_of
from engine.spec import WorldSpec

# Messages that may wait for the codec, two a block; then the ranks that denoise wait too.
QUEUE = 4


@dataclass(frozen=True, eq=False)
class StateThere:
    """A world's codec state that the codec's rank keeps, by its number."""

    number: int


def denoising_mesh(exchange: Exchange, device: str | torch.device = "cpu") -> Mesh | None:
    """The mesh of all ranks but the last, which gets None; all ranks of the default group call this together.

    Raises:
        ValueError: the group has not one rank more than the exchange.
    """
    there = dist.get_world_size() if dist.is_initialized() else 0
    if there != exchange.ranks + 1:
        raise ValueError(
            f"{exchange} and a rank for the codec need {exchange.ranks + 1} ranks, and the process group has {there}: "
            "start as many, or take another exchange"
        )
    agree({"exchange beside a codec": str(exchange)})
    members = tuple(range(exchange.ranks))
    everyone = dist.new_group(list(members))
    layout = torch.arange(exchange.ranks).view(exchange.groups, exchange.ulysses)
    made = DeviceMesh(wire().type, layout, mesh_dim_names=("outer", "inner"))
    if dist.get_rank() == exchange.ranks:
        return None
    inner, outer = (ranks_of(made.get_group(name)) for name in ("inner", "outer"))
    return Mesh(exchange, torch.device(device), inner, outer, Ranks(dist.get_rank(), members, everyone))


class CodecBeside:
    """The codec of a rank that denoises: see `engine.model.Codec`. Decoding is left to the last rank.

    Args:
        codec: for encoding, which is done here.

    Attributes:
        given: that codec.

    Raises:
        ValueError: the world's histories begin anew from frames, so that the next block needs them.
    """

    def __init__(self, codec: Any, spec: WorldSpec):
        if spec.rollout is not None and spec.rollout.restart is not None:
            raise ValueError(
                f"{spec.name} begins its history anew from its last frames, so that nothing can be denoised beside "
                "their decoding: leave the codec with the other ranks"
            )
        self.given, self.frames_per_latent = codec, codec.frames_per_latent
        self.numbers, self.dropped = itertools.count(), deque[int]()
        self.line = Line(dist.get_world_size() - 1) if dist.get_rank() == 0 else None

    def encode(self, frames: Tensor, states: Any = None) -> tuple[Any, Any]:
        return self.given.encode(frames, states)

    def decode(self, latents: Tensor, states: Sequence[StateThere | None] | None = None) -> tuple[Tensor, list[Any]]:
        """Hand on latents [N, F, C, h, w]; no frames, [N, 0, 0, 0, 3], and the states that there will be."""
        before = [None if s is None else s.number for s in states or [None] * len(latents)]
        after = [self._kept() for _ in before]
        self._tell("decode", {"latents": latents}, before=before, after=[state.number for state in after])
        return torch.empty(len(latents), 0, 0, 0, 3, dtype=torch.uint8), after

    def whole(self, state: StateThere | None) -> Any:
        """A state as one rank has it, on the first rank; None on others."""
        if state is None or self.line is None:
            return None
        self._tell("fetch", number=state.number)
        told, tensors = self.line.receive()
        return unnamed(told["names"], tensors)

    def share(self, state: Any) -> StateThere | None:
        """Give a whole state, as `whole` returns it, to the last rank."""
        if state is None:
            return None
        made = self._kept()
        names, tensors = named(state)
        self._tell("give", tensors, names=names, number=made.number)
        return made

    def done(self) -> None:
        """Nothing more comes of this request."""
        self._tell("done")

    def close(self) -> None:
        """Wait until the last rank has taken all messages: what is let go of before is lost."""
        if self.line is not None:
            self.line.finish()

    def _kept(self) -> StateThere:
        made = StateThere(next(self.numbers))
        weakref.finalize(made, self.dropped.append, made.number).atexit = False
        return made

    def _tell(self, op: str, tensors: Mapping[str, Tensor] | None = None, **told: Any) -> None:
        dropped = [self.dropped.popleft() for _ in range(len(self.dropped))]
        if self.line is not None:
            self.line.send({"op": op, "dropped": dropped, **told}, tensors or {})


class DecodingRank:
    """The last rank: decodes what the first one sends.

    Args:
        device: where the codec is.
    """

    def __init__(self, codec: Any, device: str | torch.device = "cpu"):
        self.codec, self.device = codec, torch.device(device)
        self.line, self.states = Line(0), dict[int, Any]()

    @torch.inference_mode()
    def serve(self) -> dict[int, Tensor]:
        """Do what one request needs of the codec.

        Returns:
            uint8 frames [T, H, W, 3] by the number of the state that they left: a world's `codec_state.number`.

        Raises:
            ValueError: latents do not fit the codec.
        """
        made = dict[int, Tensor]()
        while True:
            told, tensors = self.line.receive()
            for number in told["dropped"]:
                self.states.pop(number, None)
            if told["op"] == "done":
                return made
            if told["op"] == "decode":
                made |= self._decode(tensors["latents"].to(self.device), told["before"], told["after"])
            elif told["op"] == "give":
                state = unnamed(told["names"], tensors)
                self.states[told["number"]] = [x.to(self.device) for x in state] if isinstance(state, list) else state
            else:
                names, parts = named(self.states[told["number"]])
                self.line.send({"names": names}, parts)

    def _decode(self, latents: Tensor, before: Sequence[int | None], after: Sequence[int]) -> dict[int, Tensor]:
        states = [None if number is None else self.states[number] for number in before]
        frames, left = self.codec.decode(latents, states)
        self.states |= dict(zip(after, left or [None] * len(after), strict=True))
        return dict(zip(after, frames, strict=True))


class Line:
    """Messages to one rank, of JSON and tensors, and from it, in order."""

    def __init__(self, peer: int):
        self.peer, self.posted = peer, deque[tuple[list[dist.Work], list[Tensor]]]()

    def send(self, told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Send without waiting, unless many messages wait already."""
        while len(self.posted) >= QUEUE or (self.posted and all(work.is_completed() for work in self.posted[0][0])):
            self._taken()
        blob = save({name: x.contiguous().cpu() for name, x in tensors.items()}, {"told": json.dumps(told)})
        body = torch.frombuffer(bytearray(blob), dtype=torch.uint8).to(wire())
        parts = [torch.tensor([len(body)], device=body.device), body]
        works = [work for part in parts if (work := dist.isend(part, self.peer))]
        self.posted.append((works, parts))

    def finish(self) -> None:
        while self.posted:
            self._taken()

    def _taken(self) -> None:
        """Wait until the oldest message was taken."""
        works, _ = self.posted.popleft()
        for work in works:
            work.wait()

    def receive(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        size = torch.zeros(1, dtype=torch.int64, device=wire())
        dist.recv(size, self.peer)
        body = torch.empty(int(size), dtype=torch.uint8, device=size.device)
        dist.recv(body, self.peer)
        blob = body.cpu().numpy().tobytes()
        length = int.from_bytes(blob[:8], "little")
        return json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["told"]), load(blob)


def named(state: Any) -> tuple[list[str] | str | None, dict[str, Tensor]]:
    """A codec's state, a list of tensors, one, or None, as names and tensors."""
    if isinstance(state, list):
        return [str(i) for i in range(len(state))], {str(i): x for i, x in enumerate(state)}
    return (None, {}) if state is None else ("0", {"0": state})


def unnamed(names: list[str] | str | None, tensors: Mapping[str, Tensor]) -> Any:
    """The way back from `named`."""
    if isinstance(names, list):
        return [tensors[name] for name in names]
    return None if names is None else tensors[names]
