"""How many pages of KV cache an engine allocates for its worlds. Knows spec."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.spec import KVPolicy, WorldSpec

# Windows' worth of pages beyond what the worlds can hold: one in SLACK steps gathers, the others slice. Not where
# they would take more than SLACK_BYTES.
SLACK, SLACK_BYTES = 7, 1 << 28
# Pages a world with an unlimited window is admitted with.
FULL_HISTORY = 1_024


def pages_needed(policy: KVPolicy, block: int, offload: bool) -> tuple[int, int]:
    """Pages that a world may hold at once, on the device (sinks, window, block, what lies before) and on the host."""
    if policy.window is None:
        return FULL_HISTORY + block, 0
    near, far = policy.sink + policy.window + block, policy.early - policy.sink
    return (near, far) if offload else (near + far, 0)


def need_of(given: int, spec: WorldSpec, policy: KVPolicy, need: int) -> int:
    """Pages that a world may hold at once which begins with so many given latent frames, where most hold `need`.

    The first block of a staggered world is in flight alone and sees further back than later ones.
    """
    rollout = spec.staggered
    if rollout is None or rollout.most is None or policy.window is None:
        return need
    return max(need, (min(given // spec.block, rollout.most) + 1) * spec.block if given >= spec.block else 0)


def wide(policy: KVPolicy, spec: WorldSpec) -> KVPolicy:
    """What a staggered world keeps until its first block is finished."""
    rollout = spec.staggered
    if rollout is None or rollout.most is None or policy.window is None:
        return policy
    return replace(policy, window=max(policy.window, rollout.most * spec.block))


def slack_pages(spec: WorldSpec, policy: KVPolicy, dtype: torch.dtype) -> int:
    """Further pages with which a world's pages mostly stay one run of the pool, which a layer then reads in place."""
    if policy.window is None or policy.early or spec.staggered:
        return 0
    pages = SLACK * pages_needed(policy, spec.block, False)[0]
    size = sum(s.page_bytes(dtype.itemsize) for s in spec.streams)
    return pages if pages * size <= SLACK_BYTES else 0
