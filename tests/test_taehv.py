"""TAEHV against a plain re-statement of it over whole clips, and against itself in pieces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.codecs.taehv import Taehv, taehv_of
from engine.codecs.work import flops
from engine.published import WanVaeSpec
from engine.snapshot import flatten, unflatten

WIDTHS = (16, 8, 6, 4)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def make_taehv(**options) -> Taehv:
    torch.manual_seed(0)
    return Taehv(4, WIDTHS, encoder_width=6, **options).eval()


def apply(weights: dict[str, Tensor], name: str, x: Tensor, **options) -> Tensor:
    """A convolution, one picture at a time."""
    weight = weights[f"{name}.weight"]
    bias = weights.get(f"{name}.bias")
    return torch.cat([F.conv2d(row, weight, bias, padding=weight.shape[-1] // 2, **options) for row in x.split(1)])


def remember(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A MemBlock over the frames of one clip, the first of which has zeros before it."""
    past = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    y = apply(weights, f"{name}.conv.0", torch.cat([x, past], dim=1)).relu()
    y = apply(weights, f"{name}.conv.2", y).relu()
    return (apply(weights, f"{name}.conv.4", y) + x).relu()


def decode_plainly(weights: dict[str, Tensor], z: Tensor) -> Tensor:
    """[F, C, h, w] -> [4F - 3, 3, H, W], in the published order of layers."""
    x = apply(weights, "decoder.1", 3 * torch.tanh(z / 3)).relu()
    for first, frames in ((3, 1), (9, 2), (15, 2)):
        for i in range(first, first + 3):
            x = remember(weights, f"decoder.{i}", x)
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        grown = apply(weights, f"decoder.{first + 4}.conv", x)
        x = torch.stack(grown.chunk(frames, dim=1), dim=1).flatten(0, 1)
        x = apply(weights, f"decoder.{first + 5}", x)
    return apply(weights, "decoder.22", x.relu())[3:] * 2 - 1


def encode_plainly(weights: dict[str, Tensor], frames: Tensor) -> Tensor:
    """uint8 [T, H, W, 3], T a multiple of 4 -> [T / 4, C, h, w]."""
    x = apply(weights, "encoder.0", frames.permute(0, 3, 1, 2) / 255).relu()
    for first, together in ((2, 2), (7, 2), (12, 1)):
        pairs = torch.cat([x[k::together] for k in range(together)], dim=1)
        x = apply(weights, f"encoder.{first}.conv", pairs)
        x = apply(weights, f"encoder.{first + 1}", x, stride=2)
        for i in range(first + 2, first + 5):
            x = remember(weights, f"encoder.{i}", x)
    return apply(weights, "encoder.17", x)


def test_latents_decode_as_stated_plainly():
    taehv, latents = make_taehv(), torch.randn(2, 5, 4, 3, 4) * 2
    video, _ = taehv.signal(latents)
    assert video.shape == (2, 17, 3, 24, 32)
    for got, z in zip(video, latents, strict=True):
        torch.testing.assert_close(got, decode_plainly(taehv.state_dict(), z), atol=1e-4, rtol=0)


def test_frames_encode_as_stated_plainly():
    taehv, frames = make_taehv(), torch.randint(0, 256, (2, 12, 24, 16, 3), dtype=torch.uint8)
    latents, _ = taehv.encode(frames)
    assert latents.shape == (2, 3, 4, 3, 2)
    for got, clip in zip(latents, frames, strict=True):
        torch.testing.assert_close(got, encode_plainly(taehv.state_dict(), clip), atol=1e-4, rtol=0)


@pytest.mark.parametrize("lengths", [[7], [1] * 7, [3, 3, 1], [1, 2, 4]])
def test_latents_decode_the_same_in_any_pieces(lengths):
    taehv, latents, states, made = make_taehv(latents_at_once=2), torch.randn(2, 7, 4, 2, 2), None, []
    for piece in latents.split(lengths, dim=1):
        video, states = taehv.signal(piece, states)
        made.append(video)
    assert [video.shape[1] for video in made] == [4 * length - 3 * (i == 0) for i, length in enumerate(lengths)]
    torch.testing.assert_close(torch.cat(made, dim=1), make_taehv().signal(latents)[0], atol=1e-4, rtol=0)


def test_clips_encode_the_same_in_pieces_and_end_with_their_last_frame_repeated():
    taehv, frames = make_taehv(latents_at_once=1), torch.randint(0, 256, (1, 9, 16, 16, 3), dtype=torch.uint8)
    whole, ended = taehv.encode(frames)
    assert (whole.shape[1], ended) == (3, [None])
    torch.testing.assert_close(whole, taehv.encode(torch.cat([frames, *[frames[:, -1:]] * 3], dim=1))[0])
    first, states = taehv.encode(frames[:, :4])
    rest, _ = taehv.encode(frames[:, 4:], states)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, atol=1e-4, rtol=0)


def test_worlds_of_other_ages_share_a_call_and_their_states_are_only_read():
    taehv, blocks = make_taehv(), torch.randn(2, 3, 2, 4, 2, 2)
    [old, _, oldest] = taehv.signal(blocks[0])[1]
    states = [old, None, oldest]
    copies = [[x.clone() for x in state or ()] for state in states]
    together, _ = taehv.decode(blocks[1], states)
    assert [len(frames) for frames in together] == [8, 5, 8]
    for i, state in enumerate(states):
        alone, _ = taehv.decode(blocks[1, i : i + 1], [state])
        assert (together[i].int() - alone[0].int()).abs().max() <= 1
    for state, copy in zip(states, copies, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(state or (), copy, strict=True))


def test_a_state_goes_through_a_snapshot_to_the_bit():
    taehv, latents = make_taehv(), torch.randn(1, 2, 4, 2, 2)
    _, [state] = taehv.decode(latents)
    assert len(state) == 9
    shape, tensors = flatten(state)
    restored = unflatten(shape, {name: x.cpu().contiguous() for name, x in tensors.items()})
    assert torch.equal(taehv.signal(latents, [state])[0], taehv.signal(latents, [restored])[0])


def test_published_weights_load_strictly():
    """A published Grow may make more frames than it is asked for: its last rows make the last ones."""
    taehv = make_taehv()
    weights = dict(taehv.state_dict())
    weights["decoder.7.conv.weight"] = torch.cat([torch.randn(16, 16, 1, 1), weights["decoder.7.conv.weight"]])
    loaded, latents = taehv_of(weights), torch.randn(1, 2, 4, 2, 2)
    assert torch.equal(loaded.signal(latents)[0], taehv.signal(latents)[0])
    assert len(weights["decoder.7.conv.weight"]) == 32
    decoder = {name: x for name, x in weights.items() if name.startswith("decoder.")}
    assert torch.equal(taehv_of(decoder).signal(latents)[0], taehv.signal(latents)[0])
    with pytest.raises(ValueError, match="no encoder"):
        taehv_of(decoder).encode(torch.zeros(1, 4, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="Unexpected key"):
        taehv_of({**weights, "decoder.23.weight": latents})
    with pytest.raises(ValueError, match="taew2_1"):
        taehv_of({})


def test_the_published_size():
    with torch.device("meta"):
        taehv = Taehv()
    names = {name.rpartition(".")[0] for name in taehv.decoder.state_dict()}
    convs = {f"{i}.conv.{k}" for i in (3, 4, 5, 9, 10, 11, 15, 16, 17) for k in (0, 2, 4)}
    assert names == convs | {"1", "8", "14", "20", "22", "7.conv", "13.conv", "19.conv"}
    assert sum(x.numel() for x in taehv.decoder.parameters()) == 9_844_611
    assert sum(x.numel() for x in taehv.encoder.parameters()) == 1_470_928
    # The published order enlarges before its 1x1 convolutions: another three times their work, 0.544 in all.
    saved = 3 * 2 * (60 * 104) * (256 * 256 + 4 * 128 * 256 + 32 * 64 * 128)
    done = flops(WanVaeSpec(tiny=True), 480, 832)
    assert done / 1e12 == pytest.approx(0.527, abs=0.0005)
    assert (done + saved) / 1e12 == pytest.approx(0.544, abs=0.0005)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    latents = torch.randn(1, 3, 4, 2, 2)
    got, [state] = make_taehv().to(dtype).signal(latents)
    assert {got.dtype, *(x.dtype for x in state)} == {dtype}
    assert (got.float() - make_taehv().signal(latents)[0]).abs().max() < 0.05


def test_bad_input_is_refused():
    taehv = make_taehv()
    _, states = taehv.decode(torch.randn(1, 2, 4, 2, 2))
    with pytest.raises(ValueError, match="expected \\[N, F, 4"):
        taehv.decode(torch.randn(1, 2, 16, 2, 2))
    with pytest.raises(ValueError, match="cannot change"):
        taehv.decode(torch.randn(1, 2, 4, 4, 2), states)
    with pytest.raises(ValueError, match="multiples of 8"):
        taehv.encode(torch.zeros(1, 4, 12, 16, 3, dtype=torch.uint8))
