"""What MAGI-1's passes and decodes cost, counted on the meta device (see meta.py), and which runs a pass is made of.

The runs are guidance's own decision: it is asked with a denoiser that only notes what it is asked. Each kind of run is
then made once by the engine's denoiser, through the engine's view of a pool.

Legend: N worlds, F latent frames in flight, T tokens of a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.meta import META, Count, count
from engine.codecs.magi_vae import MagiVae
from engine.conditioners.magi_text import NULL_TOKENS
from engine.conditioning import Condition, Context
from engine.kv.flight import Alone, FlightView
from engine.kv.pool import Pool
from engine.models.magi import MagiDiT
from engine.models.magi_guidance import Guided
from engine.models.magi_layers import island
from engine.published import MagiSpec, MagiVaeSpec
from engine.schedule import Pass
from engine.spec import WorldSpec


@dataclass(frozen=True)
class Run:
    """One run of MAGI-1's denoiser, of which a pass makes one or two.

    Attributes:
        rows: of the batch.
        reach: chunks that each chunk in flight sees, itself among them.
        prompted: of every row, which chunks read a prompt; the others read that of none.
        alone: it has no view of a history.
        commits: the oldest chunk's keys and values are kept.
    """

    rows: int
    reach: tuple[int, ...]
    prompted: tuple[tuple[bool, ...], ...]
    alone: bool
    commits: bool

    def keys(self, history: int) -> list[int]:
        """Chunks that each chunk in flight sees where so many are history."""
        return [1 if self.alone else min(r, history + i + 1) for i, r in enumerate(self.reach)]

    def text_tokens(self, prompt: int) -> int:
        """Tokens of all texts, with prompts of so many."""
        return sum(prompt if p else NULL_TOKENS for row in self.prompted for p in row)


class Asked(torch.nn.Module):
    """Stands where guidance has a denoiser, and keeps what it is asked: what a pass runs is guidance's own decision."""

    def __init__(self) -> None:
        super().__init__()
        self.y_embedder = torch.nn.Module()
        self.y_embedder.null_caption_embedding = torch.zeros(1)
        self.runs: list[tuple[int, Any, tuple[tuple[Context, ...], ...]]] = []

    def contextualise(self, text: Tensor) -> Context:
        return Context(())

    def forward(self, latents: Tensor, times: Tensor, positions: Tensor, told: Condition, view: Any) -> Any:
        rows = tuple(tuple(c for c in row if c is not None) for row in told.chunks)
        self.runs.append((len(latents), view, rows))
        return torch.zeros_like(latents), latents


class Apart:
    """A view whose rows see only themselves."""


@dataclass(frozen=True)
class Reached:
    """A view of nothing, which knows what chunks would see."""

    reach: tuple[int | None, ...]

    def apart(self) -> Apart:
        return Apart()

    def branches(self, copies: int, alone: int = 0) -> Reached:
        return Reached((*self.reach, *(1,) * alone))


def runs_of(spec: WorldSpec, step: Pass, worlds: int) -> list[Run]:
    """What guidance runs in a pass of N worlds, every chunk of which reads one prompt but a finished one.

    Raises:
        ValueError: chunks see all there are, so that no pass is like the next.
    """
    assert spec.staggered is not None
    assert isinstance(step.level, tuple)
    asked, prompt = Asked(), Context(())
    guided = Guided(asked, torch.zeros(1, 1), spec.staggered, spec.block)  # type: ignore[arg-type]
    frames = len(step.level) * spec.block
    latents = torch.zeros(worlds, frames, 1, 1, 1)
    chunks = tuple(None if step.commit and i == 0 else prompt for i in range(len(step.level)))
    none = torch.zeros(worlds, frames, 0)
    told = Condition(none, none, chunks=(chunks,) * worlds, step_size=step.size, levels=step.level)
    guided(latents, step.times(frames).expand(worlds, -1), torch.zeros(worlds, frames), told, Reached(step.reach))
    made = []
    for rows, view, contexts in asked.runs:
        reach = tuple(r for r in ((1,) if isinstance(view, Apart) else view.reach) if r is not None)
        if len(reach) != len(contexts[0]):
            raise ValueError("its chunks see all chunks before them, so no two passes cost the same: give it ranges")
        prompted = tuple(tuple(c is prompt for c in row) for row in contexts)
        made.append(Run(rows, reach, prompted, isinstance(view, Apart), step.commit and not isinstance(view, Apart)))
    return made


def unfilled_magi(sizes: MagiSpec, dtype: torch.dtype) -> MagiDiT:
    """The denoiser on the meta device, in its precisions."""
    with META:
        made = MagiDiT(sizes).requires_grad_(False)
    for name, x in made.named_parameters():
        x.data = x.data.to(torch.float32 if island(name) else dtype)
    return made


@torch.no_grad()
def count_run(
    denoiser: MagiDiT, spec: WorldSpec, run: Run, history: int, pool: Pool, tokens: int, worlds: int = 1
) -> Count:
    """One run, of which each chunk sees its part of `history` chunks and of those in flight.

    Args:
        pool: on the meta device.
        tokens: of a prompt.
    """
    sizes, chunks, frames = denoiser.spec, len(run.reach), len(run.reach) * spec.block
    prompt, null = (
        denoiser.contextualise(torch.empty(n, sizes.text_width, device=META)) for n in (tokens, NULL_TOKENS)
    )
    rows = tuple(tuple(prompt if p else null for p in row) for row in run.prompted)
    latents, times = (
        torch.empty(run.rows, frames, *spec.latent, device=META),
        torch.empty(run.rows, frames, device=META),
    )
    positions = torch.empty(run.rows, frames, dtype=torch.int64, device=META)
    flags = torch.empty(run.rows, chunks, dtype=torch.bool, device=META)
    told = Condition(times[..., None], times[..., None], chunks=rows, dropped=flags, step_size=step_size(sizes))

    def call() -> Any:
        view = flight_of(spec, run, history, pool, worlds)
        return denoiser(latents, times, positions, told, view), view

    return count(call)


def step_size(sizes: MagiSpec) -> float | None:
    return 8.0 if sizes.distill else None


def flight_of(spec: WorldSpec, run: Run, history: int, pool: Pool, worlds: int) -> Any:
    """The engine's view of a run of N worlds, whose histories are as long."""
    if run.alone:
        return Alone(pool)
    size = (history + 1) * spec.block
    pages = [list(range(w * size, (w + 1) * size - spec.block)) for w in range(worlds)]
    into = [list(range((w + 1) * size - spec.block, (w + 1) * size)) if run.commits else [] for w in range(worlds)]
    view = FlightView(pool, pages, into, [0] * worlds, len(run.reach), spec.block)
    return view.during(run.reach).branches(run.rows // worlds)


@torch.no_grad()
def count_magi_decode(spec: WorldSpec, dtype: torch.dtype, worlds: int) -> Count:
    """Decoding a chunk of N worlds."""
    assert isinstance(spec.codec, MagiVaeSpec)
    with META:
        codec = MagiVae(spec.codec, encoder=False).to(dtype).requires_grad_(False)
    latents = torch.empty(worlds, spec.block, *spec.latent, device=META)
    return count(lambda: codec.decode(latents))
