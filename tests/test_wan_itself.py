"""The Wan2.1 denoiser against itself (cached, batched, shifted in time), its sizes, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.invariance import LINEARS, WorldLinear
from engine.kv.view import CausalView
from engine.models.matrix_game import IGNORED_SUFFIXES
from engine.models.wan import WanDiT, flops
from engine.published import ActionModule, WanSpec
from engine.spec import KVPolicy
from engine.swap import swap_linears
from tests.wan_cases import Cache, condition_of, random_model

# As in the real ones, what a world gives to an elementwise function fills whole vectors.
TEXT = WanSpec(width=64, ffn=64, heads=2, layers=2, frequencies=32, text_width=16, text_tokens=5)
GAME = replace(
    TEXT,
    in_channels=20,
    text_tokens=0,
    image_width=8,
    image_tokens=3,
    actions=ActionModule((1,), hidden=8, heads=2, head_width=16),
)
SPECS = {"text": TEXT, "image": replace(TEXT, image_width=8, image_tokens=3), "game": GAME}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def random_inputs(spec, worlds=2, frames=3, side=4, seed=1):
    """Latents, times, a position to start at, and the conditions of each world."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    more = spec.in_channels - spec.out_channels
    beside = draw(worlds, frames, more, side, side) if more else None
    module = spec.actions
    actions = draw(worlds, frames, module.frames, module.keyboard + module.mouse) if module else None
    texts = [draw(3 + i, spec.text_width) if spec.text_tokens else None for i in range(worlds)]
    images = [draw(spec.image_tokens, spec.image_width) if spec.image_tokens else None for _ in range(worlds)]
    latents, times = draw(worlds, frames, spec.out_channels, side, side), torch.linspace(900, 100, frames)
    return latents, times.expand(worlds, frames), texts, images, actions, beside


def run(model, inputs, rows=slice(None), frames=slice(None), first=0, view=None, block=3, policy=None):
    """The model's prediction for some worlds and some frames of `random_inputs`."""
    latents, times, texts, images, actions, beside = inputs
    worlds = range(len(latents))[rows]
    contexts = [model.contextualise(texts[i], images[i]) for i in worlds]
    latents, times, actions, beside = (x if x is None else x[rows, frames] for x in (latents, times, actions, beside))
    positions = first + torch.arange(latents.shape[1], device=latents.device).expand(latents.shape[:2])
    streams = {"self": (latents.shape[-1] // model.spec.patch) ** 2, "keyboard": 1}
    streams["mouse"] = streams["self"]
    view = view or CausalView(policy or KVPolicy(window=None), streams, block=block, chunk=block)
    condition = condition_of(contexts, actions, beside)
    return model(latents.to(model.head.modulation), times, positions, condition, view)[0]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_worlds_side_by_side_are_as_each_alone(spec):
    model, inputs = random_model(spec), random_inputs(spec)
    together = run(model, inputs)
    alone = torch.cat([run(model, inputs, slice(i, i + 1)) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_worlds_are_the_same_to_the_bit_with_a_product_each(spec, dtype):
    model = swap_linears(random_model(spec, dtype=dtype), WorldLinear, LINEARS)
    inputs = random_inputs(spec, worlds=3)
    together = run(model, inputs)
    for i in range(3):
        assert torch.equal(together[i : i + 1], run(model, inputs, slice(i, i + 1)))


@pytest.mark.parametrize("policy", [KVPolicy(window=None), KVPolicy(window=3), KVPolicy(window=1)])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_masked_sequence_is_as_cached_blocks(spec, policy):
    model, inputs = random_model(spec), random_inputs(spec, frames=9)
    masked = [run(model, inputs, policy=policy)]
    if spec.actions is None or policy.window is None:
        latents = inputs[0]
        streams = {"self": 4, "mouse": 4, "keyboard": 1}
        view = CausalView(policy, streams, block=3, chunk=latents.shape[1])
        masked.append(run(model, inputs, view=view))
    cache = Cache({"self": 4, "mouse": 4, "keyboard": 1}, 3 + (9 if policy.window is None else policy.window))
    blocks = [run(model, inputs, frames=slice(f, f + 3), first=f, view=cache) for f in (0, 3, 6)]
    for whole in masked:
        torch.testing.assert_close(torch.cat(blocks, dim=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_only_distances_in_time_matter(spec, published):
    model, inputs = random_model(replace(spec, published=published)), random_inputs(spec)
    near, far, farther = (run(model, inputs, first=first) for first in (0, 2000, 10**6))
    torch.testing.assert_close(far, near, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(farther, near, rtol=1e-5, atol=1e-5)
    assert (run(model, inputs, block=1) - near).abs().max() > 1e-3


@pytest.mark.parametrize("part", ["keyboard", "mouse", "beside", "text", "image"])
def test_everything_that_steers_matters(part):
    spec = SPECS["image"] if part in ("text", "image") else GAME
    model, inputs = random_model(spec), list(random_inputs(spec))
    before = run(model, inputs)
    if part in ("text", "image"):
        rows = inputs[2 if part == "text" else 3]
        inputs[2 if part == "text" else 3] = [-x for x in rows]
    else:
        at = 5 if part == "beside" else 4
        change = torch.zeros_like(inputs[at])
        cut = {"keyboard": slice(0, 4), "mouse": slice(4, 6), "beside": slice(None)}[part]
        change[..., cut] = 1
        inputs[at] = inputs[at] + change
    assert (run(model, inputs) - before).abs().max() > 1e-3


def test_a_context_can_be_made_again_from_its_source():
    model = random_model(SPECS["image"])
    text, image, beside = torch.randn(2, 16), torch.randn(3, 8), torch.randn(1, 4, 4, 4)
    context = model.contextualise(text, image, beside)
    again = model.contextualise(**context.source)
    assert len(context.layers) == 2
    assert [x.shape for x in context.layers[0]] == [(5, 2, 32), (5, 2, 32), (3, 2, 32), (3, 2, 32)]
    for layer, same in zip(context.layers, again.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, same, strict=True))
    assert context.beside is beside


# Sizes.


def meta(spec):
    with torch.device("meta"):
        return WanDiT(spec)


UNIVERSAL = WanSpec(in_channels=36, text_tokens=0, image_tokens=257, actions=ActionModule(tuple(range(15))))
LARGE = WanSpec(width=5120, ffn=13824, heads=40, layers=40)


@pytest.mark.parametrize(
    ("spec", "parameters", "tensors"),
    [
        (WanSpec(), 1_418_996_800, 825),
        (LARGE, 14_288_491_584, 1095),
        (replace(LARGE, in_channels=36, image_tokens=257), 16_394_878_784, 1303),
        (UNIVERSAL, 1_619_242_304, 1114),
    ],
)
def test_published_sizes(spec, parameters, tensors):
    model = meta(spec)
    ignored = len(spec.actions.layers) * len(IGNORED_SUFFIXES) if spec.actions else 0
    width = spec.actions.head_width if spec.actions else 0
    assert sum(p.numel() for p in model.parameters()) + ignored * width == parameters
    assert len(model.state_dict()) + ignored == tensors


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_flops_are_those_that_torch_counts(spec):
    """In bf16, where attention on a CPU is made of products, which torch counts."""
    model, inputs = random_model(spec, dtype=torch.bfloat16), random_inputs(spec, worlds=1, frames=7)
    cache = Cache({"self": 4, "mouse": 4, "keyboard": 1}, 7)
    run(model, inputs, frames=slice(0, 4), view=cache)
    with FlopCounterMode(display=False) as whole:
        run(model, inputs, frames=slice(4, 7), first=4, view=cache)
    with FlopCounterMode(display=False) as context:
        model.contextualise(inputs[2][0], inputs[3][0])
    assert whole.get_total_flops() - context.get_total_flops() == flops(spec, 4, 3, 4)


@pytest.mark.parametrize(
    ("spec", "tokens", "history", "teraflops"),
    [(WanSpec(), 1560, 18, 40.4), (WanSpec(), 1560, 9, 28.3), (WanSpec(), 1560, 0, 16.2), (LARGE, 1560, 3, 149.7)],
)
def test_flops_of_published_sizes(spec, tokens, history, teraflops):
    assert flops(spec, tokens, 3, history) / 1e12 == pytest.approx(teraflops, rel=2e-3)


def moved(inputs, device):
    """`random_inputs` on another device."""
    if isinstance(inputs, list | tuple):
        return [moved(x, device) for x in inputs]
    return None if inputs is None else inputs.to(device)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_no_value_is_read_back(spec):
    """On the meta device reading a value, or mixing in a tensor made on the CPU, raises."""
    view = Cache({"self": 4, "mouse": 4, "keyboard": 1}, 6)
    assert run(meta(spec), moved(random_inputs(spec), "meta"), view=view).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_host_never_waits_for_the_device(spec):
    model, inputs = random_model(spec, dtype=torch.bfloat16).cuda(), moved(random_inputs(spec), "cuda")
    views = [Cache({"self": 4, "mouse": 4, "keyboard": 1}, 6) for _ in range(2)]
    first = run(model, inputs, view=views[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = run(model, inputs, view=views[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, again)


# Bad input.


@pytest.mark.parametrize(
    ("text", "image", "match"),
    [
        (torch.zeros(6, 16), torch.zeros(3, 8), r"\(6, 16\): expected \[at most 5, 16\]"),
        (torch.zeros(5, 15), torch.zeros(3, 8), r"\(5, 15\): expected"),
        (torch.zeros(5, 16), torch.zeros(2, 8), r"\(2, 8\): expected \[3, 8\]"),
        (torch.zeros(5, 16), None, "needs the image"),
        (None, torch.zeros(3, 8), "needs the text"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(text, image, match):
    with pytest.raises(ValueError, match=match):
        random_model(SPECS["image"]).contextualise(text, image)


def test_a_prompt_for_a_model_without_text_is_refused():
    with pytest.raises(ValueError, match="takes no text"):
        random_model(GAME).contextualise(torch.zeros(5, 16), torch.zeros(3, 8))


@pytest.mark.parametrize(("at", "match"), [(4, "actions have the shape"), (5, "expected \\[N, F, 20, H, W\\]")])
def test_inputs_that_do_not_fit_are_refused(at, match):
    inputs = list(random_inputs(GAME))
    inputs[at] = inputs[at][:, :, 1:]
    with pytest.raises(ValueError, match=match):
        run(random_model(GAME), inputs)
