"""What an exchange costs on given devices and links: seconds, waiting, bytes, calls, memory of a rank.

Every way of sharing the ranks between an all-to-all and an outer exchange is priced; what does not fit in memory is
refused with its reason.

Seconds of a layer are those of its products, its attention and its traffic, on the rank that has most, and of transfers
that nothing hides: all-to-alls and all-gathers are waited for; a hop is mostly hidden behind the attention of the hop
before it, as far as that takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.parallel import costs
from engine.parallel.layout import Exchange, Layout, Numbers, Outer
from engine.parallel.links import Links
from engine.parallel.machines import Machine
from engine.parallel.shapes import Load, Shape, Sizes, action_linears, loads, sizes_of
from engine.sizing import pages_needed
from engine.spec import WorldSpec

KERNELS = 15  # of a layer, about
TIE = 0.02  # options that are slower by less count as equal: no figure here is known better


@dataclass(frozen=True)
class Option:
    """One exchange, priced for a block.

    Attributes:
        seconds: of the block's passes; decoding is not among them.
        waiting: of these, for transfers that nothing hides.
        sent: bytes of each rank.
        calls: of collectives, on one rank.
        memory: bytes of a rank, the one that holds most.
        padded: heads that are computed over those that there are, as a factor.
        refused: why it is out of the question; "" if it is not.
    """

    exchange: Exchange
    seconds: float = 0.0
    waiting: float = 0.0
    sent: tuple[int, ...] = ()
    calls: int = 0
    memory: int = 0
    padded: float = 1.0
    refused: str = ""

    @property
    def order(self) -> tuple[bool, float, int, int, str]:
        """Cheaper ones first."""
        return bool(self.refused), self.seconds, max(self.sent, default=0), self.memory, str(self.exchange)


@dataclass(frozen=True)
class Setting:
    """All that a price depends on but the exchange and the shapes.

    Attributes:
        memory: bytes of a rank.
        weights: bytes of the denoiser's on every rank; by its sizes where None.
        reserved: bytes that a rank needs for anything else, such as a codec.
    """

    spec: WorldSpec
    links: Links
    memory: float
    machine: Machine
    numbers: Numbers
    weights: int | None = None
    reserved: int = 0

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self.spec)

    @property
    def weight_bytes(self) -> int:
        return self.sizes.weights * self.numbers.computed if self.weights is None else self.weights


def candidates(ranks: int) -> list[Exchange]:
    """Ways in which so many ranks can work together; and one alone, while the others wait."""
    made, outer = [Exchange()], ("ring", "pass-q", "all-gather")
    for u in range(ranks, 0, -1):
        if ranks > 1 and ranks % u == 0:
            kinds: Sequence[Outer] = ("",) if u == ranks else outer  # type: ignore[assignment]
            made += [Exchange(u, kind, ranks // u) for kind in kinds]
    return made


def options(setting: Setting, shapes: Sequence[Shape]) -> list[Option]:
    """Every exchange, priced: the one to take, the others from the fastest on, those that are refused last.

    Of those that are as good as the fastest the one that sends least is taken: it leans least on the links' figures.
    """
    made = sorted((price(setting, shapes, e) for e in candidates(setting.links.ranks)), key=lambda o: o.order)
    equal = [o for o in made if not o.refused and o.seconds <= (1 + TIE) * made[0].seconds]
    pick = min(equal, key=lambda o: max(o.sent, default=0)) if equal else made[0]
    return [pick, *(o for o in made if o is not pick)]


def price(setting: Setting, shapes: Sequence[Shape], exchange: Exchange) -> Option:
    """One exchange."""
    sizes, calls_of = setting.sizes, Counter(loads(setting.spec, shapes))
    try:
        layout = Layout.of(exchange, sizes)
    except ValueError as error:
        return Option(exchange, refused=str(error))
    memory = memory_bytes(setting, layout, shapes, list(calls_of))
    times = {load: load_seconds(setting, layout, load) for load in calls_of}
    sent, calls = [0] * exchange.ranks, 0
    for load, count in calls_of.items():
        for t in costs.transfers(layout, sizes, load, setting.numbers):
            each = count * (sizes.layers if t.per_layer else 1)
            sent, calls = [a + each * b for a, b in zip(sent, t.sent, strict=True)], calls + each * t.calls
    refused = ""
    if memory > setting.memory:
        refused = f"needs {memory / 1e9:.1f} GB a rank, and there are {setting.memory / 1e9:.1f}"
    seconds, waiting = (sum(n * times[load][i] for load, n in calls_of.items()) for i in (0, 1))
    padded = layout.queries * exchange.ulysses / sizes.heads
    return Option(exchange, seconds, waiting, tuple(sent), calls, memory, padded, refused)


def load_seconds(setting: Setting, layout: Layout, load: Load) -> tuple[float, float]:
    """Seconds of one call of the denoiser, and of these, waiting for transfers."""
    s, m, b = setting.sizes, setting.machine, setting.numbers.computed
    own = load.new * max(layout.own)
    products = max(costs.linear_flops(layout, s, load) / m.linears, s.weights / s.layers * b / m.hbm)
    products += m.traffic * own * s.width * b / m.hbm + costs.context_flops(layout, s, load) / m.attention
    seen = (load.history + load.new) * s.tokens * 2 * layout.keys * s.head_width * b
    attention = max(costs.attention_flops(layout, s, load) / m.attention, seen / m.hbm)
    made = costs.transfers(layout, s, load, setting.numbers)
    waiting = layer_waiting(setting, layout, made, attention)
    merging = (layout.exchange.groups - 1) * costs.merge_bytes(layout, s, load) / m.hbm
    computing = max(products + attention + merging, m.layer)
    once = sum(transfer_seconds(setting.links, layout.exchange, t) for t in made if not t.per_layer)
    actions = 2 * own * action_linears(setting.spec) / m.linears
    waited = s.layers * waiting + once
    return s.layers * computing + actions + waited, waited


def layer_waiting(setting: Setting, layout: Layout, made: list[costs.Transfer], attention: float) -> float:
    """Seconds of a layer in which nothing is computed.

    Args:
        attention: seconds of the layer's attention, of which each hop of a ring is a part.
    """
    total, kernel, exposed = 0.0, setting.machine.layer / KERNELS, setting.machine.exposed
    for t in (t for t in made if t.per_layer):
        seconds = transfer_seconds(setting.links, layout.exchange, t)
        if t.kind == "hop":  # each behind the attention of the part before; kernels of short parts take their time too
            part = attention / layout.exchange.groups
            total += t.calls * max(exposed(seconds / t.calls, part), kernel - part)
        else:
            total += seconds
    return total


def transfer_seconds(links: Links, exchange: Exchange, t: costs.Transfer) -> float:
    """Seconds of a transfer, of the group that has the fewest of its ranks in one node."""
    size, near = placed(exchange, t.where, links.node)
    return links.seconds(t.kind, max(t.sent), t.calls, size, near)


def placed(exchange: Exchange, where: costs.Where, node: int) -> tuple[int, int]:
    """Ranks of a group, and the fewest of them that share a node."""
    u, groups = exchange.ulysses, exchange.groups
    if where == "all":
        members = [range(exchange.ranks)]
    elif where == "inner":
        members = [range(g * u, (g + 1) * u) for g in range(groups)]
    else:
        members = [range(i, exchange.ranks, u) for i in range(u)]
    return len(members[0]), min(min(Counter(m // node for m in group).values()) for group in members)


def memory_bytes(setting: Setting, layout: Layout, shapes: Sequence[Shape], made: Sequence[Load]) -> int:
    """Bytes of a rank: weights, its part of all pages that the worlds may come to hold, the largest call's activations
    with one layer's keys and values gathered, and what is reserved."""
    s, numbers, spec = setting.sizes, setting.numbers, setting.spec
    admitted = 0 if spec.kv.window is None else sum(pages_needed(spec.kv, spec.block, False))
    pages = sum(max(admitted, x.history + x.choices + x.new) for x in shapes)
    cache = costs.cache_bytes(layout, s, pages, numbers)
    for stream in spec.streams[1:]:
        tokens = max(layout.own) if stream.tokens == s.tokens else stream.tokens
        cache += stream.layers * pages * numbers.page(tokens, stream.heads, stream.width)
    largest = max((call_bytes(setting, layout, load) for load in made), default=0)
    return setting.weight_bytes + cache + largest + setting.reserved


def call_bytes(setting: Setting, layout: Layout, load: Load) -> int:
    """Bytes of one call of the denoiser besides weights and pages."""
    s, numbers = setting.sizes, setting.numbers
    seen = Numbers(numbers.computed).page(max(layout.cached), layout.keys, s.head_width) * (load.history + load.new)
    held = costs.activation_bytes(layout, s, load, numbers) + costs.buffer_bytes(layout, s, load, numbers)
    return held + seen
