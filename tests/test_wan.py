"""The Wan2.1 denoiser and Matrix-Game's action module against what the published code computes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from engine.kv.view import CausalView
from engine.models.matrix_game import shown_frames, unit_rms
from engine.models.rotary import Rotary, grid_turns, time_turns
from engine.models.wan_layers import RMSNorm, sinusoid
from engine.published import ActionModule
from engine.spec import KVPolicy
from tests.wan_cases import Cache, action_windows, actions_of, build_case, case, condition_of, names


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def frame_major(x):
    """[B, C, F, H, W] <-> [B, F, C, H, W]."""
    return x.transpose(1, 2)


def watch(model, *paths):
    """Outputs of modules as they run, by path; of tokens, flat."""
    seen = {}

    def note(path):
        def hook(module, inputs, output):
            seen[path] = output.flatten(1, 2) if output.ndim == 4 else output
            seen[f"{path}.in"] = inputs[0].flatten(1, 2) if inputs[0].ndim == 4 else inputs[0]

        return hook

    for path in paths:
        model.get_submodule(path).register_forward_hook(note(path))
    return seen


# Primitives.


@pytest.mark.parametrize("name", names("primitives"))
def test_sinusoids(name):
    c = case(name)
    for key, want in c["out"].items():
        if key.startswith("time.sinusoid"):
            got = sinusoid(c["in"]["time.t"], want.shape[-1])
            assert got.dtype == torch.float64
            c.check(got, key)


@pytest.mark.parametrize("name", names("primitives"))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rotary_in_three_axes(name, dtype):
    c = case(name)
    frames, *grid = c.info["grid"]
    for width in c.info["head_dims"]:
        for start in c.info["starts"]:
            positions = torch.arange(start, start + frames)[None]
            turns = partial(grid_turns, grid=tuple(grid), width=width, base=10_000.0)
            x, rotary = c["in"][f"rope.hd{width}.x"], Rotary(positions, turns, dtype)
            c.check(rotary(x), f"rope.hd{width}.start{start}")
            assert torch.equal(Rotary(positions + 5, turns, dtype)(x, positions), rotary(x))


@pytest.mark.parametrize("name", names("primitives"))
def test_rotary_of_actions(name):
    c = case(name)
    info = c.info["action_rope"]
    for start in c.info["starts"]:
        for part in "qk":
            x = c["in"][f"action_rope.{part}"]
            positions = torch.arange(start, start + x.shape[1])[None]
            turns = partial(time_turns, width=info["head_dim"], turning=info["dims"][0], base=info["theta"])
            rotary = Rotary(positions, turns, torch.float32)
            c.check(rotary(x), f"action_rope.start{start}.{part}")


@pytest.mark.parametrize("name", names("primitives"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms(name, dtype):
    c = case(name)
    x, weight, ln_w, ln_b = (c["in"][f"norm.{key}"].to(dtype) for key in ("x", "rms_w", "ln_w", "ln_b"))
    rms = RMSNorm(len(weight), 1e-6)
    rms.weight.copy_(weight)
    width = x.shape[-1:]
    got = {"rms": rms.to(dtype)(x), "ln": F.layer_norm(x, width, eps=1e-6)}
    got["ln_affine"] = F.layer_norm(x, width, ln_w, ln_b, eps=1e-6)
    for key, y in got.items():
        if dtype == torch.float32:
            c.check(y, f"norm.{key}")
        else:
            assert y.dtype == dtype
            torch.testing.assert_close(y, c["out"][f"norm.{key}_bf16"], rtol=2**-7, atol=1e-6)


def test_rotary_has_no_last_position():
    x = torch.randn(1, 6, 2, 32, dtype=torch.float64)
    angles = 10.0**6 * 10_000.0 ** (-torch.arange(6, dtype=torch.float64) / 6)
    got = Rotary(torch.tensor([[10**6]]), partial(grid_turns, grid=(2, 3), width=32, base=10_000.0), torch.float64)(x)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)))[..., :6] * torch.polar(torch.ones(6).double(), angles)
    torch.testing.assert_close(got[:, :, :, :12], torch.view_as_real(turned).flatten(-2)[:, :, :, :12])


def test_norm_of_action_heads_rounds_to_the_precision_of_its_input():
    x = torch.randn(64, 64).bfloat16()
    want = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(unit_rms(x, 1e-6), want)
    assert not torch.equal(unit_rms(x, 1e-6), F.rms_norm(x, (64,), None, 1e-6))


# The published network.


def run_bidirectional(c, dtype=torch.float32, watched=(), **changes):
    model = build_case(c, dtype, **changes)
    seen, inputs = watch(model, *watched), c["in"]
    x, images = frame_major(inputs["x"]), inputs.get("clip_fea")
    n, frames = x.shape[:2]
    contexts = [
        model.contextualise(text[:length], None if images is None else images[i])
        for i, (text, length) in enumerate(zip(inputs["prompt_embeds"], inputs["prompt_lens"], strict=True))
    ]
    beside = frame_major(inputs["y"]) if "y" in inputs else None
    times = inputs["t"][:, None].expand(n, frames)
    view = CausalView(KVPolicy(window=None), c.info["layout"]["tokens_per_frame"], block=frames)
    positions = torch.arange(frames).expand(n, frames)
    out, features = model(x.to(dtype), times, positions, condition_of(contexts, beside=beside), view)
    return frame_major(out), features, seen


@pytest.mark.parametrize("name", names("dit_forward"))
def test_bidirectional_forward(name):
    c = case(name)
    layers = range(c.info["model"]["num_layers"])
    parts = [f"blocks.0.{part}" for part in ("self_attn", "cross_attn", "ffn")] + [f"blocks.{i}" for i in layers]
    out, features, seen = run_bidirectional(
        c, watched=[*parts, "time_embedding", "time_projection", "text_embedding", "patch_embedding"]
    )
    c.check(out, "flow")
    assert features.shape == (*out.shape[:1], out.shape[2], c.info["layout"]["tokens_per_frame"], features.shape[-1])
    for path in parts:
        c.check(seen[path], "dbg." + path.replace("blocks.", "block"))
    c.check(seen["time_embedding"][:, 0], "dbg.time_e")
    c.check(seen["time_projection"][:, 0], "dbg.time_proj")
    if len(out) == 1:
        c.check(seen["text_embedding"], "dbg.text_context")
    if "dbg.patch_tokens" in c["out"]:
        c.check(seen["patch_embedding"], "dbg.patch_tokens")


@pytest.mark.parametrize("name", names("dit_forward"))
@pytest.mark.parametrize("published", [True, False])
def test_bidirectional_forward_in_bf16(name, published):
    c = case(name)
    out, features, _ = run_bidirectional(c, torch.bfloat16, published=published)
    assert out.dtype == features.dtype == torch.bfloat16
    c.check_bf16(out)


@pytest.mark.parametrize("name", names("dit_forward"))
def test_rotating_in_float32_changes_little(name):
    published, ours = (run_bidirectional(case(name), torch.bfloat16, published=p)[0].float() for p in (True, False))
    assert (ours - published).norm() / published.norm() < 1e-3


def run_calls(c, dtype=torch.float32, watched=()):
    """Successive cached calls of a Matrix-Game case; yields each call's prediction and what was watched in it."""
    model, inputs, info = build_case(c, dtype), c["in"], c.info["cache"]
    seen = watch(model, *watched)
    context = model.contextualise(None, inputs["visual_context"][0])
    tokens = info["tokens_per_frame"]
    cache = Cache({"self": tokens, "mouse": tokens, "keyboard": 1}, info["window_frames"])
    latents, beside, at = frame_major(inputs["x"]).to(dtype), frame_major(inputs["cond_concat"]), 0
    for t, frames in zip(inputs["t"], info["block_sizes"], strict=True):
        block = slice(at, at + frames)
        actions = action_windows(model.spec.actions, inputs, at, frames)
        condition = condition_of([context], actions, beside[:, block])
        positions = torch.arange(at, at + frames)[None]
        yield frame_major(model(latents[:, block], t.expand(1, frames), positions, condition, cache)[0]), seen
        at += frames


@pytest.mark.parametrize("name", names("mg2_forward"))
def test_matrix_game_forward(name):
    c = case(name)
    model, layer = c.info["model"], c.info["model"]["action_config"]["blocks"][0]
    action, parts = f"blocks.{layer}.action_model", (f"blocks.{layer}.self_attn", f"blocks.{layer}.cross_attn")
    watched = [action, *parts, *(f"{action}.{p}" for p in ("proj_mouse", "proj_keyboard", "keyboard_embed")), "img_emb"]
    blocks = [f"blocks.{i}" for i in range(model["num_layers"])]
    seen, call = {}, 0  # of the last call, in the end
    for call, (flow, seen) in enumerate(run_calls(c, watched=[*watched, *blocks])):  # noqa: B007
        c.check(flow, f"flow.call{call}")
    dbg = f"dbg.call{call}.block{layer}"
    for path in (*parts, *blocks):
        c.check(seen[path], f"dbg.call{call}." + path.replace("blocks.", "block"))
    c.check(seen[f"{action}.in"], f"{dbg}.action_in")
    c.check(seen[action], f"{dbg}.action_out")
    c.check(seen[f"{action}.proj_keyboard"], f"{dbg}.proj_keyboard")
    c.check(seen["img_emb"], f"dbg.call{call}.image_context")
    module, last = actions_of(model["action_config"]), c.info["cache"]["block_sizes"][-1]
    rows = torch.arange(last)[:, None] * module.frames_per_latent + torch.arange(module.frames)
    c.check(seen[f"{action}.keyboard_embed"], f"{dbg}.keyboard_embed", rows.flatten())
    if model["action_config"]["enable_mouse"]:
        c.check(seen[f"{action}.proj_mouse"], f"{dbg}.proj_mouse")


@pytest.mark.parametrize("name", names("mg2_forward"))
def test_matrix_game_forward_in_bf16(name):
    c = case(name)
    *_, (flow, _) = run_calls(c, torch.bfloat16)
    c.check_bf16(flow)


def masked_rollouts():
    """Rollouts that one masked pass can follow: blocks of one size, positions of the world, some history."""
    for name in [*names("causal_rollout"), *names("mg2_rollout")]:
        info = case(name).info
        cache, given = info["cache"], info["layout"].get("initial_frames", 0)
        history = cache["window_frames"] < 0 or cache["window_frames"] > cache["sink_frames"] + cache["block_frames"]
        if len(set(cache["block_sizes"])) == 1 and cache["rope"] == "absolute" and history and not given:
            yield name


@pytest.mark.parametrize("name", [*masked_rollouts()])
def test_refresh_passes_of_a_rollout_are_one_masked_pass(name):
    c = case(name)
    model, cache, inputs = build_case(c), c.info["cache"], c["in"]
    swap = frame_major if c.info["latent_layout"] == "BCFHW" else torch.Tensor.contiguous
    latents, block, sink = swap(c["out"]["latents"]), cache["block_frames"], cache["sink_frames"]
    n, frames = latents.shape[:2]
    times, actions, beside = torch.full((n, frames), float(c.info["sampler"]["context_noise"])), None, None
    if model.spec.actions:
        actions, beside = action_windows(model.spec.actions, inputs, 0, frames), frame_major(inputs["cond_concat"])
        contexts = [model.contextualise(None, x) for x in inputs["visual_context"]]
    else:
        contexts = [model.contextualise(x, None) for x in inputs["prompt_embeds"]]
    window = None if cache["window_frames"] < 0 else cache["window_frames"] - sink - block
    tokens = cache["tokens_per_frame"]
    view = CausalView(KVPolicy(window, sink), {"self": tokens, "mouse": tokens, "keyboard": 1}, block=block)
    positions = torch.arange(frames).expand(n, frames)
    flow, _ = model(latents, times, positions, condition_of(contexts, actions, beside), view)
    for i, part in enumerate(flow.split(block, dim=1)):
        c.check(swap(part), f"clean_flow.block{i}")


def test_action_windows_lag_and_start_with_the_first_frame():
    module = ActionModule((0,))
    assert shown_frames(module, 0) == [0] * 12
    assert shown_frames(module, 2) == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert shown_frames(module, 5) == list(range(8, 20))
