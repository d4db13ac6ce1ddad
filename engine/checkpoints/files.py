"""A path, folder or hub id -> its tensors, unread, under the names the model itself gave them.

What training and saving left in front of the names (top keys, FSDP, torch.compile, DDP) is taken off. Does not know
which model they are of: names.py, sizes.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.checkpoints.formats import open_file
from engine.checkpoints.places import DENOISERS, locate
from engine.checkpoints.tensors import Tensors

RESIDUE = {"_fsdp_wrapped_module", "_orig_mod", "module"}


def open_tensors(
    path: str | Path, prefer: str | Sequence[str] | None = None, known: Sequence[str] = DENOISERS
) -> Tensors:
    """Open a checkpoint. Names, shapes and dtypes are known on return; a tensor is read when it is asked for.

    Args:
        path: a .safetensors file; an index of shards; a .pt or .pth file of torch.save; a folder with one of these;
            or a hub id: "org/name", "org/name/path/in/repo", "org/name@revision", any of them after "hf://".
        prefer: top keys of a .pt to look under, in this order; by default generator_ema, generator, model. Without any
            of them the weights lie flat. A single string has to be there.
        known: published names to choose by where a folder holds several weights.

    Raises:
        ValueError: there is nothing to read, more than one thing to read, or it is not weights; says which.
    """
    return open_file(locate(path, known), prefer).renamed(plain_name)


def plain_name(name: str) -> str:
    """A parameter's name without what wrapped the model: `model._fsdp_wrapped_module.x.weight` -> `x.weight`."""
    return ".".join(part for part in name.split(".") if part not in RESIDUE).removeprefix("model.")
