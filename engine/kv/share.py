"""Share: what one rank keeps of a world, and how its layers attend: all of it, plainly.

Where several ranks work on one world another share takes this one's place (see engine.parallel.sharing). Chosen when a
model is built; pools and views ask it and know no ranks.

Legend: N worlds, S tokens, h heads, d head width, P pages, C choices.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from engine.spec import KVStream


class Share(Protocol):
    """What a rank keeps."""

    whole_pages: bool  # all tokens of a page
    part: float  # of a page's tokens
    first: bool  # of the ranks: the one that has what is collected
    told: str  # what this is, in words

    def stream(self, stream: KVStream) -> KVStream:
        """What is kept here of a stream's pages."""
        ...

    def layer(self, layer: Any, stream: str = "self") -> Any:
        """The layer of a view, as a model is shown it."""
        ...

    def largest(self, stream: str, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The largest magnitudes of whole pages, of what was found in the parts kept here."""
        ...

    def scores(self, queries: Tensor, means: Tensor, counts: list[int]) -> Tensor:
        """How well a block's queries match pages, float32 [N, C]: mean query times mean key.

        Args:
            queries: those that are here, [N, S, h, d].
            means: of the keys that are here, [N, C, h, d].
            counts: of each row's choices; what is in front of them is padding.
        """
        ...

    def whole_state(self, state: Any) -> Any:
        """A codec's streaming state of whole pictures, of what this rank's codec has of it."""
        ...

    def own_state(self, state: Any) -> Any:
        """What this rank's codec has of such a state."""
        ...

    def collect(self, stream: KVStream, name: str, x: Tensor) -> Tensor | None:
        """Stored tensors [layers, P, S or 1, h, d or 1] of whole pages; None on ranks that get none."""
        ...

    def cut(self, stream: KVStream, name: str, x: Tensor) -> Tensor:
        """What is kept here of such a tensor."""
        ...


class Whole:
    """Everything is kept here."""

    whole_pages, part, first, told = True, 1.0, True, "one rank"

    def stream(self, stream: KVStream) -> KVStream:
        return stream

    def layer(self, layer: Any, stream: str = "self") -> Any:
        return layer

    def largest(self, stream: str, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return found

    def scores(self, queries: Tensor, means: Tensor, counts: list[int]) -> Tensor:
        return matched(queries.float().mean(1), means)

    def whole_state(self, state: Any) -> Any:
        return state

    def own_state(self, state: Any) -> Any:
        return state

    def collect(self, stream: KVStream, name: str, x: Tensor) -> Tensor | None:
        return x

    def cut(self, stream: KVStream, name: str, x: Tensor) -> Tensor:
        return x


def matched(query: Tensor, means: Tensor) -> Tensor:
    """A mean query [N, h, d] times mean keys [N, C, h, d], summed: [N, C]."""
    return (query[:, None] * means).sum((-2, -1))


WHOLE = Whole()
