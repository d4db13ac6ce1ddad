"""WorldSimEnv: a Gymnasium environment whose world is a neural network.

`step` is one block: the action is encoded, the engine denoises the next block from it and from the KV-cached
history, and its last frame is the observation. Knows Gymnasium and, of the engine, what `engine` exports.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from engine import ParallelConfig, Preset, World
from inferix_env.actions import key_map, space_of
from inferix_env.batches import chosen_seed
from inferix_env.engines import recover
from inferix_env.rewards import RewardFn, judged
from inferix_env.settings import Settings, check_choice
from inferix_env.snapshots import Snapshot
from inferix_env.state import EpisodeState
from inferix_env.steering import condition_of, first_blocks, prompt_after

RENDER_MODES = ["human", "rgb_array", "rgb_array_list"]


class WorldSimEnv(gym.Env):
    """One world, one step a block.

    Observation: the block's last frame, uint8 [H, W, 3], or with `obs="block"` all T of them, [T, H, W, 3].
    Info: `frames` (all frames of the step), `end_probability` (that it ended, asked before it was dreamed),
    `variables` (the world's named numbers, such as health), `expected_variables` (what they were expected to be after
    the step, before its changes were drawn) and, with a `guard`, `uncertainty`.
    Action: one for the step, held over its frames; or, where a step has several, an array with one for each, [K, ...].

    With `preset` the world is a published checkpoint, in one of two kinds. Its rewards are 0 and it never ends.
    A text world (Self Forcing, CausVid, LongLive) is steered by prompts: an action is a new one, taking effect with
    its step, or "", which keeps the one that holds (`info["prompt"]`). A reset dreams the first block at once, so what
    is seen is never blank; where the preset's first block is one latent, it may begin from a picture instead.
    A Matrix-Game begins from a picture, which is its first observation, and is steered by
    {"keyboard": [n], "mouse": [pitch, yaw]}.
    A first block has fewer frames than the others (4 F - 3 of F latents, not 4 F): `info["frames"]` has just those,
    and with `obs="block"` the first of them stands in for the missing ones.

    Envs of one process with the same world, device and engine settings share one engine; their worlds stay apart.

    `unwrapped.snapshot()` turns the episode into bytes, `restore` (or `reset` with the option "snapshot") goes on from
    them, bit for bit. They hold this env's own horizon and step count. `gym.make` keeps the horizon of an id in a
    `TimeLimit` around the env, whose count they do not reach: it begins anew at every `env.reset`, also at that of a
    snapshot, and runs on through `unwrapped.restore`. For a horizon that travels with a snapshot, give this class
    `max_episode_steps` itself, or use `gym.make_vec`.

    Args:
        world: a shipped world's name, or a folder; with `preset`, a checkpoint's file or folder, or its hub id.
        device: where the engine runs.
        dtype: "float32", "bfloat16", or None for what the device computes fast.
        num_steps: denoising passes of a block; the world's own by default.
        window: latent frames of history that a block sees; the world's own by default.
        obs: "frame" or "block".
        render_mode: "human" (a window; needs the extra `play`), "rgb_array", "rgb_array_list" (all frames since
            the last render) or None.
        max_episode_steps: the horizon, reported as truncation; None (or -1) for no end but the world's.
        reward_fn: (frames uint8 [T, H, W, 3], action, info) -> (reward, terminated): the reward in place of the
            learned head's; the episode ends if either says so. A reward alone leaves the end to the world.
        deterministic: the numbers do not depend, bit for bit, on other worlds stepped in the same call.
        kv_dtype: how the engine stores its history: None as computed, "int8" or "fp8".
        preset: how a published checkpoint is run: a name of `engine.PRESETS`, or an `engine.Preset`.
        prompt: of a text world's resets that bring none; by default a walk in a forest.
        image: of resets that bring none: a path, a PIL picture or uint8 [H, W, 3], cut and resized to the frame.
        base: a folder with the checkpoint's VAE and encoders, if they are not beside it.
        codec: "vae" (default), "tiny" or "preview".
        size: (H, W) in pixels; the preset's by default.
        guard: signals to read off every step, of `inferix_env.guard.SIGNALS` ("renoise", "latent", "action"), which
            say how far the dream may have left what its world learned: `info["uncertainty"]` has a number for each,
            0 before the first step. The frames are the same with and without.
        guard_bound: truncate the episode when a signal exceeds it: a number for the one signal there is, or
            {signal: bound}.
        parallel: run the model on several ranks, processes that this env starts and ends: an `engine.ParallelConfig`,
            a number of ranks, or "auto" for one a GPU of this machine. All else is as on one device. Under torchrun
            only rank 0's process goes on from here; the others serve it, and exit when it closes.
        extras: further ones of `engine.load` for checkpoints: lora, lora_alpha, numerics, prefer, text_device,
            text_cache.

    Raises:
        ValueError: an argument names nothing this machine or package has.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 9}

    def __init__(
        self,
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
        check_choice("render_mode", render_mode, (None, *RENDER_MODES))
        common = world, device, dtype, num_steps, window, obs, max_episode_steps, reward_fn, deterministic, kv_dtype
        self.settings = Settings(
            *common, preset, prompt, image, base, codec, size, extras, guard, guard_bound, parallel
        )
        self.folder, self.card = self.settings.find()
        self.seats = self.settings.claim(self.folder, num_worlds=1)
        self.engine, self.world_spec = self.seats.engine, self.seats.engine.spec
        self.guard = self.settings.watch(self.folder, self.engine)
        self.render_mode, self.reward_fn = render_mode, reward_fn
        self.metadata = {**type(self).metadata, "render_fps": max(1, round(self.world_spec.fps))}
        self.action_space = space_of(self.world_spec.actions)
        self.frames_per_step = self.world_spec.block * self.world_spec.frames_per_latent
        self.observation_space = self.settings.observation_space(self.world_spec, self.frames_per_step)
        self.openings = self.settings.openings(self.folder, self.seats, self.frames_per_step)
        self.state: EpisodeState | None = None
        self.unrendered: list[np.ndarray] = []
        self.closed = False
        self.window = open_window(self) if render_mode == "human" else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Begin an episode, or go on from a snapshot.

        Args:
            options: {"snapshot": bytes} alone goes on from a snapshot; else see `starts.make_start`, or, of a
                published world, `Scenes.opening`; {"seed": 3} is the seed there too.

        Raises:
            ValueError: unknown or contradictory options; the episode that runs goes on.
        """
        self._check_open()
        if "snapshot" in (options or {}):
            check_alone(options or {}, seed)
            return self.restore((options or {})["snapshot"])
        told = dict(options or {})
        super().reset(seed=chosen_seed(seed, told) if self.settings.preset else seed)
        opening = self.openings.opening(told, self.np_random)
        world = self.seats.open(0, opening.start, int(self.np_random.integers(2**63)))
        frames = opening.frames
        if frames is None:
            frames = first_blocks([world], self.seats)[0].frames
        return self._begin(
            EpisodeState(world, frames, self.settings.horizon, prompt=opening.prompt, uncertainty=self.guard.blank)
        )

    def step(self, action: Any):
        """Dream the next block. Returns observation, reward, terminated, truncated, info."""
        state = self._running()
        if state.over:
            raise ResetNeeded("step needs an episode that runs: call reset() first")
        [block], [read] = self.guard.step([state.world], [condition_of(action, state, self.seats)])
        reward, distrusted = block.reward, self.guard.exceeded(read)
        terminated, truncated = state.advance(block, block.frames, prompt_after(action, state), read, distrusted)
        self._show(self.frames)
        info = state.info(self.world_spec)
        if self.reward_fn is not None:
            reward, ends = judged(self.reward_fn, self.frames, action, info)
            terminated, state.over = terminated or ends, state.over or ends
        return self._observation(), reward, terminated, truncated, info

    def snapshot(self) -> bytes:
        """The episode as it stands: world, last frames, steps, horizon and random state (a safetensors blob).

        Raises:
            ResetNeeded: there is no episode.
        """
        state = self._running()
        return Snapshot.of(state, self.engine.snapshot(state.world), self.np_random).encode()

    def restore(self, value: bytes):
        """Go on from a snapshot of this world: what follows is what followed there, bit for bit.

        Returns:
            Observation and info, as they were.

        Raises:
            ValueError: it is no snapshot, or of another world or engine setting; the episode that runs goes on.
        """
        self._check_open()
        shape = (self.frames_per_step, *self.world_spec.frame, 3)
        told = Snapshot.decode(value, shape, fewest=1 if self.settings.preset else None)
        world = self.seats.restore(0, told.world)
        self.np_random = told.rng
        return self._begin(EpisodeState(world, told.frames, **{"uncertainty": self.guard.blank, **told.episode}))

    def fork(self, seed: int | None = None) -> WorldSimEnv:
        """Another env in the same state, on the same engine, sharing history until the two diverge.

        Args:
            seed: of the world's noise from here on; by default the same actions give both the same future.

        Returns:
            An env with this one's settings, independent of it; of a "human" one, without a window.

        Raises:
            ResetNeeded: there is no episode.
        """
        state = self._running()
        settings = self.settings.arguments | {"world": self.folder if self.folder.exists() else self.settings.world}
        made = type(self)(**settings, render_mode=None if self.window else self.render_mode)
        [world] = made.seats.fork(state.world, [0], None if seed is None else [seed])
        made.np_random = copy.deepcopy(self.np_random)
        made._begin(replace(state, world=world))
        return made

    def render(self):
        """The last frame, all frames since the last call, or None, by `render_mode`."""
        if self.render_mode == "rgb_array":
            return self.frames[-1].copy()
        if self.render_mode == "rgb_array_list":
            frames, self.unrendered = self.unrendered, []
            return frames
        return None

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
        if self.state is not None and not self.state.intact:
            self.state = None

    @property
    def world(self) -> World | None:
        """What is simulated; None before the first reset."""
        return self.state.world if self.state else None

    @property
    def frames(self) -> np.ndarray:
        """Frames of the last step, uint8 [T, H, W, 3]."""
        return np.asarray(self._running().frames)

    @property
    def over(self) -> bool:
        """Whether there is no episode that could go on."""
        return self.state is None or self.state.over

    def get_keys_to_action(self) -> dict[tuple[int, ...], Any]:
        """Held keys (pygame codes) -> action, as gymnasium.utils.play takes it."""
        return key_map(self.card, self.world_spec.actions)

    def close(self) -> None:
        """Give the world's place back. Closing twice is fine."""
        self.seats.leave()
        self.state, self.closed = None, True
        if self.window is not None:
            self.window.close()
            self.window = None

    def _begin(self, state: EpisodeState):
        """Observation and info of an episode about to run."""
        self.state, self.unrendered = state, []
        self._show(self.frames)
        return self._observation(), state.info(self.world_spec)

    def _show(self, frames: np.ndarray) -> None:
        if self.render_mode == "rgb_array_list":
            self.unrendered += list(frames)
        if self.window is not None:
            self.window.play(frames)

    def _observation(self) -> np.ndarray:
        return np.array(self._running().observation(self.settings.obs, self.frames_per_step))

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("this env is closed: make a new one")

    def _running(self) -> EpisodeState:
        """The episode; raises where there is none."""
        self._check_open()
        if self.state is None:
            raise ResetNeeded("there is no episode: call reset() first")
        return self.state


def check_alone(options: Mapping[str, Any], seed: int | None) -> None:
    """Raise ValueError if a snapshot comes with what it already holds."""
    others = sorted(set(options) - {"snapshot"})
    if others or seed is not None:
        given = [f"seed {seed}"] * (seed is not None) + [f"options {others}"] * bool(others)
        raise ValueError(f"reset from a snapshot with {' and '.join(given)}: expected the snapshot alone")


def open_window(env: WorldSimEnv):
    """The window of `render_mode="human"`."""
    try:
        from inferix_env.viewer import Window
    except ImportError as error:
        raise ValueError(f"render_mode 'human' needs pygame-ce: pip install 'inferix-env[play]' ({error})") from None
    height, width = env.world_spec.frame
    return Window((width, height), title=env.card.get("title", env.world_spec.name), fps=env.world_spec.fps)
