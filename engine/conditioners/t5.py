"""T5Encoder: prompts -> embeddings, by the T5 v1.1 encoder that MAGI-1 is conditioned on.

The network is `T5EncoderModel` of the transformers library, filled from the published folder (config.json, shards and
their index), memory-mapped. The tokenizer is the folder's spiece.model, or a tokenizer.json. Every prompt is encoded by
itself and without its padding, which no token may see anyway. Knows nothing of worlds or denoisers. Needs the extra
`text`.

Shapes: N prompts, T tokens, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.conditioners.captions import clean_caption
from engine.conditioners.tensors import assemble, check_fit, read_json, read_tensors, require
from engine.conditioners.text import check_prompts

TEXT_TOKENS = 800
FOLDER = "t5-v1_1-xxl"
END = 1  # T5's token behind every text
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
FILES = ("model.safetensors", "pytorch_model.bin")
SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
CONSTANTS = ("relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon")

Tokenize = Callable[[str], list[int]]


class T5Encoder:
    """Prompts -> embeddings [N, text_tokens, D], rows from a prompt's length on zero.

    Args:
        model: a `T5EncoderModel`.
        tokenize: text -> ids, without the end token.
        clean: what is done to a prompt first; `captions.CLEANERS` has the published way and one for any language.
        text_tokens: rows of an embedding; longer prompts are cut, with a warning.
    """

    def __init__(
        self,
        model: Any,
        tokenize: Tokenize,
        clean: Callable[[str], str] = clean_caption,
        text_tokens: int = TEXT_TOKENS,
    ):
        self.model, self.tokenize, self.clean, self.text_tokens = model, tokenize, clean, text_tokens

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        clean: Callable[[str], str] = clean_caption,
        text_tokens: int = TEXT_TOKENS,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> T5Encoder:
        """The encoder of a folder as transformers writes it, or of the folder above it as MAGI-1's configs name it.

        Args:
            dtype: None keeps the weights' own, which is float32 in the published files (19 GB).

        Raises:
            ValueError: a file of it is missing or damaged, or it is no T5 v1.1 encoder.
        """
        folder = Path(folder)
        folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
        tokenize = read_tokenizer(folder)
        config, tensors = read_json(folder / "config.json"), encoder_only(read_weights(folder))
        with torch.device("meta"):
            expected = {name: tuple(x.shape) for name, x in build(config, folder).state_dict().items()}
        check_fit(expected, tensors, f"the T5 encoder that {folder / 'config.json'} describes")
        model = assemble(lambda: build(config, folder), tensors, device, dtype)
        return cls(model, tokenize, clean, text_tokens)

    @property
    def width(self) -> int:
        """Width D of the embeddings."""
        return self.model.shared.weight.shape[1]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [N, text_tokens, D] of N prompts, on the encoder's device and in its dtype.

        Raises:
            ValueError: the prompts are no list of strings.
        """
        check_prompts(prompts)
        return torch.stack([self.embed(self.ids(prompt)) for prompt in prompts])

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt, cleaned, with the end token, at most text_tokens."""
        found = self.tokenize(self.clean(prompt))
        if len(found) >= self.text_tokens:
            warnings.warn(f"cut to {self.text_tokens} tokens: the prompt {prompt[:60]!r}...", stacklevel=3)
        return [*found[: self.text_tokens - 1], END]

    @torch.no_grad()
    def embed(self, ids: list[int]) -> Tensor:
        """One prompt's token ids -> [text_tokens, D], zero from its length on."""
        table = self.model.shared.weight
        if max(ids) >= len(table):
            raise ValueError(f"token id {max(ids)}, and the encoder knows {len(table)}: is the tokenizer another's?")
        out = table.new_zeros(self.text_tokens, table.shape[1])
        out[: len(ids)] = self.model(input_ids=torch.tensor([ids], device=table.device)).last_hidden_state[0]
        return out


def build(config: Mapping[str, Any], folder: Path) -> nn.Module:
    """The network of a config.json, its tables of tokens one and the same.

    Raises:
        ValueError: it describes another kind of model, or lacks a size.
    """
    transformers = require("transformers", "encoding prompts")
    kind, ffn = config.get("model_type"), config.get("feed_forward_proj")
    if kind != "t5" or ffn != "gated-gelu":
        raise ValueError(
            f"{folder / 'config.json'} describes a {kind} with {ffn}: expected t5 with gated-gelu (T5 v1.1)"
        )
    missing = [name for name in SIZES if name not in config]
    if missing:
        raise ValueError(f"{folder / 'config.json'} lacks {', '.join(missing)}: download it again")
    sizes = {name: config[name] for name in (*SIZES, *CONSTANTS) if name in config}
    made = transformers.T5Config(**sizes, feed_forward_proj=ffn, is_encoder_decoder=False, use_cache=False)
    model = transformers.T5EncoderModel(made)
    model.set_input_embeddings(model.shared)
    return model


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder: safetensors or torch.save's, sharded or not. Files are mapped.

    Raises:
        ValueError: there are none, or one is damaged.
    """
    for index in INDICES:
        if (folder / index).is_file():
            places = read_json(folder / index).get("weight_map")
            if not isinstance(places, dict):
                raise ValueError(f"{folder / index} has no weight_map: download it again")
            return {name: x for file in sorted(set(places.values())) for name, x in read_tensors(folder / file).items()}
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if not found:
        raise ValueError(f"no weights in {folder}: expected one of {', '.join((*INDICES, *FILES))}")
    return read_tensors(found[0])


def encoder_only(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without a decoder beside the encoder; the one table of tokens under both of its names."""
    kept = {name: x for name, x in tensors.items() if not name.startswith(("decoder.", "lm_head."))}
    table = kept.get("shared.weight", kept.get("encoder.embed_tokens.weight"))
    return kept if table is None else {**kept, "shared.weight": table, "encoder.embed_tokens.weight": table}


def read_tokenizer(folder: Path) -> Tokenize:
    """The tokenizer of spiece.model or tokenizer.json.

    Raises:
        ValueError: neither is there, or it is damaged.
    """
    model, file = folder / "spiece.model", folder / "tokenizer.json"
    if model.is_file():
        sentencepiece = require("sentencepiece", "encoding prompts")
        try:
            return sentencepiece.SentencePieceProcessor(model_file=str(model)).encode
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{model} is no sentencepiece model, or damaged: {error}. Download it again") from None
    if not file.is_file():
        raise ValueError(f"no tokenizer in {folder}: expected spiece.model of google/t5-v1_1-xxl")
    tokenizers = require("tokenizers", "encoding prompts")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is no tokenizer.json, or damaged: {error}. Download it again") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
