"""WorldSimVectorEnv: N worlds in one engine, all of them a step further in one batched call.

Row i is what a `WorldSimEnv` with the same seed and actions gives, byte for byte (unless `deterministic=False`).
Knows Gymnasium's vector API and, of the engine, what `engine` exports.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from engine import Block, ParallelConfig, Preset, device_of
from inferix_env.actions import space_of
from inferix_env.batches import (
    autoreset_mode_of,
    check_indices,
    chosen_seed,
    conditions_of,
    options_of,
    rows_of,
    seeds_of,
    worlds_of,
)
from inferix_env.columns import DeviceTensors, HostArrays
from inferix_env.engines import recover
from inferix_env.env import check_alone
from inferix_env.openings import Opening
from inferix_env.rewards import RewardFn, judged
from inferix_env.settings import Settings, check_choice
from inferix_env.snapshots import Snapshot
from inferix_env.state import EpisodeState, Frames, filled
from inferix_env.steering import first_blocks, prompt_after

RENDER_MODES = ["rgb_array"]
# How an episode is about to begin, checked: what is drawn with from then on, and where.
Beginning = tuple[np.random.Generator, Opening | Snapshot]


class WorldSimVectorEnv(VectorEnv):
    """N worlds of one folder: observations uint8 [N, H, W, 3], or [N, T, H, W, 3] with `obs="block"`.

    Infos are those of `WorldSimEnv`, in arrays over the worlds, each key with a mask `_key` of the worlds it is for.
    An episode that is over begins again as `autoreset_mode` says (see Gymnasium's `AutoresetMode`): in the next step,
    which ignores that world's action and pays 0 (NEXT_STEP); in the same step, with what was seen last in
    `infos["final_obs"]` and `infos["final_info"]` (SAME_STEP); or at a reset with `options["reset_mask"]` (DISABLED).
    The horizon is the env's own, reported as truncation.

    Published worlds: see `WorldSimEnv`. N prompts are a tuple of strings, a Matrix-Game's actions a dict of arrays with
    N rows. Where blocks differ in length, `infos["frames"]` has T rows a world, its first frame standing in for those
    that are missing, and `infos["num_frames"]` says how many are its own.

    Args:
        num_envs: N.
        autoreset_mode: an `AutoresetMode` or its value ("NextStep", "SameStep", "Disabled").
        render_mode: "rgb_array" (a tuple of frames, one a world) or None. For a window, put
            `gymnasium.wrappers.vector.HumanRendering` around.
        tensors: observations, rewards (float32), terminations, truncations and the frames in infos are torch tensors
            on the engine's device, which pictures never leave. `reward_fn` is given tensors too.
        world, device, dtype, num_steps, window, obs, max_episode_steps, reward_fn, deterministic, kv_dtype, preset,
            prompt, image, base, codec, size, guard, guard_bound, parallel, extras: as for `WorldSimEnv`; `reward_fn` is
            asked world by world. With `deterministic=False` a world's numbers depend, to rounding, on those beside it.

    Raises:
        ValueError: an argument names nothing this machine or package has.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 9, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        world: str | Path = "doom-take-cover",
        device: str = "cpu",
        dtype: str | None = None,
        num_steps: int | None = None,
        window: int | None = None,
        obs: str = "frame",
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        reward_fn: RewardFn | None = None,
        deterministic: bool = True,
        kv_dtype: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        tensors: bool = False,
        preset: str | Preset | None = None,
        prompt: str | None = None,
        image: Any = None,
        base: str | Path | None = None,
        codec: str | None = None,
        size: tuple[int, int] | None = None,
        guard: str | Sequence[str] = (),
        guard_bound: float | Mapping[str, float] | None = None,
        parallel: ParallelConfig | int | str | None = None,
        **extras: Any,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs {num_envs}: expected at least 1")
        check_choice("render_mode of a vector env", render_mode, (None, *RENDER_MODES))
        common = world, device, dtype, num_steps, window, obs, max_episode_steps, reward_fn, deterministic, kv_dtype
        self.settings = Settings(
            *common, preset, prompt, image, base, codec, size, extras, guard, guard_bound, parallel
        )
        self.num_envs, self.render_mode, self.reward_fn = num_envs, render_mode, reward_fn
        self.autoreset_mode = autoreset_mode_of(autoreset_mode)
        self.folder, self.card = self.settings.find()
        self.seats = self.settings.claim(self.folder, num_worlds=num_envs)
        self.engine, self.world_spec = self.seats.engine, self.seats.engine.spec
        self.guard = self.settings.watch(self.folder, self.engine)
        self.columns = DeviceTensors(device_of(self.engine)) if tensors else HostArrays()
        self.frames_per_step = self.world_spec.block * self.world_spec.frames_per_latent
        self.openings = self.settings.openings(self.folder, self.seats, self.frames_per_step)
        fps = max(1, round(self.world_spec.fps))
        self.metadata = {**type(self).metadata, "render_fps": fps, "autoreset_mode": self.autoreset_mode}
        self.metadata |= {"torch": True} if tensors else {}
        self.single_action_space = space_of(self.world_spec.actions)
        self.single_observation_space = self.settings.observation_space(self.world_spec, self.frames_per_step)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.states: list[EpisodeState | None] = [None] * num_envs
        self.rngs: list[np.random.Generator | None] = [None] * num_envs

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None):
        """Begin episodes.

        Args:
            seed: world i takes seed + i, or the i-th of a sequence; None draws on.
            options: "reset_mask" (bool [N], NumPy) resets these worlds and leaves the others as they are. The rest are
                as for `WorldSimEnv.reset`, for all worlds, or, in a list or tuple, one for each (None for none):
                {"start": 3}, {"start": [0, 1, None]}, {"snapshot": [...]}.

        Raises:
            ValueError: an option that does not fit; no world was reset. (That a snapshot is of another engine setting
                is found out in its world's turn.)
            ResetNeeded: the mask leaves out a world that has no episode yet.
        """
        self._check_open()
        options = dict(options or {})
        chosen = worlds_of(options.pop("reset_mask", None), self.num_envs)
        missing = [i for i, state in enumerate(self.states) if state is None and i not in chosen]
        if missing:
            raise ResetNeeded(f"worlds {missing} have no episode yet: reset all of them first, without reset_mask")
        seeds = seeds_of(chosen_seed(seed, options) if self.settings.preset else seed, self.num_envs)
        self._begin({i: self._beginning(i, seeds[i], options_of(options, i, self.num_envs)) for i in chosen})
        return self._observations(), self._infos(chosen, {})

    def step(self, actions: Any):
        """Dream the next block of every world. Returns observations, rewards, terminations, truncations, infos.

        Raises:
            ValueError: an action that does not fit, by world; no world has moved.
            ResetNeeded: there was no reset, or an episode is over and the autoreset mode does not reset it.
        """
        states = self._running()
        over = [i for i, state in enumerate(states) if state.over]
        if over and self.autoreset_mode is not AutoresetMode.NEXT_STEP:
            raise ResetNeeded(f"the episodes of worlds {over} are over: reset them (options['reset_mask']) first")
        moving = [i for i in range(self.num_envs) if i not in over]
        rows = rows_of(actions, self.world_spec.actions, self.num_envs)
        conditions = conditions_of(rows, states, self.seats, moving)
        beginnings = {i: self._beginning(i, None, {}) for i in over}
        blocks, read = self.guard.step([states[i].world for i in moving], conditions) if moving else ([], [])
        outcome = np.zeros(self.num_envs), *np.zeros((2, self.num_envs), np.bool_)
        for i, block, frames, signals in zip(moving, blocks, self.columns.pictures(blocks), read, strict=True):
            for column, value in zip(outcome, self._advance(states[i], rows[i], block, frames, signals), strict=True):
                column[i] = value
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            beginnings = {i: self._beginning(i, None, {}) for i in moving if states[i].over}
            infos = self._final(list(beginnings))
        self._begin(beginnings)
        return self._observations(), *map(self.columns.column, outcome), self._infos(range(self.num_envs), infos)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The last frame of each world, uint8 [H, W, 3], or None, by `render_mode`."""
        if self.render_mode is None:
            return None
        return tuple(torch.as_tensor(state.frames[-1]).cpu().numpy().copy() for state in self._running())

    def snapshot(self, i: int) -> bytes:
        """World i's episode as `WorldSimEnv.snapshot` has it; either kind of env can restore it."""
        check_indices([i], self.num_envs)
        state, rng = self._running()[i], self.rngs[i]
        assert rng is not None
        return Snapshot.of(state, self.engine.snapshot(state.world), rng).encode()

    def restore(self, i: int, value: bytes) -> tuple[Frames, dict[str, Any]]:
        """World i goes on from a snapshot (see `WorldSimEnv.restore`): its observation and info, as they were."""
        self._check_open()
        check_indices([i], self.num_envs)
        self._begin({i: self._beginning(i, None, {"snapshot": value})})
        state = self._running()[i]
        return self._last(state), self._info(state)

    def fork(self, i: int, onto: Sequence[int], seeds: Sequence[int] | None = None) -> None:
        """Make the worlds `onto` forks of world i, in its state and sharing its history.

        Args:
            seeds: of their noise from here on; by default the same actions give all of them the same future.

        Raises:
            ValueError: not worlds, or not one seed for each; no world was touched.
        """
        states = self._running()
        check_indices([i, *onto], self.num_envs)
        if seeds is not None and len(seeds) != len(onto):
            raise ValueError(f"{len(seeds)} seeds for {len(onto)} forks: expected one for each, or None")
        for j, world in zip(onto, self.seats.fork(states[i].world, onto, seeds), strict=True):
            self.states[j], self.rngs[j] = replace(states[i], world=world), copy.deepcopy(self.rngs[i])

    def recover(self) -> None:
        """Start new ranks after `engine.WorkerLost`, and go on where the last step ended, to the bit.

        That takes `ParallelConfig(snapshot_every=k)`; without it there is no episode then: reset, or restore a
        snapshot; nor is there where the fault came between a step and what a guard was to read off it. Does nothing
        where no rank failed.

        Raises:
            RuntimeError: this env has no ranks of its own, or torchrun started them.
        """
        self._check_open()
        recover(self.engine)
        self.states = [state if state is not None and state.intact else None for state in self.states]

    def close_extras(self, **kwargs: Any) -> None:
        """Give the worlds' places back; Gymnasium may call this for an env whose construction failed."""
        if hasattr(self, "seats"):
            self.seats.leave()
        self.states = []

    def _beginning(self, i: int, seed: int | None, options: Mapping[str, Any]) -> Beginning:
        """How world i's next episode begins; nothing has changed yet."""
        if "snapshot" in options:
            check_alone(options, seed)
            shape = (self.frames_per_step, *self.world_spec.frame, 3)
            told = Snapshot.decode(options["snapshot"], shape, fewest=1 if self.settings.preset else None)
            return told.rng, told
        rng = copy.deepcopy(self.rngs[i]) if seed is None else None
        rng = rng or seeding.np_random(seed)[0]
        return rng, self.openings.opening(options, rng)

    def _begin(self, beginnings: Mapping[int, Beginning]) -> None:
        """Begin episodes; first blocks that have to be dreamed are dreamed in one call."""
        try:
            for i, beginning in beginnings.items():
                self.states[i], self.rngs[i] = self._begun(i, beginning), beginning[0]
        finally:  # those that have begun are whole, whatever became of the others
            blank = [state for state in self.states if state is not None and not len(state.frames)]
            blocks = first_blocks([state.world for state in blank], self.seats)
            pictures: Sequence[Any] = self.columns.pictures(blocks)
            for state, frames in zip(blank, pictures, strict=True):
                state.frames = frames

    def _begun(self, i: int, beginning: Beginning) -> EpisodeState:
        """World i's next episode, its world opened; without frames where the first block is still to be dreamed."""
        rng, source = beginning
        if isinstance(source, Snapshot):
            world = self.seats.restore(i, source.world)
            return EpisodeState(
                world, self.columns.shown(source.frames), **{"uncertainty": self.guard.blank, **source.episode}
            )
        world = self.seats.open(i, source.start, int(rng.integers(2**63)))
        frames = np.zeros((0, *self.world_spec.frame, 3), np.uint8) if source.frames is None else source.frames
        state = EpisodeState(world, self.columns.shown(frames), self.settings.horizon, prompt=source.prompt)
        return replace(state, uncertainty=self.guard.blank)

    def _advance(
        self, state: EpisodeState, action: Any, block: Block, frames: Any, read: dict[str, float] | None
    ) -> tuple[float, bool, bool]:
        """Reward, terminated and truncated of one world's step."""
        distrusted = self.guard.exceeded(read)
        terminated, truncated = state.advance(block, frames, prompt_after(action, state), read, distrusted)
        if self.reward_fn is None:
            return block.reward, terminated, truncated
        reward, ends = judged(self.reward_fn, frames, action, state.info(self.world_spec))
        state.over = state.over or ends
        return reward, terminated or ends, truncated

    def _final(self, ended: Sequence[int]) -> dict[str, Any]:
        """What was seen last of worlds that are reset within the step."""
        infos: dict[str, Any] = {}
        for i in ended:
            state = self._running()[i]
            last = {"final_obs": self._last(state), "final_info": self._info(state)}
            infos = self._add_info(infos, last, i)
        return infos

    def _infos(self, rows: Sequence[int], infos: dict[str, Any]) -> dict[str, Any]:
        """`infos` and the infos of these worlds."""
        states = self._running()
        for i in rows:
            infos = self._add_info(infos, self._info(states[i]), i)
        return self.columns.infos(infos)

    def _info(self, state: EpisodeState) -> dict[str, Any]:
        """A world's info, of the same shapes for all worlds."""
        info = state.info(self.world_spec)
        if self.settings.preset is None:
            return info
        return {**info, "frames": filled(state.frames, self.frames_per_step), "num_frames": len(state.frames)}

    def _last(self, state: EpisodeState) -> Frames:
        """A world's observation, a copy."""
        return self.columns.stack([state.observation(self.settings.obs, self.frames_per_step)])[0]

    def _observations(self) -> Any:
        rows = [state.observation(self.settings.obs, self.frames_per_step) for state in self._running()]
        return self.columns.stack(rows)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("this env is closed: make a new one")

    def _running(self) -> list[EpisodeState]:
        """The episodes; raises where a world has none."""
        self._check_open()
        running = [state for state in self.states if state is not None]
        if len(running) < self.num_envs:
            raise ResetNeeded("there are no episodes: call reset() first")
        return running
