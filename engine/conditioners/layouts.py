"""Layouts of published encoders: sizes read from shapes, the tensors that belong to them, and the names by which the
transformers library knows these. Values only; knows neither networks nor files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

from torch import Tensor

from engine.conditioners.tensors import Shapes, shape_of

UMT5, CLIP = "a umT5 encoder", "a CLIP image tower"
# Published name of a module within a layer -> its name in the transformers library.
TEXT_LAYER = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
# Width of a head in ViT-H/14: 1280 / 16.
HEAD_WIDTH = 80
# Published name within a layer -> name in the transformers library; to_qkv is three of the latter.
CLIP_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


@dataclass(frozen=True)
class TextSizes:
    """Sizes of a umT5 encoder.

    Attributes:
        vocabulary, width, ffn, layers: of the transformer.
        inner: width of all heads together.
        heads: attention heads.
        buckets: rows of a layer's table of relative positions.
    """

    vocabulary: int
    width: int
    inner: int
    heads: int
    ffn: int
    layers: int
    buckets: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TextSizes:
        """Sizes of tensors in the published layout.

        Raises:
            ValueError: tensors that tell sizes are missing or odd.
        """
        vocabulary, width = shape_of(tensors, "token_embedding.weight", 2, UMT5)
        inner, _ = shape_of(tensors, "blocks.0.attn.q.weight", 2, UMT5)
        buckets, heads = shape_of(tensors, "blocks.0.pos_embedding.embedding.weight", 2, UMT5)
        ffn, _ = shape_of(tensors, "blocks.0.ffn.fc1.weight", 2, UMT5)
        if inner % heads:
            raise ValueError(f"these are no weights of {UMT5}: {heads} heads do not divide a width of {inner}")
        layers = 1 + max(int(i) for name in tensors for i in re.findall(r"^blocks\.(\d+)\.", name))
        return cls(vocabulary, width, inner, heads, ffn, layers, buckets)

    def shapes(self) -> Shapes:
        """Every tensor of the published layout."""
        square = dict.fromkeys(("attn.q", "attn.k", "attn.v"), (self.inner, self.width))
        layer = square | {
            "attn.o": (self.width, self.inner),
            "norm1": (self.width,),
            "norm2": (self.width,),
            "pos_embedding.embedding": (self.buckets, self.heads),
            "ffn.gate.0": (self.ffn, self.width),
            "ffn.fc1": (self.ffn, self.width),
            "ffn.fc2": (self.width, self.ffn),
        }
        blocks = {f"blocks.{i}.{name}.weight": shape for i in range(self.layers) for name, shape in layer.items()}
        return {"token_embedding.weight": (self.vocabulary, self.width), "norm.weight": (self.width,)} | blocks


def text_to_transformers(layers: int) -> dict[str, str]:
    """Published tensor name -> name in the transformers library."""
    names = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    return names | {
        f"blocks.{i}.{ours}.weight": f"encoder.block.{i}.{theirs}.weight"
        for i in range(layers)
        for ours, theirs in TEXT_LAYER.items()
    }


def text_to_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the layout of the transformers library -> in the published one. A decoder beside the encoder is
    left out; names that are none of the library's stay, for `check_fit` to name."""
    layers = {int(i) for name in tensors for i in re.findall(r"^encoder\.block\.(\d+)\.", name)}
    names = {theirs: ours for ours, theirs in text_to_transformers(1 + max(layers, default=-1)).items()}
    # The one table of tokens goes by two names.
    names["encoder.embed_tokens.weight"] = "token_embedding.weight"
    return {names.get(name, name): x for name, x in tensors.items() if not name.startswith(("decoder.", "lm_head."))}


@dataclass(frozen=True)
class ClipSizes:
    """Sizes of a published CLIP image tower.

    Attributes:
        width, ffn, heads, layers: of the transformer, the last layer included.
        patch: side of a patch in pixels.
        side: patches along a side of the picture.
        projection: width after the projection, which is not used.
    """

    width: int
    ffn: int
    heads: int
    layers: int
    patch: int
    side: int
    projection: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], heads: int | None = None) -> ClipSizes:
        """Sizes of tensors in the published layout, without its prefix.

        Raises:
            ValueError: tensors that tell sizes are missing or odd, or the heads do not divide the width.
        """
        width, _, patch, _ = shape_of(tensors, "patch_embedding.weight", 4, CLIP)
        _, tokens, _ = shape_of(tensors, "pos_embedding", 3, CLIP)
        ffn, _ = shape_of(tensors, "transformer.0.mlp.0.weight", 2, CLIP)
        _, projection = shape_of(tensors, "head", 2, CLIP)
        layers = 1 + max(int(i) for name in tensors for i in re.findall(r"^transformer\.(\d+)\.", name))
        side = isqrt(tokens - 1)
        if side * side != tokens - 1 or layers < 2:
            raise ValueError(
                f"these are no weights of {CLIP}: {tokens} positions and {layers} layers, expected 1 more than a "
                "square and at least 2"
            )
        return cls(width, ffn, check_heads(width, heads), layers, patch, side, projection)

    @property
    def pixels(self) -> int:
        """Side of the picture it looks at."""
        return self.side * self.patch

    def shapes(self) -> Shapes:
        """Every tensor of the published layout, without its prefix."""
        w, ffn = self.width, self.ffn
        linears = {"attn.to_qkv": (3 * w, w), "attn.proj": (w, w), "mlp.0": (ffn, w), "mlp.2": (w, ffn)}
        layer: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in linears.items()}
        layer |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
        layer |= norms("norm1", w) | norms("norm2", w)
        blocks = {f"transformer.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}
        ends: dict[str, tuple[int, ...]] = {
            "cls_embedding": (1, 1, w),
            "pos_embedding": (1, self.side**2 + 1, w),
            "patch_embedding.weight": (w, 3, self.patch, self.patch),
            "head": (w, self.projection),
        }
        return ends | norms("pre_norm", w) | norms("post_norm", w) | blocks


def norms(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def check_heads(width: int, heads: int | None) -> int:
    """The number of heads: as given, or such that one is as wide as in ViT-H/14."""
    if heads is None and width % HEAD_WIDTH == 0:
        return width // HEAD_WIDTH
    if heads is None or heads < 1 or width % heads:
        raise ValueError(f"{heads} heads for a width of {width}: expected a divisor of it; no shape tells, give heads=")
    return heads


def clip_to_transformers(tensors: Mapping[str, Tensor], sizes: ClipSizes) -> dict[str, Tensor]:
    """The published tensors under the library's names, all layers but the last. Nothing is copied."""
    state = {
        "embeddings.class_embedding": tensors["cls_embedding"].flatten(),
        "embeddings.patch_embedding.weight": tensors["patch_embedding.weight"],
        "embeddings.position_embedding.weight": tensors["pos_embedding"][0],
    }
    for end in ("weight", "bias"):
        state |= {f"pre_layrnorm.{end}": tensors[f"pre_norm.{end}"]}
        state |= {f"post_layernorm.{end}": tensors[f"post_norm.{end}"]}
        for i in range(sizes.layers - 1):
            there, here = f"transformer.{i}", f"encoder.layers.{i}"
            state |= {f"{here}.{theirs}.{end}": tensors[f"{there}.{ours}.{end}"] for ours, theirs in CLIP_LAYER.items()}
            parts = tensors[f"{there}.attn.to_qkv.{end}"].chunk(3)
            state |= {f"{here}.self_attn.{x}_proj.{end}": part for x, part in zip("qkv", parts, strict=True)}
    return state
