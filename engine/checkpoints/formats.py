"""One weights file, whatever it is: safetensors, a safetensors index, or what torch.save wrote.

Told apart by their first bytes, so that a download that went wrong is called what it is. Nothing is unpickled but
tensors and plain containers. Does not know where a file comes from, nor which model it is of.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.checkpoints.tensors import Entry, Tensors, entry_of

INDEX = ".safetensors.index.json"
TORCH_SUFFIXES = (".pt", ".pth")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
TOP_KEYS = ("generator_ema", "generator", "model")
AGAIN = "download it again"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def open_file(path: Path, prefer: str | Sequence[str] | None = None) -> Tensors:
    """The tensors of one file, or of all shards of an index. `prefer`: see `open_tensors`."""
    if path.name.endswith(".json"):
        return _without_top_keys(_open_index(path), prefer)
    if _kind(path) == "safetensors":
        return _without_top_keys(_open_safetensors(path), prefer)
    return _open_torch(path, prefer)


def _kind(path: Path) -> str:
    """ "safetensors" or "torch", by the first bytes; the suffix may not contradict them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
    _refuse_what_is_no_weights(path, start, size)
    suffixes: tuple[str, ...] = (".safetensors",)
    if start.startswith(b"PK\x03\x04"):
        kind, suffixes = "torch", (*TORCH_SUFFIXES, ".bin")
    elif start[8:9] == b"{":
        kind = "safetensors"
    else:
        raise ValueError(f"{path} is neither safetensors nor a file of torch.save (it begins with {start[:16]!r})")
    if path.suffix not in suffixes:
        raise ValueError(f"{path} holds {kind} data under the suffix {path.suffix!r}: rename it to {suffixes[0]}")
    return kind


def _refuse_what_is_no_weights(path: Path, start: bytes, size: int) -> None:
    text = start.lstrip().lower()
    if not size:
        raise ValueError(f"{path} is empty: {AGAIN}")
    if text.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git-lfs pointer, not the weights: run `git lfs pull` in its folder, or {AGAIN}")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{path} is a web page, not weights: {AGAIN}, from the file's download link")
    if (start.startswith(b"\x80") and start[8:9] != b"{") or start[257:262] == b"ustar":
        raise ValueError(f"{path} is a pickle of an old format, which cannot be mapped to memory: {_convert(path)}")


def _convert(path: Path) -> str:
    made = path.with_suffix(".safetensors").name
    return (
        "if you trust who made it, load it with torch.load(..., weights_only=False), pick the dict of tensors, and "
        f"write that with safetensors.torch.save_file(tensors, {made!r})"
    )


def _open_safetensors(path: Path) -> Tensors:
    try:
        file = safe_open(path, "pt")
        names = list(file.keys())
        entries = {name: _slice_entry(file, name, path) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or no safetensors file ({error}): {AGAIN}") from None
    if not entries:
        raise ValueError(f"{path} holds no tensors: {AGAIN}")
    return Tensors(entries, str(path))


def _slice_entry(file: Any, name: str, path: Path) -> Entry:
    found = file.get_slice(name)
    if found.get_dtype() not in DTYPES:
        raise ValueError(f"{path}: {name} is stored as {found.get_dtype()}; expected one of {list(DTYPES)}")
    return Entry(tuple(found.get_shape()), DTYPES[found.get_dtype()], lambda: file.get_tensor(name))


def _open_index(path: Path) -> Tensors:
    places = _read_index(path)
    entries: dict[str, Entry] = {}
    for shard in sorted(set(places.values())):
        if not (path.parent / shard).is_file():
            raise ValueError(f"{path} names the shard {shard}, which is not beside it: download all shards")
        found = open_file(path.parent / shard).entries
        strays = [name for name in found if places.get(name) != shard]
        if strays:
            raise ValueError(f"{shard} holds {strays[0]}, which {path} places in {places.get(strays[0], 'no shard')}")
        entries |= found
    missing = [name for name in places if name not in entries]
    if missing:
        raise ValueError(f"{path} places {missing[0]} in {places[missing[0]]}, which does not hold it: {AGAIN}")
    return Tensors(entries, str(path))


def _read_index(path: Path) -> dict[str, str]:
    """Name -> shard."""
    try:
        places = json.loads(path.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError):
        places = None
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path} is no index of safetensors shards (JSON with a 'weight_map'): {AGAIN}")
    strange = [s for s in places.values() if not isinstance(s, str) or Path(s).name != s or not s.endswith(SUFFIXES)]
    if strange:
        raise ValueError(f"{path} names the shard {strange[0]!r}; expected the name of a weights file beside it")
    return places


def _open_torch(path: Path, prefer: str | Sequence[str] | None) -> Tensors:
    try:
        data = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        why = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        raise ValueError(f"{path} holds more than tensors ({why}): {_convert(path)}") from None
    except (RuntimeError, EOFError) as error:
        why = str(error).split("\n")[0]
        raise ValueError(f"{path} is cut short or was not written by torch.save ({why}): {AGAIN}") from None
    return Tensors({name: entry_of(tensor.detach()) for name, tensor in _select(data, prefer, path).items()}, str(path))


def _select(data: Any, prefer: str | Sequence[str] | None, path: Path) -> Mapping[str, Tensor]:
    """The state dict at the first top key that is there; without one, the dict itself if it is a state dict."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{path} holds a {type(data).__name__}; expected a dict of tensors")
    asked = (prefer,) if isinstance(prefer, str) else prefer or TOP_KEYS
    chosen = next((key for key in asked if isinstance(data.get(key), Mapping)), None)
    if chosen is None and isinstance(prefer, str):
        raise ValueError(f"{path} has no {prefer!r}; {_top_keys(data)}")
    found = data if chosen is None else data[chosen]
    if found and all(isinstance(tensor, Tensor) for tensor in found.values()):
        return found
    if chosen is None:
        raise ValueError(f"{path} has none of {list(asked)}; {_top_keys(data)}")
    odd = [key for key, tensor in found.items() if not isinstance(tensor, Tensor)]
    raise ValueError(f"{path}: {chosen!r} is no dict of tensors ({f'{odd[0]!r} is none' if odd else 'it is empty'})")


def _top_keys(data: Mapping) -> str:
    dicts = [key for key, value in data.items() if isinstance(value, Mapping)]
    if dicts:
        return f"there is {dicts}: choose with prefer="
    return f"its weights, if any, lie flat (it begins with {list(data)[:3]})"


def _without_top_keys(tensors: Tensors, prefer: str | Sequence[str] | None) -> Tensors:
    if isinstance(prefer, str):
        raise ValueError(f"{tensors.source} has no {prefer!r}: a safetensors file holds one model, leave prefer= out")
    return tensors
