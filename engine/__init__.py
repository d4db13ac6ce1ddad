"""The block-diffusion engine: worlds as values, generate-and-cache. This is its whole public face.

model = engine.load("inferix_env/worlds/doom_take_cover")
sim = engine.Engine(model)
world = sim.open(start, seed=0)
[block] = sim.step([world], [engine.Condition.of(actions)])
"""

from typing import TYPE_CHECKING

from engine.actions import ActionSpec, BinaryActions, ContinuousActions, DictActions, DiscreteActions, TextActions
from engine.anywhere import AnyEngine, device_of, held, picture_of, prompt_context, scene, second_opinion, widen
from engine.checks import check_start
from engine.conditioning import Condition, Context
from engine.engine import Engine
from engine.hardware import has_cuda, set_threads
from engine.kv.pool import PoolFull
from engine.loading import read_card
from engine.model import WorldModel
from engine.noise import GivenNoise
from engine.opening import load
from engine.parallel.layout import Exchange
from engine.parallel.links import Links
from engine.parallel.planner import Plan, plan
from engine.parallel.shapes import Shape, shape_at
from engine.presets import PRESETS, Preset
from engine.published import Rollout
from engine.ranks.faults import WorkerLost
from engine.ranks.launch import ModelSource, ParallelConfig
from engine.spec import KVPolicy, VariableSpec, WorldSpec
from engine.workers import ShardedEngine
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
    "PRESETS",
    "ActionSpec",
    "AnyEngine",
    "BinaryActions",
    "Block",
    "Condition",
    "Context",
    "ContinuousActions",
    "DictActions",
    "DiscreteActions",
    "Engine",
    "Exchange",
    "GivenNoise",
    "KVPolicy",
    "Links",
    "ModelSource",
    "ParallelConfig",
    "PixelEnv",
    "Plan",
    "PoolFull",
    "Preset",
    "Rollout",
    "Shape",
    "ShardedEngine",
    "Start",
    "TextActions",
    "VariableSpec",
    "WorkerLost",
    "World",
    "WorldModel",
    "WorldSpec",
    "check_start",
    "device_of",
    "has_cuda",
    "held",
    "load",
    "picture_of",
    "plan",
    "prompt_context",
    "read_card",
    "scene",
    "second_opinion",
    "set_threads",
    "shape_at",
    "widen",
]
