"""What a rank does for its caller: one method a request. Holds the model, the engine over its share, and the worlds.

Worlds and contexts have the numbers that the caller gave them. Knows the engine and its values; knows no sockets.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from engine.conditioning import Condition, Context
from engine.engine import Engine
from engine.model import WorldModel
from engine.parallel.calibration import links_of
from engine.parallel.layout import Exchange
from engine.parallel.mesh import Mesh
from engine.parallel.sharding import shard, told
from engine.ranks.control import PROTOCOL, Message
from engine.ranks.far import Name, Reader, Writer, facts_of
from engine.ranks.launch import ModelSource
from engine.scenes import prompt_context, scene
from engine.spec import KVPolicy
from engine.uncertainty import second_opinion
from engine.world import Block, Start, World

Source = dict[str, Tensor]


class Desk:
    """One rank's model, engine and worlds.

    Args:
        own: the model of a rank that its own script has started; else the caller says which.

    Attributes:
        worlds, contexts: by the caller's numbers.
        touched: the worlds that a request named or made.
    """

    model: WorldModel
    sim: Engine

    def __init__(self, rank: int, device: str, own: ModelSource | None = None):
        self.rank, self.device, self.own = rank, torch.device(device), own
        self.mesh: Mesh | None = None
        self.worlds: dict[int, World] = {}
        self.contexts: dict[int, Context] = {}
        self.touched: set[int] = set()
        self.requests = {name.removeprefix("on_"): getattr(self, name) for name in dir(type(self)) if name[:3] == "on_"}

    @property
    def progress(self) -> int:
        """Grows with every collective."""
        return 0 if self.mesh is None else sum(dict(self.mesh.calls).values())

    def do(self, request: Message) -> Message:
        """Do what is asked; the answer has what was made, and what became of the worlds that were named."""
        asked, writer = request.told, Writer()
        for key in asked["dropped"]:
            self.contexts.pop(key, None)
        self.touched.clear()
        arguments = Reader(request.tensors, self.find).read(asked["arguments"])
        value = writer.write(self.requests[asked["op"]](**arguments))
        facts = {str(key): facts_of(self.worlds[key]) for key in self.touched if key in self.worlds}
        return Message({"value": value, "worlds": facts}, writer.tensors)

    def find(self, name: Name) -> World | Context:
        """The world or context of a number; a world's named variables are as the caller has set them."""
        if "context" in name:
            return self.contexts[name["context"]]
        world = self.worlds[name["world"]]
        self.touched.add(name["world"])
        world.variables[:] = name["variables"]
        return world

    # Before the first block.

    def on_load(self, source: dict[str, Any]) -> dict[str, Any]:
        """Load the model, and say what runs here."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.model = (self.own or ModelSource.from_dict(source)).load(str(self.device))
        return {"agreed": versions() | told(self.model), "model": model_facts(self.model)}

    def on_join(self, backend: str, ranks: int, place: str | list[Any], timeout: float) -> None:
        """Join the process group."""
        if isinstance(place, str):
            store: dist.Store = dist.FileStore(place, ranks)
        else:
            host, port, name = place
            store = dist.PrefixStore(name, dist.TCPStore(host, port, timeout=timedelta(seconds=timeout)))
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=ranks, timeout=timedelta(seconds=timeout)
        )

    def on_links(self, path: str, node: int) -> dict[str, Any]:
        """The links of the ranks, measured or out of rank 0's file."""
        ranks, kind = dist.get_world_size(), "cuda" if dist.get_backend() == "nccl" else "cpu"
        shape, names = ((ranks // node, node), ("outer", "inner")) if node < ranks else ((ranks,), ("inner",))
        return links_of(init_device_mesh(kind, shape, mesh_dim_names=names), path).to_dict()

    def on_begin(
        self, exchange: list[Any], policy: dict[str, Any], options: dict[str, Any], room: tuple[int, int]
    ) -> dict[str, Any]:
        """An engine over this rank's share; worlds and contexts of the one before are forgotten.

        Args:
            room: pages on the device and on the host that there are to be at least.
        """
        self.worlds.clear()
        self.contexts.clear()
        vars(self).pop("sim", None)  # its pages are freed before the new ones are taken
        chosen = Exchange(*exchange)
        self.mesh = Mesh.of(chosen, self.model.device)
        given = KVPolicy(**{**policy, "pages": tuple(policy["pages"])})
        self.sim = Engine(shard(self.model, self.mesh), policy=given, **options)
        self.sim.pool.grow(*room)
        return {"agreed": {"exchange": str(chosen), "policy": str(given), "options": str(options)}}

    # What an Engine does.

    def on_grow(self, max_worlds: int) -> tuple[int, int]:
        """Make room for so many worlds; the pages that there are then."""
        self.sim.grow(max_worlds)
        return self.sim.pool.capacity, self.sim.pool.host_capacity

    def on_widen(self, pages: int) -> tuple[int, int]:
        """Make room for so many pages beyond those that are reserved; the pages that there are then."""
        self.sim.pool.grow(self.sim.pool.reserved + pages)
        return self.sim.pool.capacity, self.sim.pool.host_capacity

    def on_contextualise(self, key: int, sources: Sequence[Source]) -> None:
        """A context, and those of its last blocks."""
        first, *ending = (self.sim.contextualise(**source) for source in sources)
        self.contexts[key] = replace(first, ending=tuple(ending))

    def on_open(self, keys: list[int], start: Start, seed: int) -> None:
        self._keep(keys[0], self.sim.open(start, seed))

    def on_observe(self, world: World, seen: Start) -> None:
        self.sim.observe(world, seen)

    def on_outlook(self, worlds: list[World], conditions: list[Condition]) -> tuple[Any, ...]:
        return self.sim.outlook(worlds, conditions)

    def on_step(self, worlds: list[World], conditions: list[Condition]) -> list[Block]:
        return self.sim.step(worlds, conditions)

    def on_fork(self, world: World, keys: list[int], seeds: list[int] | None) -> None:
        for key, fork in zip(keys, self.sim.fork(world, len(keys), seeds), strict=True):
            self._keep(key, fork)

    def on_snapshot(self, worlds: list[World]) -> list[bytes]:
        """Blobs, which rank 0 has."""
        return [self.sim.snapshot(world) for world in worlds]

    def on_restore(self, keys: list[int], blob: bytes) -> None:
        world = self.sim.restore(blob)
        same = (c for c in self.contexts.values() if world.context is not None and c.same(world.context))
        world.context = next(same, world.context)
        self._keep(keys[0], world)

    def on_close(self, worlds: list[World]) -> None:
        for key in list(self.touched):
            self.sim.close(self.worlds.pop(key))

    def on_second_opinion(
        self, before: list[World], conditions: list[Condition], latents: Tensor, level: float
    ) -> Tensor:
        return second_opinion(self.sim, before, conditions, latents.to(self.model.device), level)

    # What rank 0 does alone: nothing here may wait for other ranks.

    def on_prompt(self, prompt: str, ending: bool) -> list[Source]:
        """What a prompt's contexts are made of."""
        return sources_of(prompt_context(self.sim, prompt, ending))

    def on_scene(self, prompt: str | None, image: Any, frames: Any) -> dict[str, Any]:
        """Where a published world begins, with what its contexts are made of."""
        start = scene(self.sim, prompt, image, frames)
        assert start.context is not None
        return {"sources": sources_of(start.context), "latents": start.latents, "frames": start.frames}

    def on_latents(self, key: int) -> Tensor | None:
        return self.worlds[key].latents

    def _keep(self, key: int, world: World) -> None:
        self.worlds[key] = world
        self.touched.add(key)


def sources_of(context: Context) -> list[Source]:
    return [context.source, *(last.source for last in context.ending)]


def versions() -> dict[str, str]:
    """What ranks must have in common to make the same numbers, and to understand each other."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return {"protocol": str(PROTOCOL), "torch": torch.__version__, "engine": digest.hexdigest()[:16]}


def model_facts(model: WorldModel) -> dict[str, Any]:
    """What a caller needs to know of a model that it does not have."""
    parts = (model.denoiser, model.codec, model.heads)
    sizes = [sum(x.nbytes for x in p.state_dict().values()) if isinstance(p, nn.Module) else 0 for p in parts]
    if model.device.type == "cuda":
        name, memory = torch.cuda.get_device_name(model.device), torch.cuda.mem_get_info(model.device)[1]
    else:
        name, memory = "CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    device = {"name": name, "memory": memory, "threads": torch.get_num_threads()}
    return device | {
        "spec": asdict(model.spec),
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": sizes[0],
        "reserved": sum(sizes[1:]),
    }
