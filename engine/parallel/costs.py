"""What an exchange moves, computes and holds, by formula; bytes are integers, exact to what is handed to collectives.

Counting. Bytes of a rank are those of its tensors that other ranks get: of an all-to-all the parts for others, of an
all-gather its own part times the others, of a hop what it passes on. Queries, keys and values of one exchange go as one
call, and so do partial outputs and their log-sum-exps (float32).

    all-to-all, in       n_r (U - 1) (hq + 2 hk) d b          every inner rank's heads of queries, keys, values
    all-to-all, out      (n - n_r) hq d b                     every inner rank's tokens of the output
    all-gather of K/V    (R - 1) n_o 2 hk d b                 the block's alone: the cache is replicated
    ring pass-KV         sum over R - 1 hops of a share of history and block
    ring pass-Q          sum over R - 1 hops of n_o hq d b, then (n - n_o) hq (d b_o + 4) of partial outputs

for U inner and R outer ranks, tokens n_r (a rank's), n_o (an inner group's) and n (of all who trade), heads hq and hk
of a rank, head width d, b bytes a number and b_o a partial output's. Sources: DeepSpeed-Ulysses (Jacobs et al. 2023),
Ring Attention (Liu et al. 2023), Context Parallelism for Scalable Million-Token Inference (Yang et al. 2024, arXiv
2411.01783: pass-KV and pass-Q), USP (Fang and Zhao 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.parallel.layout import Layout, Numbers
from engine.parallel.shapes import Load, Sizes

LSE = 4  # bytes of a log-sum-exp: float32
FLOAT = 4  # bytes of a float32 number
SCORE = 4  # bytes of a page's score, of a mean query's channel, of a largest magnitude: float32

Kind = Literal["all-to-all", "all-gather", "hop"]
Where = Literal["inner", "outer", "all"]


@dataclass(frozen=True)
class Transfer:
    """One kind of call of a collective, in one layer (or, with `per_layer` False, once) of one call of the denoiser.

    Attributes:
        sent: bytes of each rank.
        calls: how many there are; hops of a ring are one call each, and `sent` is of all of them.
    """

    name: str
    kind: Kind
    where: Where
    sent: tuple[int, ...]
    calls: int = 1
    per_layer: bool = True


def transfers(layout: Layout, sizes: Sizes, load: Load, numbers: Numbers) -> list[Transfer]:
    """What every rank sends in one call of the denoiser; see the head of this file."""
    made = inner_transfers(layout, sizes, load, numbers)
    outer = {"": no_transfers, "ring": ring, "pass-q": pass_q, "all-gather": all_gather}[layout.exchange.outer]
    made += outer(layout, sizes, load, numbers)
    made += selection(layout, sizes, load)
    return [*made, *scales(layout, sizes, load, numbers), *joined(layout, sizes, load, numbers)]


def inner_transfers(layout: Layout, sizes: Sizes, load: Load, numbers: Numbers) -> list[Transfer]:
    """Tokens for heads and back."""
    u, b = layout.exchange.ulysses, numbers.computed * sizes.head_width
    if u == 1:
        return []
    tokens = [load.new * n for n in layout.own]
    groups = layout.of_rank([load.new * n for n in layout.group])
    there = [n * (u - 1) * (layout.queries + 2 * layout.keys) * b for n in tokens]
    back = [(all_ - n) * layout.queries * b for n, all_ in zip(tokens, groups, strict=True)]
    return [
        Transfer("queries, keys, values by head", "all-to-all", "inner", tuple(there)),
        Transfer("output by token", "all-to-all", "inner", tuple(back)),
    ]


def no_transfers(layout: Layout, sizes: Sizes, load: Load, numbers: Numbers) -> list[Transfer]:
    return []


def shares(layout: Layout, sizes: Sizes, load: Load, numbers: Numbers) -> list[int]:
    """Bytes of each group's part of the keys and values that a load sees: pages as stored, the block as computed."""
    plain = Numbers(numbers.computed)
    return [
        load.history * numbers.page(n, layout.keys, sizes.head_width)
        + (load.new - load.hidden) * plain.page(n, layout.keys, sizes.head_width)
        for n in layout.group
    ]


def passed_on(parts: list[int]) -> list[int]:
    """What each of a ring sends until all have had everything: all but the part of the next, which has it already."""
    return [sum(parts) - parts[(i + 1) % len(parts)] for i in range(len(parts))]


def ring(layout: Layout, sizes: Sizes, load: Load, numbers: Numbers) -> list[Transfer]:
    """Keys and values go round; outputs stay."""
    sent = layout.of_rank(passed_on(shares(layout, sizes, load, numbers)))
    return [Transfer("keys and values", "hop", "outer", sent, layout.exchange.groups - 1)]


def pass_q(layout: Layout, sizes: Sizes, load: Load, numbers: Numbers) -> list[Transfer]:
    """Queries go round; partial outputs and their log-sum-exps go home at the end."""
    tokens, h = [load.new * n for n in layout.group], layout.queries
    there = passed_on([n * h * sizes.head_width * numbers.computed for n in tokens])
    back = [(sum(tokens) - n) * h * (sizes.head_width * numbers.output + LSE) for n in tokens]
    return [
        Transfer("queries", "hop", "outer", layout.of_rank(there), layout.exchange.groups - 1),
        Transfer("partial outputs and log-sum-exps", "all-to-all", "outer", layout.of_rank(back)),
    ]


def all_gather(layout: Layout, sizes: Sizes, load: Load, numbers: Numbers) -> list[Transfer]:
    """The block's keys and values go to all."""
    others, each = layout.exchange.groups - 1, 2 * layout.keys * sizes.head_width * numbers.computed
    sent = layout.of_rank([others * load.new * n * each for n in layout.group])
    return [Transfer("new keys and values", "all-gather", "outer", sent)]


def selection(layout: Layout, sizes: Sizes, load: Load) -> list[Transfer]:
    """What a top-k policy's choice needs, so that all ranks choose the same pages: sums of parts, in the ranks' order.

    A page's score is its mean key times the block's mean query. Where keys are split, by head or token, scores are
    summed; where queries are split by token, mean queries are, before any of them travels.
    """
    exchange = layout.exchange
    if not load.choices or exchange.ranks == 1:
        return []
    made = []
    if exchange.outer:
        bytes_ = (exchange.groups - 1) * load.worlds * layout.queries * sizes.head_width * SCORE
        made.append(Transfer("mean queries", "all-gather", "outer", (bytes_,) * exchange.ranks))
    if exchange.ulysses > 1 or layout.sequence_sharded:
        parts, where = (exchange.ranks, "all") if layout.sequence_sharded else (exchange.ulysses, "inner")
        bytes_ = (parts - 1) * load.choices * SCORE
        made.append(Transfer("page scores", "all-gather", where, (bytes_,) * exchange.ranks))  # type: ignore[arg-type]
    return made


def scales(layout: Layout, sizes: Sizes, load: Load, numbers: Numbers) -> list[Transfer]:
    """Where a page's tokens are split and it is quantised when it is committed: the largest magnitudes of the parts."""
    exchange, made = layout.exchange, []
    if numbers.kv_dtype is None or not load.commits or exchange.ranks == 1:
        return []
    if layout.sequence_sharded:
        bytes_ = (exchange.groups - 1) * load.commits * layout.keys * (sizes.head_width + 1) * SCORE
        made.append(Transfer("largest magnitudes", "all-gather", "outer", (bytes_,) * exchange.ranks))
    if sizes.placed:
        sent = ((exchange.ranks - 1) * load.commits * sizes.placed * SCORE,) * exchange.ranks
        made.append(Transfer("largest magnitudes", "all-gather", "all", sent, sizes.placed_layers, per_layer=False))
    return made


def joined(layout: Layout, sizes: Sizes, load: Load, numbers: Numbers) -> list[Transfer]:
    """What goes to all once a call, so that the loop of passes goes on the same on every rank: the tokens' predictions,
    and of a committed block's last latent frame the features, where there are heads to read them."""
    others = layout.exchange.ranks - 1
    if not others:
        return []
    each = sizes.predicted * (FLOAT if sizes.wide_prediction else numbers.computed)
    made = {"prediction": load.new * each}
    if sizes.features and load.commits:
        made["features"] = load.worlds * sizes.features * numbers.computed
    sent = {name: tuple(others * n * x for n in layout.own) for name, x in made.items()}
    return [Transfer(name, "all-gather", "all", x, per_layer=False) for name, x in sent.items()]


def attention_flops(layout: Layout, sizes: Sizes, load: Load) -> int:
    """Operations of self-attention in one layer, of the rank that has most: two products, 2 a multiply-add.

    Whatever is split, heads or tokens of either side, a rank has its share of all pairs of query and key.
    """
    places = max(layout.group) * sizes.tokens
    return 4 * load.pairs * places * layout.queries * sizes.head_width


def linear_flops(layout: Layout, sizes: Sizes, load: Load) -> int:
    """Operations of a layer's products, of the rank that has most tokens."""
    return 2 * load.new * max(layout.own) * sizes.linears


def context_flops(layout: Layout, sizes: Sizes, load: Load) -> int:
    """Operations of attention to the prompt or picture in one layer."""
    return 4 * load.new * max(layout.own) * sizes.wide * sizes.context


def cache_bytes(layout: Layout, sizes: Sizes, pages: int, numbers: Numbers) -> int:
    """Bytes of so many pages in all layers, of the rank that holds most."""
    return sizes.layers * pages * numbers.page(max(layout.cached), layout.keys, sizes.head_width)


def buffer_bytes(layout: Layout, sizes: Sizes, load: Load, numbers: Numbers) -> int:
    """Bytes of one layer's exchange, of the rank that has most: what arrives, and what waits to be sent."""
    b, d, h = numbers.computed, sizes.head_width, layout.queries
    total = 0
    if layout.exchange.ulysses > 1:
        total += 2 * load.new * max(layout.group) * (h + 2 * layout.keys) * d * b
    if layout.exchange.outer == "ring":
        total += 2 * max(shares(layout, sizes, load, numbers))
    if layout.exchange.outer == "pass-q":
        total += load.new * sizes.tokens * h * (d * (b + numbers.output) + LSE)
    if layout.exchange.outer == "all-gather":
        total += load.new * sizes.tokens * 2 * layout.keys * d * b
    return total + merge_bytes(layout, sizes, load) // 3


def merge_bytes(layout: Layout, sizes: Sizes, load: Load) -> int:
    """Bytes that merging one partial output reads and writes: the float32 sum twice, the partial once."""
    if not layout.sequence_sharded:
        return 0
    return 3 * load.new * max(layout.group) * layout.queries * (sizes.head_width + 1) * 4


def activation_bytes(layout: Layout, sizes: Sizes, load: Load, numbers: Numbers) -> int:
    """About what a pass keeps at most, of the rank that has most tokens: nineteen widths of a token (rotary angles are
    applied in float64), or two of the MLP's and seven. Within 5 % of what is counted of Wan2.1 at full size."""
    widths = max(19 * sizes.wide, 2 * sizes.hidden + 7 * sizes.width)
    return load.new * max(layout.own) * widths * numbers.computed
