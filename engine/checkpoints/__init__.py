"""Published checkpoints: files, folders and hub ids -> tensors under one layout's names -> sizes -> a filled module.

tensors = open_denoiser("gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt")
spec = wan_spec_of(tensors.shapes)
with torch.device("meta"):
    module = Wan(spec)
fill(module, tensors, torch.bfloat16, "cuda", ignored=unused_norms(spec))
"""

from engine.checkpoints.files import open_tensors
from engine.checkpoints.filling import fill
from engine.checkpoints.lora import Lora, LoraLinear, apply_lora, merged, read_lora
from engine.checkpoints.names import linear_patches, open_denoiser, original_names
from engine.checkpoints.places import DENOISERS, LORAS
from engine.checkpoints.sizes import unused_norms, wan_spec_of
from engine.checkpoints.tensors import Entry, Tensors, in_memory

__all__ = [
    "DENOISERS",
    "LORAS",
    "Entry",
    "Lora",
    "LoraLinear",
    "Tensors",
    "apply_lora",
    "fill",
    "in_memory",
    "linear_patches",
    "merged",
    "open_denoiser",
    "open_tensors",
    "original_names",
    "read_lora",
    "unused_norms",
    "wan_spec_of",
]
