"""ClipVision: pictures -> tokens, by the image tower of CLIP that image-conditioned Wan2.1 models read; and pictures
as tensors, cropped and resized as Matrix-Game 2 does.

The network is `CLIPVisionModel` of the transformers library, filled from the published file
(models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth of Skywork/Matrix-Game-2.0 and Wan-AI/Wan2.1-I2V-14B). The
tokens are those before the last layer and without the final norm, so neither is built.

Knows nothing of worlds or denoisers. ClipVision needs the extra `text`; pictures do not.

Shapes: N pictures, H W pixels, S tokens (the class token first), D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from engine.conditioners.layouts import CLIP, ClipSizes, clip_to_transformers
from engine.conditioners.tensors import assemble, check_fit, read_tensors, require

PREFIX = "visual."
# Of the pictures CLIP was trained on, in [0, 1] (github.com/openai/CLIP).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def build(sizes: ClipSizes) -> nn.Module:
    """The network without the last layer, whose output is not asked for."""
    transformers = require("transformers", "encoding pictures")
    config = transformers.CLIPVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.ffn,
        num_hidden_layers=sizes.layers - 1,
        num_attention_heads=sizes.heads,
        image_size=sizes.pixels,
        patch_size=sizes.patch,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
    return transformers.CLIPVisionModel(config)


class ClipVision:
    """Pictures [N, 3, H, W] in [-1, 1] -> tokens [N, S, D].

    Args:
        model: a `CLIPVisionModel` that lacks the tower's last layer.
        pixels: side of the picture it looks at.
    """

    def __init__(self, model: Any, pixels: int):
        self.model, self.pixels = model, pixels

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        heads: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> ClipVision:
        """The tower of the tensors named `visual.`; others, such as the text tower's, are not looked at.

        Args:
            heads: attention heads, which no shape tells; None takes heads 80 wide, as in ViT-H/14.
            dtype: None keeps the weights' own.

        Raises:
            ValueError: the weights are no CLIP image tower's, or transformers is missing.
        """
        tower = {name.removeprefix(PREFIX): x for name, x in tensors.items() if name.startswith(PREFIX)}
        sizes = ClipSizes.of(tower, heads)
        check_fit(sizes.shapes(), tower, f"{CLIP} of {sizes}")
        model = assemble(lambda: build(sizes), clip_to_transformers(tower, sizes), device, dtype)
        # No tensor of the file: indices of the positions, still without memory.
        model.embeddings.position_ids = torch.arange(sizes.side**2 + 1, device=device)[None]  # type: ignore[union-attr]
        return cls(model, sizes.pixels)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        heads: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> ClipVision:
        """The tower of the published file. It holds the text tower too, about as large again: the file is mapped, so
        that never comes into memory.

        Raises:
            ValueError: as `from_tensors`, and if the file cannot be read.
        """
        return cls.from_tensors(read_tensors(path), heads=heads, device=device, dtype=dtype)

    def prepare(self, images: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in [-1, 1] -> [N, 3, pixels, pixels], scaled as CLIP expects. Not antialiased, as the
        published models were trained."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"pictures {images.dtype} {list(images.shape)}: expected floats [N, 3, H, W] in [-1, 1]")
        size = (self.pixels, self.pixels)
        small = F.interpolate(images.float(), size, mode="bicubic", align_corners=False) * 0.5 + 0.5
        mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (MEAN, STD))
        return (small - mean) / std

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Tokens [N, S, D] of pictures [N, 3, H, W] in [-1, 1], in the tower's dtype and on its device.

        Raises:
            ValueError: another shape or type.
        """
        weight = self.model.embeddings.patch_embedding.weight
        return self.model(self.prepare(images).to(weight)).last_hidden_state


def read_image(path: str | Path) -> Image.Image:
    """A picture file as RGB, the way up its camera says. Transparent pixels are shown on black; of an animation, the
    first frame.

    Raises:
        ValueError: there is no such file, it is no picture, it is damaged, too large or has more than 8 bits a value.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise ValueError(f"no picture at {path}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no picture, or of an unknown kind: expected PNG, JPEG or the like") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any 8-bit picture as RGB, transparent pixels on black."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(f"a picture of mode {image.mode} has more than 8 bits a value: convert it to 8 bits first")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "black"), layered).convert("RGB")


def fit_image(image: Image.Image | np.ndarray, height: int, width: int) -> Tensor:
    """A picture, cut from its middle to the shape height:width, resized: float32 [3, height, width] in [-1, 1].

    The crop's rounding and the antialiased bilinear resize of 8-bit values are those of Matrix-Game 2.

    Args:
        image: a PIL picture, or an array uint8 [H, W, 3].

    Raises:
        ValueError: the array has another type or shape, or a size is not positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {height}x{width}: expected at least one pixel each way")
    image = to_rgb(image) if isinstance(image, Image.Image) else from_array(image)
    cut = image.crop(middle(image.width, image.height, height, width))
    small = np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(small.copy()).permute(2, 0, 1).float() / 255 * 2 - 1


def from_array(frame: np.ndarray) -> Image.Image:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
        kind = frame.dtype if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"a picture of {kind}: expected a PIL picture or an array uint8 [H, W, 3]")
    if frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise ValueError(f"a picture of shape {list(frame.shape)}: expected [H, W, 3]")
    return Image.fromarray(np.ascontiguousarray(frame))


def middle(w: int, h: int, height: int, width: int) -> tuple[int, int, int, int]:
    """The middle of w x h pixels that has the shape height:width: left, top, right, bottom.

    Raises:
        ValueError: the shapes are so far apart that nothing is left.
    """
    tall = h * width > w * height
    new_w, new_h = (w, w * height // width) if tall else (h * width // height, h)
    if not new_w or not new_h:
        raise ValueError(f"a picture of {h}x{w} pixels has nothing of the shape {height}x{width}: give a larger one")
    edges = ((w - new_w) / 2, (h - new_h) / 2, (w + new_w) / 2, (h + new_h) / 2)
    left, top, right, bottom = (round(x) for x in edges)
    return left, top, right, bottom
