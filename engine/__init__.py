"""The block-diffusion engine: worlds as values, generate-and-cache. This is its whole public face.

model = engine.load("inferix_env/worlds/doom_take_cover")
sim = engine.Engine(model)
world = sim.open(start, seed=0)
[block] = sim.step([world], [engine.Condition.of(actions)])
"""

from typing import TYPE_CHECKING

from engine.conditioning import Condition
from engine.engine import Engine, check_start
from engine.hardware import set_threads
from engine.kv.pool import PoolFull
from engine.loading import load, read_card
from engine.model import WorldModel
from engine.spec import (
    ActionSpec,
    ContinuousActions,
    DictActions,
    DiscreteActions,
    KVPolicy,
    VariableSpec,
    WorldSpec,
)
from engine.world import Block, Start, World

if TYPE_CHECKING:
    from engine.training.pixels import PixelEnv


def __getattr__(name: str) -> type:
    """`PixelEnv` on demand: it needs Gymnasium, which the engine itself does not."""
    if name == "PixelEnv":
        from engine.training.pixels import PixelEnv

        return PixelEnv
    raise AttributeError(f"module 'engine' has no attribute {name!r}")


__all__ = [
    "ActionSpec",
    "Block",
    "Condition",
    "ContinuousActions",
    "DictActions",
    "DiscreteActions",
    "Engine",
    "KVPolicy",
    "PixelEnv",
    "PoolFull",
    "Start",
    "VariableSpec",
    "World",
    "WorldModel",
    "WorldSpec",
    "check_start",
    "load",
    "read_card",
    "set_threads",
]
