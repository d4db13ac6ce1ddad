"""TextEncoder: prompts -> embeddings, by the umT5 encoder that Wan2.1-family models are conditioned on.

The network is `UMT5EncoderModel` of the transformers library, filled from the published file
(models_t5_umt5-xxl-enc-bf16.pth of Wan-AI/Wan2.1-T2V-1.3B) or from a folder as transformers writes it. The tokenizer
is the published tokenizer.json of google/umt5-xxl. Every prompt is encoded by itself and without its padding, which
no token may see anyway: an embedding depends on its prompt alone, and a short prompt is cheap on a CPU.

Knows nothing of worlds or denoisers. Needs the extra `text`.

Shapes: N prompts, S tokens, D width.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.conditioners.layouts import UMT5, TextSizes, text_to_published, text_to_transformers
from engine.conditioners.tensors import assemble, check_fit, read_folder, read_tensors, require

TEXT_TOKENS = 512


def clean(prompt: str) -> str:
    """The prompt as the encoder was trained on: broken Unicode mended, HTML entities resolved, whitespace collapsed."""
    mended = require("ftfy", "cleaning prompts").fix_text(prompt)
    # Twice, as published: scraped captions are often escaped twice.
    return re.sub(r"\s+", " ", html.unescape(html.unescape(mended))).strip()


def build(sizes: TextSizes, max_distance: int, eps: float) -> nn.Module:
    """The network, its tables of tokens one and the same."""
    transformers = require("transformers", "encoding prompts")
    config = transformers.UMT5Config(
        vocab_size=sizes.vocabulary,
        d_model=sizes.width,
        d_kv=sizes.inner // sizes.heads,
        d_ff=sizes.ffn,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        relative_attention_num_buckets=sizes.buckets,
        relative_attention_max_distance=max_distance,
        layer_norm_epsilon=eps,
        feed_forward_proj="gated-gelu",
        # Sums in the published order, logits rounded where it rounds them.
        attn_implementation="eager",
    )
    model = transformers.UMT5EncoderModel(config)
    model.set_input_embeddings(model.shared)
    return model


def read_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a tokenizer.json, or of a folder that holds one. The file alone decides: what the transformers
    library makes of a folder depends on its version.

    Raises:
        ValueError: it is missing or damaged; says where to get it.
    """
    tokenizers = require("tokenizers", "encoding prompts")
    file = Path(path) if Path(path).suffix == ".json" else Path(path) / "tokenizer.json"
    if not file.is_file():
        raise ValueError(
            f"no tokenizer at {file}: download tokenizer.json of google/umt5-xxl from huggingface.co and put it there "
            f"(hf download google/umt5-xxl tokenizer.json --local-dir {file.parent})"
        )
    try:
        return tokenizers.Tokenizer.from_buffer(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is no tokenizer.json, or damaged: {error}. Download it again") from None


def find_tokenizer(path: Path) -> Path:
    """Where a tokenizer lies beside weights: as in Wan-AI's repositories, or as in those of diffusers."""
    return path.parent / "tokenizer" if path.is_dir() else path.parent / "google" / "umt5-xxl"


class TextEncoder:
    """Prompts -> embeddings [N, text_tokens, D], rows from a prompt's length on zero.

    Args:
        model: a `UMT5EncoderModel`.
        tokenizer: of `read_tokenizer`; without one, only `encode_ids` works.
        text_tokens: rows of an embedding; longer prompts are cut, with a warning.
    """

    def __init__(self, model: Any, tokenizer: Any = None, text_tokens: int = TEXT_TOKENS):
        if text_tokens < 1:
            raise ValueError(f"text_tokens is {text_tokens}, expected at least 1 (the published models use 512)")
        self.model, self.tokenizer, self.text_tokens = model, tokenizer, text_tokens
        if tokenizer is not None:
            tokenizer.no_padding()
            tokenizer.enable_truncation(text_tokens)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        tokenizer_path: str | Path | None = None,
        *,
        text_tokens: int = TEXT_TOKENS,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        max_distance: int = 128,
        eps: float = 1e-6,
    ) -> TextEncoder:
        """An encoder of these weights, in the published layout or in that of the transformers library.

        Args:
            dtype: None keeps the weights' own.
            max_distance: relative positions from here on share a row. No shape tells it; all umT5 have 128.
            eps: of the norms.

        Raises:
            ValueError: the weights are no umT5 encoder's, the tokenizer is missing, or a package is.
        """
        tokenizer = None if tokenizer_path is None else read_tokenizer(tokenizer_path)
        if "token_embedding.weight" not in tensors and any(name.startswith("encoder.") for name in tensors):
            tensors = text_to_published(tensors)
        sizes = TextSizes.of(tensors)
        check_fit(sizes.shapes(), tensors, f"{UMT5} of {sizes}")
        state = {theirs: tensors[ours] for ours, theirs in text_to_transformers(sizes.layers).items()}
        state["encoder.embed_tokens.weight"] = state["shared.weight"]
        return cls(assemble(lambda: build(sizes, max_distance, eps), state, device, dtype), tokenizer, text_tokens)

    @classmethod
    def load(
        cls,
        path: str | Path,
        tokenizer_path: str | Path | None = None,
        *,
        text_tokens: int = TEXT_TOKENS,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> TextEncoder:
        """The encoder of a published file (.pth, .safetensors) or of a folder with config.json and safetensors.

        Args:
            tokenizer_path: a tokenizer.json or its folder; None looks beside the weights, in google/umt5-xxl/ of a
                file's folder, in tokenizer/ beside a folder.

        Raises:
            ValueError: as `from_tensors`, and if the file or folder cannot be read.
        """
        path = Path(path)
        options: dict[str, Any] = {"text_tokens": text_tokens, "device": device, "dtype": dtype}
        tokenizer_path = find_tokenizer(path) if tokenizer_path is None else tokenizer_path
        if not path.is_dir():
            return cls.from_tensors(read_tensors(path), tokenizer_path, **options)
        config, tensors = read_folder(path)
        return cls.from_tensors(tensors, tokenizer_path, **options, **constants(config, path))

    @property
    def width(self) -> int:
        """Width D of the embeddings."""
        return self.model.shared.weight.shape[1]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [N, text_tokens, D] of N prompts, on the encoder's device and in its dtype.

        Raises:
            ValueError: the prompts are no list of strings, or there is no tokenizer.
        """
        check_prompts(prompts)
        if self.tokenizer is None:
            raise ValueError(
                "this encoder has no tokenizer: give tokenizer_path, a folder with tokenizer.json of google/umt5-xxl"
            )
        return torch.stack([self.embed(self.tokenize(prompt), self.text_tokens) for prompt in prompts])

    def encode_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embeddings [N, S, D] of token ids int64 [N, S]; mask [N, S] is 1 for a prompt's tokens and 0 from there on.

        Raises:
            ValueError: shapes differ, a mask has gaps, or an id is none of the vocabulary.
        """
        if ids.ndim != 2 or ids.shape != mask.shape or ids.is_floating_point():
            raise ValueError(
                f"ids {ids.dtype} {list(ids.shape)} and mask {list(mask.shape)}: expected integers of one shape [N, S]"
            )
        lengths = (mask != 0).sum(1)
        if not torch.equal(mask != 0, torch.arange(ids.shape[1], device=mask.device) < lengths[:, None]):
            raise ValueError("the mask has gaps: expected ones for a prompt's tokens, then zeros")
        rows = zip(ids.tolist(), lengths.tolist(), strict=True)
        return torch.stack([self.embed(row[:length], ids.shape[1]) for row, length in rows])

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids of a prompt, cleaned, with the end token, at most text_tokens."""
        encoding = self.tokenizer.encode(clean(prompt))
        if encoding.overflowing:
            warnings.warn(f"cut to {self.text_tokens} tokens: the prompt {prompt[:60]!r}...", stacklevel=3)
        return encoding.ids

    @torch.no_grad()
    def embed(self, ids: list[int], rows: int) -> Tensor:
        """One prompt's token ids -> [rows, D], zero from its length on."""
        table = self.model.shared.weight
        if ids and not 0 <= min(ids) <= max(ids) < len(table):
            raise ValueError(
                f"token ids reach from {min(ids)} to {max(ids)}, the encoder knows 0 to {len(table) - 1}: is the "
                "tokenizer google/umt5-xxl's?"
            )
        out = table.new_zeros(rows, table.shape[1])
        if ids:
            tokens = torch.tensor([ids], device=table.device)
            out[: len(ids)] = self.model(input_ids=tokens).last_hidden_state[0]
        return out


def constants(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What no shape tells, from a folder's config.json.

    Raises:
        ValueError: it describes another kind of model.
    """
    kind, ffn = config.get("model_type"), config.get("feed_forward_proj", "gated-gelu")
    if kind != "umt5" or ffn != "gated-gelu":
        raise ValueError(f"{folder / 'config.json'} describes a {kind} with {ffn}, expected umt5 with gated-gelu")
    return {
        "max_distance": config.get("relative_attention_max_distance", 128),
        "eps": config.get("layer_norm_epsilon", 1e-6),
    }


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises ValueError unless it is a list of strings, at least one."""
    if isinstance(prompts, str) or not prompts or not all(isinstance(x, str) for x in prompts):
        raise ValueError(f"prompts {prompts!r:.80}: expected a list of strings, such as ['a forest path']")
