"""Training: end to end on a 200-frame env, resuming, and the pieces that must not be silently wrong."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch

import inferix_env  # noqa: F401  (registers the ids)
from engine.codecs.autoencoder import AutoEncoder
from engine.spec import KVPolicy, VariableSpec
from engine.training.__main__ import TrainConfig, make_spec, train
from engine.training.behaviour import make_behaviour, parse_mix
from engine.training.codec import CodecConfig, codec_report, pixel_weights, train_codec
from engine.training.collect import CollectConfig, collect
from engine.training.data import Shards
from engine.training.denoiser import DenoiserConfig, Sequences, denoiser_loss, dream, latent_weights, target_levels
from engine.training.dreamed import DreamsConfig
from engine.training.export import changes_of
from engine.training.fit import FitConfig, fit, learning_rate
from engine.training.heads import HeadsConfig, Rows, average_precision
from engine.training.latents import Episodes, Latents, encode_split
from engine.training.pixels import PixelEnv
from engine.training.rarity import ColourRarity
from tests.worlds import TINY, make_modules

ENV = "tests.synthetic:tests/MovingSquare-v0"
COLLECT = CollectConfig(
    env=ENV, height=32, width=32, frame_skip=1, behaviours="hold:3", frames=200, shard_frames=100, workers=1
)


def config(out, **changes) -> TrainConfig:
    """Seconds of training: every stage at a few steps."""
    short = FitConfig(steps=12, batch=4, warmup=2, validate_every=6)
    base = TrainConfig(
        out=out,
        num_starts=4,
        collect=COLLECT,
        codec=CodecConfig(channels=4, widths=(8, 8, 16), depth=1, fit=short),
        world=TINY.denoiser,
        kv=KVPolicy(window=4),
        denoiser=DenoiserConfig(frames=8, own_after=6, own_context=1.0, fit=replace(short, muon=True)),
        heads=HeadsConfig(frames=5, dreams=DreamsConfig(count=6, steps=3), fit=short),
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    collect(COLLECT, folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    out = tmp_path_factory.mktemp("worlds") / "moving_square"
    train(config(out, data=data))
    return out


def test_end_to_end_gives_a_world_that_plays(trained):
    env = gym.make("inferix_env/World-v0", world=str(trained))
    obs, info = env.reset(seed=0)
    assert obs.shape == (32, 32, 3)
    assert 9 <= info["variables"]["energy"] <= 12
    for _ in range(3):
        *_, info = env.step(1)
    card = json.loads((trained / "world.json").read_text())
    assert card["spec"]["variables"][0]["deltas"] == [-1.0, 0.0]
    assert card["data"]["env"] == ENV
    starts = np.load(trained / "starts.npz")
    assert starts["frames"].shape == (4, 4, 32, 32, 3)
    assert (starts["actions"][:, 0] == 0).all()
    assert (starts["actions"][:, 1:].sum(-1) == 1).all()
    assert (trained / "training" / "dream-000012.png").exists()


def test_shards_hold_what_the_env_showed(data):
    shards = Shards(data, "train")
    assert len(shards) >= 200
    ends, valid, starts = shards.column("ends"), shards.column("valid"), shards.starts
    rewards, energy, actions = shards.column("rewards"), shards.column("variables")[:, 0], shards.column("actions")
    assert (rewards[starts[:-1]] == 0).all()
    assert (ends[starts[1:] - 1] > 0).all()
    assert (np.delete(ends, starts[1:] - 1) == 0).all()
    assert (valid == (ends != 1)).all()  # this env blanks the picture of an end, and only there
    inside = np.delete(np.arange(len(shards)), starts[:-1])
    assert (energy[inside - 1] - energy[inside] == (actions[inside] != 0)).all()
    crossing = shards.frames(95, 125)  # over a shard's edge
    assert np.array_equal(crossing[:5], shards.frames(95, 100))
    assert np.array_equal(crossing[-1], shards.frames(124, 125)[0])


def test_collecting_again_gives_the_same_bytes(data, tmp_path):
    collect(COLLECT, tmp_path / "again")
    for path in data.glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    with pytest.raises(ValueError, match="other settings"):
        collect(replace(COLLECT, height=64), tmp_path / "again")


def test_pixel_env_repeats_actions_and_sums_rewards():
    env = PixelEnv(ENV, (32, 32), frame_skip=3)
    env.reset(seed=0)
    seen = env.step(1)
    assert seen.reward == 3.0
    assert seen.variables.tolist() == [9.0]
    assert env.variable_names == ("energy",)
    with pytest.raises(ValueError, match="no Gymnasium env 'Nowhere-v0'"):
        PixelEnv("Nowhere-v0", (32, 32))


def test_vizdoom_actions_are_called_what_they_press():
    """The second action of Take Cover moves right, the third left: its buttons count the other way round."""
    env = PixelEnv("VizdoomTakeCover-v1", (96, 128), frame_skip=4)
    assert env.action_names == ("none", "move_right", "move_left")
    assert env.variable_names == ("health",)
    env.close()


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path):
    """12 steps at once, and 5 + 7 with the checkpoint between, give the same weights."""

    def loss(module, rng, step):
        x = torch.from_numpy(rng.standard_normal((8, 4)).astype(np.float32))
        return (module(x + 0.1 * torch.randn(8, 4)) - x.sum(1, keepdim=True)).square().mean(), {}

    def run(folder, stop_at=None):
        torch.manual_seed(0)
        folder.mkdir(exist_ok=True)
        settings = FitConfig(steps=12, warmup=2, every=0.0, validate_every=100)
        count = iter(range(100))

        def stopping(module, rng, step):
            if stop_at is not None and next(count) == stop_at:
                raise KeyboardInterrupt
            return loss(module, rng, step)

        return fit("toy", torch.nn.Linear(4, 1), stopping, lambda m, s: {}, settings, folder)

    whole = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop_at=5)
    resumed = run(tmp_path / "b")
    assert torch.equal(whole.weight, resumed.weight)
    with pytest.raises(ValueError, match="another model"):
        fit("toy", torch.nn.Linear(5, 1), loss, lambda m, s: {}, FitConfig(), tmp_path / "a")


def test_learning_rate_warms_up_holds_and_decays():
    settings = FitConfig(steps=100, warmup=10, decay=0.2, lr=1.0)
    assert [learning_rate(s, settings) for s in (0, 9, 50, 90, 100)] == pytest.approx([0.1, 1, 1, 0.5, 0])


def make_sequences(n: int = 3, f: int = 6) -> Sequences:
    torch.manual_seed(0)
    actions = torch.eye(3)[torch.randint(0, 3, (n, f))]
    latents = torch.randn(n, f, *TINY.latent)
    rarity = torch.zeros_like(latents[:, :, :1])
    batch = {"latents": latents, "rarity": rarity, "actions": actions, "variables": torch.zeros(n, f, 1)}
    return Sequences.of(batch, TINY, torch.device("cpu"))


def test_a_target_frame_sees_its_history_and_nothing_of_its_future():
    """Changing frame 4 changes no prediction of frames 0 .. 3, and does change that of frame 5."""
    denoiser, batch = make_modules(TINY).denoiser, make_sequences()
    changed = batch.latents.clone()
    changed[:, 4] += 1.0
    other = replace(batch, latents=changed)
    levels = torch.full((3, 6), 0.5)

    def predict(sequences):
        torch.manual_seed(1)
        view, _ = sequences.context(denoiser, sequences.latents, torch.zeros(3, 6))
        return sequences.target(denoiser, view, levels)[0]

    first, second = predict(batch), predict(other)
    assert torch.equal(first[:, :4], second[:, :4])
    assert not torch.allclose(first[:, 5], second[:, 5])


def test_the_loss_is_zero_for_the_true_velocity_and_drops_with_training():
    denoiser, batch = make_modules(TINY).denoiser, make_sequences()
    optimizer = torch.optim.Adam(denoiser.parameters(), 3e-3)
    losses = []
    for step in range(60):
        loss, _ = denoiser_loss(denoiser, batch, DenoiserConfig(), np.random.default_rng(step), step_own=step % 2 == 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


def test_validation_dreams_keep_the_given_frames():
    denoiser, batch = make_modules(TINY).denoiser, make_sequences()
    made = dream(denoiser, batch, given=3, seed=0)
    assert torch.equal(made[:, :3], batch.latents[:, :3])
    assert not torch.equal(made[:, 3:], batch.latents[:, 3:])
    assert torch.equal(made, dream(denoiser, batch, given=3, seed=0))


def test_latent_weights_favour_where_something_moved_or_was_rare_and_never_see_their_frame():
    latents, rarity = torch.zeros(1, 5, 2, 8, 8), torch.zeros(1, 5, 1, 8, 8)
    latents[0, 1:, :, 1, 1] = 5.0
    rarity[0, 1, :, 6, 6] = 1.0
    weights = latent_weights(latents, rarity, DenoiserConfig(insist=0))
    assert weights[0, 2, 0, 2, 2] > 5 * weights[0, 2, 0, 2, 6]
    assert weights[0, 2, 0, 4, 4] > 5 * weights[0, 2, 0, 2, 6]
    assert weights[0, 1].std() == weights[0, 3:].std() == 0
    assert weights.mean() == pytest.approx(1)
    insisting = latent_weights(latents, rarity, DenoiserConfig(insist=4))
    assert insisting[0, 1, 0, 6, 6] == pytest.approx(5 * float(insisting[0, 1, 0, 2, 2]))


def test_targets_visit_the_samplers_levels_most():
    levels = target_levels(200, 50, replace(TINY, num_steps=2, shift=2.0), DenoiserConfig(sampled=0.6))
    assert ((levels > 0) & (levels <= 1)).all()
    for own in (1.0, 2 / 3):
        assert (levels - own).abs().lt(1e-6).float().mean() == pytest.approx(0.3, abs=0.03)


def test_rarity_of_a_latent_tells_a_few_rare_pixels():
    frames = torch.full((1, 32, 32, 3), 60, dtype=torch.uint8)
    frames[0, 9:11, 9:11] = torch.tensor([255, 220, 80], dtype=torch.uint8)
    common = torch.full((30, 32, 32, 3), 60, dtype=torch.uint8)
    cells = ColourRarity(torch.cat([frames, common]).numpy()).cells(frames, 8)
    assert cells.shape == (1, 4, 4)
    assert cells[0, 1, 1] == pytest.approx(4 / 64, rel=0.1)
    assert cells.sum() == cells[0, 1, 1]


def test_codec_weights_favour_small_bright_moving_things():
    frames = torch.full((1, 32, 32, 3), 60, dtype=torch.uint8)
    frames[0, 10:12, 10:12] = torch.tensor([255, 220, 80], dtype=torch.uint8)
    rarity = ColourRarity(frames.numpy())
    now = frames.permute(0, 3, 1, 2) / 127.5 - 1
    weights = pixel_weights(now, torch.zeros_like(now) - 0.5294, rarity(frames), CodecConfig())
    assert weights[0, 0, 10, 10] > 4 * weights[0, 0, 25, 25]
    assert weights.mean() == pytest.approx(1, abs=1e-4)


def test_a_frozen_encoder_keeps_its_latents_while_the_decoder_learns(data, tmp_path):
    settings = replace(config(tmp_path).codec, freeze_encoder=True)
    torch.manual_seed(0)
    start = AutoEncoder(settings.channels, settings.widths, settings.depth)
    before = copy.deepcopy(start)
    after = train_codec(settings, data, tmp_path, torch.device("cpu"), start)
    frames = torch.from_numpy(Shards(data, "train").frames(0, 4))[None]
    assert torch.equal(before.encode(frames)[0], after.encode(frames)[0])
    latents = torch.randn(2, 4, 4, 4)
    assert not torch.equal(before.reconstruct(latents), after.reconstruct(latents))


def test_latents_are_encoded_again_once_the_codec_has_changed(data, tmp_path):
    torch.manual_seed(0)
    codec, where = AutoEncoder(4, (8, 8, 16), 1), (data, "validation", tmp_path, torch.device("cpu"))
    first = encode_split(codec, *where).latents
    codec.decoder.requires_grad_(False)
    for parameter in codec.decoder.parameters():
        parameter.zero_()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("latents-*")}
    assert torch.equal(encode_split(codec, *where).latents, first)
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob("latents-*")}
    codec.mean += 1
    assert torch.allclose(encode_split(codec, *where).latents.float(), first.float() - 1 / codec.std[0], atol=0.02)


def test_codec_report_of_a_perfect_codec():
    class Perfect:
        def encode(self, frames):
            return frames, None

        def reconstruct(self, z):
            return z.float().permute(0, 3, 1, 2) / 127.5 - 1

    frames = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    row = codec_report(Perfect(), frames, None)
    assert row["psnr"] == float("inf")
    assert row["sharpness"] == pytest.approx(1)
    assert row["bright_recall"] == row["bright_precision"] == 1


def test_heads_rows_near_ends_are_drawn_often_and_weighed_back(data):
    shards = Shards(data, "train")
    latents = torch.zeros(len(shards), *TINY.latent, dtype=torch.float16)
    episodes = Episodes.read(data, "train", Latents(latents, latents[:, 0]))
    spec = replace(TINY, variables=(VariableSpec("energy", 0, 12, (-1.0, 0.0)),))
    rows = Rows(episodes, spec, HeadsConfig(rare=0.5))
    picks, weights = rows.draw(np.random.default_rng(0), 20_000)
    valid, ends = shards.column("valid"), shards.column("ends")
    assert valid[picks].all()
    assert episodes.ends_next.sum() == (ends == 1).sum()
    assert ((episodes.ends_next > 0) <= (valid > 0)).all()
    plain = episodes.ends_next[rows.rows].mean()
    assert (episodes.ends_next[picks] * weights).mean() == pytest.approx(plain, rel=0.1)
    assert episodes.ends_next[picks].mean() != pytest.approx(plain, rel=0.1)


def test_average_precision():
    labels = torch.tensor([1.0, 0, 1, 0])
    assert average_precision(torch.tensor([4.0, 1, 3, 0]), labels, torch.ones(4)) == pytest.approx(1)
    assert average_precision(torch.tensor([0.0, 3, 1, 2]), labels, torch.ones(4)) == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_changes_keep_no_change_and_become_quantiles_when_many():
    assert changes_of(np.array([0.0, -21, -42, 0])) == (-42.0, -21.0, 0.0)
    many = changes_of(np.random.default_rng(0).normal(size=5_000))
    assert len(many) <= 64
    assert 0.0 in many


def test_behaviours():
    space = gym.spaces.Discrete(3)
    rng = np.random.default_rng(0)
    cycle = make_behaviour("cycle:6:1/2", space)
    actions = [cycle(None, rng) for _ in range(60)]
    assert set(actions) == {1, 2}
    assert sum(a != b for a, b in pairwise(actions)) in range(6, 16)
    hold = make_behaviour("hold:1000", space)
    assert len({hold(None, rng) for _ in range(20)}) == 1
    assert make_behaviour("still", gym.spaces.Box(1, 2, (2,)))(None, rng).tolist() == [1, 1]
    assert parse_mix("random*1, still*3") == [("random", 0.25), ("still", 0.75)]
    for bad in ("dance", "cycle"):
        with pytest.raises(ValueError, match="unknown behaviour"):
            make_behaviour(bad, space)
    with pytest.raises(ValueError, match="weights"):
        parse_mix("random*x")


BOX = gym.spaces.Box(np.float32([-1, 0, 0]), np.float32([1, 1, 1]))


def actions_by(text: str, count: int = 4_000) -> np.ndarray:
    """What a behaviour does in `BOX`, float [count, 3]."""
    rng, act = np.random.default_rng(0), make_behaviour(text, BOX)
    return np.stack([act(np.zeros((4, 4, 3), np.uint8), rng) for _ in range(count)])


def test_extremes_hold_what_keys_can_do():
    actions = actions_by("extremes:5")
    assert np.unique(actions[:, 0]).tolist() == [-1, 0, 1]
    assert np.unique(actions[:, 1:]).tolist() == [0, 1]
    changes = (np.diff(actions, axis=0) != 0).any(1).mean()
    assert 0.1 < changes < 0.2


def test_drift_is_as_wide_and_as_slow_as_asked():
    actions = actions_by("still@0.2:10")
    steer = actions[:, 0]
    assert steer.std() == pytest.approx(0.2, abs=0.03)
    assert np.corrcoef(steer[:-10], steer[10:])[0, 1] == pytest.approx(np.exp(-1), abs=0.15)
    assert actions[:, 1:].min() == 0
    assert actions.dtype == np.float32
    with pytest.raises(ValueError, match="expected a bounded Box"):
        make_behaviour("still@0.2", gym.spaces.Discrete(3))


def test_slips_take_their_share_and_last():
    away = (actions_by("still~0.05:8") != 0).any(1)
    assert away.mean() == pytest.approx(0.05 * 8 / (1 + 0.05 * 8), abs=0.08)
    begun = (away[1:] & ~away[:-1]).sum()
    assert away.sum() / begun == pytest.approx(8, rel=0.35)
    for bad in ("still~x", "still~0.1:0", "still~0.1:2:3", "still~-1"):
        with pytest.raises(ValueError, match="behaviour noise"):
            make_behaviour(bad, BOX)


class Counting:
    """A behaviour of the user's own that remembers: how often it was asked."""

    def __init__(self, space):
        self.space, self.asked = space, 0

    def __call__(self, frame, rng):
        self.asked += 1
        return np.full(self.space.shape, min(1.0, self.asked / 100), np.float32)


def test_a_class_is_built_for_each_episode_and_a_function_is_not():
    first = actions_by("tests.test_training:Counting", 3)
    assert np.array_equal(first, actions_by("tests.test_training:Counting", 3))
    assert first[:, 0].tolist() == pytest.approx([0.01, 0.02, 0.03])
    with pytest.raises(ValueError, match=r"behaviour tests.test_training:Nothing"):
        make_behaviour("tests.test_training:Nothing", BOX)
    with pytest.raises(ValueError, match=r"behaviour nowhere.at_all:Nothing"):
        make_behaviour("nowhere.at_all:Nothing", BOX)


SLIDER = CollectConfig(
    env="tests.synthetic:tests/Slider-v0",
    height=32,
    width=32,
    frame_skip=2,
    settle=2,
    behaviours="hold:3",
    frames=60,
    shard_frames=60,
    workers=1,
)


def test_a_continuous_env_is_recorded_after_it_has_settled(tmp_path):
    collect(SLIDER, tmp_path)
    shards = Shards(tmp_path, "train")
    actions, rewards, starts = shards.column("actions"), shards.column("rewards"), shards.starts
    assert actions.shape == (len(shards), 2)
    assert actions.dtype == np.float32
    inside = np.delete(np.arange(len(shards)), starts[:-1])
    assert np.allclose(rewards[inside], 2 * actions[inside, 1])
    frames = shards.frames(0, len(shards))
    assert (frames[:, :, -1].max(-1) >= 60).all()  # the fade is over, and no two rows share an array
    assert np.diff(starts).tolist() == [14] * (len(starts) - 1)  # 30 env steps, less the 4 unseen
    assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) > len(frames) / 2


def test_a_worlds_frames_are_those_of_its_data_and_its_numbers_have_names(tmp_path):
    collect(SLIDER, tmp_path / "data")
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"action_names": ["steer", "light"]}))
    spec = make_spec(TrainConfig(out=tmp_path / "slider", card=card), tmp_path / "data")
    assert spec.frame == (32, 32)
    assert spec.fps == 10
    assert spec.actions.names == ("steer", "light")
    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    card.write_text(json.dumps({"action_names": ["steer"]}))
    with pytest.raises(ValueError, match="expected one for each"):
        make_spec(TrainConfig(out=tmp_path / "slider", card=card), tmp_path / "data")


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    command = [sys.executable, "-m", "engine.training", "--env", "Nowhere-v0", "--out", str(tmp_path / "w")]
    run = subprocess.run([*command, "--workers", "1", "--frames", "10"], capture_output=True, text=True)
    assert run.returncode != 0
    assert run.stderr.strip().splitlines()[-1].startswith("error: no Gymnasium env 'Nowhere-v0'")
    assert "Traceback" not in run.stderr


def test_init_starts_from_a_world_and_refuses_another_size(trained, tmp_path, data):
    again = config(
        tmp_path / "w2", data=data, init=trained, denoiser=replace(config(trained).denoiser, fit=FitConfig(steps=0))
    )
    zero = FitConfig(steps=0)
    again = replace(again, codec=replace(again.codec, fit=zero), heads=replace(again.heads, fit=zero))
    train(again)
    assert (tmp_path / "w2" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="other sizes"):
        train(replace(again, out=tmp_path / "w3", world=replace(TINY.denoiser, layers=3)))
