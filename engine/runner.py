"""Runner: runs passes over blocks of worlds and keeps what becomes history. The one loop of the engine is here.

Besides a step's passes it commits what was given from outside (`prefix`), passes the window's clean latents once more
when a model wants that of a new prompt (`rewrite`), and begins a history anew from its last latents (`restart`). It
knows no formulas: those are in schedule.py and stages.py. Holds the model and the pool; a world is the caller's value.

Legend: N worlds, B blocks in flight (one, but for staggered models), F latent frames of one, C H W latent, A action
encoding, V variables, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from engine.conditioning import Condition, Context
from engine.kv.flight import FlightView
from engine.kv.paged import PagedView
from engine.kv.policy import PageTable, Reach
from engine.kv.pool import Pool
from engine.model import WorldModel
from engine.paged_attention import PagedKernel
from engine.schedule import Pass
from engine.sizing import wide
from engine.spec import KVPolicy
from engine.world import World

# Noise keys of real blocks count down from here.
REAL = -1
# Worlds without a window run together where their attention rounds up to as many pages.
BUCKET = 16
# Tokens of a page up to which padding is cheaper than another call, and a paged kernel faster than a dense one.
SMALL_PAGE = 256


class Runner:
    """Runs worlds of one model on one pool.

    Args:
        kernel: reads pages in place, where there is one for the device (see engine.paged_attention).
        exact: pad histories so that a world's numbers do not depend on the worlds beside it.
        offload: send pages that have left the window to the host.
    """

    def __init__(
        self,
        model: WorldModel,
        pool: Pool,
        policy: KVPolicy,
        exact: bool,
        offload: bool,
        kernel: PagedKernel | None = None,
    ):
        self.kernel = kernel
        self.model, self.pool, self.policy, self.exact, self.offload = model, pool, policy, exact, offload
        self.spec, self.device = model.spec, model.device
        self.rollout = model.spec.rollout
        self.kept_latents, self.wide = kept_latents(model, policy), wide(policy, model.spec)
        self.look = self._staggered if model.spec.staggered else self._single

    def run(
        self,
        worlds: list[World],
        passes: Sequence[Pass],
        latents: Tensor,
        condition: Condition,
        block: int | None = None,
    ) -> Tensor:
        """Run passes over the blocks in flight of each world; return their latents [N, B F, C, H, W].

        Where the last pass commits, the oldest of them is history then.

        Args:
            block: keys the noise; by default each world's own count.
        """
        try:
            return self._run(worlds, passes, latents, condition, block)
        except BaseException:  # memory, noise, an interrupt: the block is given up, the worlds stay as they were
            for world in worlds:
                self.pool.release(world.table.in_flight)
                world.table.in_flight = []
            raise

    def _run(
        self, worlds: list[World], passes: Sequence[Pass], latents: Tensor, condition: Condition, block: int | None
    ) -> Tensor:
        view = self.look(worlds, passes, latents.shape[1])
        for draw, step in enumerate(passes, start=1):
            shown = pasted(worlds, latents)
            if step.enter:
                shown = step.enter(latents, self.noise(worlds, draw, latents.shape[1:], block))
            times = send(step.times(shown.shape[1]).expand(len(worlds), -1), self.device)
            told = step.tell(condition)
            prediction, features = self.model.denoiser(shown, times, view.rotary, told, view.during(step.reach))
            if step.update:
                latents = step.update(shown, prediction.float())
            if step.commit:
                self._commit(worlds, view, latents, features)
        return latents

    def noise(
        self,
        worlds: list[World],
        draw: int,
        shape: torch.Size | tuple[int, ...],
        block: int | None = None,
        ahead: int = 0,
    ) -> Tensor:
        """Normal float32 [N, *shape] for pass `draw` of each world's block, on the model's device.

        Args:
            ahead: blocks between that one and the world's next to be finished.
        """
        drawn = [w.noise.latent(w.block + ahead if block is None else block, draw, tuple(shape)) for w in worlds]
        return send(torch.stack(drawn), self.device)

    def span(self, world: World) -> int:
        """Pages of history that a world's attention is padded to; worlds of one span run together.

        All that the policy can show, where pages are small: then worlds of all ages share a call. Padding large pages
        would cost more than a call of their own, so those worlds have the span of what they see.
        """
        span, table = self.policy.span, world.table
        if self.spec.staggered:
            return len(self._kept(world).visible(table.length, table.origin))
        if span is None:
            return -(-max(1, table.length - table.origin) // BUCKET) * BUCKET
        if self.spec.stream.tokens <= SMALL_PAGE or self.policy.top_k:
            return span
        return len(self.policy.visible(table.length, table.origin))

    def condition(self, worlds: list[World], actions: Tensor, variables: Tensor) -> Condition:
        """Actions and variables of all worlds, [N, F, ...], with what their contexts add at their next positions."""
        contexts = [w.context for w in worlds if w.context is not None and not self.spec.staggered]
        frames, layers = actions.shape[1], Context.stack(contexts) if contexts else ()
        shown = [c.beside for c in contexts if c.beside is not None]
        beside = None
        if shown:
            starts = [w.table.length for w in worlds]
            beside = torch.stack([channels(x, s, frames) for x, s in zip(shown, starts, strict=True)])
        return Condition(send(actions, self.device), send(variables, self.device), layers, beside)

    def prefix(
        self, world: World, latents: Tensor, actions: Tensor, variables: Tensor, step: Pass, size: int | None = None
    ) -> None:
        """Commit given latents [K, C, h, w] as history, block by block.

        Args:
            actions, variables: of each latent frame, [K, ...].
            step: the pass that commits.
            size: latent frames of every block but, by the spec, a world's first.
        """
        k = 0
        while k < len(latents):
            count = size or self.spec.block_at(world.table.length)
            block = slice(k, k + count)
            condition = self.condition([world], actions[None, block], variables[None, block])
            if self.spec.staggered:  # what becomes history is read under no prompt
                condition = replace(condition, chunks=((None,),))
            # Real blocks are keyed by their place in history, from the far end of the counter, so that their noise
            # is no dreamed block's.
            self.run([world], [step], latents[None, block], condition, REAL - world.table.length)
            k += count

    def rewrite(self, world: World, step: Pass) -> None:
        """Pass the window's clean latents once more under the world's context, all seeing each other (LongLive).

        The sinks keep what they were, and the window's oldest frames, for which they stand, are not seen; unless the
        history is no longer than the window, or the rollout says "all": then the window's first frames are the sinks
        from now on. Other pages from before the window, which a policy may still want, stay as they were.
        """
        table, latents = world.table, world.latents
        if not table.length or latents is None:
            return
        start = table.length - len(latents)
        whole = start <= table.origin or (self.rollout is not None and self.rollout.rewrite == "all")
        skip = 0 if whole else self.policy.sink
        table.origin = start if whole else table.origin
        plain = KVPolicy(self.policy.window, self.policy.sink)
        seen = [p for p in plain.visible(table.length, table.origin) if p >= start + skip]
        self.pool.release(table.drop({*range(table.origin), *seen}))
        table.in_flight = self.pool.allocate(len(seen))
        reach = Reach(table.positions[:skip], table.pages[:skip], [], [])
        frames, kept = len(latents), [p - start for p in seen]
        view = PagedView(self.pool, [reach], [table.in_flight], [start], frames=frames, kept=kept, skip=skip)
        condition = self.condition([world], torch.zeros(1, frames, 0), torch.zeros(1, frames, 0))
        times = send(step.times(frames)[None], self.device)
        self.model.denoiser(latents[None], times, view.rotary, condition, view)
        view.commit()
        table.put(seen)

    def restart(self, world: World, step: Pass) -> None:
        """Begin the history anew from the world's last latents, of which the first is a picture again (CausVid).

        A video codec's first latent stands for one frame, so the frame where the overlap begins is encoded alone.
        Positions count from 0 again; decoding goes on from the overlap's latents.
        """
        assert self.rollout is not None
        assert self.rollout.restart is not None
        assert world.latents is not None
        assert world.tail is not None
        overlap = self.rollout.restart[1]
        first, _ = self.model.codec.encode(world.tail[None, :1])
        latents = torch.cat([first[0].float(), world.latents[len(world.latents) - overlap + 1 :]])
        self.pool.release(world.table.pages)
        world.table, world.latents = PageTable(), None
        none = torch.zeros(overlap, 0)
        self.prefix(world, latents, none, none, step, self.spec.block)
        world.codec_state = None
        self.decode([world], latents[None])

    def decode(self, worlds: list[World], latents: Tensor) -> Tensor | list[Tensor]:
        """Frames uint8 [N, T, H, W, 3], or N of [T, H, W, 3] where T differs; streaming states move on."""
        frames, states = self.model.codec.decode(latents, [w.codec_state for w in worlds])
        for world, state, made in zip(worlds, states or [None] * len(worlds), frames, strict=True):
            world.codec_state = state
            if self.rollout and self.rollout.restart:
                world.tail = made if world.tail is None else torch.cat([world.tail, made])
                world.tail = world.tail[-self.spec.frames_upto(self.rollout.restart[1]) :]
        return frames

    def _staggered(self, worlds: list[World], passes: Sequence[Pass], frames: int) -> FlightView:
        """The view of several blocks in flight, the oldest of which gets pages if it is to become history."""
        size, commits = self.spec.block, passes[-1].commit
        for world in worlds:
            world.table.in_flight = self.pool.allocate(size) if commits else []
        pages = [w.table.reach(self._kept(w)).pages for w in worlds]
        into, firsts = [w.table.in_flight for w in worlds], [w.table.length for w in worlds]
        return FlightView(self.pool, pages, into, firsts, frames // size, size)

    def _single(self, worlds: list[World], passes: Sequence[Pass], frames: int) -> PagedView:
        """The view of one block in flight, which has its pages from the first pass on."""
        for world in worlds:
            last = world.table.pages[-1] if world.table.pages else -1
            world.table.in_flight = self.pool.allocate(frames, after=last)
        reaches = [w.table.reach(self.policy) for w in worlds]
        span = self.span(worlds[0]) if self.exact else None
        firsts = [w.table.length for w in worlds]
        flight = [w.table.in_flight for w in worlds]
        return PagedView(self.pool, reaches, flight, firsts, self.policy.top_k, span, kernel=self.kernel)

    def _commit(self, worlds: list[World], view: PagedView | FlightView, latents: Tensor, features: Tensor) -> None:
        view.commit()
        latents = latents[:, : len(worlds[0].table.in_flight)]
        states = self.model.heads.summarise(features[:, -1])
        for world, clean, state in zip(worlds, latents, states, strict=True):
            self.pool.release(world.table.commit(self._kept(world)))
            self._offload(world)
            world.latents, world.head_state = self._last_latents(world, clean), state

    def _kept(self, world: World) -> KVPolicy:
        """What a world's blocks may see, and what it keeps for them."""
        return self.policy if world.flight is not None else self.wide

    def _last_latents(self, world: World, clean: Tensor) -> Tensor:
        """The clean latents that a world keeps once a block has joined them."""
        kept = self.kept_latents
        if world.latents is None or 0 < kept <= len(clean):
            return clean[-kept:]
        return torch.cat([world.latents, clean])[-kept:]

    def _offload(self, world: World) -> None:
        """Send a world's pages that have left the window to the host, where the engine was opened so."""
        if self.offload:
            for i in world.table.outside(self.policy):
                world.table.pages[i] = self.pool.offload(world.table.pages[i])


def kept_latents(model: WorldModel, policy: KVPolicy) -> int:
    """How many clean latents a world keeps: its last block, or those that a rollout passes again; 0 for all."""
    spec = model.spec
    if spec.rollout and spec.rollout.rewrite:
        return 0 if policy.window is None else policy.sink + policy.window + spec.block
    return max(spec.block, spec.rollout.restart[1] if spec.rollout and spec.rollout.restart else 0)


def pasted(worlds: list[World], latents: Tensor) -> Tensor:
    """Latents in flight, with what worlds were given in front of their first block."""
    given = {i: w.given for i, w in enumerate(worlds) if w.given is not None}
    if not given:
        return latents
    made = latents.clone()
    for i, known in given.items():
        made[i, : len(known)] = known
    return made


def channels(beside: Tensor, start: int, frames: int) -> Tensor:
    """Channels of latent frames start .. start + frames - 1, of [K, c, h, w]; the last goes on for ever."""
    last = len(beside) - 1
    return torch.stack([beside[min(f, last)] for f in range(start, start + frames)])


def action_windows(tail: np.ndarray, actions: np.ndarray, spec_frames: int, length: int, count: int, ratio: int):
    """The pixel frames' actions that each latent frame of a block is shown (Matrix-Game 2).

    Latent frame f sees those of frames ratio f - W .. ratio f - 1, clamped to frame 0: not those of its own last frame.

    Args:
        tail: encoded actions of the last frames before the block, [K, A], K >= W or all there were.
        actions: of the block's own frames, [P, A].
        spec_frames: W.
        length: position of the block's first latent frame.
        count: latent frames of the block.
        ratio: frames of a latent frame.

    Returns:
        float32 [count, W, A].
    """
    known = np.concatenate([tail, actions])
    before = max(0, 1 + (length - 1) * ratio) if length else 0
    first = before - len(tail)  # the frame that row 0 of `known` is of
    frames = ratio * np.arange(length, length + count)[:, None] + np.arange(-spec_frames, 0)
    return known[np.maximum(frames, 0) - first]


def send(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; on CUDA from pinned memory, so that nobody waits for the copy."""
    if device.type != "cuda" or x.device == device:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
