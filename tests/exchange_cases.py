"""Worlds that several ranks dream together, and the same on one: kinds of models and of histories, by name.

`Case.dream` makes a few blocks of worlds of different ages, forks among them, and returns all that came of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import engine
from engine import Condition, Engine, KVPolicy, Start
from engine.parallel.layout import Exchange
from engine.parallel.mesh import Mesh
from engine.parallel.sharding import shard
from engine.spec import DenoiserSpec
from tests import magi_sims, published_sims, sims

NAMES = ("ulysses", "ring", "pass-q", "all-gather")
USP = ("usp-ring", "usp-pass-q", "usp-all-gather")


def exchange_of(name: str, ranks: int) -> Exchange:
    """An exchange by its name: "ulysses", "ring", ...; "usp-ring" has two inner ranks."""
    inner = 2 if name.startswith("usp-") else ranks if name == "ulysses" else 1
    outer = "" if name == "ulysses" else name.removeprefix("usp-")
    return Exchange(inner, outer, ranks // inner)  # type: ignore[arg-type]


def shared(alone: Engine, name: str, **settings: Any) -> tuple[Engine, Mesh]:
    """The same engine on this rank of several."""
    mesh = Mesh.of(exchange_of(name, dist.get_world_size()))
    steps = None if alone.spec.published else len(alone.passes) - 1
    own: dict[str, Any] = {
        "num_steps": steps,
        "policy": alone.policy,
        "deterministic": alone.deterministic,
        "kv_dtype": alone.pool.kv_dtype,
    }
    return Engine(shard(alone.given, mesh), max_worlds=4, **own, **settings), mesh


@dataclass(frozen=True)
class Case:
    """A kind of world.

    Attributes:
        make: its engine, on one rank.
        dream: what is done with it.
        offload: a setting of all its engines.
        tolerance: of what several ranks make, relative to the largest number of a tensor: float32's rounding, through
            all layers and steps; more where a number may round to the next code, or pixel.
    """

    make: partial[Engine]
    dream: Callable[[Engine], list[Tensor]]
    offload: bool = False
    tolerance: float = 5e-6

    def alone(self) -> list[Tensor]:
        return self.dream(self.make(max_worlds=4, **self.own))

    @property
    def own(self) -> dict[str, Any]:
        return {"offload": True} if self.offload else {}


def footage(sim: Engine, count: int, seed: int) -> Start:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (count, *sim.spec.frame, 3), dtype=np.uint8)
    actions = np.eye(3, dtype=np.float32)[rng.integers(0, 3, count)]
    return Start(frames, actions, rng.uniform(20, 100, (count, 1)))


def dream_tiny(sim: Engine) -> list[Tensor]:
    """Worlds that began with four frames and with two, and a fork of the first with noise of its own."""
    worlds, made = [sim.open(footage(sim, age, seed=i), seed=i) for i, age in enumerate((4, 2))], []
    for step in range(3):
        worlds += sim.fork(worlds[0], seeds=[7]) if step == 1 else []
        actions = sims.act(*((step + i) % 3 for i in range(len(worlds))), block=sim.spec.block)
        blocks = sim.step(worlds, actions)
        made += [x for w in worlds for x in (w.latents, w.head_state) if x is not None]
        made += [torch.tensor([b.reward, b.end_probability]) for b in blocks]
    return made


def shipped(**settings: Any) -> Engine:
    """The world that comes with the package, at few steps."""
    folder = Path(__file__).parent.parent / "inferix_env" / "worlds" / "doom_take_cover"
    return Engine(engine.load(folder, "cpu", "float32"), num_steps=2, **settings)


def dream_shipped(sim: Engine) -> list[Tensor]:
    """Two of its starts."""
    starts = np.load(Path(engine.__file__).parent.parent / "inferix_env" / "worlds" / "doom_take_cover" / "starts.npz")
    worlds = [sim.open(Start(*(starts[k][i] for k in ("frames", "actions", "variables"))), seed=i) for i in range(2)]
    made = []
    for step in range(2):
        rows = np.eye(sim.spec.actions.width, dtype=np.float32)[[step] * sim.spec.block]
        blocks = sim.step(worlds, [Condition.of(rows)] * 2)
        made += [x for w in worlds for x in (w.latents, w.head_state) if x is not None]
        made += [b.pictures.float().mean((1, 2)) for b in blocks]
    return made


def dream_published(sim: Engine, prompts: bool = False, steps: int = 3) -> list[Tensor]:
    """A world that is a block older than the other; both get another prompt on their way, if they take prompts."""
    first = published_sims.begin(sim, 0)
    made = published_sims.roll(sim, first, 1)
    worlds = [first, published_sims.begin(sim, 1)]
    for i in range(steps):
        new = published_sims.prompt(sim, 5) if prompts and i == steps - 2 else None
        conditions = [published_sims.act(sim, w, i, new) for w in worlds]
        made += published_sims.step(sim, worlds, conditions)
        worlds += sim.fork(first, seeds=[9]) if i == steps - 2 else []
    return [x.latents for x in made]


def dream_magi(sim: Engine) -> list[Tensor]:
    """Worlds in flight, one of which began with latents; both get another prompt on their way."""
    worlds, made = [magi_sims.begin(sim, 0), magi_sims.begin(sim, 1, frames=5)], []
    for i in range(3):
        new = magi_sims.prompt(sim, 5) if i == 1 else None
        magi_sims.step(sim, worlds, [new] * len(worlds))
        made += [x.clone() for w in worlds for x in (w.latents, w.flight) if x is not None]
        worlds += sim.fork(worlds[0], seeds=[9]) if i == 1 else []
    return made


CODES = 1e-3
THREE = DenoiserSpec(width=48, layers=2, heads=3)  # which no number of ranks but three divides
tiny = partial(sims.make_engine, frame=(48, 48))  # nine tokens of a latent frame: five and four
text = partial(published_sims.make_sim, "text")
CASES = {
    "shipped": Case(partial(shipped), dream_shipped, tolerance=5e-5),
    "window": Case(tiny, dream_tiny),
    "sinks": Case(partial(tiny, kv=KVPolicy(3, sink=2), deterministic=False), dream_tiny),
    "no window": Case(partial(tiny, kv=KVPolicy(None), block=2), dream_tiny),
    "given pages": Case(partial(tiny, kv=KVPolicy(2, pages=(0, 3)), block=2, denoiser=THREE), dream_tiny),
    "top-k": Case(partial(tiny, kv=KVPolicy(2, sink=1, top_k=2, memory=10)), dream_tiny),
    "int8": Case(
        partial(tiny, kv=KVPolicy(2, sink=1, top_k=1, memory=4), kv_dtype="int8"), dream_tiny, tolerance=CODES
    ),
    "fp8": Case(partial(tiny, block=2, kv_dtype="fp8"), dream_tiny, tolerance=CODES),
    "bf16": Case(partial(tiny, dtype=torch.bfloat16), dream_tiny, tolerance=5e-2),
    "offloaded": Case(partial(tiny, kv=KVPolicy(1, sink=1, top_k=1, memory=5)), dream_tiny, offload=True),
    "wan": Case(partial(text, window=7), partial(dream_published, prompts=True)),
    "rewritten": Case(partial(text, window=7, rewrite="window"), partial(dream_published, prompts=True)),
    "rewritten, relative": Case(
        partial(text, window=7, rewrite="window", relative=True),
        partial(dream_published, prompts=True, steps=4),
    ),
    "restarted": Case(
        partial(text, codec="vae", window=9, sink=0, steps=(1000,), restart=(9, 3)),
        partial(dream_published, steps=4),
        tolerance=5e-5,
    ),
    "game": Case(partial(published_sims.make_sim, "game", window=7), dream_published),
    "game, int8": Case(
        partial(published_sims.make_sim, "game", window=7, kv_dtype="int8"), dream_published, tolerance=CODES
    ),
    "magi, base": Case(partial(magi_sims.make_sim, False), dream_magi),
    "magi, distilled": Case(partial(magi_sims.make_sim, True, window=2), dream_magi),
}


def dream_on(rank: int, case: str, exchange: str) -> list[Tensor]:
    """What one rank of several makes of a case."""
    kind = CASES[case]
    sim, _ = shared(kind.make(), exchange, **kind.own)
    return kind.dream(sim)


def apart(first: list[Tensor], second: list[Tensor]) -> float:
    """The largest difference, relative to each tensor's largest number."""
    assert [x.shape for x in first] == [x.shape for x in second]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(first, second, strict=True))
