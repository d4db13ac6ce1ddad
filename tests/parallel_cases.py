"""Sizes and loads to price, exchanges written out move by move, and a record of what layers attend to."""

from __future__ import annotations

import torch

from engine.parallel import costs
from engine.parallel.layout import Exchange, Layout, Numbers, share
from engine.parallel.shapes import Load, Sizes

WAN = Sizes(30, 1560, 1536, 12, 12, 128, 8960, 6 * 1536**2 + 2 * 1536 * 8960, 512, 1_417_740_288, 64)
WIDE = Sizes(40, 1560, 5120, 40, 40, 128, 13824, 6 * 5120**2 + 2 * 5120 * 13824, 512, 14_283_571_200, 64)
MAGI = Sizes(34, 2025, 3072, 24, 8, 128, 12288, 3072 * (4 * 3072 + 2 * 1024 + 2 * 12288), 800, 4_454_350_848, 64, True)
BLOCK, LATE = Load(3, 18, 3 * 21), Load(6, 24, 6 * 30)  # 21 latent frames seen; five chunks of six
ULYSSES, RING, PASS_Q, GATHER = "", "ring", "pass-q", "all-gather"
SELECTED = Load(2, 5, 2 * 7, worlds=2, choices=9, commits=2)


def kind(outer: str, ranks: int) -> Exchange:
    return Exchange(ranks) if not outer else Exchange(1, outer, ranks)  # type: ignore[arg-type]


def per_layer(exchange: Exchange, sizes: Sizes, load: Load, numbers: Numbers | None = None) -> list[int]:
    """Bytes that each rank sends in one layer of one call."""
    made = costs.transfers(Layout.of(exchange, sizes), sizes, load, numbers or Numbers())
    return [sum(t.sent[rank] for t in made if t.per_layer) for rank in range(exchange.ranks)]


class Moves:
    """Exchanges written out, rank by rank and item by item: bytes that leave each rank."""

    def __init__(self, exchange: Exchange, sizes: Sizes, load: Load, numbers: Numbers):
        self.e, self.s, self.load, self.numbers = exchange, sizes, load, numbers
        self.sent = [0] * exchange.ranks
        self.own = [load.new * len(part) for part in torch.arange(sizes.tokens).tensor_split(exchange.ranks)]
        self.rank = lambda outer, inner: outer * exchange.ulysses + inner
        self.hq, self.hk = share(sizes.heads, sizes.kv_heads, exchange.ulysses)

    def trade(self) -> None:
        """Two all-to-alls of every group."""
        for outer in range(self.e.groups):
            for a in range(self.e.ulysses):
                for b in range(self.e.ulysses):
                    if a != b:
                        heads = self.hq + 2 * self.hk
                        mine, theirs = self.own[self.rank(outer, a)], self.own[self.rank(outer, b)]
                        there, back = mine * heads, theirs * self.hq
                        self.sent[self.rank(outer, a)] += (there + back) * self.s.head_width * self.numbers.computed

    def tokens(self, outer: int) -> int:
        return sum(self.own[self.rank(outer, i)] for i in range(self.e.ulysses))

    def circulate(self, parts: list[int]) -> None:
        """Everyone's part goes round until all have had it."""
        for inner in range(self.e.ulysses):
            held = list(parts)
            for _ in range(self.e.groups - 1):
                for outer in range(self.e.groups):
                    self.sent[self.rank(outer, inner)] += held[outer]
                held = [held[outer - 1] for outer in range(self.e.groups)]

    def go(self) -> list[int]:
        d, b, groups = self.s.head_width, self.numbers.computed, range(self.e.groups)
        self.trade()
        if self.e.outer == "ring":
            new = [2 * self.tokens(o) * self.hk * d * b for o in groups]
            old = []
            for o in groups:
                page = self.tokens(o) // self.load.new
                codes = Numbers(b).page(page, self.hk, d) if self.numbers.kv_dtype is None else 2 * page * self.hk * d
                scales = 2 * self.hk * (d + 1) if self.numbers.kv_dtype else 0
                old.append(self.load.history * (codes + scales))
            self.circulate([x + y for x, y in zip(new, old, strict=True)])
        if self.e.outer == "pass-q":
            self.circulate([self.tokens(o) * self.hq * d * b for o in groups])
        for outer in groups:
            for other in groups:
                for inner in range(self.e.ulysses) if other != outer else ():
                    if self.e.outer == "pass-q":
                        back = self.tokens(other) * self.hq * (d * self.numbers.output + 4)
                        self.sent[self.rank(outer, inner)] += back
                    if self.e.outer == "all-gather":
                        self.sent[self.rank(outer, inner)] += 2 * self.tokens(outer) * self.hk * d * b
        return self.sent


def recorded(view: type, made: list[tuple[int, int]]):
    """Its `extend`, which notes queries, and pairs of query and key."""
    inner = view.extend  # type: ignore[attr-defined]

    def extend(self, q, k, v, turn=None):
        groups = inner(self, q, k, v, turn)
        pairs = sum(len(range(q.shape[1])[g.queries]) * g.keys.shape[1] for g in groups)
        made.append((len(q) * q.shape[1], len(q) * pairs))
        return groups

    return extend
