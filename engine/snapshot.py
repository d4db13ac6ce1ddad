"""A world as bytes, and back: one safetensors blob with everything that its future depends on.

Tensors hold the pages as they are stored, the last latents, the head state, the codec's streaming state and the
variables; the metadata holds the rest, who made it (model identity, how the engine was opened) and a checksum over
all of it. Reading checks everything before any page is taken. Knows worlds and pools; runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from engine.conditioning import Context
from engine.kv.export import export
from engine.kv.export import load as load_pages
from engine.kv.policy import PageTable
from engine.kv.pool import Pool
from engine.noise import SeededNoise
from engine.world import World

FORMAT, VERSION = "inferix_env world", 2
# Tensors of a world's last blocks.
LAST = ("latents", "head_state", "tail", "flight", "given")


def pack(world: World, pool: Pool, settings: dict[str, Any]) -> bytes:
    """The blob of an open world. Where ranks share its pages all call this together; others than the first get b"".

    Args:
        settings: what a reader must match, plain JSON: the model's identity, the policy, and so on.
    """
    if not isinstance(world.noise, SeededNoise):
        raise ValueError("a world with given noise has no snapshot: open it with a seed")
    codec_state, tensors = flatten(pool.share.whole_state(world.codec_state))
    state = {
        "seed": world.noise.seed,
        "block": world.block,
        "length": world.table.length,
        "origin": world.table.origin,
        "positions": world.table.positions,
        "ended": world.ended,
        "codec_state": codec_state,
        "horizon": world.horizon,
        "reserved": world.reserved,
    }
    tensors |= {f"pages.{name}": x for name, x in export(pool, world.table.pages).items()}
    if not pool.share.first:
        return b""
    tensors["variables"], tensors["actions"] = torch.tensor(world.variables), torch.from_numpy(world.actions)
    state["contexts"], sources = contexts_of(world)
    tensors |= sources
    tensors |= {name: x for name in LAST if (x := getattr(world, name)) is not None}
    tensors = {name: x.cpu().contiguous() for name, x in tensors.items()}
    text = {"settings": json.dumps(settings, sort_keys=True), "state": json.dumps(state, sort_keys=True)}
    about = {"format": FORMAT, "version": str(VERSION), "made_on": pool.share.told}
    return save(tensors, {**about, **text, "checksum": checksum(tensors, text)})


def unpack(blob: bytes, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state and tensors of a blob.

    Raises:
        ValueError: it is no snapshot, or damaged, or of a newer version, or of other settings.
    """
    metadata, tensors = read(blob)
    if metadata.get("format") != FORMAT:
        raise ValueError("this is no snapshot of a world: expected what Engine.save or Engine.snapshot wrote")
    if int(metadata["version"]) > VERSION:
        raise ValueError(
            f"the snapshot has version {metadata['version']}, this package reads up to {VERSION}: update inferix_env"
        )
    if int(metadata["version"]) < VERSION:
        raise ValueError(f"the snapshot has version {metadata['version']}, of an older package; this reads {VERSION}")
    text = {name: metadata[name] for name in ("settings", "state")}
    if checksum(tensors, text) != metadata["checksum"]:
        raise ValueError("the snapshot is damaged: its checksum does not fit its contents")
    theirs = json.loads(text["settings"])
    changed = [f"{k} {theirs.get(k)!r}, here {v!r}" for k, v in settings.items() if theirs.get(k) != v]
    if changed:
        raise ValueError(
            "the snapshot was taken from another model or engine: " + "; ".join(changed) + ". Open the engine the same "
            "way to restore it"
        )
    return json.loads(text["state"]), tensors


def read(blob: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors blob."""
    try:
        tensors = load(blob)
        size = int.from_bytes(blob[:8], "little")
        return json.loads(blob[8 : 8 + size]).get("__metadata__", {}), tensors
    except (SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"the snapshot is truncated or no snapshot at all ({len(blob):,} bytes): {error}") from None


def contexts_of(world: World) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Which contexts a world's parts have, by number, and what each is made of, named tensors."""
    parts = [world.context, *(world.context.ending if world.context else ()), *world.prompts]
    distinct = list({id(c): c for c in parts if c is not None}.values())
    numbers = [None if c is None else next(i for i, d in enumerate(distinct) if d is c) for c in parts]
    ends = len(parts) - len(world.prompts)
    names = {"now": numbers[0], "ending": numbers[1:ends], "prompts": numbers[ends:]}
    return names, {f"context.{i}.{name}": x for i, c in enumerate(distinct) for name, x in c.source.items()}


def sources_of(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """What each context of a snapshot is to be made of, by number."""
    made: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        if name.startswith("context."):
            _, number, part = name.split(".", 2)
            made.setdefault(int(number), {})[part] = x
    return made


def with_contexts(world: World, names: dict[str, Any], contexts: dict[int, Context]) -> None:
    """Give a revived world its contexts."""
    if names["now"] is not None:
        ending = tuple(contexts[i] for i in names["ending"])
        world.context = replace(contexts[names["now"]], ending=ending)
        contexts = {**contexts, names["now"]: world.context}  # what is in flight reads the same one
    world.prompts = tuple(None if i is None else contexts[i] for i in names["prompts"])


def revive(state: dict[str, Any], tensors: dict[str, Tensor], table: PageTable, pool: Pool) -> World:
    """A world of unpacked state, on the pages taken for it in its table; it still lacks its contexts."""
    pages = {name.removeprefix("pages."): x for name, x in tensors.items() if name.startswith("pages.")}
    load_pages(pool, table.pages, pages)
    here = {name: x.to(pool.device) for name, x in tensors.items()}
    return World(
        noise=SeededNoise(int(state["seed"])),
        table=table,
        variables=np.array(tensors["variables"].numpy(), np.float64),
        block=int(state["block"]),
        latents=here.get("latents"),
        actions=tensors["actions"].numpy().copy(),
        tail=here.get("tail"),
        flight=here.get("flight"),
        given=here.get("given"),
        horizon=state["horizon"],
        reserved=(state["reserved"][0], state["reserved"][1]),
        codec_state=pool.share.own_state(unflatten(state["codec_state"], here)),
        head_state=here.get("head_state"),
        ended=bool(state["ended"]),
    )


def checksum(tensors: dict[str, Tensor], text: dict[str, str]) -> str:
    """sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(text, sort_keys=True).encode())
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        if x.numel():  # an empty tensor has no bytes to view
            digest.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def flatten(state: Any, name: str = "codec") -> tuple[Any, dict[str, Tensor]]:
    """Nested lists and dicts of tensors, numbers and None -> the same with names for tensors, and those by name."""
    if isinstance(state, Tensor):
        return {"tensor": name}, {name: state}
    if isinstance(state, list | tuple):
        parts = [flatten(x, f"{name}.{i}") for i, x in enumerate(state)]
        return {"list": [shape for shape, _ in parts]}, {k: t for _, found in parts for k, t in found.items()}
    if isinstance(state, dict):
        named = {key: flatten(x, f"{name}.{key}") for key, x in state.items()}
        found = {k: t for _, tensors in named.values() for k, t in tensors.items()}
        return {"dict": {key: shape for key, (shape, _) in named.items()}}, found
    return {"value": state}, {}


def unflatten(shape: Any, tensors: dict[str, Tensor]) -> Any:
    """The way back from `flatten`."""
    if "tensor" in shape:
        return tensors[shape["tensor"]]
    if "list" in shape:
        return [unflatten(x, tensors) for x in shape["list"]]
    if "dict" in shape:
        return {key: unflatten(x, tensors) for key, x in shape["dict"].items()}
    return shape["value"]


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"snapshot {str(path)!r} cannot be read: {error.strerror or error}") from None


def write_file(path: Path, blob: bytes) -> None:
    """Write under a temporary name, flush to disk, rename: a kill leaves the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
