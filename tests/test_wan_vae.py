"""The Wan2.1 VAE against recordings of the published code, against diffusers, and against itself in other pieces."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from engine.codecs.wan_vae import WanVae
from engine.codecs.wan_vae_layout import diffusers_name, diffusers_names, spec_of, temporal_of, vae_of
from engine.codecs.work import flops
from engine.published import WanVaeSpec
from engine.snapshot import flatten, unflatten

PARITY = Path(__file__).parent / "parity" / "wan"
TINY = WanVaeSpec(channels=4, width=4, multiples=(1, 2, 2), depth=1, scale=4, frames_per_latent=4)
STATISTICS = {"mean": (0.1, -0.2, 0.3, 0.0), "std": (1.5, 0.5, 2.0, 1.0)}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def recorded(kind: str) -> list[Path]:
    """Recordings of a kind: ours, and any that are put beside them."""
    return [path for path in sorted(PARITY.glob("*.safetensors")) if case_of(path)["kind"] == kind]


def case_of(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["case"])


def load(path: Path) -> tuple[dict, dict[str, torch.Tensor], WanVae]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    mean, std = (tensors[f"in.latent_{name}"].tolist() for name in ("mean", "std"))
    return case_of(path), tensors, vae_of(weights_of(tensors), mean=mean, std=std)


def weights_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("weights."): x for k, x in tensors.items() if k.startswith("weights.")}


def make_vae(spec: WanVaeSpec = TINY, **options) -> WanVae:
    """Random weights, gammas and biases among them."""
    torch.manual_seed(0)
    vae = WanVae(spec, **{**STATISTICS, **options})
    for name, parameter in vae.named_parameters():
        if name.endswith("gamma"):
            parameter.data = 1 + 0.3 * torch.randn_like(parameter)
    return vae.eval()


def assert_close(got: torch.Tensor, want: torch.Tensor, case: dict) -> None:
    torch.testing.assert_close(got, want, atol=case["tolerance"]["atol"], rtol=case["tolerance"]["rtol"])


def in_pieces(run, x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    states, made = None, []
    for piece in x.split(lengths, dim=1):
        out, states = run(piece, states)
        made.append(out)
    return torch.cat(made, dim=1)


@pytest.mark.parametrize("path", recorded("vae_decode"), ids=lambda path: path.stem)
def test_blocks_decode_to_what_the_published_code_gives(path):
    case, tensors, vae = load(path)
    latents, states = tensors["in.z"].transpose(1, 2), None
    assert_close(vae.signal(latents)[0], tensors["out.video"].transpose(1, 2), case)
    for i, block in enumerate(latents.split(case["blocks"], dim=1)):
        video, states = vae.signal(block, states)
        assert_close(video, tensors[f"out.video.block{i}"].transpose(1, 2), case)


@pytest.mark.parametrize("path", recorded("vae_encode"), ids=lambda path: path.stem)
def test_clips_encode_to_what_the_published_code_gives(path):
    case, tensors, vae = load(path)
    for clip in case["clips"]:
        latents, _ = vae.encode_signal(tensors[f"in.{clip}"].transpose(1, 2))
        assert_close(latents, tensors[f"out.{clip}"].transpose(1, 2), case)


@pytest.mark.parametrize("path", recorded("vae_decode") + recorded("vae_encode"), ids=lambda path: path.stem)
def test_sizes_and_names_are_read_off_the_weights(path):
    case, tensors, vae = load(path)
    sizes, spec = case["model"], vae.spec
    assert (spec.channels, spec.depth) == (sizes["z_dim"], sizes["num_res_blocks"])
    assert [spec.width * m for m in spec.multiples] == [sizes["dim"] * m for m in sizes["dim_mult"]]
    assert vae.temporal == tuple(sizes["temporal_downsample"])
    ours = {name: diffusers_name(name, spec.depth + 2) for name in weights_of(tensors)}
    assert ours == {name.removeprefix("weights."): other for name, other in case["diffusers_key_map"].items()}


@pytest.mark.parametrize("lengths", [[7], [1] * 7, [3, 3, 1], [1, 2, 4], [2, 5]])
def test_latents_decode_the_same_in_any_pieces(lengths):
    vae, latents = make_vae(latents_at_once=3), torch.randn(2, 7, 4, 4, 6)
    whole, _ = make_vae(latents_at_once=99).signal(latents)
    assert whole.shape == (2, 25, 3, 16, 24)
    torch.testing.assert_close(in_pieces(vae.signal, latents, lengths), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lengths", [[17], [1, 4, 4, 8], [5, 12], [1] + [4] * 4])
def test_clips_encode_the_same_in_any_pieces(lengths):
    vae, video = make_vae(latents_at_once=2), torch.rand(2, 17, 3, 16, 8) * 2 - 1
    whole, _ = make_vae(latents_at_once=99).encode_signal(video)
    assert whole.shape == (2, 5, 4, 4, 2)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(in_pieces(vae.encode_signal, video, lengths), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("temporal", [(True, True), (False, True), (True, False), (False, False)])
def test_time_may_be_halved_at_any_level(temporal):
    rate = 2 ** sum(temporal)
    made = make_vae(replace(TINY, frames_per_latent=rate), temporal=temporal)
    vae = vae_of(made.state_dict(), **STATISTICS)
    assert (vae.temporal, vae.frames_per_latent) == (temporal, rate)
    latents = torch.randn(1, 3, 4, 2, 2)
    video = in_pieces(vae.signal, latents, [2, 1])
    assert video.shape[1] == 1 + 2 * rate
    torch.testing.assert_close(video, made.signal(latents)[0], atol=1e-4, rtol=0)
    assert vae.encode_signal(video)[0].shape == latents.shape


def test_frames_do_not_depend_on_later_latents():
    vae, latents = make_vae(), torch.randn(1, 4, 4, 2, 2)
    changed = latents.clone()
    changed[:, 2:] += 1
    before, after = vae.signal(latents)[0], vae.signal(changed)[0]
    torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-6, rtol=0)
    assert (before[:, 5:] - after[:, 5:]).abs().amax((0, 2, 3, 4)).min() > 1e-3


def test_worlds_of_other_ages_share_a_call_and_keep_their_own_numbers():
    vae, torch_blocks = make_vae(), torch.randn(3, 3, 2, 4, 4, 4)
    old = vae.signal(torch_blocks[0], [None] * 3)[1][0]
    older = vae.signal(torch_blocks[1][:1], vae.signal(torch_blocks[0][1:2])[1])[1][0]
    states = [older, None, old]
    together, left = vae.signal(torch_blocks[2], states)
    assert [len(video) for video in together] == [8, 5, 8]
    for i, state in enumerate(states):
        alone, kept = vae.signal(torch_blocks[2, i : i + 1], [state])
        torch.testing.assert_close(together[i], alone[0], atol=1e-4, rtol=0)
        for x, y in zip(left[i], kept[0], strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=0)
    frames, _ = vae.decode(torch_blocks[2], states)
    assert [x.dtype for x in frames] == [torch.uint8] * 3
    assert vae.decode(torch_blocks[2, :2], [older, old])[0].shape == (2, 8, 16, 16, 3)


@pytest.mark.parametrize("run", ["decode", "encode"])
def test_a_state_is_only_read_and_owns_its_memory(run):
    vae = make_vae()
    latents, frames = torch.randn(2, 2, 4, 4, 4), torch.randint(0, 256, (2, 9, 16, 16, 3), dtype=torch.uint8)
    first, later = (latents, latents) if run == "decode" else (frames, frames[:, 1:])
    _, states = getattr(vae, run)(first)
    copies = [[x.clone() for x in state] for state in states]
    one, other = (getattr(vae, run)(later, states)[0] for _ in range(2))
    assert torch.equal(one, other)
    for x, y in zip(itertools.chain(*states), itertools.chain(*copies), strict=True):
        assert torch.equal(x, y)
        assert x.untyped_storage().nbytes() == x.nbytes


def test_a_state_goes_through_a_snapshot_to_the_bit():
    vae, latents = make_vae(), torch.randn(1, 2, 4, 4, 4)
    _, [state] = vae.decode(latents)
    shape, tensors = flatten(state)
    restored = unflatten(json.loads(json.dumps(shape)), {name: x.cpu().contiguous() for name, x in tensors.items()})
    assert torch.equal(vae.signal(latents, [state])[0], vae.signal(latents, [restored])[0])


def test_frames_are_rounded_and_clamped_signals():
    vae, latents = make_vae(), torch.randn(1, 2, 4, 4, 4) * 3
    video = vae.signal(latents)[0]
    assert video.abs().max() > 1
    want = ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2)
    assert torch.equal(vae.decode(latents)[0], want)


def test_pixels_encode_as_their_signal_and_a_clip_drops_its_surplus():
    vae, frames = make_vae(), torch.randint(0, 256, (1, 11, 16, 16, 3), dtype=torch.uint8)
    latents, _ = vae.encode(frames)
    assert latents.shape == (1, 3, 4, 4, 4)
    signal = frames[:, :9].permute(0, 1, 4, 2, 3) / 127.5 - 1
    torch.testing.assert_close(latents, vae.encode_signal(signal)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    latents, video = torch.randn(1, 3, 4, 4, 4), torch.rand(1, 9, 3, 16, 16) * 2 - 1
    full, half = make_vae(), make_vae().to(dtype)
    got, [state] = half.signal(latents)
    assert got.dtype == dtype
    assert {x.dtype for x in state} == {dtype}
    assert (got.float() - full.signal(latents)[0]).pow(2).mean().sqrt() < 0.03
    assert (half.encode_signal(video)[0] - full.encode_signal(video)[0]).pow(2).mean().sqrt() < 0.03


def test_the_published_vae_has_its_tensors_and_its_work():
    with torch.device("meta"):
        vae = WanVae(WanVaeSpec())
    shapes = {name: tuple(x.shape) for name, x in vae.state_dict().items()}
    assert len(shapes) == 194
    assert sum(x.numel() for x in vae.parameters()) == 126_892_531
    for half in ({}, {"encoder": False}, {"decoder": False}):
        with torch.device("meta"):
            part = {name: tuple(x.shape) for name, x in WanVae(WanVaeSpec(), **half).state_dict().items()}
        assert spec_of(part) == WanVaeSpec()
        assert temporal_of(part) == (False, True, True)
    assert flops(WanVaeSpec(), 480, 832) / 1e12 == pytest.approx(13.55, abs=0.005)
    assert flops(WanVaeSpec(), 352, 640) / 1e12 == pytest.approx(7.63, abs=0.005)


@pytest.mark.parametrize("frames", [1, 3])
def test_work_is_what_torch_counts(frames):
    vae, latents = make_vae(), torch.randn(1, frames, 4, 4, 6)
    _, states = vae.signal(latents)
    with FlopCounterMode(display=False) as counter:
        vae.signal(latents, states)
    assert flops(TINY, 16, 24, frames) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_weights_that_do_not_fit_are_refused():
    weights = make_vae().state_dict()
    missing = {name: x for name, x in weights.items() if name != "decoder.head.0.gamma"}
    with pytest.raises(ValueError, match=r"Missing key.*decoder\.head\.0\.gamma"):
        vae_of(missing, **STATISTICS)
    with pytest.raises(ValueError, match="Unexpected key"):
        vae_of({**weights, "decoder.extra": weights["conv1.bias"]}, **STATISTICS)
    with pytest.raises(ValueError, match="published names"):
        vae_of({diffusers_name(name, TINY.depth + 2): x for name, x in weights.items()})
    with pytest.raises(ValueError, match="16 means"):
        vae_of(weights)


def test_bad_input_is_refused_before_anything_runs():
    vae, latents = make_vae(), torch.randn(1, 2, 4, 4, 4)
    _, states = vae.signal(latents)
    with pytest.raises(ValueError, match="expected \\[N, F, 4"):
        vae.signal(latents[:, :, :3])
    with pytest.raises(ValueError, match="2 streaming states for 1 worlds"):
        vae.signal(latents, [None, None])
    with pytest.raises(ValueError, match="cannot change"):
        vae.signal(torch.randn(1, 2, 4, 4, 6), states)
    with pytest.raises(ValueError, match="multiples of 4"):
        vae.encode(torch.zeros(1, 5, 16, 18, 3, dtype=torch.uint8))
    _, states = vae.encode(torch.zeros(1, 5, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="5 frames"):
        vae.encode(torch.zeros(1, 5, 16, 16, 3, dtype=torch.uint8), states)
    with pytest.raises(ValueError, match="no encoder"):
        make_vae(encoder=False).encode(torch.zeros(1, 5, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no decoder"):
        make_vae(decoder=False).decode(latents)
    with pytest.raises(ValueError, match="do not make"):
        WanVae(replace(TINY, scale=8))


def test_it_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    spec = replace(TINY, depth=2)
    vae = make_vae(spec)
    other = diffusers.AutoencoderKLWan(
        base_dim=spec.width, z_dim=4, dim_mult=list(spec.multiples), num_res_blocks=2, temperal_downsample=[True, True]
    ).eval()
    names = diffusers_names(spec)
    other.load_state_dict({names[name]: x for name, x in vae.state_dict().items()}, strict=True)
    mean, std = (torch.tensor(STATISTICS[name])[:, None, None, None] for name in ("mean", "std"))
    latents, video = torch.randn(2, 4, 4, 4, 6), torch.rand(2, 9, 3, 16, 24) * 2 - 1
    raw = latents.transpose(1, 2) / (1 / std) + mean
    want = other._decode(raw).sample.transpose(1, 2)
    torch.testing.assert_close(vae.signal(latents)[0].clamp(-1, 1), want.clamp(-1, 1), atol=1e-4, rtol=0)
    moments = other._encode(video.transpose(1, 2))
    want = ((moments[:, :4] - mean) / std).transpose(1, 2)
    torch.testing.assert_close(vae.encode_signal(video)[0], want, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_gives_what_the_cpu_gives(dtype):
    spec = replace(TINY, width=32, depth=2)
    vae, latents = make_vae(spec), torch.randn(1, 6, 4, 8, 8)
    on_gpu = make_vae(spec).to("cuda", dtype)
    assert on_gpu.decoder.conv1.weight.is_contiguous(memory_format=torch.channels_last_3d)
    got, want = in_pieces(on_gpu.signal, latents.cuda(), [3, 3]), vae.signal(latents)[0]
    assert (got.float().cpu() - want).pow(2).mean().sqrt() < 0.03 * want.std()
    video = want.clamp(-1, 1)
    got, want = in_pieces(on_gpu.encode_signal, video.cuda(), [9, 12]), vae.encode_signal(video)[0]
    assert (got.cpu() - want).pow(2).mean().sqrt() < 0.03 * want.std()
