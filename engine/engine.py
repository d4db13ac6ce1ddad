"""Engine: open, step, fork, save, restore, close. Holds the weights and the KV pool; a world is the caller's value.

`step` makes the next block of any number of worlds: asks the heads about the end, runs the schedule's passes,
commits the block, decodes it, reads the heads. The loop of passes (`_run`) knows no formulas: those are in
schedule.py. Knows nothing of Gymnasium.

Legend: N worlds, F latent frames of a block, C H W latent, A action encoding, V variables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import noise
from engine.conditioning import Condition
from engine.hardware import set_threads
from engine.invariance import invariant
from engine.kv.paged import PagedView
from engine.kv.policy import PageTable
from engine.kv.pool import Pool
from engine.model import WorldModel
from engine.schedule import Pass, commit, flow
from engine.snapshot import pack, revive, unpack, write_file
from engine.spec import KVPolicy, WorldSpec
from engine.world import Block, Start, World

# Windows' worth of pages beyond what the worlds can hold: one in SLACK steps gathers, the others slice.
SLACK = 7
# Noise keys of real blocks count down from here.
REAL = -1
# Pages a world with an unlimited window is admitted with, and the steps in which its attention grows.
FULL_HISTORY, BUCKET = 1_024, 16


class Engine:
    """Runs worlds of one model.

    Args:
        model: what `engine.load` returns.
        num_steps: denoising passes of a block; the spec's by default.
        policy: which history is visible; the spec's by default.
        max_worlds: how many may be open at once; their pages are allocated here (`grow` adds to them).
        deterministic: a world's numbers do not depend, bit for bit, on the worlds beside it. False is faster with
            many worlds, and then agrees to rounding.
        kv_dtype: how the pool stores pages: None as computed, "int8" or "fp8".
        offload: keep pages that have left the window in host memory (with a policy that still wants them).

    Raises:
        ValueError: num_steps or max_worlds is below 1, or kv_dtype is unknown.
    """

    def __init__(
        self,
        model: WorldModel,
        num_steps: int | None = None,
        policy: KVPolicy | None = None,
        max_worlds: int = 1,
        deterministic: bool = True,
        kv_dtype: str | None = None,
        offload: bool = False,
    ):
        spec = model.spec
        steps = spec.num_steps if num_steps is None else num_steps
        if steps < 1 or max_worlds < 1:
            raise ValueError(f"num_steps {steps} and max_worlds {max_worlds}: expected 1 or more")
        set_threads()
        self.spec, self.policy = spec, policy or spec.kv
        self.model = invariant(model) if deterministic else model
        self.deterministic, self.given = deterministic, model
        self.passes = flow(steps, spec.shift, spec.context_noise)
        self.need, self.need_host = pages_needed(self.policy, spec.block, offload)
        self.pool = Pool(
            spec.stream,
            max_worlds * self.need,
            model.dtype,
            model.device,
            slack=SLACK * self.need if slides(self.policy, kv_dtype) else 0,
            kv_dtype=kv_dtype,
            host=max_worlds * self.need_host,
            summarise=self.policy.top_k > 0,
        )

    def grow(self, max_worlds: int) -> None:
        """Make room for at least that many worlds at once; those that are open go on as they were."""
        self.pool.grow(max_worlds * self.need, max_worlds * self.need_host)

    @torch.inference_mode()
    def open(self, start: Start, seed: int) -> World:
        """Begin a world from real frames: they are encoded and committed, at positions 0, 1, ...

        Raises:
            ValueError: `start` does not fit the spec.
            PoolFull: too many worlds are open.
        """
        check_start(start, self.spec)
        self.pool.reserve(self.need, self.need_host)
        world = World(noise.SeededNoise(int(seed)), PageTable(), np.array(start.variables[0], np.float64))
        self._commit_real(world, start)
        return world

    @torch.inference_mode()
    def observe(self, world: World, seen: Start) -> None:
        """Let a world see what really happened next: real frames are committed as its history goes on.

        The next step dreams from them. What `open` does at once, this does bit by bit, with the same result.

        Raises:
            ValueError: the world is closed, or `seen` does not fit the spec.
        """
        check_start(seen, self.spec)
        if not world.open:
            raise ValueError("observe needs an open world")
        self._commit_real(world, seen)

    @torch.inference_mode()
    def outlook(self, worlds: list[World], conditions: Sequence[Condition]) -> tuple[np.ndarray, np.ndarray]:
        """What the next step would bring, without making it.

        Args:
            conditions: as for `step`.

        Returns:
            The probability that it ends each episode, and the reward it would pay if so, each float32 [N].
        """
        check_step(worlds, conditions, self.spec)
        return self._outlook(worlds, self._joined(worlds, conditions))

    @torch.inference_mode()
    def step(self, worlds: list[World], conditions: Sequence[Condition]) -> list[Block]:
        """Make the next block of each world.

        Args:
            worlds: open worlds of this engine, each at most once, of any ages.
            conditions: one for each, with an action for every latent frame of the block (see `Condition.of`).

        Raises:
            ValueError: a world is closed or named twice, or a condition does not fit; no world moved.
        """
        check_step(worlds, conditions, self.spec)
        blocks: dict[int, Block] = {}
        for rows in self._alike(worlds):
            made = self._step([worlds[i] for i in rows], [conditions[i] for i in rows])
            blocks.update(zip(rows, made, strict=True))
        return [blocks[i] for i in range(len(worlds))]

    @torch.inference_mode()
    def fork(self, world: World, n: int = 1, seeds: Sequence[int] | None = None) -> list[World]:
        """`n` further worlds with the same past, whose pages they share until they are dropped.

        Args:
            seeds: of the forks' noise from now on; by default the world's own, so that the same actions give the
                same future.

        Raises:
            ValueError: the world is closed, or there is not one seed for each fork.
            PoolFull: they do not fit; nothing was taken.
        """
        if not world.open:
            raise ValueError("fork needs an open world")
        if n < 1 or (seeds is not None and len(seeds) != n):
            raise ValueError(f"{n} forks with seeds {seeds}: expected at least one fork, and a seed for each or none")
        self.pool.reserve(n * self.need, n * self.need_host, f"{n} forks of a world")
        self.pool.retain(n * world.table.pages)
        return [world.fork(None if seeds is None else int(seeds[i])) for i in range(n)]

    @torch.inference_mode()
    def snapshot(self, world: World) -> bytes:
        """Everything of a world in one blob: `restore` gives it back, here or in another process.

        Raises:
            ValueError: the world is closed.
        """
        if not world.open:
            raise ValueError("snapshot needs an open world")
        return pack(world, self.pool, self._settings())

    def save(self, world: World, path: str | Path) -> None:
        """Write a world's snapshot to a file; an interrupted save leaves what was there."""
        write_file(Path(path), self.snapshot(world))

    @torch.inference_mode()
    def restore(self, source: bytes | str | Path) -> World:
        """The world of a snapshot, or of a file of one. On the same build and device its future is the same to the bit.

        Raises:
            ValueError: it cannot be read, is damaged or newer, or was taken from another model, policy or precision.
            PoolFull: it does not fit.
        """
        blob = source if isinstance(source, bytes) else read_file(Path(source))
        state, tensors = unpack(blob, self._settings())
        self.pool.reserve(self.need, self.need_host, "the snapshot's world")
        table = PageTable(state["length"], state["positions"])
        table.pages = self._places(table)
        return revive(state, tensors, table, self.pool)

    def close(self, world: World) -> None:
        """Give a world's pages back. Closing twice is fine."""
        if world.open:
            self.pool.release(world.table.pages + world.table.in_flight)
            self.pool.unreserve(self.need, self.need_host)
            world.table, world.open = PageTable(), False

    def _settings(self) -> dict[str, Any]:
        """What a snapshot of this engine's worlds can be restored under."""
        return {
            "model": self.given.identity,  # hashed when a snapshot first needs it
            "policy": asdict(self.policy) | {"pages": list(self.policy.pages)},
            "num_steps": len(self.passes) - 1,
            "kv_dtype": self.pool.kv_dtype,
        }

    def _alike(self, worlds: list[World]) -> list[list[int]]:
        """Rows that run together: all of them, or where histories have no limit, those of about one length."""
        groups: dict[int, list[int]] = {}
        for i, world in enumerate(worlds):
            groups.setdefault(self._span(world), []).append(i)
        return list(groups.values())

    def _span(self, world: World) -> int:
        """Pages of history that a world's attention is padded to."""
        return self.policy.span or -(-max(1, world.table.length) // BUCKET) * BUCKET

    def _step(self, worlds: list[World], conditions: list[Condition]) -> list[Block]:
        """`step` for worlds that run together."""
        condition = self._joined(worlds, conditions)
        ends, last_rewards = self._outlook(worlds, condition)
        latents = torch.stack([w.noise.latent(w.block, 0, (self.spec.block, *self.spec.latent)) for w in worlds])
        latents = self._run(worlds, self.passes, latents.to(self.model.device), condition, None)
        pictures = self._decode(worlds, latents)
        rewards = self._read_heads(worlds)
        blocks = []
        for i, world in enumerate(worlds):
            draw = world.noise.uniform(world.block, noise.END)[0]
            world.ended = bool(draw < ends[i])
            world.block += 1
            reward = last_rewards[i] if world.ended else rewards[i]
            blocks.append(Block(pictures[i], float(reward), float(ends[i]), world.ended, world.variables.copy()))
        return blocks

    def _commit_real(self, world: World, seen: Start) -> None:
        """Encode real frames and commit them block by block; leave the variables as they stood at the last one."""
        frames = torch.from_numpy(np.ascontiguousarray(seen.frames)).to(self.model.device)
        latents, _ = self.model.codec.encode(frames[None])
        before = np.concatenate([world.variables[None], seen.variables[:-1]])
        actions = torch.from_numpy(np.asarray(seen.actions, np.float32))
        variables = torch.from_numpy(self.spec.encode_variables(before))
        passes = [commit(self.spec.context_noise)]
        for k in range(0, len(seen.frames), self.spec.block):
            block = slice(k, k + self.spec.block)
            condition = Condition(actions[None, block], variables[None, block])
            # Real blocks are keyed by their place in history, from the far end of the counter, so that their
            # noise is no dreamed block's.
            self._run([world], passes, latents[:, block].float(), condition, REAL - world.table.length)
        world.variables = np.array(seen.variables[-1], np.float64)

    def _run(
        self, worlds: list[World], passes: list[Pass], latents: Tensor, condition: Condition, block: int | None
    ) -> Tensor:
        """Run the passes over one block of each world and commit it; return the clean latents [N, F, C, H, W]."""
        view = self._begin(worlds, latents.shape[1])
        starts = torch.tensor([[w.table.length] for w in worlds])
        positions = (starts + torch.arange(latents.shape[1])).to(self.model.device)
        condition = condition.to(self.model.device)
        for draw, step in enumerate(passes, start=1):
            shown = latents
            if step.enter:
                fresh = [w.noise.latent(w.block if block is None else block, draw, latents.shape[1:]) for w in worlds]
                shown = step.enter(latents, torch.stack(fresh).to(latents.device))
            times = torch.full(latents.shape[:2], step.level, device=latents.device)
            prediction, features = self.model.denoiser(shown, times, positions, condition, view)
            if step.update:
                latents = step.update(latents, prediction.float())
            if step.commit:
                self._commit(worlds, view, latents, features)
        return latents

    def _begin(self, worlds: list[World], frames: int) -> PagedView:
        for world in worlds:
            last = world.table.pages[-1] if world.table.pages else -1
            world.table.in_flight = self.pool.allocate(frames, after=last)
        reaches = [w.table.reach(self.policy) for w in worlds]
        span = self._span(worlds[0]) if self.deterministic else None
        return PagedView(self.pool, reaches, [w.table.in_flight for w in worlds], self.policy.top_k, span)

    def _commit(self, worlds: list[World], view: PagedView, latents: Tensor, features: Tensor) -> None:
        view.commit()
        states = self.model.heads.summarise(features[:, -1])
        for world, clean, state in zip(worlds, latents, states, strict=True):
            self.pool.release(world.table.commit(self.policy))
            self._offload(world)
            world.latents, world.head_state = clean, state

    def _offload(self, world: World) -> None:
        """Send a world's pages that have left the window to the host, where the engine was opened so."""
        if self.need_host:
            for i in world.table.outside(self.policy):
                world.table.pages[i] = self.pool.offload(world.table.pages[i])

    def _places(self, table: PageTable) -> list[int]:
        """Free pages for all positions of a table, on the host where `_offload` would have them."""
        away = set(table.outside(self.policy)) if self.need_host else set()
        here, there = self.pool.allocate(len(table.positions) - len(away)), self.pool.allocate_host(len(away))
        return [there.pop(0) if i in away else here.pop(0) for i in range(len(table.positions))]

    def _decode(self, worlds: list[World], latents: Tensor) -> Tensor:
        """Frames uint8 [N, T, H, W, 3]; the codec's streaming states move on."""
        frames, states = self.model.codec.decode(latents, [w.codec_state for w in worlds])
        for world, state in zip(worlds, states or [None] * len(worlds), strict=True):
            world.codec_state = state
        return frames

    def _joined(self, worlds: list[World], conditions: Sequence[Condition]) -> Condition:
        """The conditions of all worlds, with their variables as they stand, repeated over the block's frames."""
        rows = self.spec.encode_variables(np.stack([w.variables for w in worlds]))
        variables = torch.from_numpy(rows)[:, None].expand(-1, self.spec.block, -1)
        return replace(Condition.stack(conditions), variables=variables).to(self.model.device)

    def _outlook(self, worlds: list[World], condition: Condition) -> tuple[np.ndarray, np.ndarray]:
        """End probability of the step about to be made, and the reward if it does end, each [N]."""
        states = torch.stack([w.head_state for w in worlds if w.head_state is not None])
        logits, rewards = self.model.heads.next(states, condition.variables[:, 0], condition.actions[:, 0])
        return logits.sigmoid().cpu().numpy(), rewards.cpu().numpy()

    def _read_heads(self, worlds: list[World]) -> np.ndarray:
        """Rewards [N] of the committed block; moves the named variables by changes drawn from their heads."""
        states = torch.stack([w.head_state for w in worlds if w.head_state is not None])
        rewards, changes = self.model.heads.now(states)
        for v, (variable, logits) in enumerate(zip(self.spec.variables, changes, strict=True)):
            odds = logits.softmax(-1).cpu().numpy().cumsum(-1)
            for world, row in zip(worlds, odds, strict=True):
                draw = world.noise.uniform(world.block, noise.VARIABLES + v)[0]
                delta = variable.deltas[min(int(np.searchsorted(row, draw)), len(row) - 1)]
                world.variables[v] = np.clip(world.variables[v] + delta, variable.low, variable.high)
        return rewards.cpu().numpy()


def pages_needed(policy: KVPolicy, block: int, offload: bool) -> tuple[int, int]:
    """Pages that a world may hold at once, on the device (sinks, window, block, what lies before) and on the host."""
    if policy.window is None:
        return FULL_HISTORY + block, 0
    near, far = policy.sink + policy.window + block, policy.early - policy.sink
    return (near, far) if offload else (near + far, 0)


def slides(policy: KVPolicy, kv_dtype: str | None) -> bool:
    """Whether a world's pages can stay one run of the pool, which a layer then reads in place."""
    return kv_dtype is None and policy.window is not None and not policy.early


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"snapshot {str(path)!r} cannot be read: {error.strerror or error}") from None


def check_start(start: Start, spec: WorldSpec) -> None:
    """Raise ValueError unless a start has the spec's shapes."""
    frames, height_width = start.frames, (*spec.frame, 3)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != height_width or len(frames) < 1:
        raise ValueError(
            f"start frames are {frames.dtype} {list(frames.shape)}: expected uint8 [K, *{list(height_width)}], K >= 1"
        )
    count = len(frames)
    if count % spec.block:
        raise ValueError(f"{count} start frames: expected a multiple of the block's {spec.block}")
    if np.shape(start.actions) != (count, spec.actions.width):
        raise ValueError(
            f"start actions are {list(np.shape(start.actions))}: expected [{count}, {spec.actions.width}] encoded rows"
        )
    if np.shape(start.variables) != (count, len(spec.variables)):
        names = [v.name for v in spec.variables]
        raise ValueError(
            f"start variables are {list(np.shape(start.variables))}: expected [{count}, {len(names)}] {names}"
        )


def check_step(worlds: list[World], conditions: Sequence[Condition], spec: WorldSpec) -> None:
    """Raise ValueError unless every world can move."""
    if not worlds or any(not w.open for w in worlds):
        raise ValueError("step needs at least one world, all of them open")
    if len({id(w) for w in worlds}) != len(worlds):
        raise ValueError("a world is named twice in one step")
    if len(conditions) != len(worlds):
        raise ValueError(f"{len(conditions)} conditions for {len(worlds)} worlds: expected one each")
    expected = [spec.block, spec.actions.width]
    for condition in conditions:
        if list(condition.actions.shape) != expected:
            raise ValueError(f"a condition's actions are {list(condition.actions.shape)}: expected encoded {expected}")
