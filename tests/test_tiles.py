"""Codecs spread over ranks: the same frames as on one rank, states that move between numbers of ranks, exact bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import Engine
from engine.codecs.autoencoder import AutoEncoder
from engine.codecs.preview import Preview
from engine.codecs.wan_vae import WanVae
from engine.codecs.wan_vae_layout import unfilled
from engine.parallel.layout import Exchange
from engine.parallel.mesh import Mesh
from engine.parallel.sharding import shard
from engine.parallel.tiles import StripState, alone, shared_state, spread, whole_state
from engine.parallel.tiles_costs import Latents, decode_transfers, layers_of, overlap
from engine.parallel.tiles_layers import Cut, bordered
from engine.parallel.tiles_magi import dealt
from engine.published import WanVaeSpec
from engine.snapshot import read
from tests import published_sims
from tests.ranks import run
from tests.test_magi_vae import SMALL
from tests.test_magi_vae import make_vae as make_magi
from tests.test_taehv import make_taehv
from tests.test_wan_vae import make_vae

# Latents of one block at a size that no number of ranks here divides.
SIZES = {"autoencoder": (2, 4, 7, 5), "wan": (3, 4, 5, 4), "taehv": (3, 4, 5, 3), "magi": (6, 4, 13, 9)}
SCALES = {"autoencoder": 8, "wan": 4, "taehv": 8, "magi": 4}
EXACT = 2e-5  # of states, in float32, through 15 layers


def make_autoencoder() -> AutoEncoder:
    torch.manual_seed(0)
    made = AutoEncoder(4, (8, 8, 16), 1)
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make(name: str) -> Any:
    made = {
        "autoencoder": make_autoencoder,
        "wan": lambda: make_vae(latents_at_once=2),
        "taehv": lambda: make_taehv(latents_at_once=2),
        "magi": lambda: make_magi(tiling=SMALL, tiles_at_once=3),
    }
    return made[name]()


def latents_of(name: str, worlds: int = 1, blocks: int = 3, rows: int | None = None) -> Tensor:
    """[blocks, N, F, C, h, w]."""
    f, c, h, w = SIZES[name]
    return torch.randn(blocks, worlds, f, c, rows or h, w, generator=torch.Generator().manual_seed(1))


def mesh_of(ranks: int) -> Mesh:
    return Mesh.of(Exchange(ranks))


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether frames are the same but for rounding, here and there, to the next level."""
    far = (a.int() - b.int()).abs()
    return a.shape == b.shape and int(far.max()) <= 1 and float((far > 0).float().mean()) < 2e-3


def near(a: Any, b: Any) -> bool:
    """Whether two whole states of a world are equal to rounding."""
    parts = [(x, y) for x, y in zip(a, b, strict=True)] if isinstance(a, list) else [(a, b)]
    return all(x is y is None or torch.allclose(x, y, atol=EXACT, rtol=EXACT) for x, y in parts)


@torch.inference_mode()
def decoded(rank: int, ranks: int, name: str, worlds: int) -> tuple[list[Tensor], list[Any], list[dict[str, Any]]]:
    """Frames and whole states of each block, and bytes and calls for each."""
    mesh = mesh_of(ranks)
    codec, states, made, kept, sent = spread(make(name), mesh), None, [], [], []
    for z in latents_of(name, worlds):
        mesh.reset_counts()
        frames, states = codec.decode(z, states)
        sent.append({name: (mesh.sent[name], mesh.calls[name]) for name in mesh.sent})
        made.append(frames)
        kept.append([whole_state(codec, state) for state in states or []])
    return made, kept, sent


@torch.inference_mode()
def compared(name: str, worlds: int, ranks: int) -> None:
    """Every rank against one, and its bytes against the formula."""
    codec, states = make(name), None
    there = run(decoded, ranks, name, worlds, ranks=ranks)
    for i, z in enumerate(latents_of(name, worlds)):
        fresh = states is None
        frames, states = codec.decode(z, states)
        _, f, _, h, w = z.shape
        formula = decode_transfers(codec, Latents(worlds, f, h, w, fresh), ranks)
        for rank, (made, kept, sent) in enumerate(there):
            assert alike(made[i], frames)
            assert all(near(a, b) for a, b in zip(kept[i], states or [], strict=True))
            assert sent[i] == {t.name: (t.sent[rank], t.calls) for t in formula}


@pytest.mark.parametrize("name", SIZES)
def test_two_ranks_decode_what_one_does_and_send_what_the_formula_says(name):
    compared(name, 1, 2)


def test_several_worlds_at_once():
    compared("wan", 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_four_ranks_decode_what_one_does_and_send_what_the_formula_says(name):
    compared(name, 2, 4)


@torch.inference_mode()
def encoded(rank: int, name: str, frames: Tensor) -> Tensor:
    codec = spread(make(name), mesh_of(2))
    return codec.encode(frames)[0]


@pytest.mark.parametrize("name", SIZES)
@torch.inference_mode()
def test_two_ranks_encode_what_one_does(name):
    _, _, h, w = SIZES[name]
    count = {"autoencoder": 1, "wan": 5, "taehv": 8, "magi": 24}[name]
    generator = torch.Generator().manual_seed(2)
    size = (1, count, h * SCALES[name], w * SCALES[name], 3)
    frames = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    expected, _ = make(name).encode(frames)
    for made in run(encoded, name, frames):
        assert made.shape == expected.shape
        assert torch.allclose(made, expected, atol=EXACT, rtol=EXACT)


@torch.inference_mode()
def continued(rank: int, name: str, states: list[Any]) -> tuple[Tensor, list[Any]]:
    """The second block, from whole states that one rank left, and this rank's share of them."""
    codec = spread(make(name), mesh_of(2))
    mine = [shared_state(codec, state) for state in states]
    frames, _ = codec.decode(latents_of(name)[1], mine)
    assert all(
        torch.equal(x, y)
        for a, b in zip(map(codec.whole, mine), states, strict=True)
        for x, y in zip(a, b, strict=True)
    )
    return frames, [state.parts for state in mine]


@pytest.mark.parametrize("name", ["wan", "taehv"])
@torch.inference_mode()
def test_a_state_of_one_rank_goes_on_on_two(name):
    codec, (first, second, _) = make(name), latents_of(name)
    _, states = codec.decode(first)
    expected, _ = codec.decode(second, states)
    for frames, mine in run(continued, name, states):
        assert alike(frames, expected)
        assert sum(x.numel() for x in mine[0]) < 0.7 * sum(x.numel() for x in states[0])


@torch.inference_mode()
def of_all_ages(rank: int) -> list[Tensor]:
    codec, (first, second, _) = spread(make("wan"), mesh_of(2)), latents_of("wan", 2)
    _, states = codec.decode(first[:1])
    frames, _ = codec.decode(second, [states[0], None])
    return frames


@torch.inference_mode()
def test_worlds_of_different_ages_in_one_call():
    codec, (first, second, _) = make("wan"), latents_of("wan", 2)
    _, states = codec.decode(first[:1])
    expected, _ = codec.decode(second, [states[0], None])
    assert [len(x) for x in expected] == [12, 9]
    for made in run(of_all_ages):
        assert all(alike(a, b) for a, b in zip(made, expected, strict=True))


@torch.inference_mode()
def low(rank: int) -> tuple[Tensor, bool, dict[str, int]]:
    """A picture of one latent row, and whether its state is whole."""
    mesh = mesh_of(2)
    codec, z = spread(make("wan"), mesh), latents_of("wan", rows=1)
    _, states = codec.decode(z[0])
    frames, states = codec.decode(z[1], [codec.share(codec.whole(state)) for state in states])
    return frames, isinstance(states[0], list), dict(mesh.sent)


@torch.inference_mode()
def test_pictures_of_fewer_rows_than_ranks_are_decoded_whole():
    codec, z = make("wan"), latents_of("wan", rows=1)
    _, states = codec.decode(z[0])
    expected, _ = codec.decode(z[1], states)
    for frames, whole, sent in run(low):
        assert torch.equal(frames, expected)
        assert whole
        assert not sent
    assert decode_transfers(codec, Latents(1, 3, 1, 4), 2) == []


@torch.inference_mode()
def convolved(rank: int, depth: int) -> Tensor:
    """A strip of a convolution of a whole picture."""
    mesh = mesh_of(2)
    x, conv = picture(depth)
    cut = Cut.of(mesh, 7)
    return cut.whole("rows", [bordered(conv, cut)(cut.own(x, -2))], -2)[0]


def picture(depth: int) -> tuple[Tensor, nn.Module]:
    torch.manual_seed(3)
    if depth:
        return torch.randn(2, 3, depth, 14, 6), nn.Conv3d(3, 5, (depth, 5, 3), padding=(0, 2, 1))
    return torch.randn(2, 3, 14, 6), nn.Conv2d(3, 5, 3, padding=1)


@pytest.mark.parametrize("depth", [0, 3])
@torch.inference_mode()
def test_a_convolution_sees_the_neighbours_rows(depth):
    x, conv = picture(depth)
    for made in run(convolved, depth):
        assert torch.allclose(made, conv(x), atol=1e-5)


@torch.inference_mode()
def refused(rank: int) -> str:
    codec = spread(make("wan"), mesh_of(2))
    _, states = codec.decode(latents_of("wan")[0])
    with pytest.raises(ValueError) as error:
        codec.decode(latents_of("wan", rows=6)[0], states)
    return str(error.value)


def test_states_of_another_size_are_refused():
    assert run(refused)[0].startswith("a streaming state of 5 rows for 6")


def test_one_rank_has_the_codec_itself():
    mesh, codec = Mesh.of(Exchange()), make("wan")
    assert spread(codec, mesh) is codec
    assert whole_state(codec, [1]) == shared_state(codec, [1]) == [1]
    assert decode_transfers(codec, Latents(1, 3, 5, 4), 1) == []


class Two:
    """A mesh's numbers, for what needs no others."""

    rank, ranks = 0, 2


def test_what_is_spread():
    mesh: Any = Two()
    preview = Preview()
    assert spread(preview, mesh) is preview
    magi, vae = make("magi"), make("wan")
    tiles, strip = spread(magi, mesh), spread(vae, mesh)
    assert (alone(tiles), alone(strip), alone(vae)) == (magi, vae, vae)
    assert {id(x) for x in tiles.shared.parameters()} == {id(x) for x in magi.parameters()}
    assert {id(x) for x in strip.of(4)[1].parameters()} == {id(x) for x in vae.parameters()}
    assert strip.of(4) is strip.of(4)
    assert isinstance(strip.of(4)[1], WanVae)
    assert strip.share(None) is None
    assert isinstance(strip.share([torch.zeros(3, 2, 4, 4)]), StripState)
    with pytest.raises(ValueError, match="a Linear cannot be spread over ranks: expected an AutoEncoder"):
        spread(nn.Linear(1, 1), mesh)


def test_tiles_are_dealt_evenly():
    assert dealt([9, 9, 9, 4, 4, 4, 4, 1], 3) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert dealt([5], 4) == [0]


def test_what_would_be_computed_twice():
    """Of a stack written out: one convolution, an enlargement, another one; strips of 2 rows of 4 latents."""
    codec = make_autoencoder()
    codec.decoder.layers = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1)
    )
    layers = list(layers_of(codec, Latents(1, 1, 4, 5)))
    assert [(x.scale, x.reach, x.row) for x in layers] == [(1, 1, 20), (2, 1, 40)]
    one = 2 * 5 * 4 * 4 * 9
    assert [x.flops for x in layers] == [one, 2 * one]
    # The last one needs a row more of what is enlarged, which is one more row of latents' size.
    assert overlap(layers, 4, 2) == pytest.approx((3 * one + 4 * 2 * one) / (2 * one + 4 * 2 * one))


def test_the_published_vae_at_480_lines():
    vae, latents = unfilled(WanVaeSpec(), encoder=False), Latents(1, 3, 60, 104)
    sent = {t.name: t for t in decode_transfers(vae.bfloat16(), latents, 8)}
    assert sent["rows of neighbours"].calls == 33
    assert sent["frames"].sent[0] == 7 * 12 * 64 * 832 * 3
    assert sent["keys and values of strips"].sent[0] == 7 * 2 * 3 * 8 * 104 * 384 * 2
    assert 1.4 < overlap(list(layers_of(vae, latents)), 60, 8) < 1.6


def test_rows_are_cut_as_pictures_are_joined():
    x = F.pad(torch.arange(14.0).view(1, 1, 14, 1), (0, 1))
    cuts = [Cut(mesh, (4, 3)) for mesh in (Two(), type("Last", (Two,), {"rank": 1})())]  # type: ignore[arg-type]
    assert torch.equal(torch.cat([cut.own(x, -2) for cut in cuts], -2), x)
    assert [cut.own(x, -2).shape[-2] for cut in cuts] == [8, 6]


def rolled(sim: Engine, blob: bytes | None) -> tuple[list[Tensor], bytes]:
    """Frames of a world's blocks, and its snapshot before the last one; of a snapshot, of the block that follows."""
    made = []
    if blob is None:
        world = published_sims.begin(sim)
        made, blob = published_sims.roll(sim, world, 2), sim.snapshot(world)
    else:
        world = sim.restore(blob)
    made += published_sims.roll(sim, world, 1)
    sim.close(world)
    return [torch.from_numpy(x.frames) for x in made], blob


def rolled_on(rank: int, blob: bytes | None) -> tuple[list[Tensor], bytes]:
    alone = published_sims.make_sim(codec="vae")
    return rolled(Engine(shard(alone.given, mesh_of(2)), policy=alone.policy), blob)


def test_worlds_with_a_video_codec_are_snapshotted_on_two_ranks_and_go_on_on_one_and_back():
    sim = published_sims.make_sim(codec="vae")
    frames, blob = rolled(sim, None)
    (made, theirs), (other, _) = run(rolled_on, None)
    assert all(alike(a, c) and torch.equal(a, b) for a, b, c in zip(made, other, frames, strict=True))
    assert all(alike(a, b) for a, b in zip(rolled(sim, theirs)[0], frames[2:], strict=True))
    assert all(alike(a, b) for a, b in zip(run(rolled_on, blob)[1][0], frames[2:], strict=True))
    shapes = [{name: x.shape for name, x in read(made)[1].items()} for made in (theirs, blob)]
    assert shapes[0] == shapes[1]
