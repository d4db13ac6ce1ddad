"""Recorded formulas of MAGI-1: times, step sizes, guidance, stages, sinusoids, rotary tables; texts put together.

Every recorded name says which formula at which size; a name that none here has is left over, which is a miss.

Legend: c chunks, L positions of a text, D its width, B blocks in flight.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.parity.case import Case, ulp
from benchmarks.parity.magi import special_of, switches_of
from engine.conditioners.magi_text import NEGATIVE, NULL_TOKENS, MagiText, SpecialTokens
from engine.models.magi_embeddings import Rotary, grid_angles, sinusoid
from engine.published import Guidance, Staggered
from engine.stages import legs, step_sizes, times, weights_at

TAIL = 8  # last positions of a text that are recorded
MODE = r"(?:\.(\w+))?"  # which 12 of 16 steps: "8_16_16"


def replay_schedule(case: Case, device: str = "cpu") -> None:
    """Compute every table that is recorded, by its name."""
    for name in case["out"]:
        for pattern, compute in FORMULAS.items():
            if match := re.fullmatch(pattern, name):
                case.compare(name, compute(case, *match.groups()))
    for name in ("fp32", "rounded_bf16"):
        compare_sinusoid(case, f"sinusoid.{name}", device)
    case.compare_table("sequences", [sequence(told) for told in case.info["sequences"]])


def rollout_of(count: str, mode: str | None) -> Staggered:
    settings = {"shortcut": mode.replace("_", ",")} if mode else {}
    return Staggered(int(count), window=1, ranges=(), **settings)


def times_of(case: Case, count: str, mode: str | None) -> Tensor:
    return times(rollout_of(count, mode))


def sizes_of(case: Case, count: str, mode: str | None) -> Tensor:
    return torch.tensor(step_sizes(rollout_of(count, mode)))


def intervals_of(case: Case, count: str, mode: str | None) -> Tensor:
    """Steps of a finer schedule that each step stands for."""
    return torch.tensor([interval(rollout_of(count, mode), j) for j in range(int(count))])


def interval(rollout: Staggered, j: int) -> float:
    """Of 12 steps, how many of 16 the j-th of a block stands for; 1 where steps are even."""
    return 8 / step_sizes(rollout)[j] if rollout.num_steps == 12 else 1.0


def guidance_of(case: Case, name: str) -> Guidance:
    told = case.info["guidance"][name]
    return Guidance(*(tuple(told[key]) for key in ("cfg_t_range", "prev_chunk_scales", "text_scales")))


def weights_of(case: Case, name: str, count: str, mode: str | None) -> Tensor:
    """Weights of history and of text at every step."""
    chosen = guidance_of(case, name)
    return torch.tensor([weights_at(float(t), chosen) for t in times_of(case, count, mode)[:-1]])


def weights_of_clean(case: Case, name: str) -> Tensor:
    return torch.tensor(weights_at(float(torch.tensor(Staggered().clean_time)), guidance_of(case, name)))


def rotary_table(case: Case, frames: str, rows: str, columns: str, width: str) -> Tensor:
    """Sines and cosines of every token's turns."""
    bands = case["in"][f"rope_bands.hd{width}"]
    turns = Rotary(grid_angles(torch.arange(int(frames))[None], (int(rows), int(columns)), bands))
    return torch.cat([turns.sin, turns.cos], dim=-1)[0, :, 0]


def compare_sinusoid(case: Case, name: str, device: str) -> None:
    """Features of times and step sizes, whose frequencies differ by a last bit from one processor's exp to another's.

    One bit of a frequency moves an angle of value x 1000 x frequency by 2^-23 of it, and its sine by as much at most.
    """
    if name not in case["out"]:
        return
    want, values = case["out"][name], case["in"]["sinusoid_t"]
    made = sinusoid(values.to(device), want.shape[1])
    half = want.shape[1] // 2
    rates = 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    slack = (values.double()[:, None] * rates * 1000).repeat(1, 2) * 2**-23
    rounded = want.dtype == torch.bfloat16
    case.compare(
        name,
        made.to(want.dtype),
        slack=slack + ulp(want) if rounded else slack,
        note="and one bit of every frequency, one of bf16" if rounded else "and one bit of every frequency",
    )


def sequence(told: dict[str, Any]) -> dict[str, Any]:
    """Chunks in flight in each stage of a video of so many, and their stages, by the passes that worlds run.

    A world goes on after its last recorded chunk: those that enter later are left out.
    """
    count, window, offset = told["chunk_num"], told["window"], told["chunk_offset"]
    rollout = Staggered(window, window, ranges=())  # one step a stage
    told_times = times(rollout).tolist()
    levels = [leg.passes[0].level for leg in legs(rollout, False) if leg.enters]
    [steady] = [leg.passes[0].level for leg in legs(rollout, True) if leg.enters]
    stages = [*levels, *[steady] * (count - offset - 1)]
    rows = []
    for s, level in enumerate(stages):
        assert isinstance(level, tuple)
        ages = [told_times.index(t) for t in level if t in told_times]  # a finished one is told another time
        chunks = {offset + s - age: age for age in ages if offset + s - age < count}
        rows.append((min(chunks), max(chunks) + 1, min(chunks.values()), max(chunks.values()) + 1))
    columns = zip(("chunk_start", "chunk_end", "t_start", "t_end"), zip(*rows, strict=True), strict=True)
    return {**told, **{name: list(column) for name, column in columns}}


def replay_text(case: Case, device: str = "cpu") -> None:
    """Put together the texts of every variant: that of a prompt, and that of none, for every chunk."""
    for variant in case.info["variants"]:
        texts, masks = assembled(case, variant)
        name, keep = variant["name"], case.info["keep"]
        mask = case["out"].get(f"{name}.mask")
        case.compare(f"{name}.mask", masks)
        read = masks.bool().any(dim=-1)
        note = "" if bool(read.all()) else f"{int(read.sum())} of {read.numel()} texts: the others are read by none"
        made = {
            "y_head": texts[:, :, :keep],
            "y_tail": texts[:, :, -TAIL:],
            "y_sum": texts.double().sum(dim=(2, 3)),
        }
        for part, x in made.items():
            want = case["out"].get(f"{name}.{part}")
            if want is not None and mask is not None and want.shape == x.shape:
                case.compare(f"{name}.{part}", x[read], want[read], note)
            else:
                case.compare(f"{name}.{part}", x)


def assembled(case: Case, variant: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Texts [2, c, L, D] and masks uint8 [2, c, L] of the prompted and the other side, padding and all."""
    names, negative = switches_of(variant["env"])
    tokens, caption = SpecialTokens.of(special_of(case)), case["in"]["caption_embs"][0, 0]
    text = MagiText(case["in"]["null_caption_embedding"], tokens, names, negative)
    count, length = variant["chunk_num"], variant["caption_len"]
    given = variant["prefix_latents"] // (variant["latent_size"][2] // count)  # whole chunks, which read no prompt
    null = padded_null(text)
    rows, read = [null] * count, [0] * given
    for i in range(given, count):
        rows[i] = text.prompt(caption, count - i) if length else null
        read.append(len(text.prompt(caption[:length], count - i)))
    both = torch.stack([torch.stack(rows), torch.stack([null] * count)])
    lengths = torch.tensor([read, [len(text.nothing())] * count])
    return both, (torch.arange(both.shape[2]) < lengths[..., None]).to(torch.uint8)


def padded_null(text: MagiText) -> Tensor:
    """The text of no prompt with the rows behind it that nobody reads, [L, D]."""
    before = len(NEGATIVE) if text.negative else 0
    return torch.cat([text.nothing(), text.null[NULL_TOKENS - before :]])[: len(text.null)]


FORMULAS: dict[str, Callable[..., Tensor]] = {
    rf"t\.(\d+){MODE}": times_of,
    rf"d\.(\d+){MODE}": sizes_of,
    rf"interval\.(\d+){MODE}": intervals_of,
    r"guidance\.(\w+)\.clean": weights_of_clean,
    rf"guidance\.(\w+)\.(\d+){MODE}": weights_of,
    r"rope\.(\d+)x(\d+)x(\d+)\.hd(\d+)": rotary_table,
}
