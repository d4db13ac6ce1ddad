"""Who has what: the ways in which ranks share one world's attention, and which tokens and heads each then has.

P ranks; rank r = (outer, inner) with `ulysses` inner ranks, which follow one another. The tokens of *every latent
frame* are cut into P runs (`split`), so each rank has its share of each page, of the window, of sinks and of chosen
pages, and commits what it computed. A Matrix-Game's attention over time is of a place with itself, and what its pressed
keys are attended to by is made on every rank: neither is exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.parallel.shapes import Sizes

SCALE = 2  # bytes of a quantised page's scale: float16

Outer = Literal["", "ring", "pass-q", "all-gather"]
NAMES: dict[Outer, str] = {"ring": "ring pass-KV", "pass-q": "ring pass-Q", "all-gather": "all-gather of new K/V"}


@dataclass(frozen=True)
class Exchange:
    """How ranks work together on one world's attention.

    Attributes:
        ulysses: ranks that trade tokens for heads by all-to-all.
        outer: what goes on between groups of these: keys and values round a ring, queries round a ring, or the block's
            new keys and values to all, each of which then has the whole cache.
        groups: how many there are.
    """

    ulysses: int = 1
    outer: Outer = ""
    groups: int = 1

    def __post_init__(self) -> None:
        if self.ulysses < 1 or self.groups < 1 or (self.groups > 1) != bool(self.outer):
            raise ValueError(f"{self}: expected ulysses >= 1, and an outer exchange where there are several groups")

    @property
    def ranks(self) -> int:
        return self.ulysses * self.groups

    def __str__(self) -> str:
        if self.ranks == 1:
            return "one rank"
        parts = [f"Ulysses {self.ulysses}"] if self.ulysses > 1 else []
        return " x ".join([*parts, f"{NAMES[self.outer]} {self.groups}"] if self.outer else parts)


@dataclass(frozen=True)
class Numbers:
    """Bytes that numbers take.

    Attributes:
        computed: of activations and of keys and values as computed.
        partial: of a partial output of pass-Q.
        kv_dtype: how pages are stored: None as computed, "int8" or "fp8" as codes with scales.
    """

    computed: int = 2
    partial: int | None = None
    kv_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.kv_dtype not in (None, "int8", "fp8"):
            raise ValueError(f"kv_dtype {self.kv_dtype!r}: expected None, 'int8' or 'fp8'")

    @property
    def output(self) -> int:
        return self.partial or self.computed

    def page(self, tokens: int, heads: int, width: int) -> int:
        """Bytes of so many tokens of one page in one layer, keys and values, with the page's scales."""
        if self.kv_dtype is None:
            return 2 * tokens * heads * width * self.computed
        return 2 * tokens * heads * width + SCALE * heads * (width + 1)


def split(total: int, parts: int) -> list[int]:
    """Sizes of `parts` runs of so many things in order; the first are one larger where it does not divide."""
    each, more = divmod(total, parts)
    return [each + (i < more) for i in range(parts)]


def share(heads: int, kv_heads: int, ranks: int) -> tuple[int, int]:
    """Heads of queries and of keys that each of some ranks has in an all-to-all.

    Where there are more ranks than kv heads, several have the same kv head and a part of its queries. What does not
    divide is filled up with heads of zeros, which travel and are computed like others.
    """
    group, several = heads // kv_heads, max(1, ranks // kv_heads)
    kv = 1 if several > 1 else -(-kv_heads // ranks)
    return kv * -(-group // several), kv


@dataclass(frozen=True)
class Layout:
    """Who has which tokens and heads.

    Attributes:
        own: tokens of a latent frame that each rank computes.
        group: the same of each group of inner ranks.
        queries, keys: heads that a rank has in attention.
    """

    exchange: Exchange
    own: tuple[int, ...]
    group: tuple[int, ...]
    queries: int
    keys: int

    @classmethod
    def of(cls, exchange: Exchange, sizes: Sizes) -> Layout:
        """Raises ValueError where a rank would have no token."""
        if exchange.ranks > sizes.tokens:
            raise ValueError(f"{sizes.tokens} tokens of a latent frame are fewer than {exchange.ranks} ranks")
        own, u = split(sizes.tokens, exchange.ranks), exchange.ulysses
        group = tuple(sum(own[i : i + u]) for i in range(0, len(own), u))
        return cls(exchange, tuple(own), group, *share(sizes.heads, sizes.kv_heads, u))

    @property
    def sequence_sharded(self) -> bool:
        """Whether each group holds a part of the cache's tokens."""
        return self.exchange.outer in ("ring", "pass-q")

    @property
    def cached(self) -> tuple[int, ...]:
        """Tokens of a page that each group holds."""
        return self.group if self.sequence_sharded else (sum(self.own),) * self.exchange.groups

    def of_rank(self, per_group: list[int]) -> tuple[int, ...]:
        """What is the same for all inner ranks of a group, for each rank."""
        return tuple(x for x in per_group for _ in range(self.exchange.ulysses))
