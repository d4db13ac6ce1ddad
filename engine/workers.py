"""ShardedEngine: an engine whose model runs on several ranks, each a process, for one caller.

It has the public face of an Engine. Its worlds live with the ranks, which all do the same; the caller has pictures of
them (`FarWorld`), whose frames and numbers come from rank 0. Ranks check that they run the same before the first block.
When one fails, all are ended and `WorkerLost` says whose fault it was; `recover` starts new ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.checks import check_start, check_step
from engine.conditioning import Condition, Context
from engine.noise import Noise
from engine.parallel.layout import Exchange
from engine.parallel.links import Links
from engine.parallel.planner import Plan
from engine.ranks.launch import ModelSource, ParallelConfig, Placement, Torchrun, exchange_of
from engine.ranks.planning import Planning, links_file
from engine.ranks.remote import Remote
from engine.ranks.starting import join
from engine.sizing import need_of, pages_needed
from engine.snapshot import read_file, write_file
from engine.spec import KVPolicy, WorldSpec
from engine.world import Block, Start, World


class ShardedEngine:
    """Runs worlds of one model on several ranks.

    Under torchrun the process of every rank but the first serves in here, and exits with status 0 when the first one
    closes its engine.

    Args:
        model: what `engine.load` is given.
        parallel: how many ranks, and how.
        device: of the ranks, where `parallel` names none.
        window: latent frames of history that a block sees, in place of the policy's.
        num_steps, policy, max_worlds, deterministic, kv_dtype, offload, paged: as for `Engine`.

    Attributes:
        exchange: how the ranks share attention now.
        device: where a caller that wants tensors may have them.

    Raises:
        ValueError: as `engine.load` and `Engine` do; or the ranks do not run the same: says which, and both values.
        WorkerLost: a rank failed.
    """

    def __init__(
        self,
        model: ModelSource,
        parallel: ParallelConfig | int | str,
        device: str = "cpu",
        num_steps: int | None = None,
        policy: KVPolicy | None = None,
        max_worlds: int = 1,
        deterministic: bool = True,
        kv_dtype: str | None = None,
        offload: bool = False,
        paged: bool | None = None,
        window: int | None = None,
    ):
        if max_worlds < 1:
            raise ValueError(f"max_worlds {max_worlds}: expected 1 or more")
        self.parallel, run = ParallelConfig.of(parallel), Torchrun.here()
        self.placement = Placement.of(self.parallel, device, run)
        self.device = torch.device(self.placement.device(0))
        if run is not None and run.rank > 0:
            join(run, model, self.placement.device(run.local), self.parallel.timeout)
            raise SystemExit(0)
        self.options: dict[str, Any] = {
            "num_steps": num_steps, "max_worlds": max_worlds, "deterministic": deterministic, "kv_dtype": kv_dtype,
            "offload": offload, "paged": paged,
        }  # fmt: skip
        self.remote = Remote(model, self.parallel, self.placement, run)
        facts = self.remote.start()
        try:
            self.spec = WorldSpec.from_dict(facts["spec"])
            given = policy or self.spec.kv
            self.policy = given if window is None else replace(given, window=window)
            self.need, self.need_host = pages_needed(self.policy, self.spec.block, offload)
            self.planning = self._planning(facts)
            self.exchange = self._chosen([self.spec.block] * max_worlds)
            self.room = (0, 0)
            self.remote.begin(**self._opening(self.exchange))
        except BaseException:
            self.shutdown()
            raise

    # What an Engine does.

    def grow(self, max_worlds: int) -> None:
        """Make room for at least that many worlds at once; those that are open go on as they were."""
        self.room = self.remote.ask("grow", max_worlds=max_worlds)

    def widen(self, pages: int) -> None:
        """Make room for so many pages beyond those that are reserved."""
        self.room = self.remote.ask("widen", pages=pages)

    def pages_of(self, start: Start) -> int:
        """Pages that a world is admitted with which begins so; most need `need`."""
        given = len(start.frames) // self.spec.frames_per_latent if start.latents is None else len(start.latents)
        return need_of(given, self.spec, self.policy, self.need)

    def open(self, start: Start, seed: int, source: Noise | None = None) -> World:
        """See `Engine.open`; noise is the seed's."""
        if source is not None:
            raise ValueError("a sharded engine takes the noise of seeds alone: leave out source")
        check_start(start, self.spec)
        [world] = self.remote.make("open", start=start, seed=int(seed))
        world.context, world.horizon = start.context, start.horizon
        return world

    def observe(self, world: World, seen: Start) -> None:
        """See `Engine.observe`."""
        check_open(world, "observe")
        self.remote.ask("observe", world=world, seen=seen)

    def contextualise(
        self, text: Tensor | None = None, image: Tensor | None = None, beside: Tensor | None = None
    ) -> Context:
        """See `Engine.contextualise`; keys and values stay with the ranks."""
        given = {"text": text, "image": image, "beside": beside}
        return self.remote.context([{name: x for name, x in given.items() if x is not None}])

    def outlook(self, worlds: list[World], conditions: Sequence[Condition]) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine.outlook`."""
        check_step(worlds, conditions, self.spec)
        return self.remote.ask("outlook", worlds=list(worlds), conditions=list(conditions))

    def step(self, worlds: list[World], conditions: Sequence[Condition]) -> list[Block]:
        """See `Engine.step`; pictures are on the host.

        Raises:
            WorkerLost: a rank failed; no world moved, and `recover` brings them back.
        """
        check_step(worlds, conditions, self.spec)
        self._replan()
        self.remote.checkpoint()
        blocks = self.remote.ask("step", worlds=list(worlds), conditions=list(conditions))
        for world, condition in zip(worlds, conditions, strict=True):
            world.context = condition.prompt or world.context
        return blocks

    def fork(self, world: World, n: int = 1, seeds: Sequence[int] | None = None) -> list[World]:
        """See `Engine.fork`."""
        check_open(world, "fork")
        if n < 1 or (seeds is not None and len(seeds) != n):
            raise ValueError(f"{n} forks with seeds {seeds}: expected at least one fork, and a seed for each or none")
        forks = self.remote.make("fork", n, world=world, seeds=None if seeds is None else [int(x) for x in seeds])
        for fork in forks:
            fork.context, fork.horizon = world.context, world.horizon
        return list(forks)

    def snapshot(self, world: World) -> bytes:
        """See `Engine.snapshot`: the same that one device gives, to be restored on any number of ranks."""
        check_open(world, "snapshot")
        return self.remote.ask("snapshot", worlds=[world])[0]

    def save(self, world: World, path: str | Path) -> None:
        """Write a world's snapshot to a file; an interrupted save leaves what was there."""
        write_file(Path(path), self.snapshot(world))

    def restore(self, source: bytes | str | Path) -> World:
        """See `Engine.restore`."""
        blob = source if isinstance(source, bytes) else read_file(Path(source))
        [world] = self.remote.make("restore", blob=blob)
        return world

    def close(self, world: World) -> None:
        """Give a world's pages back. Closing twice is fine."""
        if world.open:
            self.remote.close(world)

    # What is asked of an engine from outside (see anywhere.py).

    def prompt_context(self, prompt: str, ending: bool = False) -> Context:
        """See `engine.prompt_context`; rank 0 alone has the text encoder."""
        return self.remote.context(self.remote.ask("prompt", prompt=prompt, ending=ending))

    def scene(self, prompt: str | None, image: Any, frames: np.ndarray | None) -> Start:
        """See `engine.scene`; rank 0 alone encodes pictures."""
        seen = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
        made = self.remote.ask(
            "scene", prompt=prompt, image=str(seen) if isinstance(seen, Path) else seen, frames=frames
        )
        return replace(Start.of(self.remote.context(made["sources"]), made["latents"]), frames=made["frames"])

    def second_opinion(
        self, before: Sequence[World], conditions: Sequence[Condition], latents: Tensor, level: float
    ) -> Tensor:
        """See `engine.second_opinion`."""
        told = {"before": list(before), "conditions": list(conditions), "latents": latents, "level": level}
        return self.remote.ask("second_opinion", **told)

    # Ranks.

    @property
    def plan(self) -> Plan | None:
        """Why this exchange was chosen, to be printed; None where it was given."""
        return None if self.planning is None else self.planning.plan

    @property
    def lost(self) -> str:
        """Why there are no ranks any more; "" while there are."""
        return self.remote.started.crew.lost

    @property
    def pids(self) -> list[int]:
        """The ranks' processes, those that were started here."""
        return [rank.process.pid for rank in self.remote.started.crew.ranks if rank.process is not None]

    def recover(self) -> None:
        """Start new ranks after a fault, under the exchange that held; where there was none, do nothing.

        With `snapshot_every` every world comes back as it stood after the last step that was made: the last snapshots
        are restored and the steps since made again, which gives the same to the bit. Without, the worlds are closed:
        restore those that were snapshotted.

        Raises:
            ValueError: the model is another than before.
            RuntimeError: torchrun has started the ranks, and it alone can start new ones.
            WorkerLost: a rank failed again.
        """
        if not self.lost:
            return
        if self.remote.run is not None:
            raise RuntimeError("torchrun has started the ranks: start the script again, and restore its snapshots")
        self.remote.recover(**self._opening(self.exchange))

    def shutdown(self) -> None:
        """End the ranks, and with them all worlds. Shutting down twice is fine."""
        self.remote.started.crew.end(kindly=True)

    def _opening(self, exchange: Exchange) -> dict[str, Any]:
        """What ranks are told to begin with."""
        policy = asdict(self.policy) | {"pages": list(self.policy.pages)}
        return {"exchange": list(astuple(exchange)), "policy": policy, "options": self.options, "room": self.room}

    def _planning(self, facts: Mapping[str, Any]) -> Planning | None:
        """The planner with its figures, where it is to choose."""
        ranks, node = self.placement.ranks, self.placement.node
        if self.parallel.exchange != "auto" or ranks == 1:
            return None
        links = self.parallel.links or Links.from_dict(self.remote.ask("links", path=str(links_file()), node=node))
        steps = self.options["num_steps"]
        spec = self.spec if steps is None else replace(self.spec, num_steps=steps)
        share = 1 if self.placement.alone else node
        return Planning(spec, self.policy, self.options["kv_dtype"], links.over(ranks), facts, share)

    def _chosen(self, lengths: Sequence[int]) -> Exchange:
        """The exchange that was asked for, or the planner's for worlds with such histories."""
        if self.planning is not None:
            return self.planning.choose(lengths)
        given = self.parallel.exchange
        return exchange_of("ulysses" if given == "auto" else given, self.placement.ranks)

    def _replan(self) -> None:
        """Shard the model anew if histories have outgrown the plan, and the worlds with it."""
        if self.planning is None:
            return
        exchange = self._chosen([world.table.length for world in self.remote.worlds.values() if world.open])
        if exchange != self.exchange:
            self.remote.reshard(**self._opening(exchange))
            self.exchange = exchange


def check_open(world: World, what: str) -> None:
    """Raise ValueError unless a world is open."""
    if not world.open:
        raise ValueError(f"{what} needs an open world")
