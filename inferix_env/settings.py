"""Settings: the arguments that a single env and a vector env of worlds have in common, checked once.

Knows worlds as folders and the engine; knows no episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from engine import AnyEngine, ModelSource, ParallelConfig, Preset, WorldModel, WorldSpec, read_card
from inferix_env import worlds
from inferix_env.engines import Seats, Sharded
from inferix_env.guard import Guard, Unguarded, bounds_of, check_guard, guard_of, needs_room
from inferix_env.openings import Openings
from inferix_env.rewards import RewardFn
from inferix_env.scenes import Scenes
from inferix_env.starts import Starts

DTYPES = ("float32", "bfloat16")
# What Gymnasium takes for "no horizon" beside None.
ENDLESS = -1
# What only a published checkpoint takes, beside a preset; the last ones have no argument of their own.
EXTRAS = ("lora", "lora_alpha", "numerics", "prefer", "text_device", "text_cache", "clean_prompts", "tokens")


@dataclass(frozen=True, eq=False)
class Settings:
    """What to simulate and what to show of it; see `WorldSimEnv` for each.

    Raises:
        ValueError: a value that is none of those expected.
    """

    world: str | Path
    device: str
    dtype: str | None
    num_steps: int | None
    window: int | None
    obs: str
    max_episode_steps: int | None
    reward_fn: RewardFn | None
    deterministic: bool
    kv_dtype: str | None
    preset: str | Preset | None = None
    prompt: str | None = None
    image: Any = None
    base: str | Path | None = None
    codec: str | None = None
    size: tuple[int, int] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    guard: str | Sequence[str] = ()
    guard_bound: float | Mapping[str, float] | None = None
    parallel: ParallelConfig | int | str | None = None

    def __post_init__(self) -> None:
        check_choice("obs", self.obs, ("frame", "block"))
        check_choice("dtype", self.dtype, (None, *DTYPES))
        if self.window is not None and self.window < 1:
            raise ValueError(f"window {self.window}: expected at least 1 latent frame, or None for the world's own")
        if self.horizon is not None and self.horizon < 2:
            raise ValueError(f"max_episode_steps {self.horizon}: expected at least 2, or None")
        check_guard(self.signals, self.guard_bound, self.preset is not None)
        if self.parallel is not None:
            ParallelConfig.of(self.parallel)
        unknown = sorted(set(self.extras) - set(EXTRAS))
        if unknown:
            # In Python's own words: TorchRL reads them to learn that an env knows no frameskip.
            raise TypeError(f"unexpected keyword argument {unknown[0]!r}: expected the env's, or one of {list(EXTRAS)}")
        given = [name for name in ("prompt", "image", "base", "codec", "size") if getattr(self, name) is not None]
        if self.preset is None and (given or self.extras):
            raise ValueError(
                f"{', '.join([*given, *self.extras])}: for published checkpoints only, which preset= says how to run"
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """The env's arguments, by name."""
        given = {x.name: getattr(self, x.name) for x in fields(self) if x.name != "extras"}
        return given | dict(self.extras)

    @property
    def horizon(self) -> int | None:
        """Steps after which an episode is truncated."""
        return None if self.max_episode_steps == ENDLESS else self.max_episode_steps

    @property
    def signals(self) -> tuple[str, ...]:
        """What a guard is to read, by name."""
        return (self.guard,) if isinstance(self.guard, str) else tuple(self.guard)

    def watch(self, folder: Path, sim: AnyEngine) -> Guard | Unguarded:
        """What steps the worlds, and reads the signals that were asked for.

        Raises:
            ValueError: the world lacks what a signal needs.
        """
        return guard_of(sim, folder, self.signals, bounds_of(self.signals, self.guard_bound))

    def find(self) -> tuple[Path, dict[str, Any]]:
        """Where the world lies, and its card, which a published one has none of.

        Raises:
            ValueError: there is no such world.
        """
        if self.preset is not None:
            path = Path(self.world).expanduser()
            return path.resolve() if path.exists() else path, {}
        folder = worlds.find(self.world)
        return folder, read_card(folder)

    def model(self, folder: Path) -> WorldModel:
        """The world's model, shared within the process."""
        if self.preset is None:
            return worlds.model(folder, self.device, self.dtype)
        return worlds.published(self.world, self.device, self.dtype, preset=self.preset, **self._given())

    def sharded(self, folder: Path, parallel: ParallelConfig) -> Sharded:
        """The world's model as ranks are to load it."""
        weights = folder / "model.safetensors" if self.preset is None else folder
        place = folder if folder.exists() else self.world
        source = ModelSource.of(place, self.dtype, self.preset, **self._given())
        return Sharded(source, parallel, self.device, weights.stat().st_mtime_ns if weights.exists() else 0)

    def _given(self) -> dict[str, Any]:
        """What goes with a published checkpoint."""
        given = {"base": self.base, "codec": self.codec, "size": self.size and tuple(self.size), **self.extras}
        return {name: value for name, value in given.items() if value is not None}

    def claim(self, folder: Path, num_worlds: int) -> Seats:
        """Seats for so many worlds at the engine of these settings.

        Raises:
            ValueError: the device, the precision or the sizes are none that this machine or the engine has.
        """
        seats = num_worlds * (2 if needs_room(self.signals) else 1)
        common = {"deterministic": self.deterministic, "kv_dtype": self.kv_dtype}
        if self.parallel is not None:
            sharded = self.sharded(folder, ParallelConfig.of(self.parallel))
            return Seats(sharded, seats, num_steps=self.num_steps, window=self.window, **common)
        model = self.model(folder)
        spec = model.spec
        return Seats(
            model,
            seats,
            num_steps=spec.num_steps if self.num_steps is None else self.num_steps,
            policy=spec.kv if self.window is None else replace(spec.kv, window=self.window),
            **common,
        )

    def openings(self, folder: Path, seats: Seats, frames_per_step: int) -> Openings:
        """Where this world's episodes begin."""
        if self.preset is None:
            return Starts(folder, seats.engine.spec, frames_per_step)
        return Scenes(seats, self.prompt, self.image)

    def observation_space(self, spec: WorldSpec, frames_per_step: int) -> gym.spaces.Box:
        """uint8 [H, W, 3], or all T frames of a step: [T, H, W, 3]."""
        lead = () if self.obs == "frame" else (frames_per_step,)
        return gym.spaces.Box(0, 255, (*lead, *spec.frame, 3), np.uint8)


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} {value!r}: expected one of {list(choices)}")
