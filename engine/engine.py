"""Engine: open, step, fork, save, restore, close. Holds the weights and the KV pool; a world is the caller's value.

`step` makes the next block of any number of worlds: asks the heads about the end, runs the schedule's passes (see
runner.py), decodes the block, reads the heads. Knows nothing of Gymnasium.

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
from engine.checks import check_beside, check_noise, check_policy, check_seen, check_start, check_step
from engine.conditioning import Condition, Context
from engine.flying import step, unseen
from engine.hardware import set_threads
from engine.invariance import invariant
from engine.kv.policy import PageTable
from engine.kv.pool import KV_DTYPES, Pool, PoolFull
from engine.model import WorldModel
from engine.paged_attention import choose
from engine.passes import commit_pass, schedule_of
from engine.runner import SMALL_PAGE, Runner, action_windows
from engine.schedule import Pass
from engine.sizing import need_of, pages_needed, slack_pages
from engine.snapshot import pack, read_file, revive, sources_of, unpack, with_contexts, write_file
from engine.spec import KVPolicy
from engine.world import Block, Start, World


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
        paged: on CUDA, read pages in place by a paged kernel where there is one, instead of gathering them; by default
            where pages are small. Kernels differ in rounding, so this does not depend on how many worlds there are.

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
        paged: bool | None = None,
    ):
        spec = model.spec
        if max_worlds < 1:
            raise ValueError(f"max_worlds {max_worlds}: expected 1 or more")
        self.schedule, self.passes = schedule_of(spec, num_steps, model.dtype)
        set_threads()
        self.spec, self.policy = spec, policy or spec.kv
        check_policy(self.policy, spec)
        self.model = invariant(model) if deterministic else model
        self.deterministic, self.given = deterministic, model
        self.need, self.need_host = pages_needed(self.policy, spec.block, offload)
        pool = Pool(
            spec.streams,
            max_worlds * self.need,
            model.dtype,
            model.device,
            slack=0 if kv_dtype else slack_pages(spec, self.policy, model.dtype),
            kv_dtype=kv_dtype,
            host=max_worlds * self.need_host,
            summarise=self.policy.top_k > 0,
            share=model.share,
        )
        kernel = None
        if model.share.whole_pages and (paged if paged is not None else spec.stream.tokens <= SMALL_PAGE):
            code = KV_DTYPES[kv_dtype] if kv_dtype else None
            kernel = choose(model.device, model.dtype, spec.stream.width, spec.stream.tokens, code)
        self.runner = Runner(self.model, pool, self.policy, deterministic, self.need_host > 0, kernel)

    @property
    def pool(self) -> Pool:
        """The pages of all its worlds."""
        return self.runner.pool

    def grow(self, max_worlds: int) -> None:
        """Make room for at least that many worlds at once; those that are open go on as they were."""
        self.pool.grow(max_worlds * self.need, max_worlds * self.need_host)

    def pages_of(self, start: Start) -> int:
        """Pages that a world is admitted with which begins so; most need `need`."""
        given = len(start.frames) // self.spec.frames_per_latent if start.latents is None else len(start.latents)
        return need_of(given, self.spec, self.policy, self.need)

    @torch.inference_mode()
    def open(self, start: Start, seed: int, source: noise.Noise | None = None) -> World:
        """Begin a world, from real frames or latents that are committed at positions 0, 1, ..., or from nothing.

        Args:
            seed: of the world's noise.
            source: noise from elsewhere, in place of the seed's (given tensors; see noise.GivenNoise).

        Raises:
            ValueError: `start` does not fit the spec.
            PoolFull: too many worlds are open.
        """
        check_start(start, self.spec)
        need = self.pages_of(start)
        self.pool.reserve(need, self.need_host)
        variables = start.variables[0] if len(start.variables) else np.zeros(len(self.spec.variables))
        world = World(source or noise.SeededNoise(int(seed)), PageTable(), np.array(variables, np.float64))
        world.context, world.horizon, world.reserved = start.context, start.horizon, (need, self.need_host)
        world.actions = np.zeros((0, self.spec.actions.width), np.float32)
        try:
            self._commit_real(world, start)
        except BaseException:
            self.close(world)
            raise
        return world

    @torch.inference_mode()
    def observe(self, world: World, seen: Start) -> None:
        """Let a world see what really happened next: real frames are committed as its history goes on.

        The next step dreams from them. What `open` does at once, this does bit by bit, with the same result.

        Raises:
            ValueError: the world is closed, or `seen` does not fit the spec; of a published world, latents do.
        """
        if not world.open:
            raise ValueError("observe needs an open world")
        check_seen(seen, self.spec, world)
        self._commit_real(world, seen)

    @torch.inference_mode()
    def contextualise(
        self, text: Tensor | None = None, image: Tensor | None = None, beside: Tensor | None = None
    ) -> Context:
        """What the layers of a published denoiser read of a prompt or an image: computed once, shared by worlds.

        Args:
            text: embeddings of a prompt, [T, D], T up to what the model was trained with.
            image: CLIP features of an image, [T, D].
            beside: channels shown beside the latents, [K, c, h, w]; the last latent frame's go on.

        Raises:
            ValueError: the model reads no such thing, or they have another shape.
        """
        if not hasattr(self.given.denoiser, "contextualise"):
            raise ValueError("this world is steered by actions alone: it reads no prompt and no image")
        check_beside(beside, self.spec)
        given = {"text": text, "image": image, "beside": beside}
        source = {name: x.cpu() for name, x in given.items() if x is not None}
        here = {name: None if x is None else x.to(self.model.device) for name, x in given.items()}
        return replace(self.given.denoiser.contextualise(**here), source=source)

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
            conditions: one for each, with an action for every frame of the block (`WorldSpec.frames_at`), and a new
                context if one takes effect with it (see `Condition.of`).

        Raises:
            ValueError: a world is closed or named twice, or a condition does not fit; no world moved.
            PoolFull: a world without a window has used up its pages; no world moved.
        """
        check_step(worlds, conditions, self.spec)
        for world in worlds:
            check_noise(world, self.schedule(world), self.spec)
            self._check_room(world, self.spec.block)
        self._steer(worlds, conditions)
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
        self.pool.reserve(n * world.reserved[0], n * world.reserved[1], f"{n} forks of a world")
        self.pool.retain(n * world.table.pages)
        return [world.fork(None if seeds is None else int(seeds[i])) for i in range(n)]

    @torch.inference_mode()
    def snapshot(self, world: World) -> bytes:
        """Everything of a world in one blob: `restore` gives it back, here or in another process.

        Where ranks share the world all call this together; rank 0 gets the blob, the others b"".

        Raises:
            ValueError: the world is closed.
        """
        if not world.open:
            raise ValueError("snapshot needs an open world")
        return pack(world, self.pool, self._settings())

    def save(self, world: World, path: str | Path) -> None:
        """Write a world's snapshot to a file; an interrupted save leaves what was there."""
        if blob := self.snapshot(world):  # of several ranks the first has it
            write_file(Path(path), blob)

    @torch.inference_mode()
    def restore(self, source: bytes | str | Path) -> World:
        """The world of a snapshot, or of a file of one. On the same build and device its future is the same to the bit.

        Raises:
            ValueError: it cannot be read, is damaged or newer, or was taken from another model, policy or precision.
            PoolFull: it does not fit.
        """
        blob = source if isinstance(source, bytes) else read_file(Path(source))
        state, tensors = unpack(blob, self._settings())
        here, away = state["reserved"]
        self.pool.reserve(here, away, "the snapshot's world")
        table = PageTable(state["length"], state["origin"], state["positions"])
        table.pages = self._places(table)
        world = revive(state, tensors, table, self.pool)
        contexts = {i: self.contextualise(**source) for i, source in sources_of(tensors).items()}
        with_contexts(world, state["contexts"], contexts)
        return world

    def close(self, world: World) -> None:
        """Give a world's pages back. Closing twice is fine."""
        if world.open:
            self.pool.release(world.table.pages + world.table.in_flight)
            self.pool.unreserve(*world.reserved)
            world.table, world.open = PageTable(), False

    def _settings(self) -> dict[str, Any]:
        """What a snapshot of this engine's worlds can be restored under."""
        return {
            "model": self.given.identity,  # hashed when a snapshot first needs it
            "policy": asdict(self.policy) | {"pages": list(self.policy.pages)},
            "num_steps": len(self.passes) - 1,
            "kv_dtype": self.pool.kv_dtype,
        }

    def _check_room(self, world: World, frames: int) -> None:
        """Raise PoolFull if a world without a window would take pages that others were admitted with."""
        length, page = world.table.length, self.pool.page_bytes
        if self.policy.window is None and length + frames > self.need:
            raise PoolFull(
                f"a world of {length} latent frames wants {frames} more: without a window it may hold {self.need} "
                f"pages ({self.need * page:,} bytes) of KV cache. Give the policy a window, or open a new world"
            )

    def _alike(self, worlds: list[World]) -> list[list[int]]:
        """Rows that run together: blocks of one size, and where histories have no limit, of about one length."""
        groups: dict[tuple[int, int, bool], list[int]] = {}
        for i, world in enumerate(worlds):
            name = self.runner.span(world), self.spec.block_at(world.table.length), world.flight is None
            groups.setdefault(name, []).append(i)
        return list(groups.values())

    def _step(self, worlds: list[World], conditions: list[Condition]) -> list[Block]:
        """`step` for worlds that run together."""
        condition = self._joined(worlds, conditions)
        ends, last_rewards = self._outlook(worlds, condition)
        latents = step(self.runner, worlds, self.schedule(worlds[0]), condition)
        pictures = unseen(self.runner, worlds, self.runner.decode(worlds, latents))
        rewards, expected = self._read_heads(worlds)
        blocks = []
        for i, world in enumerate(worlds):
            draw = world.noise.uniform(world.block, noise.END)[0]
            world.ended = bool(draw < ends[i])
            world.block += 1
            self._remember(world, conditions[i])
            reward = last_rewards[i] if world.ended else rewards[i]
            after = world.variables.copy(), expected[i]
            blocks.append(Block(pictures[i], float(reward), float(ends[i]), world.ended, *after))
        return blocks

    def _steer(self, worlds: list[World], conditions: Sequence[Condition]) -> None:
        """Give worlds the contexts that conditions bring, and begin histories anew that have come to their end."""
        for world, condition in zip(worlds, conditions, strict=True):
            if condition.prompt is not None and not condition.prompt.same(world.context):
                world.context = condition.prompt
                if self.spec.rollout and self.spec.rollout.rewrite:
                    self.runner.rewrite(world, self.passes[-1])
            restart = self.spec.rollout.restart if self.spec.rollout else None
            if restart and world.table.length + self.spec.block > restart[0]:
                self.runner.restart(world, Pass(0.0, commit=True))

    def _remember(self, world: World, condition: Condition) -> None:
        """Keep the last frames' actions where later blocks are shown them."""
        if self.spec.action_module:
            rows = condition.actions.cpu().numpy()
            world.actions = np.concatenate([world.actions, rows])[-self.spec.action_module.frames :]

    def _commit_real(self, world: World, seen: Start) -> None:
        """Encode real frames and commit them block by block; leave the variables as they stood at the last one."""
        latents = seen.latents
        if latents is None and len(seen.frames):
            frames = torch.from_numpy(np.ascontiguousarray(seen.frames)).to(self.model.device)
            latents = self.model.codec.encode(frames[None])[0][0]
        if latents is None:
            return
        if self.spec.staggered:
            self._give(world, latents.to(self.model.device).float())
            return
        count = len(latents)
        self._check_room(world, count)
        before = np.concatenate([world.variables[None], seen.variables[:-1]]) if self.spec.variables else None
        variables = torch.zeros(count, 0) if before is None else torch.from_numpy(self.spec.encode_variables(before))
        actions = torch.from_numpy(np.asarray(seen.actions, np.float32))
        self.runner.prefix(world, latents.to(self.model.device).float(), actions, variables, commit_pass(self.spec))
        if self.spec.frames_per_latent > 1:  # a video codec decodes what follows from what was
            self.runner.decode([world], latents[None].to(self.model.device))
        if before is not None:
            world.variables = np.array(seen.variables[-1], np.float64)

    def _give(self, world: World, latents: Tensor) -> None:
        """Commit whole blocks of latents; what is left over is what the first block in flight begins with."""
        whole = len(latents) // self.spec.block * self.spec.block
        self._check_room(world, whole)
        none = torch.zeros(whole, 0)
        self.runner.prefix(world, latents[:whole], none, none, commit_pass(self.spec))
        world.given = latents[whole:] if len(latents) > whole else None

    def _places(self, table: PageTable) -> list[int]:
        """Free pages for all positions of a table, on the host where `_offload` would have them."""
        away = set(table.outside(self.policy)) if self.need_host else set()
        here, there = self.pool.allocate(len(table.positions) - len(away)), self.pool.allocate_host(len(away))
        return [there.pop(0) if i in away else here.pop(0) for i in range(len(table.positions))]

    def _joined(self, worlds: list[World], conditions: Sequence[Condition]) -> Condition:
        """The conditions of all worlds, with their variables as they stand, repeated over the block's frames."""
        block = self.spec.block_at(worlds[0].table.length)
        rows = torch.from_numpy(self.spec.encode_variables(np.stack([w.variables for w in worlds])))
        pairs = zip(worlds, conditions, strict=True)
        actions = torch.stack([self._actions(w, c, block) for w, c in pairs])
        return self.runner.condition(worlds, actions, rows[:, None].expand(-1, block, -1))

    def _actions(self, world: World, condition: Condition, block: int) -> Tensor:
        """Actions of a block's latent frames: its rows, or windows over frames' rows."""
        module = self.spec.action_module
        if module is None:
            return condition.actions if self.spec.actions.width else condition.actions[:block]
        rows = condition.actions.cpu().numpy()
        at = world.table.length
        windows = action_windows(world.actions, rows, module.frames, at, block, module.frames_per_latent)
        return torch.from_numpy(windows)

    def _outlook(self, worlds: list[World], condition: Condition) -> tuple[np.ndarray, np.ndarray]:
        """End probability of the step about to be made, and the reward if it does end, each [N]."""
        states = self._head_states(worlds)
        logits, rewards = self.model.heads.next(states, condition.variables[:, 0], condition.actions[:, 0])
        return logits.sigmoid().cpu().numpy(), rewards.cpu().numpy()

    def _read_heads(self, worlds: list[World]) -> tuple[np.ndarray, np.ndarray]:
        """Rewards [N] of the committed block, and the named variables as they are expected after it, [N, V]; moves them
        by changes drawn from their heads."""
        rewards, changes = self.model.heads.now(self._head_states(worlds))
        expected = np.stack([world.variables for world in worlds])
        for v, (variable, logits) in enumerate(zip(self.spec.variables, changes, strict=True)):
            for i, (world, odds) in enumerate(zip(worlds, logits.softmax(-1).cpu().numpy(), strict=True)):
                outcomes = np.clip(world.variables[v] + np.array(variable.deltas), variable.low, variable.high)
                draw = world.noise.uniform(world.block, noise.VARIABLES + v)[0]
                drawn = min(int(np.searchsorted(odds.cumsum(), draw)), len(odds) - 1)
                expected[i, v], world.variables[v] = odds @ outcomes, outcomes[drawn]
        return rewards.cpu().numpy(), expected

    def _head_states(self, worlds: list[World]) -> Tensor:
        """What the heads keep of each world, [N, hidden]; zeros before its first block."""
        blank = torch.zeros(self.model.heads.hidden, device=self.model.device)
        return torch.stack([blank if w.head_state is None else w.head_state for w in worlds])
