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
from engine.kv.flight import Branches
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
        self.flags: dict[tuple, Tensor] = {}  # made once: a copy to the device would wait for it
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
        pairs = [weights_at(t, self.rollout.guidance) for t in condition.levels]
        rows, none = condition.chunks, tuple((None,) * len(pairs) for _ in condition.chunks)
        shown = latents, times, positions
        if any(text for _, text in pairs):
            told = self._told(condition, rows + none, dropped=(False,) * len(rows) + (True,) * len(rows))
            both, features = self.denoiser(*(torch.cat([x, x]) for x in shown), told, view.branches(2))
            prompted, plain = both.chunk(2)
        else:
            told = self._told(condition, none, dropped=(True,) * len(rows))
            plain, features = self.denoiser(*shown, told, view.branches(1))
            prompted = plain
        alone = self._alone(shown, condition, view, [i for i, (history, _) in enumerate(pairs) if history != 1])
        cut = zip(pairs, prompted.chunk(len(pairs), 1), plain.chunk(len(pairs), 1), strict=True)
        made = [combined(pair, a, b, alone.get(i)) for i, (pair, a, b) in enumerate(cut)]
        return torch.cat(made, dim=1), features[-len(latents) :]

    def _alone(
        self, shown: tuple[Tensor, ...], condition: Condition, view: Branches, count: list[int]
    ) -> dict[int, Tensor]:
        """What the blocks that count tell of themselves, seeing no prompt and no other block."""
        if not count:
            return {}
        blocks, worlds = len(condition.levels), len(condition.chunks)
        apart = [torch.cat([x.chunk(blocks, 1)[i] for i in count]) for x in shown]
        rows = ((None,),) * (len(count) * worlds)
        made, _ = self.denoiser(*apart, self._told(condition, rows, dropped=(True,) * len(rows)), view.apart())
        return dict(zip(count, made.split(worlds), strict=True))

    def _distilled(
        self, latents: Tensor, times: Tensor, positions: Tensor, condition: Condition, view: Branches
    ) -> tuple[Tensor, Tensor]:
        """One prediction; with the oldest unfinished block once more behind the others, if it is nearly clean."""
        rows, f = condition.chunks, self.frames
        at = condition.levels
        oldest = int(rows[0][0] is None)  # a finished block in front, which reads none
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
        name = (dropped, len(rows[0]), condition.actions.device)
        if name not in self.flags:
            flags = torch.tensor(dropped)[:, None].expand(-1, len(rows[0]))
            self.flags[name] = flags.to(condition.actions.device)
        return replace(condition, chunks=chunks, dropped=self.flags[name])

    def contextualise(self, text: Tensor, **others: Tensor | None) -> Context:
        """See MagiDiT."""
        return self.denoiser.contextualise(text)


def combined(pair: tuple[float, float], prompted: Tensor, plain: Tensor, alone: Tensor | None) -> Tensor:
    """(1 - p) C + (p - w) B + w A; without C where p is 1."""
    history, text = pair
    made = (history - text) * plain + text * prompted
    return made if alone is None else made + (1 - history) * alone
