"""Guided: a MAGI-1 denoiser whose prediction is what its guidance makes of several.

Base models: v = (1 - p) C + (p - w) B + w A, of a prediction A that reads prompts, B that reads none, and C that reads
none and sees no other block; p and w follow each block's time. Only what a weight asks for is run: C of the blocks
whose p is not 1, A where some w is not 0, in one call with B. Distilled models predict once, and their oldest block,
when it is nearly clean, once more on its own. Knows no cache: whose keys are kept is told to the view. Source: Sand.ai,
MAGI-1's published inference code.

Legend: N worlds, B blocks in flight, F latent frames of one, C H W latent.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from engine.conditioning import Condition, Context
from engine.kv.flight import Alone, Branches
from engine.models.magi import MagiDiT
from engine.published import Staggered
from engine.stages import weights_at


class Guided(nn.Module):
    """`(latents, times, positions, condition, view) -> prediction, features` of blocks in flight, guided.

    Args:
        nothing: the text [T, D] that a block without a prompt reads.
        frames: F.
    """

    def __init__(self, denoiser: MagiDiT, nothing: Tensor, rollout: Staggered, frames: int):
        super().__init__()
        self.denoiser, self.rollout, self.frames = denoiser, rollout, frames
        self.null = denoiser.contextualise(nothing.to(denoiser.y_embedder.null_caption_embedding))

    def forward(
        self, latents: Tensor, times: Tensor, positions: Tensor, condition: Condition, view: Branches
    ) -> tuple[Tensor, Tensor]:
        """See MagiDiT.

        Args:
            times: [N, B F], the same for all worlds.
            condition: `chunks` of each block, None where it reads no prompt.
        """
        shown = latents, times, positions
        if self.rollout.guidance is None:
            return self._distilled(*shown, condition, view)
        return self._guided(*shown, condition, view)

    def _guided(
        self, latents: Tensor, times: Tensor, positions: Tensor, condition: Condition, view: Branches
    ) -> tuple[Tensor, Tensor]:
        """Three predictions, or as many of them as count."""
        assert self.rollout.guidance is not None
        rows, blocks = condition.chunks, len(condition.chunks[0])
        at = times[0, :: self.frames].tolist()
        pairs = torch.tensor([weights_at(t, self.rollout.guidance) for t in at], device=latents.device)
        history, text = pairs.repeat_interleave(self.frames, 0).T[:, None, :, None, None, None].unbind(0)
        shown, none = (latents, times, positions), tuple((None,) * blocks for _ in rows)
        if not text.any():
            told = self._told(condition, none, dropped=(True,) * len(rows))
            plain, features = self.denoiser(*shown, told, view.branches(1))
            prompted = plain
        else:
            told = self._told(condition, rows + none, dropped=(False,) * len(rows) + (True,) * len(rows))
            both, features = self.denoiser(*(torch.cat([x, x]) for x in shown), told, view.branches(2))
            prompted, plain = both.chunk(2)
        made = (history - text) * plain + text * prompted
        count = [i for i in range(blocks) if pairs[i, 0] != 1]
        if count:
            made = self._minus_alone(made, history, shown, condition, count)
        return made, features[-len(latents) :]

    def _minus_alone(
        self, made: Tensor, history: Tensor, shown: tuple, condition: Condition, count: list[int]
    ) -> Tensor:
        """Add (1 - p) C for the blocks that count."""
        n, f = len(made), self.frames
        rows = torch.cat([torch.arange(i * f, (i + 1) * f) for i in count]).to(made.device)
        apart = [x.index_select(1, rows).unflatten(1, (-1, f)).flatten(0, 1) for x in shown]
        told = self._told(condition, ((None,),) * len(apart[0]), dropped=(True,) * len(apart[0]))
        alone, _ = self.denoiser(*apart, told, Alone())
        alone = alone.unflatten(0, (n, -1)).flatten(1, 2)
        return made.index_add(1, rows, (1 - history.index_select(1, rows)) * alone)

    def _distilled(
        self, latents: Tensor, times: Tensor, positions: Tensor, condition: Condition, view: Branches
    ) -> tuple[Tensor, Tensor]:
        """One prediction; with the oldest unfinished block once more behind the others, if it is nearly clean."""
        rows, f = condition.chunks, self.frames
        at = times[0, ::f].tolist()
        oldest = 1 if at[0] == float(torch.tensor(self.rollout.clean_time)) else 0
        near = oldest < len(at) and at[oldest] > self.rollout.near_clean
        shown, own = [latents, times, positions], slice(oldest * f, (oldest + 1) * f)
        if near:
            shown = [torch.cat([x, x[:, own]], 1) for x in shown]
            rows = tuple((*row, row[oldest]) for row in rows)
        told = self._told(condition, rows, dropped=(False,) * len(rows))
        made, features = self.denoiser(*shown, told, view.branches(1, alone=int(near)))
        if near:
            made, apart = made[:, :-f].clone(), made[:, -f:]
            weight = self.rollout.near_clean_weight
            made[:, own] = weight * made[:, own] + (1 - weight) * apart
        return made, features

    def _told(self, condition: Condition, rows: tuple, dropped: tuple[bool, ...]) -> Condition:
        """The condition of rows of blocks; without a prompt they read the null one."""
        chunks = tuple(tuple(self.null if c is None else c for c in row) for row in rows)
        flags = torch.tensor(dropped)[:, None].expand(-1, len(rows[0])).to(condition.actions.device)
        return replace(condition, chunks=chunks, dropped=flags)

    def contextualise(self, text: Tensor, **others: Tensor | None) -> Context:
        """See MagiDiT."""
        return self.denoiser.contextualise(text)
