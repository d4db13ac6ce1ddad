"""Published worlds in the engine: opening them, prompts and pictures, rewrites, restarts, snapshots, long rollouts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

import engine
from engine import Context, GivenNoise, KVPolicy, PoolFull, Start
from engine.kv.paged import PagedView
from engine.kv.pool import Pool
from engine.kv.view import CausalView
from engine.noise import SeededNoise
from tests import published as p
from tests import published_sims as ps
from tests.published_sims import PlainRollout, act, apart, begin, identical, make_sim, prompt, roll, step
from tests.sims import FailsAtItsSecondCall, check_pages
from tests.worlds import make_world

slow = partial(pytest.param, marks=pytest.mark.slow)

LONGLIVE = {"window": 6, "sink": 1, "block": 1, "rewrite": "window"}
CAUSVID = {"window": 9, "sink": 0, "block": 3, "restart": (9, 3), "codec": "vae", "steps": (1000,)}


# --- opening -------------------------------------------------------------------------------------------------------


def open_tiny(path, **extras):
    return engine.load(path, "cpu", "float32", extras.pop("preset", ps.preset()), **{"codec": "preview", **extras})


def test_a_world_folder_loads_as_before(tmp_path):
    folder = make_world(tmp_path / "tiny")
    assert engine.load(folder).spec.name == "tiny"
    with pytest.raises(ValueError, match=r"world folder.*preset"):
        engine.load(folder, preset="causvid")
    with pytest.raises(ValueError, match=r"world folder.*codec"):
        engine.load(folder, codec="preview")


def test_a_published_file_without_a_preset_names_the_presets():
    with pytest.raises(ValueError, match=r"preset=.*PRESETS") as error:
        engine.load(ps.checkpoint())
    assert "self-forcing" in str(error.value)


def test_a_mistyped_path_is_no_published_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "worlds").mkdir()
    with pytest.raises(ValueError, match="no world at worlds/doom"):
        engine.load("worlds/doom")


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'longlive'"):
        engine.load(ps.checkpoint(), preset="longlve")


@pytest.mark.parametrize(("kind", "other"), [("text", "game"), ("game", "text")])
def test_weights_and_preset_have_to_go_together(kind, other):
    with pytest.raises(ValueError, match=r"Matrix-Game.*preset"):
        open_tiny(ps.checkpoint(kind), preset=ps.preset(other))


def test_a_preset_of_other_keys_is_refused():
    with pytest.raises(ValueError, match="'gta_drive' has 2 keys, and the weights are for 4"):
        open_tiny(ps.checkpoint("game"), preset=replace(ps.preset("game"), mode="gta_drive"))


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"codek": "preview"}, "'codek'.*codec"),
        ({"codec": "mp4"}, "codec 'mp4'"),
        ({"numerics": "quick"}, "numerics 'quick'"),
        ({"size": (32, 50)}, "multiples of 16"),
        ({"base": "/nowhere"}, "base '/nowhere'"),
        ({"lora": "/nowhere/lora.pt"}, "/nowhere/lora.pt"),
    ],
)
def test_arguments_are_checked(extras, message):
    with pytest.raises(ValueError, match=message):
        open_tiny(ps.checkpoint(), **extras)


def test_a_missing_vae_is_named_with_where_it_was_looked_for(tmp_path):
    path = p.write_self_forcing(tmp_path, p.tiny_wan_tensors(ps.TEXT))
    with pytest.raises(ValueError, match=r"Wan2\.1_VAE\.pth.*checkpoints.*codec='preview'"):
        open_tiny(path, codec="vae")
    elsewhere = tmp_path / "elsewhere"
    p.write_torch(elsewhere / "Wan2.1_VAE.pth", ps.tiny_vae().state_dict())
    model = open_tiny(path, codec="vae", base=elsewhere)
    assert model.codec.spec == ps.TINY_VAE


def test_a_codec_of_other_latents_is_refused(tmp_path):
    path = p.write_self_forcing(tmp_path, p.tiny_wan_tensors(ps.TEXT))
    torch.manual_seed(0)
    vae = type(ps.tiny_vae())(replace(ps.TINY_VAE, channels=8), mean=[0.0] * 8, std=[1.0] * 8)
    p.write_torch(tmp_path / "Wan2.1_VAE.pth", vae.state_dict())
    with pytest.raises(ValueError, match=r"8 latent channels|8 channels"):
        open_tiny(path, codec="vae")


def weights(model):
    return {name: x.clone() for name, x in model.denoiser.state_dict().items()}


def test_the_adapter_beside_longlive_is_merged_and_another_where_it_is_named(tmp_path):
    tensors = p.tiny_wan_tensors(ps.TEXT)
    lora, other = p.tiny_lora(tensors), p.tiny_lora(tensors, seed=1)
    base, _ = p.write_longlive(tmp_path, tensors, lora)
    elsewhere = p.write_torch(tmp_path / "other" / "lora.pt", {"generator_lora": p.peft_names(other)})
    name = "blocks.0.self_attn.q"
    longlive = replace(ps.preset("text"), adapter=True)
    for made, used in ((open_tiny(base, preset=longlive), lora), (open_tiny(base, lora=elsewhere), other)):
        want = tensors[f"{name}.weight"] + used[f"{name}.lora_B"] @ used[f"{name}.lora_A"]
        torch.testing.assert_close(weights(made)[f"{name}.weight"], want, atol=1e-6, rtol=1e-5)
    half = open_tiny(base, preset=longlive, lora_alpha=2.0)  # of rank 4
    want = tensors[f"{name}.weight"] + 0.5 * lora[f"{name}.lora_B"] @ lora[f"{name}.lora_A"]
    torch.testing.assert_close(weights(half)[f"{name}.weight"], want, atol=1e-6, rtol=1e-5)


def test_a_game_may_choose_pages_of_a_long_memory():
    """Only the self-attention chooses: the memories of mouse and keyboard are as long as the window."""
    every, few = (ps.make_sim("game", policy=KVPolicy(2, top_k=k, memory=6)) for k in (6, 1))
    world, other = ps.begin(every), ps.begin(few)
    seen, less = ps.roll(every, world, 5), ps.roll(few, other, 5)
    assert all(made.latents.isfinite().all() for made in [*seen, *less])
    torch.testing.assert_close(seen[0].latents, less[0].latents, atol=1e-5, rtol=1e-4)  # there is no history yet
    assert not torch.equal(seen[-1].latents, less[-1].latents)
    few.close(other)
    assert few.pool.num_held == 0


def test_a_base_without_its_adapter_is_refused_unless_one_says_so(tmp_path):
    tensors = p.tiny_wan_tensors(ps.TEXT)
    path = p.write_self_forcing(tmp_path, tensors)
    longlive = replace(ps.preset("text"), adapter=True)
    with pytest.raises(ValueError, match=r"no lora\.pt beside it.*lora='none'"):
        open_tiny(path, preset=longlive)
    made = open_tiny(path, preset=longlive, lora="none")
    name = "blocks.0.self_attn.q.weight"
    torch.testing.assert_close(weights(made)[name], tensors[name])


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_truncated_checkpoint_fails_before_anything_is_allocated(tmp_path, monkeypatch, suffix):
    tensors = p.prefixed(p.tiny_wan_tensors(ps.TEXT))
    path = tmp_path / f"model.{suffix}"
    (p.write_safetensors if suffix == "safetensors" else p.write_torch)(path, tensors)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    monkeypatch.setattr("engine.opening_wan.fill", lambda *a, **k: pytest.fail("something was allocated"))
    with pytest.raises(ValueError, match="cut short"):
        open_tiny(path)


def test_a_checkpoint_without_one_tensor_fails_before_a_number_is_read(tmp_path, monkeypatch):
    tensors = p.prefixed(p.tiny_wan_tensors(ps.TEXT))
    del tensors["model.blocks.1.ffn.2.bias"]
    path = p.write_safetensors(tmp_path / "model.safetensors", tensors)
    monkeypatch.setattr("engine.checkpoints.filling._placed", lambda *a: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match=r"missing blocks\.1\.ffn\.2\.bias"):
        open_tiny(path)


@pytest.mark.parametrize("kind", ["text", slow("game")])
def test_fast_numerics_differ_from_the_published_ones_by_rounding(kind):
    """Over 6 blocks: float32 to 1e-5 of latents of unit size; bf16 a relative RMS below 2 %, a PSNR above 50 dB (of
    the latents' range); measured, 0.6 % and 61 dB."""
    made = {}
    for dtype in ("float32", "bfloat16"):
        for numerics in ("published", "fast"):
            sim = make_sim(kind, dtype=dtype, numerics=numerics)
            made[dtype, numerics] = torch.cat([b.latents for b in roll(sim, begin(sim), 6)])
    torch.testing.assert_close(made["float32", "fast"], made["float32", "published"], atol=1e-5, rtol=1e-5)
    want, off = made["bfloat16", "published"], made["bfloat16", "fast"] - made["bfloat16", "published"]
    rms = float(off.square().mean().sqrt())
    assert 0 < rms / float(want.square().mean().sqrt()) < 0.02
    assert 20 * np.log10(float(want.max() - want.min()) / rms) > 50
    assert torch.equal(want, want.bfloat16().float())  # the published code keeps latents in bf16
    assert not torch.equal(made["bfloat16", "fast"], made["bfloat16", "fast"].bfloat16().float())


# --- worlds side by side -------------------------------------------------------------------------------------------

SIDES = {
    "text": {"window": 6, "sink": 1},
    "relative": {"window": 6, "sink": 1, "relative": True},
    "whole": {"window": None, "sink": 0},
    "bf16": {"window": 6, "sink": 1, "dtype": "bfloat16"},
    "game": {"kind": "game", "window": 6, "sink": 0},
    "vae": {"codec": "vae", "steps": (1000,)},
    "longlive": LONGLIVE,
}


def staggered(sim, count=5):
    """Three worlds of other prompts, opened one block after another, then stepped together."""
    worlds, made = [], [[], [], []]
    for turn in range(count + 2):
        if turn < 3:
            worlds.append(begin(sim, seed=turn))
        conditions = [act(sim, w, seed=i) for i, w in enumerate(worlds)]
        if turn == 4:
            conditions[1] = replace(conditions[1], prompt=prompt(sim, 50))
        order = list(range(len(worlds)))[::-1]  # rows are no places
        for i, block in zip(order, step(sim, [worlds[i] for i in order], [conditions[i] for i in order]), strict=True):
            made[i].append(block)
    return made


def alone(sim, i, count):
    return roll(sim, begin(sim, seed=i), count, seed=i, prompts={4 - i: prompt(sim, 50)} if i == 1 else None)


@pytest.mark.parametrize("name", ["text", "whole", "bf16", "game", *map(slow, ("relative", "vae", "longlive"))])
def test_worlds_of_other_ages_and_prompts_are_what_they_are_alone_to_the_bit(name):
    sim = make_sim(**SIDES[name], max_worlds=6)
    for i, made in enumerate(staggered(sim)):
        assert identical(made, alone(sim, i, len(made)))


@pytest.mark.parametrize("name", ["text", "game", "longlive"])
def test_one_product_of_all_worlds_agrees_to_rounding(name):
    sim = make_sim(**SIDES[name], max_worlds=6, deterministic=False)
    for i, made in enumerate(staggered(sim)):
        assert apart(made, alone(sim, i, len(made))) < 1e-4


# --- forks and snapshots -------------------------------------------------------------------------------------------

KEPT = {
    "text": {"window": 6, "sink": 1},
    "relative": {"window": 6, "sink": 1, "relative": True},
    "game": {"kind": "game", "window": 6, "sink": 0},
    "longlive": LONGLIVE,
    "longlive-all": {**LONGLIVE, "rewrite": "all"},
    "longlive-endless": {**LONGLIVE, "relative": True},
    "vae": {"codec": "vae", "steps": (1000,)},
    "causvid": CAUSVID,
    "first": {"first_block": 1},
    "int8": {"kv_dtype": "int8", "relative": True},
    "top-k": {"policy": KVPolicy(2, sink=1, top_k=2, memory=6), "relative": True},
    "offload": {"policy": KVPolicy(2, sink=1, top_k=2, memory=6), "offload": True},
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("age", [slow(1), 5])
def test_six_blocks_after_a_restore_are_the_same_bits(name, age, tmp_path):
    sim = make_sim(**KEPT[name], max_worlds=2)
    world = begin(sim, seed=3)
    roll(sim, world, age)
    sim.save(world, tmp_path / "world")
    again = sim.restore(tmp_path / "world")
    assert identical(roll(sim, world, 6), roll(sim, again, 6))
    for w in (world, again):
        sim.close(w)
    check_pages(sim, [])


@pytest.mark.parametrize(
    ("rewrite", "age"), [("window", 8), ("all", 8), *(slow(r, a) for r in ("window", "all") for a in (3, 6))]
)
def test_a_snapshot_right_before_and_right_after_a_new_prompt(rewrite, age):
    sim = make_sim(**{**LONGLIVE, "rewrite": rewrite}, max_worlds=3)
    world, new = begin(sim, seed=3), prompt(sim, 9)
    roll(sim, world, age)
    before = sim.restore(sim.snapshot(world))
    first = roll(sim, world, 1, prompts={0: new})
    after = sim.restore(sim.snapshot(world))
    rest = roll(sim, world, 5)
    assert identical(first + rest, roll(sim, before, 6, prompts={0: new}))
    assert identical(rest, roll(sim, after, 5))


OTHER_PROCESS = """
import sys
import torch
from tests.published_sims import make_sim, prompt, roll
from tests.test_published import KEPT
torch.set_num_threads(int(sys.argv[4]))
sim = make_sim(**KEPT[sys.argv[1]])
torch.save(roll(sim, sim.restore(sys.argv[2]), 6, prompts={2: prompt(sim, 9)}), sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text", "longlive", "game", "causvid"])
def test_six_blocks_in_another_process_are_the_same_bits(name, tmp_path):
    sim = make_sim(**KEPT[name])
    world = begin(sim, seed=3)
    roll(sim, world, 5)
    sim.save(world, tmp_path / "world")
    want = roll(sim, world, 6, prompts={2: prompt(sim, 9)})
    arguments = [name, tmp_path / "world", tmp_path / "made", torch.get_num_threads()]
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, *map(str, arguments)], check=True)
    assert identical(want, torch.load(tmp_path / "made", weights_only=False))


QUICK = ("text", "game", "longlive-all", "top-k")


@pytest.mark.parametrize("name", [*QUICK, *(slow(name) for name in KEPT if name not in QUICK)])
def test_forks_of_one_future_agree_others_differ_and_the_parent_is_untouched(name):
    sim = make_sim(**KEPT[name], max_worlds=6)
    parent, twin = begin(sim, seed=3), begin(sim, seed=3)
    roll(sim, parent, 5)
    roll(sim, twin, 5)
    forks = sim.fork(parent, 3)
    assert all(f.context is parent.context for f in forks)  # memory is shared
    new, other = prompt(sim, 9), prompt(sim, 10)
    futures = [roll(sim, f, 4, prompts={1: c}) for f, c in zip(forks, (new, new, other), strict=True)]
    assert identical(futures[0], futures[1])
    assert identical(futures[0][:1], futures[2][:1])
    assert not identical(futures[0][1:], futures[2][1:])
    check_pages(sim, [parent, twin, *forks])
    [reseeded] = sim.fork(parent, seeds=[99])
    assert not identical(roll(sim, reseeded, 1), futures[0][:1])
    assert identical(roll(sim, parent, 4), roll(sim, twin, 4))
    for world in (parent, twin, reseeded, *forks):
        sim.close(world)
    check_pages(sim, [])
    assert sim.pool.num_held == 0


# --- cached = recomputed -------------------------------------------------------------------------------------------


class Recorder(torch.nn.Module):
    """A denoiser that keeps its last prediction."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.last = denoiser, None

    def forward(self, *arguments):
        made = self.denoiser(*arguments)
        self.last = made[0]
        return made


def recorded(sim) -> Recorder:
    recorder = Recorder(sim.runner.model.denoiser)
    sim.runner.model = replace(sim.runner.model, denoiser=recorder)
    return recorder


WINDOWS = [(None, 0, 3), (6, 1, 3), (9, 0, 3), (4, 1, 1), (8, 3, 2), (3, 0, 3)]
MASKED = [("text", 6, 1, 3), ("text", 8, 3, 2), ("text", None, 0, 3), ("game", 6, 0, 3), ("game", 4, 1, 1)]
REST = [case for case in ((kind, *sizes) for kind in ("text", "game") for sizes in WINDOWS) if case not in MASKED]


@pytest.mark.parametrize(("kind", "window", "sink", "block"), [*MASKED, *(slow(*case) for case in REST)])
def test_the_cached_history_equals_one_masked_pass(kind, window, sink, block):
    """After 7 blocks: the last commit's flow, and one pass over all clean latents, each seeing what its block may."""
    sim = make_sim(kind, window=window, sink=sink, block=block)
    recorder, world = recorded(sim), begin(sim, seed=3)
    rows, latents = [], []
    for _ in range(7):
        condition = act(sim, world)
        rows.append(condition.actions.numpy())
        latents += step(sim, [world], [condition])[0].latents
    count, module = len(latents), sim.spec.action_module
    actions = torch.zeros(1, count, 0)
    if module:
        given = np.concatenate(rows)
        shown = [[max(0, 4 * f - 12 + i) for i in range(12)] for f in range(count)]
        actions = torch.from_numpy(given[np.array(shown)])[None]
    condition = sim.runner.condition([replace(world, table=type(world.table)())], actions, torch.zeros(1, count, 0))
    view = CausalView(sim.policy, {s.name: s.tokens for s in sim.spec.streams}, block=block)
    with torch.inference_mode():
        flow, _ = sim.given.denoiser(
            torch.stack(latents)[None], torch.zeros(1, count), torch.arange(count)[None], condition, view
        )
    torch.testing.assert_close(recorder.last, flow[:, -block:], atol=2e-5, rtol=1e-4)


# --- new prompts ---------------------------------------------------------------------------------------------------


SIZES = [(6, 1, 1), (8, 2, 2), (6, 0, 3)]
SWITCHES = [(r, relative, SIZES[0], 0) for r in ("", "window", "all") for relative in (False, True)]
SWITCHES += [("window", False, SIZES[1], 0), ("all", False, SIZES[2], 0)]
MORE = [c for c in product(("", "window", "all"), (False, True), SIZES, (-1, 0, 1)) if c not in SWITCHES]


@pytest.mark.parametrize(("rewrite", "relative", "sizes", "at"), [*SWITCHES, *(slow(*case) for case in MORE)])
def test_new_prompts_equal_a_rollout_with_plain_lists(rewrite, relative, sizes, at):
    """Prompts at the window's length, below and above it, right after one another, and back; then 8 blocks more."""
    window, sink, block = sizes
    sim = make_sim(window=window, sink=sink, block=block, rewrite=rewrite, relative=relative)
    contexts = [prompt(sim, i) for i in range(3)]
    world, plain = begin(sim, seed=3, context=contexts[0]), PlainRollout(sim, 3, contexts[0])
    first = max(1, window // block + at)
    prompts = {first: contexts[1], first + 1: contexts[2], first + 4: contexts[0]}
    for i in range(first + 12):
        [made] = roll(sim, world, 1, prompts={0: prompts[i]} if i in prompts else None)
        torch.testing.assert_close(made.latents, plain.step(prompts.get(i)), atol=2e-5, rtol=1e-4)
    check_pages(sim, [world])
    assert len(world.table.pages) == window - block
    assert world.latents.shape[0] == (window if rewrite else block)


def test_a_history_exactly_as_long_as_the_window_gets_new_sinks():
    """Up to there nothing has been given up: all of it is rewritten, and one latent later the sinks are kept."""
    sim = make_sim(**LONGLIVE, max_worlds=2)
    for age, changed in ((6, True), (7, False)):
        world = begin(sim, seed=3)
        roll(sim, world, age)
        before = sim.pool.range(1, world.table.pages[0], 1)[0].clone()
        roll(sim, world, 1, prompts={0: prompt(sim, 9)})
        assert world.table.positions[0] == 0
        assert torch.equal(before, sim.pool.range(1, world.table.pages[0], 1)[0]) != changed
        sim.close(world)


def test_a_prompt_takes_effect_with_the_block_it_comes_with():
    sim = make_sim(max_worlds=2)
    a, b = begin(sim, seed=3), begin(sim, seed=3)
    assert identical(roll(sim, a, 2), roll(sim, b, 2))
    assert not identical(roll(sim, a, 1, prompts={0: prompt(sim, 9)}), roll(sim, b, 1))


def test_in_a_batch_only_the_world_with_a_new_prompt_is_rewritten():
    sim = make_sim(**LONGLIVE, max_worlds=6)
    worlds, twins = ([begin(sim, seed=i) for i in range(3)] for _ in range(2))
    new = prompt(sim, 9)
    for turn in range(10):
        conditions = [act(sim, w, prompt=new if (turn, i) == (7, 1) else None) for i, w in enumerate(worlds)]
        made = step(sim, worlds, conditions)
        each = [roll(sim, t, 1, prompts={0: new} if (turn, i) == (7, 1) else None) for i, t in enumerate(twins)]
        assert all(identical([m], e) for m, e in zip(made, each, strict=True))
    check_pages(sim, worlds + twins)


@pytest.mark.parametrize("equal", ["object", "text"])
def test_the_same_prompt_again_changes_nothing(equal):
    """Neither the very context nor one of the same words is a new prompt; and coming back is never stale."""
    sim = make_sim(**LONGLIVE, max_worlds=3)

    def words(seed, cache={}):  # noqa: B006
        return cache.setdefault(seed, prompt(sim, seed)) if equal == "object" else prompt(sim, seed)

    world, plain = begin(sim, seed=3, context=words(0)), begin(sim, seed=3, context=words(0))
    assert identical(roll(sim, world, 9, prompts=dict.fromkeys(range(9), words(0))), roll(sim, plain, 9))
    again = sim.restore(sim.snapshot(world))
    assert identical(roll(sim, again, 2, prompts={0: words(0)}), roll(sim, world, 2))
    there = {0: words(1), 2: words(0), 4: words(1), 5: words(1)}
    fresh = {0: prompt(sim, 1), 2: prompt(sim, 0), 4: prompt(sim, 1)}
    assert identical(roll(sim, again, 8, prompts=there), roll(sim, world, 8, prompts=fresh))


@pytest.mark.parametrize("rewrite", ["window", slow("all")])
def test_rewrites_while_forks_share_pages(rewrite):
    sim = make_sim(**{**LONGLIVE, "rewrite": rewrite}, max_worlds=4)
    parent = begin(sim, seed=3)
    roll(sim, parent, 9)
    forks = sim.fork(parent, 3)
    lone = make_sim(**{**LONGLIVE, "rewrite": rewrite})
    for i, world in enumerate([*forks, parent]):
        made = roll(sim, world, 4, prompts={0: prompt(sim, 10 + i), 2: prompt(sim, 20)})
        check_pages(sim, [parent, *forks])
        twin = begin(lone, seed=3)
        roll(lone, twin, 9)
        assert identical(made, roll(lone, twin, 4, prompts={0: prompt(sim, 10 + i), 2: prompt(sim, 20)}))
        lone.close(twin)


@pytest.mark.parametrize("rewrite", ["window", "all"])
@pytest.mark.parametrize("offload", [False, True])
def test_a_rewrite_keeps_the_pages_that_a_longer_memory_wants(rewrite, offload):
    """Those before the window stay as they were, to be chosen from; nothing is lost or held twice."""
    policy = KVPolicy(3, sink=1, pages=(2,), top_k=1, memory=4)
    sim = make_sim(**{**LONGLIVE, "rewrite": rewrite}, policy=policy, offload=offload, max_worlds=2)
    world = begin(sim, seed=3)
    for i in range(24):
        roll(sim, world, 1, prompts={0: prompt(sim, i)} if i in (3, 9, 10, 17) else None)
        check_pages(sim, [world])
    assert torch.isfinite(world.latents).all()
    again = sim.restore(sim.snapshot(world))
    assert identical(roll(sim, world, 3), roll(sim, again, 3))


# --- without end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "block", "relative"), [(51, 25, False), (51, 25, True), slow(6, 3, False), slow(6, 3, True)]
)
def test_eleven_hundred_latents_are_no_trouble(window, block, relative):
    """Past the 21 of training and the 1,024 of the published tables; what is held stays what it was."""
    sim = make_sim(window=window, block=block, steps=(1000,), relative=relative, max_worlds=2)
    world = begin(sim, seed=3)
    [data] = {sim.pool.range(0, 0, 1)[0].data_ptr()}
    roll(sim, world, 3)
    held, kept = sim.pool.num_held, world.latents.nbytes
    while world.table.length < 1_100:
        [made] = roll(sim, world, 1)
        assert (sim.pool.num_held, world.latents.nbytes) == (held, kept)
    assert held == window - block
    assert torch.isfinite(made.latents).all()
    assert 0.1 < float(made.latents.std()) < 10
    assert len(made.frames) == 4 * block
    assert sim.pool.range(0, 0, 1)[0].data_ptr() == data
    [fork] = sim.fork(world)
    assert identical(roll(sim, fork, 1), roll(sim, world, 1))


def test_a_world_without_a_window_stops_before_it_takes_what_is_others(monkeypatch):
    monkeypatch.setattr("engine.sizing.FULL_HISTORY", 12)
    sim = make_sim(window=None, sink=0, steps=(1000,), max_worlds=2)
    long, other = begin(sim, seed=3), begin(sim, seed=4)
    roll(sim, long, 5)
    before = [(w.block, [*w.table.pages], w.latents) for w in (long, other)]
    conditions = [act(sim, other), act(sim, long)]
    with pytest.raises(PoolFull, match=r"15 latent frames.*15 pages \([\d,]+ bytes\).*window"):
        sim.step([other, long], conditions)
    for world, (block, pages, latents) in zip((long, other), before, strict=True):
        assert (world.block, world.table.pages) == (block, pages)
        assert world.latents is latents
    check_pages(sim, [long, other])
    assert len(roll(sim, other, 5)) == 5
    sim.close(long)
    with pytest.raises(PoolFull, match="18 more"):
        begin(sim, latents=torch.zeros(18, *sim.spec.latent))
    check_pages(sim, [other])


# --- histories that begin anew -------------------------------------------------------------------------------------


def test_a_history_begins_anew_from_a_picture_of_its_overlap():
    """Published: 21 latents, of which 3 overlap. The 8th block sees the encoding of the frame where the overlap
    begins and the two clean latents after it, at positions 0 .. 2; it shows frames 3 .. 5 of that."""
    sim = make_sim(codec="vae", window=21, sink=0, steps=(1000,), restart=(21, 3), max_worlds=4)
    world = begin(sim, seed=3)
    made = roll(sim, world, 7)
    assert world.table.length == 21
    frames = np.concatenate([b.frames for b in made])
    assert len(frames) == 81
    before = sim.restore(sim.snapshot(world))
    past = torch.cat([b.latents for b in made])
    with torch.inference_mode():
        picture, _ = sim.given.codec.encode(torch.from_numpy(frames[-(4 * (3 - 1) + 1)])[None, None])
    latents = torch.cat([picture[0].float(), past[-2:]])

    [eighth] = roll(sim, world, 1)
    assert world.table.positions == [0, 1, 2, 3, 4, 5]
    assert world.block == 8
    assert eighth.frames.shape[0] == 12
    twin = begin(sim, seed=3, latents=latents)
    twin.block = 7  # noise keys go on
    assert identical([eighth], roll(sim, twin, 1))
    after = sim.restore(sim.snapshot(world))
    sim.close(twin)
    rest = roll(sim, world, 7)  # over the next beginning, too
    assert identical([eighth, *rest], roll(sim, before, 8))
    assert identical(rest, roll(sim, after, 7))
    assert all(len(b.frames) == 12 for b in rest)
    assert world.table.length == 9
    check_pages(sim, [world, before, after])


@pytest.mark.slow
@pytest.mark.parametrize(("window", "restart"), [(9, (9, 3)), (None, (21, 3))])
def test_worlds_begin_anew_each_in_its_own_time(window, restart):
    sim = make_sim(**{**CAUSVID, "window": window, "restart": restart}, max_worlds=6)
    worlds = [begin(sim, seed=i) for i in range(3)]
    for i, world in enumerate(worlds):
        roll(sim, world, i)
    rows = worlds[::-1]  # the first to begin anew in the first row: what the others see is longer
    made = [step(sim, rows, [act(sim, w) for w in rows])[::-1] for _ in range(restart[0] // 3 + 2)]
    for i, world in enumerate(worlds):
        sim.close(world)
        assert identical([m[i] for m in made], roll(sim, begin(sim, seed=i), i + len(made))[i:])


def test_a_history_cannot_begin_anew_without_an_encoder():
    with pytest.raises(ValueError, match=r"every 9 latent frames.*'preview' has no encoder.*codec='vae'"):
        make_sim(**{**CAUSVID, "codec": "preview"})
    for restart in ((9, 2), (9, 0), (3, 3)):
        with pytest.raises(ValueError, match="whole blocks of 3"):
            make_sim(**{**CAUSVID, "restart": restart})


# --- beginnings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["preview", "vae"])
def test_a_lone_first_latent_makes_a_lone_first_frame(codec):
    sim = make_sim(first_block=1, codec=codec, max_worlds=4)
    world = begin(sim, seed=3)
    made = roll(sim, world, 3)
    assert [len(b.frames) for b in made] == [1, 12, 12]
    assert [len(b.latents) for b in made] == [1, 3, 3]
    given = begin(sim, seed=4, latents=made[0].latents)
    assert given.table.length == 1
    assert [len(b.frames) for b in roll(sim, given, 2)] == [12, 12]
    fresh, older = begin(sim, seed=5), begin(sim, seed=3)
    roll(sim, older, 1)
    both = step(sim, [fresh, older], [act(sim, w) for w in (fresh, older)])
    assert identical([both[1]], made[1:2])
    assert len(both[0].frames) == 1


@pytest.mark.parametrize(
    ("first", "counts"),
    [(1, {1: True, 4: True, 7: True, 2: False, 3: False}), (None, {3: True, 6: True, 1: False, 4: False})],
)
def test_given_latents_are_whole_blocks(first, counts):
    sim = make_sim(first_block=first)
    for count, fits in counts.items():
        latents = torch.randn(count, *sim.spec.latent)
        if fits:
            world = begin(sim, latents=latents)
            assert world.table.length == count
            sim.close(world)
        else:
            with pytest.raises(ValueError, match=rf"{count} given latents: this model takes {first or 3} first and"):
                begin(sim, latents=latents)
    check_pages(sim, [])


@pytest.mark.parametrize("shape", [(3, 16, 4, 5), (3, 8, 4, 6), (0, 16, 4, 6), (3, 16, 24)])
def test_latents_of_another_shape_are_refused(shape):
    sim = make_sim()
    with pytest.raises(ValueError, match=r"start latents are .*expected \[K, 16, 4, 6\]"):
        begin(sim, latents=torch.zeros(shape))
    check_pages(sim, [])


def clip(count, context, size=ps.SIZE):
    frames = np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return Start(frames, np.zeros((count, 0), np.float32), np.zeros((count, 0)), context)


def test_footage_is_encoded_as_one_clip():
    sim = make_sim(codec="vae", max_worlds=2)
    start = clip(21, prompt(sim))
    world = sim.open(start, seed=3)
    with torch.inference_mode():
        latents, _ = sim.given.codec.encode(torch.from_numpy(start.frames)[None])
    assert latents.shape[1] == 6
    assert identical(roll(sim, world, 2), roll(sim, begin(sim, 3, start.context, latents[0]), 2))


@pytest.mark.parametrize(("count", "message"), [(20, "20 start frames: expected 1"), (13, "4 given latents")])
def test_footage_of_another_length_is_refused(count, message):
    sim = make_sim(codec="vae")
    with pytest.raises(ValueError, match=message):
        sim.open(clip(count, prompt(sim)), seed=0)
    with pytest.raises(ValueError, match=r"expected uint8 \[K, \*\[32, 48, 3\]\]"):
        sim.open(clip(9, prompt(sim), (32, 32)), seed=0)
    check_pages(sim, [])


def test_footage_needs_an_encoder_and_leaves_nothing_behind():
    sim = make_sim()
    with pytest.raises(ValueError, match=r"preview has no encoder.*codec='vae'"):
        sim.open(clip(9, prompt(sim)), seed=0)
    check_pages(sim, [])


def test_a_beginning_without_a_context_is_refused():
    sim = make_sim()
    with pytest.raises(ValueError, match="give the start a context"):
        sim.open(Start.of(None, torch.zeros(3, *sim.spec.latent)), seed=0)
    world = sim.open(Start.of(), seed=0)
    with pytest.raises(ValueError, match="needs a prompt or an image"):
        roll(sim, world, 1)
    roll(sim, world, 1, prompts={0: prompt(sim)})
    game = make_sim("game", sink=0)
    with pytest.raises(ValueError, match="begins from its picture"):
        begin(game, latents=torch.zeros(3, *game.spec.latent))
    check_pages(game, [])


# --- given noise, given latents ------------------------------------------------------------------------------------


def given_noise(sim, blocks, seed=3, without=None):
    shape, source = (3, *sim.spec.latent), SeededNoise(seed)
    draws = [(b, d) for b in range(blocks) for d in (0, 2)]
    return GivenNoise({key: source.latent(*key, shape) for key in draws if key != without})


def test_given_noise_replays_and_its_lack_moves_no_world():
    sim = make_sim(max_worlds=3)
    start = Start.of(prompt(sim, 3))
    world, seeded = sim.open(start, seed=0, source=given_noise(sim, 2)), begin(sim, seed=3)
    assert identical(roll(sim, world, 2), roll(sim, seeded, 2))
    short = sim.open(start, seed=0, source=given_noise(sim, 1, without=(0, 2)))
    states = [w.table.length for w in (seeded, world, short)]
    for bad, key in ((world, "block 2, draw 0"), (short, "block 0, draw 2")):
        conditions = [act(sim, w, prompt=prompt(sim, 9)) for w in (seeded, bad)]
        with pytest.raises(ValueError, match=rf"noise of {key}: expected \[3, 16, 4, 6\], given none"):
            sim.step([seeded, bad], conditions)
    assert [w.table.length for w in (seeded, world, short)] == states
    check_pages(sim, [world, seeded, short])
    assert seeded.context.same(start.context)  # nor its prompt
    with pytest.raises(ValueError, match="given noise has no snapshot"):
        sim.snapshot(world)
    odd = GivenNoise({(0, 0): torch.zeros(1, *sim.spec.latent)})
    sim.close(short)
    with pytest.raises(ValueError, match=r"given \[1, 16, 4, 6\]"):
        roll(sim, sim.open(start, seed=0, source=odd), 1)


def test_a_pass_that_fails_gives_its_pages_back():
    sim = make_sim(max_worlds=2)
    worlds = [begin(sim, seed=i) for i in range(2)]
    step(sim, worlds, [act(sim, w) for w in worlds])
    sim.runner.model = replace(sim.runner.model, denoiser=FailsAtItsSecondCall(sim.runner.model.denoiser))
    with pytest.raises(MemoryError):
        step(sim, worlds, [act(sim, w) for w in worlds])
    check_pages(sim, worlds)
    other = make_sim()
    assert identical(roll(sim, worlds[0], 2), roll(other, begin(other, seed=0), 3)[1:])


@pytest.mark.parametrize("codec", ["preview", "vae"])
def test_latents_seen_later_are_as_if_seen_at_once(codec):
    sim = make_sim(codec=codec, max_worlds=2)
    latents = torch.randn(9, *sim.spec.latent, generator=torch.Generator().manual_seed(0))
    at_once, later = begin(sim, seed=3, latents=latents), begin(sim, seed=3, latents=latents[:3])
    sim.observe(later, Start.of(latents=latents[3:]))
    for a, b in zip(roll(sim, at_once, 2), roll(sim, later, 2), strict=True):
        assert torch.equal(a.latents, b.latents)
        # The codec took its latents in other runs: its sums may round another way.
        assert np.abs(a.frames.astype(int) - b.frames).max() <= 1
    roll(sim, later, 1)
    sim.observe(later, Start.of(latents=latents[:3]))  # after dreamed ones, too
    assert len(roll(sim, later, 1)[0].frames) == 12
    with pytest.raises(ValueError, match="4 given latents"):
        sim.observe(later, Start.of(latents=latents[:4]))


def test_frames_seen_later_are_refused():
    sim = make_sim(codec="vae")
    world = sim.open(clip(9, prompt(sim)), seed=3)
    with pytest.raises(ValueError, match=r"observe takes no frames here.*Give latents"):
        sim.observe(world, clip(13, None))
    with pytest.raises(ValueError, match="no context: a new prompt comes with a step"):
        sim.observe(world, Start.of(prompt(sim), torch.zeros(3, *sim.spec.latent)))
    check_pages(sim, [world])


# --- how pages are stored and read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "relative", "game", "longlive"])
@pytest.mark.parametrize(("kv_dtype", "share"), [("int8", 0.005), ("fp8", 0.02)])
def test_eight_bit_pages_stay_close(kind, kv_dtype, share):
    """The second block and those after see coded pages: a relative RMS of latents below `share` over 4 of them."""
    plain, coded = make_sim(**SIDES[kind]), make_sim(**SIDES[kind], kv_dtype=kv_dtype)
    prompts = {2: prompt(plain, 9)}
    want, made = (
        torch.cat([b.latents for b in roll(sim, begin(sim, seed=3), 5, prompts=prompts)]) for sim in (plain, coded)
    )
    off = (made - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert 0 < off < share
    assert coded.pool.page_bytes < plain.pool.page_bytes / 2.5


@pytest.mark.parametrize("relative", [False, True])
def test_choosing_all_of_a_memory_is_a_longer_window(relative):
    """A top-k policy that takes every page of its memory sees what a longer window sees; one that takes fewer, less."""
    long = make_sim(relative=relative, policy=KVPolicy(7, sink=1))
    every, few = (make_sim(relative=relative, policy=KVPolicy(3, sink=1, top_k=k, memory=4)) for k in (4, 1))
    want, all_of_it, less = (roll(sim, begin(sim, seed=3), 6) for sim in (long, every, few))
    assert apart(want, all_of_it) < 1e-5
    assert apart(want[:2], less[:2]) < 1e-5
    assert apart(want[2:], less[2:]) > 1e-3


READ = {
    "text": {},
    "relative": {"relative": True},
    "game": {"kind": "game", "sink": 0},
    "first": {"first_block": 1},
    "longlive": LONGLIVE,
    "whole": {"window": None, "sink": 0},
    "bf16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize(
    ("name", "count"),
    [("text", 1), ("text", 3), ("game", 3), ("longlive", 3)]
    + [slow(*case) for case in product(("relative", "first", "whole", "bf16"), (1, 3))],
)
def test_pages_gathered_anew_in_every_pass_give_the_same_bits(monkeypatch, name, count):
    """Nothing kept between passes (what windows above KEEP bytes come to), against gathered once and kept."""

    def run(keep):
        views = []

        def view(*arguments, **settings):
            views.append(PagedView(*arguments, **{**settings, "keep": keep}))
            return views[-1]

        monkeypatch.setattr("engine.runner.PagedView", view)
        sim = make_sim(**READ[name], max_worlds=count)
        sim.runner.pool = Pool(sim.spec.streams, count * sim.need, sim.model.dtype, torch.device("cpu"))  # no slack
        worlds = [begin(sim, seed=i) for i in range(count)]
        for i, world in enumerate(worlds):
            roll(sim, world, i)  # ragged
        new = prompt(sim, 9)
        made = [step(sim, worlds, [act(sim, w, 0, new if t == 3 else None) for w in worlds]) for t in range(6)]
        check_pages(sim, worlds)
        return [block for blocks in made for block in blocks], views

    kept, views = run(1 << 30)
    anew, others = run(0)
    assert not any(v.joined is not None for v in views)
    assert any(v.joined is not None for v in others)
    assert identical(kept, anew)


# --- contexts ------------------------------------------------------------------------------------------------------


def test_a_context_counts_its_bytes_and_is_shared():
    sim = make_sim(max_worlds=4)
    context, sizes = prompt(sim), sim.spec.denoiser
    assert context.num_bytes == sizes.layers * 2 * sizes.text_tokens * sizes.width * 4
    assert len(context.layers) == sizes.layers
    stacked = Context.stack([context] * 3)
    assert all(x.shape[0] == 3 and x.stride(0) == 0 for layer in stacked for x in layer)  # nothing is copied
    game = make_sim("game", sink=0)
    picture, sizes = prompt(game), game.spec.denoiser
    assert picture.num_bytes == (sizes.layers * 2 * sizes.image_tokens * sizes.width + picture.beside.numel()) * 4


def test_contexts_are_the_same_where_their_sources_are():
    sim = make_sim()
    a, b, longer, other = prompt(sim, 0), prompt(sim, 0), prompt(sim, 0, tokens=6), prompt(sim, 1)
    assert a.same(a)
    assert a.same(b)
    assert not any(a.same(x) for x in (longer, other, None, replace(a, source={})))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("text", {}, "needs the text's embeddings"),
        ("text", {"text": (13, 32)}, r"\(13, 32\): expected \[at most 12, 32\]"),
        ("text", {"text": (5, 31)}, r"\(5, 31\): expected"),
        ("text", {"text": (5, 32), "image": (257, 32)}, "takes no image"),
        ("text", {"text": (5, 32), "beside": (3, 20, 4, 6)}, r"\[3, 20, 4, 6\]: expected none"),
        ("game", {"image": (257, 32)}, r"beside the latents are none: expected \[K, 20, 4, 6\]"),
        ("game", {"image": (257, 32), "beside": (3, 16, 4, 6)}, r"\[3, 16, 4, 6\]: expected \[K, 20, 4, 6\]"),
        ("game", {"image": (256, 32), "beside": (3, 20, 4, 6)}, r"\(256, 32\): expected \[257, 32\]"),
        ("game", {"text": (5, 32), "image": (257, 32), "beside": (3, 20, 4, 6)}, "takes no text"),
    ],
)
def test_what_no_context_is_made_of(kind, given, message):
    sim = make_sim(kind, sink=0)
    with pytest.raises(ValueError, match=message):
        sim.contextualise(**{name: torch.zeros(shape) for name, shape in given.items()})


@pytest.mark.parametrize("kind", ["text", "game"])
def test_actions_of_another_shape_are_refused(kind):
    sim = make_sim(kind, sink=0)
    world = begin(sim)
    wrong = act(sim, world)
    roll(sim, world, 1)  # 9 frames, then 12
    with pytest.raises(ValueError, match=r"actions are \[9, \d\]: expected encoded \[12, \d\]"):
        sim.step([world], [wrong])
    check_pages(sim, [world])
