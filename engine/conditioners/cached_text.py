"""CachedText: embeddings of prompts on disk, so that a prompt is encoded once, and not by every machine.

One safetensors file a prompt holds the rows of its tokens. Where every prompt has its file the encoder is never made:
a machine without room for it plays prompts that another has encoded. Knows of an encoder only that it encodes.

Shapes: N prompts, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engine.conditioners.text import TEXT_TOKENS, check_prompts, clean

FORMAT, VERSION = "inferix_env text", "1"


class EncodesText(Protocol):
    """Prompts -> embeddings [N, text_tokens, D], rows from each prompt's length on zero."""

    def encode(self, prompts: Sequence[str]) -> Tensor: ...


class CachedText:
    """Embeddings [N, text_tokens, D] from a folder, or from an encoder, which then fills the folder.

    Args:
        encoder: an encoder, or a function without arguments that makes one; called for the first prompt that has no
            file, if any.
        folder: where the files are; made if missing.
        identity: what the encoder is, weights and precision. Files of another identity are not used. A name of your
            own, because no encoder need be there to ask: "umt5-xxl-enc-bf16".
        text_tokens: rows of an embedding; the encoder's must be the same.
        device: where embeddings are returned.
    """

    def __init__(
        self,
        encoder: EncodesText | Callable[[], EncodesText],
        folder: str | Path,
        *,
        identity: str,
        text_tokens: int = TEXT_TOKENS,
        device: torch.device | str = "cpu",
    ):
        if not identity:
            raise ValueError("identity is empty: name the encoder, such as 'umt5-xxl-enc-bf16'")
        self.encoder = None if callable(encoder) else encoder
        self.make = encoder if callable(encoder) else None
        self.folder, self.identity, self.text_tokens, self.device = Path(folder), identity, text_tokens, device

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [N, text_tokens, D] of N prompts.

        Raises:
            ValueError: the prompts are no list of strings, a file of the cache is damaged, or the encoder returns
                another number of rows.
        """
        check_prompts(prompts)
        return torch.stack([self.pad(self.rows(prompt)) for prompt in prompts])

    def drop(self) -> None:
        """Let go of the encoder; a prompt without a file makes it anew, if it came as a function."""
        self.encoder = None

    def path(self, cleaned: str) -> Path:
        """The file of a cleaned prompt, there or not."""
        key = json.dumps([cleaned, self.identity, self.text_tokens])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def rows(self, prompt: str) -> Tensor:
        """Rows [tokens, D] of a prompt, from its file, which is written first where it is missing."""
        cleaned = clean(prompt)
        path = self.path(cleaned)
        if not path.is_file():
            write(path, self.compute(prompt), self.facts(cleaned))
        return read(path, self.facts(cleaned), self.text_tokens)

    def compute(self, prompt: str) -> Tensor:
        """Rows [tokens, D] of a prompt, from the encoder, which cleans it itself: twice is not the same as once."""
        if self.encoder is None:
            if self.make is None:
                raise ValueError(f"{prompt!r:.80} is not in {self.folder}, and the encoder was dropped: give it anew")
            self.encoder = self.make()
        [rows] = self.encoder.encode([prompt])
        if len(rows) != self.text_tokens:
            raise ValueError(f"the encoder returns {len(rows)} rows, the cache is of {self.text_tokens}: make them one")
        filled = rows.ne(0).any(1).nonzero()
        return rows[: int(filled.max()) + 1 if len(filled) else 0].cpu()

    def facts(self, cleaned: str) -> dict[str, str]:
        """What a file says of itself."""
        text = {"prompt": cleaned, "identity": self.identity, "text_tokens": str(self.text_tokens)}
        return {"format": FORMAT, "version": VERSION, **text}

    def pad(self, rows: Tensor) -> Tensor:
        """Rows [tokens, D] -> [text_tokens, D], zeros below."""
        out = rows.new_zeros(self.text_tokens, rows.shape[1], device=self.device)
        out[: len(rows)] = rows
        return out


def write(path: Path, rows: Tensor, facts: dict[str, str]) -> None:
    """Write under a name of its own, then rename: whoever reads or writes beside sees a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blob = save({"rows": rows.contiguous()}, {**facts, "checksum": checksum(rows)})
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, facts: dict[str, str], text_tokens: int) -> Tensor:
    """The rows of a file.

    Raises:
        ValueError: it is damaged, or no file of this prompt; names it.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata, rows = file.metadata() or {}, file.get_tensor("rows").clone()
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from None
    wrong = [name for name, text in facts.items() if metadata.get(name) != text]
    if wrong:
        raise damaged(path, f"its {wrong[0]} is {metadata.get(wrong[0])!r:.80}, expected {facts[wrong[0]]!r:.80}")
    if rows.ndim != 2 or len(rows) > text_tokens or checksum(rows) != metadata.get("checksum"):
        raise damaged(path, "its checksum does not fit its contents")
    return rows


def damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is damaged: {reason}. Delete it, and the prompt is encoded anew")


def checksum(rows: Tensor) -> str:
    """sha256 over type, shape and bytes."""
    digest = hashlib.sha256(f"{rows.dtype} {list(rows.shape)}".encode())
    digest.update(rows.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
