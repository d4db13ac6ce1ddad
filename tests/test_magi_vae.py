"""MAGI-1's VAE against recordings of the published code, against plain formulas, and against itself in other pieces."""

from __future__ import annotations

import itertools
import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engine.codecs.magi_vae import MagiVae
from engine.codecs.magi_vae_layout import magi_vae_of, magi_vae_spec_of
from engine.codecs.magi_vae_tiles import Tiling, blends
from engine.published import MagiVaeSpec
from engine.snapshot import flatten, unflatten

PARITY = Path(__file__).parent / "parity" / "magi"
TINY = MagiVaeSpec(channels=4, width=64, heads=2, layers=2, hidden=96, grid=(4, 4, 4), scale=4)
SMALL = Tiling(pixels=32)  # tiles of 8 latents that begin every 6


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def recorded() -> list[Path]:
    """Recordings of the VAE: ours, and any that are put beside them."""
    return sorted(PARITY.glob("vae_*.safetensors"))


def load(path: Path) -> tuple[dict, dict[str, Tensor], MagiVae]:
    with safe_open(path, "pt") as file:
        case = json.loads(file.metadata()["json"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {name.removeprefix("weights."): x for name, x in tensors.items() if name.startswith("weights.")}
    return case, tensors, magi_vae_of(weights, case["config"])


def replayed(vae: MagiVae, call: dict, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What we make of a call of a recording, and what was recorded."""
    name = call["name"]
    if call["kind"] == "decode_raw":
        return vae.decoder(tensors[f"in.{name}.latents"] / vae.spec.factor), tensors[f"out.{name}.frames"]
    vae.tiling = Tiling(call["tile_px"], call["tile_frames"], call["spatial_overlap"], call["temporal_overlap"])
    if call["kind"] == "decode":
        return vae.signal(tensors[f"in.{name}.latents"].transpose(1, 2))[0][0], tensors[f"out.{name}.frames"]
    frames = tensors[f"in.{name}.video_uint8"].permute(0, 2, 3, 4, 1)
    return vae.encode(frames)[0].transpose(1, 2), tensors[f"out.{name}.latents"]


def make_vae(spec: MagiVaeSpec = TINY, **options) -> MagiVae:
    """Random weights, biases and norms' among them, of a size that keeps every layer's part visible."""
    vae, draw = MagiVae(spec, **options), torch.Generator().manual_seed(0)
    for name, x in vae.named_parameters():
        noise = torch.randn(x.shape, generator=draw)
        scale = 0.3 if x.ndim == 1 else 0.5 if x.shape[0] == 1 else x[0].numel() ** -0.5
        x.data = noise * scale + (1 if "norm" in name and name.endswith("weight") else 0)
    return vae.eval()


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def in_pieces(run, x: Tensor, lengths: list[int]) -> Tensor:
    states, made = None, []
    for piece in x.split(lengths, dim=1):
        out, states = run(piece, states)
        made.append(out)
    return torch.cat(made, dim=1)


def assert_same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


# The formulas once more, in float64, without batches, products of tensors for loops, or anything of the engine's.


def plain_transformer(vae: MagiVae, half: str, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Tokens [S - 1, D] of one tile -> [S - 1, D] after the last norm."""
    w = {name.removeprefix(half + "."): p.double() for name, p in vae.state_dict().items() if name.startswith(half)}
    table = w["pos_embed"][0, 1:].reshape(*vae.spec.grid, -1)
    for axis, size in enumerate(grid):
        table = plain_resize(table, axis, size)
    x = torch.cat([w["cls_token"][0] + w["pos_embed"][0, :1], x + table.reshape(len(x), -1)])
    for i in range(vae.spec.layers):
        b = {name.removeprefix(f"blocks.{i}."): p for name, p in w.items()}
        qkv = (x @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).reshape(len(x), 3, vae.spec.heads, -1)
        centred = qkv - qkv.mean(-1, keepdim=True)
        qkv = centred / (centred.square().mean(-1, keepdim=True).sqrt() + 1e-5)
        seen = []
        for head in range(vae.spec.heads):
            q, k, v = qkv[:, :, head].unbind(1)
            seen.append((q @ k.T / q.shape[1] ** 0.5).softmax(1) @ v)
        x = x + torch.cat(seen, 1) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        h = plain_norm(x, b["norm2.weight"], b["norm2.bias"]) @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        x = x + (h * (1 + torch.erf(h / 2**0.5)) / 2) @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    return plain_norm(x, w["norm.weight"], w["norm.bias"])[1:]


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight + bias


def plain_resize(x: Tensor, axis: int, size: int) -> Tensor:
    """Linear interpolation between the middles of cells."""
    had, rows = x.shape[axis], []
    for i in range(size):
        at = min(max((i + 0.5) * had / size - 0.5, 0), had - 1)
        low, high = int(at), min(int(at) + 1, had - 1)
        rows.append(x.select(axis, low) * (1 - at + low) + x.select(axis, high) * (at - low))
    return torch.stack(rows, axis)


def plain_decoder(vae: MagiVae, z: Tensor) -> Tensor:
    """One tile [C, t, h, w] -> [3, T, H, W]."""
    spec, weights = vae.spec, {name: p.double() for name, p in vae.state_dict().items()}
    grid = tuple(z.shape[1:])
    x = z.flatten(1).T @ weights["decoder.proj_in.weight"].T + weights["decoder.proj_in.bias"]
    x = plain_transformer(vae, "decoder", x, grid).reshape(*grid, spec.frames_per_latent, spec.scale, spec.scale, -1)
    x = x.permute(6, 0, 3, 1, 4, 2, 5).reshape(-1, *(n * m for n, m in zip(grid, rates(spec), strict=True)))
    weight, bias = weights["decoder.last_layer.weight"], weights["decoder.last_layer.bias"]
    padded, out = torch.nn.functional.pad(x, (1,) * 6), bias[:, None, None, None].repeat(1, *x.shape[1:])
    for t, h, w in itertools.product(range(3), repeat=3):
        seen = padded[:, t : t + x.shape[1], h : h + x.shape[2], w : w + x.shape[3]]
        out = out + torch.einsum("oc,cthw->othw", weight[:, :, t, h, w], seen)
    return out[:, :1] if grid[0] == 1 else out


def plain_encoder(vae: MagiVae, video: Tensor) -> Tensor:
    """One tile [3, T, H, W] -> [C, t, h, w]."""
    spec, weights = vae.spec, {name: p.double() for name, p in vae.state_dict().items()}
    still = video.shape[1] == 1
    video = video.repeat(1, max(4, spec.frames_per_latent), 1, 1) if still else video
    t, h, w = (n // m for n, m in zip(video.shape[1:], rates(spec), strict=True))
    weight, tokens = weights["encoder.patch_embed.proj.weight"], []
    for i, j, k in itertools.product(range(t), range(h), range(w)):
        spans = [slice(a * m, a * m + m) for a, m in zip((i, j, k), rates(spec), strict=True)]
        tokens.append((weight * video[(slice(None), *spans)]).sum((1, 2, 3, 4)))
    x = plain_transformer(vae, "encoder", torch.stack(tokens) + weights["encoder.patch_embed.proj.bias"], (t, h, w))
    x = x @ weights["encoder.last_layer.weight"].T + weights["encoder.last_layer.bias"]
    latents = x[:, : spec.channels].T.reshape(-1, t, h, w)
    return latents[:, :1] if still else latents


def rates(spec: MagiVaeSpec) -> tuple[int, int, int]:
    return spec.frames_per_latent, spec.scale, spec.scale


def plain_tiles(run, x: Tensor, size: list[int], step: list[int], blend: list[int], limit: list[int], chained: bool):
    """[C, T, H, W] -> the same of what `run` makes: all tiles first, blended one place at a time, then joined."""
    starts = [range(0, n, s) for n, s in zip(x.shape[1:], step, strict=True)]
    raw = {}
    for place in itertools.product(*(range(len(s)) for s in starts)):
        spans = [slice(s[i], s[i] + n) for s, i, n in zip(starts, place, size, strict=True)]
        raw[place] = run(x[(slice(None), *spans)])
    mixed = {}
    for place, tile in raw.items():
        tile = mixed[place] = tile.clone()
        for axis in range(3):
            before = tuple(i - (a == axis) for a, i in enumerate(place))
            if before[axis] < 0:
                continue
            other = (mixed if chained else raw)[before]
            extent = min(blend[axis], tile.shape[axis + 1], other.shape[axis + 1])
            for i in range(extent):
                share, row = i / extent, tile.select(axis + 1, i)
                row.copy_(other.select(axis + 1, other.shape[axis + 1] - extent + i) * (1 - share) + row * share)
    shown = {place: tile[:, : limit[0], : limit[1], : limit[2]] for place, tile in mixed.items()}
    frames = []
    for t in range(len(starts[0])):
        rows = [torch.cat([shown[t, i, j] for j in range(len(starts[2]))], 3) for i in range(len(starts[1]))]
        frames.append(torch.cat(rows, 2))
    return torch.cat(frames, 1)


def plain_decode(vae: MagiVae, latents: Tensor) -> Tensor:
    """[F, C, h, w] -> [T, 3, H, W]."""
    spec, tiling = vae.spec, vae.tiling
    size = [tiling.frames // spec.frames_per_latent, *[tiling.pixels // spec.scale] * 2]
    overlap = [round(n * o) for n, o in zip(size, (tiling.temporal_overlap, *[tiling.overlap] * 2), strict=True)]
    step = [n - o for n, o in zip(size, overlap, strict=True)]
    blend = [o * m for o, m in zip(overlap, rates(spec), strict=True)]
    limit = [s * m for s, m in zip(step, rates(spec), strict=True)]
    z = latents.double().transpose(0, 1) / spec.factor
    return plain_tiles(lambda tile: plain_decoder(vae, tile), z, size, step, blend, limit, False).transpose(0, 1)


def plain_encode(vae: MagiVae, frames: Tensor) -> Tensor:
    """uint8 [T, H, W, 3] -> [F, C, h, w]."""
    spec, tiling = vae.spec, vae.tiling
    size = [tiling.frames, tiling.pixels, tiling.pixels]
    latents = [n // m for n, m in zip(size, rates(spec), strict=True)]
    blend = [round(n * o) for n, o in zip(latents, (tiling.temporal_overlap, *[tiling.overlap] * 2), strict=True)]
    limit = [n - o for n, o in zip(latents, blend, strict=True)]
    step = [n * m for n, m in zip(limit, rates(spec), strict=True)]
    video = frames.double().permute(3, 0, 1, 2) / 127.5 - 1
    made = plain_tiles(lambda tile: plain_encoder(vae, tile), video, size, step, blend, limit, True)
    return made.transpose(0, 1) * spec.factor


@pytest.mark.parametrize("path", recorded(), ids=lambda path: path.stem)
def test_clips_are_what_the_published_code_makes_of_them(path):
    case, tensors, vae = load(path)
    assert case["calls"]
    for call in case["calls"]:
        got, want = replayed(vae, call, tensors)
        assert got.shape == want.shape, call["name"]
        limit = case["tolerance"]["atol"] + case["tolerance"]["rel"] * want.abs().max()
        # Not by chance: exact arithmetic in another order stays far below the tolerance.
        assert (got - want).abs().max() < 0.1 * limit, call["name"]


@pytest.mark.parametrize("path", recorded(), ids=lambda path: path.stem)
def test_sizes_are_read_off_the_weights_and_the_config(path):
    case, tensors, vae = load(path)
    stated, spec = case["config"]["ddconfig"], vae.spec
    assert (spec.channels, spec.width, spec.layers) == (stated["z_chans"], stated["embed_dim"], stated["depth"])
    assert (spec.heads, spec.scale, spec.frames_per_latent) == (stated["num_heads"], stated["patch_size"], 4)
    assert spec.hidden == stated["mlp_ratio"] * spec.width
    assert spec.grid[1] * spec.scale == stated["video_size"]
    assert {f"weights.{name}" for name in vae.state_dict()} == {name for name in tensors if name.startswith("weights.")}


# Sizes of a VAE, its tiles, a clip's latents, and frames beyond those: one more is a tile of its own, or surplus.
ONE = replace(TINY, layers=1)
SHAPES = [
    (TINY, SMALL, (4, 7, 13), 1),
    (replace(ONE, heads=3, width=192, grid=(2, 3, 3)), replace(SMALL, overlap=0.5), (3, 9, 6), 1),
    (replace(ONE, width=128, frames_per_latent=2, scale=8, heads=1), Tiling(32, 6, 0.25), (7, 5, 4), 0),
    (replace(ONE, channels=3, grid=(3, 2, 2)), Tiling(16, 16, 0.25, 0.5), (7, 4, 6), 0),
    (ONE, Tiling(16, 16, 0.0, 0.25), (8, 3, 6), 1),
    (TINY, Tiling(256, 12), (1, 3, 2), 0),
]


@pytest.mark.parametrize(("spec", "tiling", "size", "surplus"), SHAPES)
def test_latents_of_any_shape_decode_as_the_formulas_say(spec, tiling, size, surplus):
    vae, latents = make_vae(spec, tiling=tiling), random(1, size[0], spec.channels, *size[1:])
    assert_same(vae.signal(latents)[0][0], plain_decode(vae, latents[0]).float())


@pytest.mark.parametrize(("spec", "tiling", "size", "surplus"), SHAPES)
def test_frames_of_any_shape_encode_as_the_formulas_say(spec, tiling, size, surplus):
    vae = make_vae(spec, tiling=tiling)
    frames = pixels(1, size[0] * spec.frames_per_latent + surplus, *(n * spec.scale for n in size[1:]), 3)
    assert_same(vae.encode(frames)[0][0], plain_encode(vae, frames[0]).float())


@pytest.mark.parametrize("lengths", [[6, 6, 6], [3, 9, 6], [6, 12]])
@pytest.mark.parametrize("at_once", [1, 3])
def test_whole_tiles_decode_the_same_in_any_pieces(lengths, at_once):
    vae, latents = make_vae(tiling=SMALL, tiles_at_once=at_once), random(2, 18, 4, 9, 7)
    whole, states = make_vae(tiling=SMALL, tiles_at_once=99).signal(latents)
    assert whole.shape == (2, 72, 3, 36, 28)
    assert states == [None, None]
    assert_same(in_pieces(vae.signal, latents, lengths), whole)


@pytest.mark.parametrize("tiling", [SMALL, *(replace(SMALL, frames=16, temporal_overlap=x) for x in (0.25, 0.5))])
@pytest.mark.parametrize("lengths", [[4, 2, 6], [4, 3, 5], [1] * 12, [8, 4]])
def test_a_piece_goes_on_with_the_tile_that_is_unfinished(tiling, lengths):
    """Whatever the pieces: as many frames as the whole has, and those of tiles that a piece finished are the same."""
    vae, latents = make_vae(tiling=tiling), random(1, 12, 4, 3, 4)
    whole, made = vae.signal(latents)[0], in_pieces(vae.signal, latents, lengths)
    assert made.shape == whole.shape
    for begin, end in itertools.pairwise(itertools.accumulate(lengths, initial=0)):
        had, have = vae.frames_of(begin), vae.frames_of(end)
        tile, step = tiling.frames // 4, int(tiling.frames // 4 * (1 - tiling.temporal_overlap))
        finished = min(have, (max(end - tile, -step) // step + 1) * step * 4)
        assert_same(made[:, had:finished], whole[:, had:finished])


def test_a_tail_of_one_latent_is_one_frame_and_the_next_piece_brings_the_others():
    vae, latents = make_vae(), random(1, 6, 4, 3, 4)
    tail, states = vae.signal(latents[:, :4])
    assert tail.shape[1] == vae.frames_of(4) == 13
    assert states[0].shape == (1, 4, 3, 4)
    rest, states = vae.signal(latents[:, 4:], states)
    assert rest.shape[1] == 11
    assert states == [None]
    assert_same(rest, vae.signal(latents)[0][:, 13:])


@pytest.mark.parametrize("lengths", [[36], [12, 24], [4] * 9, [8, 20, 8], [7, 5, 24], [13, 11, 12]])
def test_clips_encode_the_same_in_any_pieces(lengths):
    vae, frames = make_vae(tiling=SMALL), pixels(2, 36, 16, 36, 3)
    whole, states = vae.encode(frames)
    assert whole.shape == (2, 9, 4, 4, 9)
    assert whole.dtype == torch.float32
    assert states == [None, None]
    made = in_pieces(vae.encode, frames, lengths)
    assert made.shape == whole.shape
    aligned = all(end % 12 == 0 for end in itertools.accumulate(lengths))
    assert_same(made if aligned else made[:, -1:], whole if aligned else whole[:, -1:])


def test_a_picture_encodes_as_if_it_stood_still():
    vae, picture = make_vae(), pixels(2, 1, 12, 16, 3)
    latents, _ = vae.encode(picture)
    assert latents.shape == (2, 1, 4, 3, 4)
    assert_same(latents, vae.encode(picture.expand(-1, 4, -1, -1, -1))[0])
    clip = pixels(1, 13, 12, 16, 3)
    assert_same(vae.encode(clip)[0][:, 3:], vae.encode(clip[:, 12:])[0])


def test_pixels_encode_as_their_signal():
    vae, frames = make_vae(), pixels(1, 8, 12, 16, 3)
    signal = frames.permute(0, 1, 4, 2, 3) / 127.5 - 1
    assert_same(vae.encode(frames)[0], vae.encode_signal(signal)[0])


@pytest.mark.parametrize("run", ["signal", "encode"])
def test_worlds_of_other_ages_share_a_call_and_keep_their_own_numbers(run):
    vae = make_vae(tiling=SMALL)
    given = random(4, 4, 4, 9, 7) if run == "signal" else pixels(4, 16, 36, 28, 3)
    unit = 1 if run == "signal" else 4
    call = getattr(vae, run)
    two, one = (call(given[i : i + 1, : n * unit])[1][0] for i, n in ((1, 2), (2, 1)))
    states = [None, two, one, None]
    together, left = call(given, states)
    assert [len(x) for x in together] == ([13, 16, 19, 13] if run == "signal" else [4] * 4)
    for i, state in enumerate(states):
        alone, kept = call(given[i : i + 1], [state])
        assert_same(together[i], alone[0])
        assert (left[i] is None) == (kept[0] is None) == (state is two)
        assert left[i] is None or torch.equal(left[i], kept[0])


def test_frames_are_rounded_and_clamped_signals():
    vae, latents = make_vae(), random(2, 4, 4, 4, 4) * 3
    video = vae.signal(latents)[0]
    assert video.abs().max() > 1
    want = ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2)
    assert torch.equal(vae.decode(latents)[0], want)
    frames, _ = vae.decode(latents, [None, latents[0, :2]])
    assert [x.dtype for x in frames] == [torch.uint8] * 2
    assert [len(x) for x in frames] == [13, 16]


@pytest.mark.parametrize("run", ["decode", "encode"])
def test_a_state_is_only_read_and_owns_its_memory(run):
    vae = make_vae()
    given = random(2, 5, 4, 4, 4) if run == "decode" else pixels(2, 20, 16, 16, 3)
    _, states = getattr(vae, run)(given)
    copies = [x.clone() for x in states]
    one, other = (getattr(vae, run)(given, states)[0] for _ in range(2))
    assert torch.equal(one, other)
    for x, y in zip(states, copies, strict=True):
        assert torch.equal(x, y)
        assert x.untyped_storage().nbytes() == x.nbytes


def test_a_state_goes_through_a_snapshot_to_the_bit():
    vae, latents = make_vae(), random(1, 5, 4, 4, 4)
    _, [state] = vae.decode(latents)
    shape, tensors = flatten(state)
    restored = unflatten(json.loads(json.dumps(shape)), {name: x.cpu().contiguous() for name, x in tensors.items()})
    assert torch.equal(vae.signal(latents, [state])[0], vae.signal(latents, [restored])[0])


def test_no_run_takes_more_tiles_than_it_may():
    vae, sizes = make_vae(tiling=SMALL, tiles_at_once=3), []
    vae.decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    vae.signal(random(2, 6, 4, 9, 13))
    assert max(sizes) <= 3
    assert sum(sizes) == 2 * 2 * 2 * 3  # worlds, times, rows, columns
    sizes.clear()
    vae.signal(random(5, 3, 4, 4, 4))
    assert sizes == [3, 2]


@pytest.mark.parametrize(("extents", "kept"), [((0, 1, 1), 4), ((0, 0, 1), 1), ((1, 1, 1), 12)])
def test_tiles_are_let_go_when_no_other_blends_with_them(extents, kept):
    made, most = [], 0

    def raws():
        for _ in range(5 * 3 * 4):
            tile = torch.zeros(1, 1, 2, 2, 2)
            made.append(weakref.ref(tile))
            yield tile

    for _ in blends(raws(), (5, 3, 4), extents, chained=False):
        most = max(most, sum(tile() is not None for tile in made))
    assert kept <= most <= kept + 2  # the one that is being made, and the one before it in the caller's hands


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    latents, frames = random(1, 6, 4, 9, 7), pixels(1, 24, 36, 28, 3)
    full, half = make_vae(tiling=SMALL), make_vae(tiling=SMALL).to(dtype)
    got, want = half.signal(latents)[0], full.signal(latents)[0]
    assert got.dtype == dtype
    assert (got.float() - want).pow(2).mean().sqrt() < 0.03 * want.std()
    got, want = half.encode(frames)[0], full.encode(frames)[0]
    assert got.dtype == torch.float32
    assert (got - want).pow(2).mean().sqrt() < 0.03 * want.std()


CONFIG = {
    "_class_name": "ViTVAE",
    "ddconfig": {"num_heads": 2, "video_size": 16, "patch_size": 4, "ln_in_attn": True},
}


def config_of(**changes) -> dict:
    return {**CONFIG, "ddconfig": {**CONFIG["ddconfig"], **changes}}


def test_the_published_vae_has_its_size():
    with torch.device("meta"):
        vae = MagiVae(MagiVaeSpec())
    shapes = {name: tuple(x.shape) for name, x in vae.state_dict().items()}
    assert sum(x.numel() for x in vae.parameters()) / 1e6 == pytest.approx(614, abs=1)  # of the paper's table
    stated = {"_class_name": "ViTVAE", "ddconfig": {"num_heads": 16, "mlp_ratio": 4}}
    for half in ("", "encoder", "decoder"):
        part = {name: shape for name, shape in shapes.items() if name.startswith(half)}
        assert magi_vae_spec_of(part, stated) == MagiVaeSpec()


def test_a_decode_waits_for_nothing_on_the_device_and_does_the_work_of_its_tiles():
    with torch.device("meta"):
        vae, latents = MagiVae(MagiVaeSpec(layers=1), encoder=False), torch.empty(1, 6, 16, 90, 90)
    with FlopCounterMode(display=False) as counter:
        frames, _ = vae.decode(latents)
    assert frames.shape == (1, 24, 720, 720, 3)
    sides = [32, 32, 32, 18]  # of tiles that begin every 24 latents
    tokens = [1 + 3 * h * w for h in sides for w in sides] * 2
    work = sum(2 * 12 * n * 1024**2 + 4 * n**2 * 1024 for n in tokens)
    assert counter.get_total_flops() == pytest.approx(work, rel=0.02)


def test_either_half_loads_alone():
    made, latents, frames = make_vae(), random(1, 3, 4, 3, 4), pixels(1, 12, 12, 16, 3)
    weights = made.state_dict()
    halves = {half: {k: x for k, x in weights.items() if k.startswith(half)} for half in ("encoder", "decoder")}
    loaded = {half: magi_vae_of(part, CONFIG, tiling=SMALL) for half, part in halves.items()}
    assert_same(loaded["decoder"].signal(latents)[0], made.signal(latents)[0])
    assert_same(loaded["encoder"].encode(frames)[0], made.encode(frames)[0])
    with pytest.raises(ValueError, match="no encoder"):
        loaded["decoder"].encode(frames)
    with pytest.raises(ValueError, match="no decoder"):
        loaded["encoder"].decode(latents)


def test_weights_that_do_not_fit_are_refused():
    weights = make_vae().state_dict()
    missing = {name: x for name, x in weights.items() if name != "decoder.norm.bias"}
    with pytest.raises(ValueError, match=r"Missing key.*decoder\.norm\.bias"):
        magi_vae_of(missing, CONFIG)
    with pytest.raises(ValueError, match="Unexpected key"):
        magi_vae_of({**weights, "decoder.extra": weights["decoder.norm.bias"]}, CONFIG)
    with pytest.raises(ValueError, match="published names"):
        magi_vae_of({f"module.{name}": x for name, x in weights.items()}, CONFIG)
    with pytest.raises(ValueError, match="size mismatch"):
        magi_vae_of(weights, config_of(video_size=32))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "AutoencoderKLWan", "ddconfig": {"num_heads": 2}}, "no config.json of MAGI-1"),
        ({"_class_name": "ViTVAE", "ddconfig": {}}, "num_heads"),
        ({**CONFIG, "model_type": "vit_ncthw"}, "vit_ncthw"),
        (config_of(use_rope=True), "use_rope True"),
        (config_of(ln_in_attn=False), "ln_in_attn False"),
        (config_of(embed_dim=128), "embed_dim 128, and its weights are of 64"),
        (config_of(patch_size=8), "patch_size 8, and its weights are of 4"),
        (config_of(num_heads=7), "must divide into 7 heads"),
    ],
)
def test_a_config_of_another_vae_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        magi_vae_of(make_vae().state_dict(), config)


def test_bad_input_is_refused_before_anything_runs():
    vae, latents = make_vae(tiling=SMALL), random(1, 4, 4, 4, 4)
    _, states = vae.signal(latents)
    with pytest.raises(ValueError, match="expected \\[N, F, 4"):
        vae.signal(latents[:, :, :3])
    with pytest.raises(ValueError, match="none empty"):
        vae.signal(latents[:, :0])
    with pytest.raises(ValueError, match="2 streaming states for 1 worlds"):
        vae.signal(latents, [None, None])
    with pytest.raises(ValueError, match="cannot change"):
        vae.signal(random(1, 2, 4, 4, 6), states)
    with pytest.raises(ValueError, match="multiples of 4"):
        vae.encode(pixels(1, 4, 16, 18, 3))
    with pytest.raises(ValueError, match=r"14 frames: its last tile would have 2"):
        vae.encode(pixels(1, 14, 16, 16, 3))


def test_tiles_that_do_not_fit_latents_are_refused():
    with pytest.raises(ValueError, match="overlap 1"):
        Tiling(overlap=1.0)
    with pytest.raises(ValueError, match="smaller than a latent"):
        make_vae(tiling=Tiling(pixels=3))
    with pytest.raises(ValueError, match="never move on"):
        make_vae(tiling=Tiling(pixels=8, overlap=0.75))
    with pytest.raises(ValueError, match="at least 1"):
        make_vae(tiles_at_once=0)
    vae = make_vae(tiling=Tiling(pixels=32, overlap=0.3))
    assert vae.decode(random(1, 3, 4, 5, 5))[0].shape == (1, 12, 20, 20, 3)  # one tile: nothing to overlap
    for call, given in ((vae.decode, random(1, 3, 4, 5, 9)), (vae.encode, pixels(1, 12, 20, 36, 3))):
        with pytest.raises(ValueError, match="whole latents"):
            call(given)
    # The published code shows 32 - 9 pixels of tiles that begin every 20.
    assert vae.signal(random(1, 3, 4, 5, 9))[0].shape == (1, 12, 3, 20, 23 + 16)
    with pytest.raises(ValueError, match="must divide into the 128 pixels"):
        make_vae(replace(TINY, frames_per_latent=8))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_gives_what_the_cpu_gives(dtype):
    vae, latents = make_vae(tiling=SMALL), random(2, 6, 4, 9, 13)
    on_gpu = make_vae(tiling=SMALL).to("cuda", dtype)
    got, want = in_pieces(on_gpu.signal, latents.cuda(), [4, 2]), in_pieces(vae.signal, latents, [4, 2])
    assert (got.float().cpu() - want).pow(2).mean().sqrt() < 0.03 * want.std()
    frames = pixels(2, 24, 36, 52, 3)
    got, want = on_gpu.encode(frames.cuda())[0], vae.encode(frames)[0]
    assert (got.cpu() - want).pow(2).mean().sqrt() < 0.03 * want.std()
