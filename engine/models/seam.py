"""Where tokens enter and leave a denoiser: all of a latent frame's, or, where ranks share them, one rank's.

A denoiser is made with the seam that cuts nothing; what shares it over ranks puts another in its place. Knows tensors.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Seam(Protocol):
    """Cuts the S tokens of latent frames, which lie along one dimension of a tensor, and joins them again."""

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """The tokens that are computed here, of all."""
        ...

    def join(self, x: Tensor, dim: int) -> Tensor:
        """All tokens, of those that are computed here."""
        ...


class Whole:
    """All tokens are computed here."""

    def cut(self, x: Tensor, dim: int) -> Tensor:
        return x

    def join(self, x: Tensor, dim: int) -> Tensor:
        return x


WHOLE = Whole()
