"""MAGI-1's denoiser against what the published code computes, and its published files against a strict loader."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from engine.attention import attend_dense
from engine.checkpoints.magi import load_magi, spec_of_shapes
from engine.checkpoints.magi_config import read_config
from engine.conditioning import Condition
from engine.fp8 import SmoothLinear, TensorLinear
from engine.models import magi_layers
from engine.models.magi import MagiDiT, flops
from engine.models.magi_embeddings import grid_angles, sinusoid
from engine.published import Guidance
from tests.magi_cases import RangesView, build_case, case, contexts_of, names, run, spec_of
from tests.magi_published import (
    MAGI_4_5B,
    MAGI_24B,
    TINY,
    TINY_24B,
    TINY_DISTILL,
    TINY_QUANT,
    config_json,
    magi_shapes,
    magi_weights,
    write_magi,
    write_shards,
)

FORWARDS = [name for name in names("dit_forward") if not name.startswith("dit_forward_cached")]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def step_size(c):
    return c.info["call"]["num_steps"] / 2 if spec_of(c).distill else None


def ranges_of(c):
    return [tuple(pair) for pair in c["in"]["kv_range_tokens"].tolist()]


# The published network.


@pytest.mark.parametrize("name", FORWARDS)
def test_a_call_with_prompts(name):
    c = case(name)
    model, i, seen = build_case(c), c["in"], {}
    for path in ["x_embedder", *(f"videodit_blocks.layers.{j}" for j in range(model.spec.layers))]:
        model.get_submodule(path).register_forward_hook(lambda m, x, y, path=path: seen.update({path: (x, y)}))
    chunks = contexts_of(model, i["y"], i["mask"])
    velocity = run(model, i["x"], i["t"], (chunks,), RangesView(ranges_of(c)), step_size=step_size(c))
    c.check(velocity, "text.velocity")
    c.check(seen["x_embedder"][1].transpose(0, 1), "text.x_embed")
    shared = seen["videodit_blocks.layers.0"][0][1]
    c.check(shared.condition, "text.condition")
    c.check(torch.cat([shared.rotary.sin, shared.rotary.cos], dim=-1)[0, :, 0], "text.rope")
    for j in range(model.spec.layers):
        c.check(seen[f"videodit_blocks.layers.{j}"][1].transpose(0, 1), f"text.layer{j}")


@pytest.mark.parametrize("name", FORWARDS)
def test_a_call_without_prompts(name):
    c = case(name)
    model, i = build_case(c), c["in"]
    view = RangesView(ranges_of(c))
    chunks = contexts_of(model, i["y"], i["mask"])
    velocity = run(model, i["x"], i["t"], (chunks,), view, dropped=True, step_size=step_size(c))
    c.check(velocity, "null.velocity")


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("first", [0, 1000])
def test_every_chunk_alone(name, first):
    """Each is a row of the batch; where their time begins makes no difference."""
    c = case(name)
    model, i = build_case(c), c["in"]
    contexts, width = contexts_of(model, i["y"], i["mask"]), i["x"].shape[2] // i["t"].shape[1]
    apart = torch.cat(i["x"].split(width, dim=2))
    view, rows = RangesView([(0, ranges_of(c)[0][1])]), tuple((context,) for context in contexts)
    velocity = run(model, apart, i["t"].T, rows, view, dropped=True, step_size=step_size(c), first=first)
    c.check(velocity, "alone.velocity")


@pytest.mark.parametrize("name", FORWARDS)
def test_what_cross_attention_reads(name):
    c = case(name)
    model, i = build_case(c), c["in"]
    packed = [model.y_embedder(rows[keep > 0][None])[0] for rows, keep in zip(i["y"], i["mask"], strict=True)]
    c.check(torch.cat(packed), "text.y_xattn_flat")


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORWARDS)
def test_a_call_on_a_gpu(name):
    """In bf16 the attention's projection takes another way there: bf16 factors, float32 sums."""
    c = case(name)
    model, i = build_case(c).cuda(), {key: x.cuda() for key, x in c["in"].items()}
    chunks = contexts_of(model, i["y"], i["mask"])
    velocity = run(model, i["x"], i["t"], (chunks,), RangesView(ranges_of(c)), step_size=step_size(c))
    c.check(velocity.cpu(), "text.velocity")


@pytest.mark.parametrize("name", names("dit_forward_cached"))
def test_calls_that_share_a_cache(name):
    c = case(name)
    model, past, call = build_case(c), {}, c.info["call"]
    for n, info in enumerate(call["calls"]):
        i = {key: c["in"][f"call{n}.{key}"] for key in ("x", "t", "y", "mask", "kv_range_chunks")}
        size = i["x"].shape[3] * i["x"].shape[4] // 4 * call["chunk_width"]
        ranges = [(first * size, last * size) for first, last in i["kv_range_chunks"].tolist()]
        view = RangesView(ranges, past, info["slice_point"] * size)
        chunks = contexts_of(model, i["y"], i["mask"])
        first = info["slice_point"] * call["chunk_width"]
        velocity = run(model, i["x"], i["t"], (chunks,), view, dropped=call["dropped_flag"], first=first)
        c.check(velocity, f"call{n}.velocity")
        for layer, kept in view.seen.items():
            c.check(torch.cat(kept, dim=-1)[0], f"call{n}.kv_cache.layer{layer}")
        past = view.seen


@pytest.mark.parametrize("change", ["ranges", "flag", "prompt", "time", "step", "position"])
def test_cases_notice_what_is_wrong(change):
    name = "dit_forward_swiglu_distill" if change == "step" else "dit_forward"
    c = case(name)
    model, i = build_case(c), c["in"]
    chunks, ranges, times, d, first = contexts_of(model, i["y"], i["mask"]), ranges_of(c), i["t"], step_size(c), 0
    x = i["x"]
    if change == "ranges":
        ranges[2] = (0, ranges[2][1])
    elif change == "prompt":
        chunks = (chunks[1], *chunks[1:])
    elif change == "time":
        times = torch.where(times > 0.99, torch.ones(()), times)
    elif change == "step":
        d = 4.0
    elif change == "position":
        model.rope.bands.mul_(1.01)
    wrong = run(model, x, times, (chunks,), RangesView(ranges), dropped=change == "flag", step_size=d, first=first)
    with pytest.raises(AssertionError, match="off by"):
        c.check(wrong, "text.velocity")


# Embeddings.


def test_sinusoid_of_times_and_step_sizes():
    values = torch.tensor([0.0, 0.003, 0.9999, 8.0])
    got, rates = sinusoid(values, 256), 10_000.0 ** -(torch.arange(128).double() / 128)
    angles = values.double()[:, None] * rates * 1000
    assert got.dtype == torch.float32
    torch.testing.assert_close(got[:3], torch.cat([angles.cos(), angles.sin()], -1).float()[:3], rtol=0, atol=3e-4)
    torch.testing.assert_close(got[3], torch.cat([angles.cos(), angles.sin()], -1).float()[3], rtol=0, atol=3e-3)


def test_times_are_rounded_before_the_float32_products():
    embed = MagiDiT(TINY).t_embedder
    times = torch.tensor([[0.37]])
    rounded = embed.mlp(sinusoid(times, 256).bfloat16().float())
    assert torch.equal(embed(times, torch.bfloat16), rounded)
    assert not torch.equal(embed(times, torch.float32), rounded)


def test_grid_is_centred_and_scaled_to_the_area_of_16_by_16():
    bands = torch.tensor([1.0, 0.5])
    angles = grid_angles(torch.tensor([[7]]), (16, 16), bands).unflatten(1, (16, 16))
    assert angles[0, 3, 5].tolist() == [7.0, 3.5, -4.5, -2.25, -2.5, -1.25]
    wide = grid_angles(torch.tensor([[0]]), (45, 80), bands)[0, :, 2::2]
    torch.testing.assert_close(wide[0], -torch.tensor([45 / 3.75 - 1, 80 / 3.75 - 1]).double() / 2)
    torch.testing.assert_close(wide[0], -wide[-1])


def test_a_grid_of_one_row_is_its_middle():
    assert not grid_angles(torch.tensor([[0]]), (1, 4), torch.ones(2))[..., 2:4].any()


# The call.


def random_call(spec, worlds=2, chunks=3, width=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(worlds, spec.latent_channels, chunks * width, 4, 6, generator=random)
    texts = [torch.randn(3 + 2 * k, spec.text_width, generator=random) for k in range(worlds * chunks)]
    return latents, torch.rand(worlds, chunks, generator=random), texts


def model_of(spec, dtype=torch.float32):
    model = MagiDiT(spec)
    weights = magi_weights(replace(spec, fp8=False))
    weights["x_embedder.weight"] = weights["x_embedder.weight"].flatten(1)
    model.load_state_dict(weights)
    for name, x in model.named_parameters():
        x.data = x.data.to(torch.float32 if magi_layers.island(name) else dtype)
    return model.eval()


RANGES = [(0, 12), (0, 24), (12, 36)]  # chunks of 2 x 6 tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", [TINY, TINY_24B])
def test_worlds_of_a_batch_are_what_they_are_alone(spec, dtype):
    model = model_of(spec, dtype)
    latents, times, texts = random_call(spec)
    contexts = [model.contextualise(text) for text in texts]
    rows = (tuple(contexts[:3]), tuple(contexts[3:]))
    both = run(model, latents, times, rows, RangesView(RANGES))
    for n in range(2):
        one = run(model, latents[n : n + 1], times[n : n + 1], rows[n : n + 1], RangesView(RANGES))
        torch.testing.assert_close(both[n : n + 1], one, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.05)


def test_chunks_that_share_a_prompt_are_read_as_if_they_did_not():
    model = model_of(TINY)
    latents, times, texts = random_call(TINY, worlds=1)
    one, other, again = (model.contextualise(texts[k]) for k in (0, 1, 0))
    shared = run(model, latents, times, ((one, one, other),), RangesView(RANGES))
    apart = run(model, latents, times, ((one, again, other),), RangesView(RANGES))
    torch.testing.assert_close(shared, apart, rtol=0, atol=1e-4)


def test_kernels_agree_on_shared_heads(monkeypatch):
    """Queries of one kv head are folded into tokens, so that any kernel will do."""
    model = model_of(TINY)
    latents, times, texts = random_call(TINY, worlds=1)
    chunks = tuple(model.contextualise(text) for text in texts)
    fused = run(model, latents, times, (chunks,), RangesView(RANGES))
    monkeypatch.setattr("engine.attention.choose_kernel", lambda q: attend_dense)
    monkeypatch.setattr(magi_layers, "choose_kernel", lambda q: attend_dense)
    torch.testing.assert_close(run(model, latents, times, (chunks,), RangesView(RANGES)), fused, rtol=0, atol=1e-4)


def test_a_context_keeps_what_it_was_made_of():
    model = model_of(TINY)
    text = torch.randn(7, 24)
    context = model.contextualise(text)
    assert [tuple(x.shape) for x in context.layers[0]] == [(7, 2, 16), (7, 2, 16)]
    assert len(context.layers) == TINY.layers
    assert context.same(model.contextualise(text))
    # No token sees another: what is read of a few is a part of what is read of all.
    for few, all_of in zip(model.contextualise(text[2:5]).layers[1], context.layers[1], strict=True):
        torch.testing.assert_close(few, all_of[2:5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 3}, r"expected \[N, F, 4, H, W\]"),
        ({"rows": 1}, "a prompt of each chunk of each world"),
        ({"chunks": 2}, "as many for all"),
        ({"step": 8.0}, "expected none, distill=False"),
        ({"missing": True}, "give it the context of the null text"),
    ],
)
def test_calls_that_do_not_fit(change, message):
    spec = replace(TINY, in_channels=4, out_channels=4)
    model = model_of(spec)
    latents, times, texts = random_call(spec)
    contexts = [None if change.get("missing") else model.contextualise(text) for text in texts]
    rows = (tuple(contexts[:3]), tuple(contexts[3 : 3 + change.get("chunks", 3)]))
    with pytest.raises(ValueError, match=message):
        run(
            model,
            latents[:, : change.get("channels", 4)],
            times,
            rows[: change.get("rows", 2)],
            RangesView(RANGES),
            step_size=change.get("step"),
        )


@pytest.mark.parametrize("shape", [(0, 24), (801, 24), (5, 23), (1, 5, 24)])
def test_texts_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"expected \[1 to 800, 24\]"):
        model_of(TINY).contextualise(torch.zeros(shape))


def test_a_distilled_model_needs_a_step_size():
    model = model_of(TINY_DISTILL)
    none = torch.zeros(1, 2, 0)
    context = model.contextualise(torch.zeros(1, 24))
    with pytest.raises(ValueError, match="expected one, distill=True"):
        model(
            torch.zeros(1, 2, 16, 4, 4),
            torch.zeros(1, 2),
            torch.arange(2)[None],
            Condition(none, none, chunks=((context,),)),
            RangesView([(0, 8)]),
        )


# Sizes.


@pytest.mark.parametrize(("spec", "billions"), [(MAGI_4_5B, 4.460), (MAGI_24B, 23.90)])
def test_published_sizes(spec, billions):
    with torch.device("meta"):
        model = MagiDiT(spec)
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    published = magi_shapes(spec)
    assert shapes.pop("x_embedder.weight") == (spec.width, spec.in_channels * 4)
    assert shapes == {name: shape for name, shape in published.items() if name != "x_embedder.weight"}
    assert spec_of_shapes(published, distill=False) == spec
    assert round(sum(x.numel() for x in model.parameters()) / 1e9, 2) == round(billions, 2)


def test_floating_point_operations_of_a_chunk():
    """As counted by hand: 0.11 + 0.22 PFLOP a chunk and step at 720x720, and 1.03 + 1.93 of 24B at 720x1280."""
    small, keys = flops(MAGI_4_5B, 45 * 45, 6, 21, 50), 12_150 * 34 * 4 * 3072
    assert small == pytest.approx(0.33e15, rel=0.1)
    assert small - flops(MAGI_4_5B, 45 * 45, 6, 15, 50) == keys * 45 * 45 * 6
    assert flops(MAGI_24B, 45 * 80, 6, 21, 50) == pytest.approx(2.96e15, rel=0.1)


# Published files.


@pytest.mark.parametrize("spec", [TINY, TINY_DISTILL, TINY_QUANT, TINY_24B])
@pytest.mark.parametrize("shards", [1, 3])
def test_load(tmp_path, spec, shards):
    folder = write_magi(tmp_path / "variant", spec, shards)
    found, model = load_magi(folder, dtype=torch.bfloat16)
    assert found == spec
    assert model.spec == spec
    assert model.dtype == torch.bfloat16
    stored = magi_weights(spec, dtype=torch.bfloat16)
    state = model.state_dict()
    assert state.keys() == stored.keys()
    for name, x in stored.items():
        assert torch.equal(state[name].float(), x.reshape(state[name].shape).float()), name


def test_published_precision(tmp_path):
    """float32: what embeds, turns, norms queries and keys, post-norms and the head. bf16: all else. fp8: as stored."""
    _, model = load_magi(write_magi(tmp_path, TINY_QUANT), dtype=torch.bfloat16)
    wide = "x_embedder y_embedder t_embedder rope final_linear final_layernorm q_layernorm k_layernorm"
    wide += " self_attn_post_norm mlp_post_norm weight_scale input_scale smooth_scale"
    for name, x in model.state_dict().items():
        parts = set(name.split("."))
        if parts & set(wide.split()):
            assert x.dtype == torch.float32, name
        elif "layers.1." in name and parts & {"q", "qx", "k", "v", "linear_fc1", "linear_fc2", "linear_proj"}:
            assert x.dtype == torch.float8_e4m3fn, name
        else:
            assert x.dtype == torch.bfloat16, name


def test_quantised_layers(tmp_path):
    _, model = load_magi(write_magi(tmp_path, TINY_QUANT), dtype=torch.float32)
    first, middle, last = model.layers
    kinds = {"linear_qkv.q": TensorLinear, "linear_qkv.v": TensorLinear, "linear_proj": SmoothLinear}
    for name, kind in kinds.items():
        assert type(middle.self_attention.get_submodule(name)) is kind
        assert not isinstance(first.self_attention.get_submodule(name), TensorLinear | SmoothLinear)
        assert not isinstance(last.self_attention.get_submodule(name), TensorLinear | SmoothLinear)
    assert (type(middle.mlp.linear_fc1), type(middle.mlp.linear_fc2)) == (TensorLinear, SmoothLinear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_model_is_near_the_one_it_was_made_of(tmp_path, dtype):
    _, model = load_magi(write_magi(tmp_path, TINY_QUANT), dtype=dtype)
    latents, times, texts = random_call(TINY_QUANT, worlds=1)
    outs = []
    for one in (model, model_of(replace(TINY_QUANT, fp8=False))):
        chunks = tuple(one.contextualise(text) for text in texts)
        outs.append(run(one, latents, times, (chunks,), RangesView(RANGES), step_size=8.0))
    off = float((outs[0] - outs[1]).square().mean().sqrt() / outs[1].square().mean().sqrt())
    assert 1e-4 < off < 0.15


def test_the_kind_of_weights_that_the_config_asks_for(tmp_path):
    for spec in (TINY, TINY_DISTILL):
        write_magi(tmp_path, spec)  # the last config stays
    found, _ = load_magi(tmp_path)
    assert found == TINY_DISTILL
    found, _ = load_magi(tmp_path, config_json(TINY))
    assert found == TINY
    with pytest.raises(ValueError, match=r"asks for inference_weight\.fp8\.distill, and .* holds"):
        load_magi(tmp_path, config_json(TINY_QUANT))


def test_without_a_config_the_folder_tells_what_no_weight_does(tmp_path):
    folder = write_magi(tmp_path / "variant", TINY_DISTILL, config=False)
    assert load_magi(folder / "inference_weight.distill")[0] == TINY_DISTILL
    write_shards(tmp_path / "other", magi_weights(TINY), shards=1)
    with pytest.raises(ValueError, match="give its config json, or distill="):
        load_magi(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text('{"model_type": "t5"}')  # of something else
    assert load_magi(tmp_path / "other", distill=False)[0] == TINY


def test_whether_weights_are_distilled_is_said_once(tmp_path):
    folder = write_magi(tmp_path, TINY_DISTILL, config=False) / "inference_weight.distill"
    with pytest.raises(ValueError, match=r"distill= says False, the folder inference_weight\.distill says True"):
        load_magi(folder, distill=False)


def test_every_tensor_is_used_once(tmp_path):
    weights = magi_weights(TINY)
    kept = weights.pop("videodit_blocks.layers.1.mlp.linear_fc2.weight")
    weights["videodit_blocks.layers.1.mlp.linear_fc3.weight"] = kept
    weights["rope.bands"] = torch.ones(3)
    write_shards(tmp_path, weights)
    with pytest.raises(ValueError, match="does not fit the model") as error:
        load_magi(tmp_path, config_json(TINY))
    for line in (
        "missing videodit_blocks.layers.1.mlp.linear_fc2.weight [128, 192]",
        "unexpected videodit_blocks.layers.1.mlp.linear_fc3.weight [128, 192] (nearest: videodit_blocks.layers.",
        "rope.bands is [3], expected [2]",
    ):
        assert line in str(error.value)


def test_weights_that_contradict_their_config(tmp_path):
    write_magi(tmp_path, TINY)
    with pytest.raises(ValueError, match=r"layers: the config says 4, the weights 3\n.*gated: the config says True"):
        load_magi(tmp_path, config_json(replace(TINY, layers=4, gated=True)))


def test_fp8_where_there_should_be_none(tmp_path):
    name, weights = "videodit_blocks.layers.0.mlp.linear_fc2.weight", magi_weights(TINY)
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"expected float8_e4m3fn of weights that have a weight_scale.*\n  {name}"):
        load_magi(tmp_path, config_json(TINY))


def test_inputs_of_several_scales_are_refused(tmp_path):
    weights = magi_weights(TINY_QUANT)
    weights["videodit_blocks.layers.1.mlp.linear_fc1.input_scale"][5] = 0.03
    write_shards(tmp_path, weights)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.linear_fc1\.input_scale differs between inputs"):
        load_magi(tmp_path, config_json(TINY_QUANT))


def test_config():
    config = read_config(config_json(TINY))
    assert config.spec == TINY
    assert config.rollout.guidance == Guidance()
    assert (config.rollout.num_steps, config.rollout.window, config.rollout.ranges) == (16, 4, (5, 4, 3, 2))
    assert (config.size, config.chunk, config.fps) == ((32, 48), 6, 24)
    assert read_config(config_json(TINY_DISTILL)).rollout.guidance is None
    causal = config_json(TINY, noise2clean_kvrange=[], clean_chunk_kvrange=-1)
    assert read_config(causal).rollout.clean_range is None


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model_config", {"num_layer": 3}, r"unknown 'num_layer' \(nearest: 'num_layers'\)"),
        ("model_config", {"num_layers": None}, "lacks 'num_layers'"),
        ("model_config", {"apply_layernorm_1p": False}, "expected True"),
        ("model_config", {"num_query_groups": 3}, "over 3 kv heads"),
        ("runtime_config", {"cfg_number": 1}, "cfg_number 1 with distill False, fp8_quant False: expected 3"),
        ("runtime_config", {"num_steps": 18}, "window 4"),
        ("runtime_config", {"scale_factor": 0.5}, "expected 0.18215"),
        ("runtime_config", {"cfg_t_range": [0.0, 0.5]}, "as many weights"),
        ("engine_config", {"distill": True}, "expected 1"),
        ("engine_config", {"shortcut_mode": "8,8,8"}, "expected '8,16,16' or '16,16,8'"),
    ],
)
def test_configs_that_are_none(section, change, message):
    config = config_json(TINY)
    for key, value in change.items():
        config[section][key] = value
        if value is None:
            del config[section][key]
    with pytest.raises(ValueError, match=message):
        read_config(config)


def test_config_files_that_are_none(tmp_path):
    path = tmp_path / "config.json"
    for text, message in (("{", "cannot be read as JSON"), ("[]", "holds a list"), ("{}", "model_config is missing")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_config(path)
    path.write_text(json.dumps({**config_json(TINY), "more": {}}))
    with pytest.raises(ValueError, match="unknown section 'more'"):
        read_config(path)
