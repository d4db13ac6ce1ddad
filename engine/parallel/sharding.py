"""shard(model, mesh): a built model as one of several ranks runs it; applied from outside, and no layer knows of it.

A rank's denoiser computes its own tokens of every latent frame, a seam cuts and joins them (engine.models.seam), and
its share says what it keeps of pages and how its layers attend (shares.py). All else runs on every rank, on the same
numbers: latents, noise, the schedule, heads.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import torch
from torch import Tensor, nn

from engine.model import Codec, WorldModel
from engine.models.heads import Silent
from engine.packing import PackedLinear
from engine.parallel.agreement import agree
from engine.parallel.layout import Layout
from engine.parallel.mesh import Mesh
from engine.parallel.shapes import sizes_of
from engine.parallel.shares import RankShare, run_of
from engine.parallel.tiles import spread
from engine.swap import swap_linears

M = TypeVar("M", bound=nn.Module)
SAMPLES = 1 << 12  # numbers of every tensor by which ranks tell whether they have the same model


def shard(model: WorldModel, mesh: Mesh, codec: Codec | None = None) -> WorldModel:
    """The model of one rank; all ranks of the mesh call this together. On one rank it is the model as it is.

    Args:
        codec: by default the model's own, spread over the ranks.

    Raises:
        ValueError: there are more ranks than tokens of a latent frame, or the ranks do not have the same model,
            versions and exchange.
    """
    if mesh.ranks == 1:
        return model
    assert isinstance(model.denoiser, nn.Module)
    agree(
        {"exchange": str(mesh.exchange), "torch": torch.__version__, "inferix-env": package()} | told(model),
        mesh.all.group,
    )
    layout, stream = Layout.of(mesh.exchange, sizes_of(model.spec)), model.spec.stream
    codec = spread(model.codec, mesh) if codec is None else codec
    share = RankShare(mesh, layout, stream, model.spec.denoiser.heads // stream.heads, codec)
    denoiser = with_seam(model.denoiser, RankSeam(mesh, layout.own, "prediction"))
    heads = model.heads
    if not isinstance(heads, Silent):
        heads = with_seam(heads, RankSeam(mesh, layout.own, "features"))
    return replace(model, denoiser=denoiser, codec=codec, heads=heads, share=share, origin=model)


class RankSeam:
    """One rank's tokens of every latent frame (see engine.models.seam).

    Args:
        tokens: that each rank has.
        name: of what is joined.
    """

    def __init__(self, mesh: Mesh, tokens: tuple[int, ...], name: str):
        self.mesh, self.tokens, self.name = mesh, tokens, name
        self.run = run_of(tokens, mesh.rank)

    def cut(self, x: Tensor, dim: int) -> Tensor:
        return x.narrow(dim, self.run.start, self.run.stop - self.run.start)

    def join(self, x: Tensor, dim: int) -> Tensor:
        each = x.numel() // x.shape[dim]
        parts = self.mesh.gather(self.name, x, [n * each for n in self.tokens])
        shapes = [(*x.shape[:dim], n, *x.shape[dim + 1 :]) for n in self.tokens]
        return torch.cat([part.view(shape) for part, shape in zip(parts, shapes, strict=True)], dim=dim)

    def __deepcopy__(self, memo: dict) -> RankSeam:
        """Copies of a model share it: a mesh is one."""
        return self


def with_seam(module: M, seam: RankSeam) -> M:
    """A copy of a module tree that shares its tensors, with another seam where it has one."""
    made = swap_linears(module, lambda linear: linear, (nn.Linear, PackedLinear))
    parts = [m for m in made.modules() if hasattr(m, "seam")]
    assert parts, f"{type(module).__name__} has no seam"
    for part in parts:
        part.seam = seam  # type: ignore[assignment]
    return made


def told(model: WorldModel) -> dict[str, str]:
    """What a rank says of its model: spec, precision, and a digest of every weight's shape and of some of its numbers.

    A digest of all numbers takes minutes for a large model; of one tensor `SAMPLES` are read, evenly spread. The name
    does not count: it is that of a file.
    """
    digest = hashlib.sha256()
    for part in (model.denoiser, model.heads):
        for name, x in sorted(part.state_dict().items()) if isinstance(part, nn.Module) else ():
            flat = x.detach().reshape(-1)
            some = flat[:: max(1, len(flat) // SAMPLES)].cpu().contiguous()
            digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
            digest.update(some.view(torch.uint8).numpy().data)
    spec = hashlib.sha256(repr(replace(model.spec, name="")).encode()).hexdigest()
    return {
        "spec": spec[:16],
        "precision": str(model.dtype),
        "weights": digest.hexdigest()[:16],
    }


def package() -> str:
    try:
        return version("inferix-env")
    except PackageNotFoundError:  # run from a clone
        return "a clone"
