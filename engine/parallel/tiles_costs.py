"""What decoding in strips sends, and what a rank would compute twice instead, by formula; bytes are exact.

    rows of neighbours          of every convolution over several rows: its input's first row upwards and its last one
                                downwards, with the frames that it looks back on: (t + k) w C b each
    keys and values of strips   of every attention over a picture: (P - 1) 2 t r w C b
    frames                      (P - 1) T 3 H W of the strip
    tiles                       of MAGI-1: (P - 1) times what the rank made of its tiles

for P ranks, r rows of the strip in latents, a layer's width w, channels C and t frames, k frames looked back on, b
bytes a number. Rows that neighbours have could also be made anew, from more latents than the strip's: see `overlap`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from engine.codecs.autoencoder import AutoEncoder
from engine.codecs.magi_vae import MagiVae
from engine.codecs.magi_vae_tiles import batched, corners, cut_latents
from engine.codecs.taehv import Grow, Taehv
from engine.codecs.wan_vae import WanVae
from engine.codecs.wan_vae_layers import Attention, CausalConv3d, Upsample
from engine.parallel.costs import Kind, Transfer
from engine.parallel.layout import split
from engine.parallel.tiles import FRAMES, Convolutional, scale_of
from engine.parallel.tiles_layers import BORDERS, PLACES
from engine.parallel.tiles_magi import TILES, dealt, extent, made_of, volume


@dataclass(frozen=True)
class Layer:
    """A convolution of a decoder, or an attention over pictures, in one run.

    Attributes:
        scale: rows for each of the latents'.
        reach: rows that it sees above and below its own; None for attention, which sees all.
        row: numbers in a row of its input, over all frames that it is given; of attention, keys and values.
        flops: operations for one row of its output; attention's products are not counted.
    """

    scale: int
    reach: int | None
    row: int
    flops: int


@dataclass(frozen=True)
class Latents:
    """What is decoded: N worlds' latents [N, F, C, h, w], and whether the worlds have seen none before."""

    worlds: int
    frames: int
    rows: int
    width: int
    fresh: bool = False


def decode_transfers(codec: Convolutional | MagiVae, latents: Latents, ranks: int) -> list[Transfer]:
    """What every rank sends in one call of a codec's `decode`."""
    item = next(codec.parameters()).element_size()
    if ranks == 1:
        return []
    if isinstance(codec, MagiVae):
        return tiles(codec, latents, ranks, item)
    if latents.rows < ranks:
        return []
    layers, rows = list(layers_of(codec, latents)), split(latents.rows, ranks)
    border = [x.row * x.reach for x in layers if x.reach]
    neighbours = [(rank > 0) + (rank < ranks - 1) for rank in range(ranks)]
    made = [transfer(BORDERS, "hop", [n * sum(border) * item for n in neighbours], len(border))]
    seen = [x.row * x.scale for x in layers if x.reach is None]
    if seen:
        sent = [(ranks - 1) * n * sum(seen) * item for n in rows]
        made.append(transfer(PLACES, "all-gather", sent, len(seen)))
    row = latents.worlds * frames_of(codec, latents) * 3 * latents.width * scale_of(codec) ** 2
    return [*made, transfer(FRAMES, "all-gather", [(ranks - 1) * n * row for n in rows])]


def transfer(name: str, kind: Kind, sent: Sequence[int], calls: int = 1) -> Transfer:
    return Transfer(name, kind, "all", tuple(sent), calls, per_layer=False)


def frames_of(codec: Convolutional, latents: Latents) -> int:
    """Frames of a world."""
    missing = (codec.frames_per_latent - 1) * latents.fresh
    return latents.frames * codec.frames_per_latent - missing


def layers_of(codec: Convolutional, latents: Latents) -> Iterator[Layer]:
    """The layers of one decode, run by run, in the order in which they run."""
    n, w = latents.worlds, latents.width
    if isinstance(codec, AutoEncoder):
        return autoencoder_layers(codec, n * latents.frames, w)
    runs = [min(codec.latents_at_once, latents.frames - i) for i in range(0, latents.frames, codec.latents_at_once)]
    if isinstance(codec, Taehv):
        return (layer for t in runs for layer in taehv_layers(codec, n * t, w))
    return (layer for i, t in enumerate(runs) for layer in wan_layers(codec, n, t, w, latents.fresh and not i))


def autoencoder_layers(codec: AutoEncoder, pictures: int, w: int) -> Iterator[Layer]:
    scale = 1
    for layer in codec.decoder.layers:
        scale *= 2 if isinstance(layer, nn.Upsample) else 1
        yield from convs(layer, pictures, scale, w)


def taehv_layers(codec: Taehv, pictures: int, w: int) -> Iterator[Layer]:
    scale = 1
    for layer in codec.decoder:
        yield from convs(layer, pictures, scale, w)
        if isinstance(layer, Grow):
            pictures, scale = pictures * layer.stride, 2 * scale


def wan_layers(vae: WanVae, n: int, t: int, w: int, fresh: bool) -> Iterator[Layer]:
    decoder, scale = vae.decoder, 1
    yield from convs(decoder.conv1, n * t, 1, w, n)
    for layer in decoder.middle:
        if isinstance(layer, Attention):
            yield Layer(1, None, 2 * n * t * w * layer.proj.in_channels, 0)
        yield from convs(layer, n * t, 1, w, n)
    for layer in decoder.upsamples:
        if isinstance(layer, Upsample):
            if layer.time_conv is not None:
                yield from convs(layer.time_conv, n * t, scale, w, n)
            t, scale = (2 * t - fresh if layer.time_conv else t), 2 * scale
            yield from convs(layer.resample, n * t, scale, w)
        else:
            yield from convs(layer, n * t, scale, w, n)
    yield from convs(decoder.head, n * t, scale, w, n)


def convs(module: nn.Module, pictures: int, scale: int, w: int, worlds: int = 0) -> Iterator[Layer]:
    """The convolutions of a module over so many pictures. Args: worlds: those who look back on frames of their own."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d | nn.Conv3d):
            given = pictures + (worlds * conv.looks_back if isinstance(conv, CausalConv3d) else 0)
            width = scale * w
            yield Layer(
                scale, conv.kernel_size[0 if conv.weight.ndim == 4 else 1] // 2, given * conv.in_channels * width,
                2 * pictures * width * conv.weight.numel(),
            )  # fmt: skip


def tiles(vae: MagiVae, latents: Latents, ranks: int, item: int) -> list[Transfer]:
    """MAGI-1's tiles, each sent to all by the rank that it was dealt to."""
    cuts = vae.cuts(cut_latents)
    sent, calls = [0] * ranks, 0
    places = corners(cuts, (latents.frames, latents.rows, latents.width))
    for some in batched(iter(places), ranks * vae.tiles_at_once):
        calls += 1
        some = sorted(some, key=lambda place: (-volume(place), extent(place)))
        for place, owner in zip(some, dealt([volume(place) for place in some], ranks), strict=True):
            sent[owner] += (ranks - 1) * latents.worlds * 3 * prod(made_of(cuts, place)) * item
    return [transfer(TILES, "all-gather", sent, calls)]


def overlap(layers: Iterable[Layer], rows: int, ranks: int) -> float:
    """Operations of the rank that computes most, over its share, if strips were decoded from more latents instead.

    Behind the last attention, in front of which rows would have to be fetched all the same.
    """
    behind = list[Layer]()
    for layer in layers:
        behind = [] if layer.reach is None else [*behind, layer]
    strip, sides = max(split(rows, ranks)), min(ranks - 1, 2)
    beyond, scale, total, share = 0, behind[-1].scale, 0, 0
    for layer in reversed(behind):
        beyond, scale = -(-beyond * layer.scale // scale), layer.scale
        more = min(sides * beyond, (rows - strip) * scale)
        total, share = total + layer.flops * (strip * scale + more), share + layer.flops * strip * scale
        beyond += layer.reach or 0
    return total / share
