"""Looks into a denoiser while it runs: the activations that a recording calls `dbg.*`, by the modules they come from.

Knows the names of both; what is compared with what is networks.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

# What is read of a prompt or an image, once, by the denoiser as it was loaded.
CONTEXTS = ("text_context", "image_context")
# Recorded name -> module. Those of a block are below it; `action_in` is what goes into its action module.
WHOLE = {
    "time_e": "time_embedding",
    "time_proj": "time_projection",
    "text_context": "text_embedding",
    "image_context": "img_emb",
    "patch_tokens": "patch_embedding",
}
OF_A_BLOCK = {
    "action_in": ".action_model",
    "action_out": ".action_model",
    "proj_mouse": ".action_model.proj_mouse",
    "proj_keyboard": ".action_model.proj_keyboard",
    "keyboard_embed": ".action_model.keyboard_embed",
}
BLOCK = re.compile(r"block(\d+)(?:\.(\w+))?")


def module_of(name: str) -> str:
    """The path of the module whose output, or input, has a recorded name, such as "block0.ffn"."""
    block = BLOCK.fullmatch(name)
    if block is None:
        return WHOLE.get(name, name)
    index, part = block.groups()
    return f"blocks.{index}" + (OF_A_BLOCK.get(part, f".{part}") if part else "")


class Probe:
    """Keeps what some modules of a denoiser give, by recorded name.

    Args:
        names: recorded names without "dbg."; one that no module has is never seen.
    """

    def __init__(self, names: Iterable[str], denoiser: nn.Module):
        self.seen: dict[str, list[Tensor]] = {}
        modules = dict(denoiser.named_modules())
        for name in names:
            if (module := modules.get(module_of(name))) is not None:
                module.register_forward_hook(partial(self._note, name))

    def _note(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.seen.setdefault(name, []).append(inputs[0] if name.endswith("_in") else output)

    def take(self) -> dict[str, Tensor]:
        """What was seen since the last time; of modules that ran once a world, all worlds' together."""
        seen, self.seen = self.seen, {}
        return {name: torch.cat(parts) for name, parts in seen.items()}


def shaped(x: Tensor, want: Tensor) -> Tensor:
    """An activation of so many frames in the shape recorded: their tokens in a row, or, of a level, the first's."""
    for y in (x, x[:, 0]):
        if y.numel() == want.numel():
            return y.reshape(want.shape)
    return x
