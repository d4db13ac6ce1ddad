"""Fidelity: measures by hand, baselines that are known, probes that learn, recorded episodes, networks of tiny size."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.rollout import Settings, prepare
from agents.rollout import run as roll_out
from engine import Condition, ContinuousActions, Engine, load
from engine.training.data import Episode as Rows
from engine.training.data import write_shard
from inferix_env.evaluation import closeness, measures, outcomes, perceptual, steering, stretches
from inferix_env.evaluation.dreaming import GROUP, context_length
from inferix_env.evaluation.episodes import RealGame
from inferix_env.evaluation.lives import Asked
from inferix_env.evaluation.metrics import balanced_accuracy
from inferix_env.evaluation.players import make_player
from inferix_env.evaluation.probe import Pairs, ProbeSize
from inferix_env.evaluation.recorded import recorded
from inferix_env.evaluation.ssim import ssim, window
from tests.worlds import TINY, make_world

SQUARE, SLIDER = "tests.synthetic:tests/MovingSquare-v0", "tests.synthetic:tests/Slider-v0"
BOX = ContinuousActions((-1.0, 0.0), (1.0, 1.0), ("go", "light"))


@pytest.fixture(scope="module")
def engine(tiny) -> Engine:
    return Engine(load(tiny, dtype="float32"), max_worlds=GROUP, deterministic=False)


@pytest.fixture(scope="module")
def slider(tmp_path_factory) -> Engine:
    folder = make_world(tmp_path_factory.mktemp("worlds") / "slider", actions=BOX, variables=())
    return Engine(load(folder, dtype="float32"), max_worlds=GROUP, deterministic=False)


def play(engine: Engine, env: str, policies: list[str], count: int, limit: int = 40, settle: int = 0):
    game = RealGame(env, engine.spec, 1, settle)
    players = [make_player(text, engine.spec) for text in policies]
    episodes = list(game.follow(players, range(50, 50 + count), limit, "test"))
    game.close()
    return episodes


@pytest.fixture(scope="module")
def episodes(engine):
    return play(engine, SQUARE, ["random", "sticky", "noop"], 6)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 16, 20, 3), dtype=np.uint8)


# Numbers


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """The formula place by place."""
    x, y = (f @ np.array([0.299, 0.587, 0.114]) for f in (a, b))
    w, values = np.outer(window(), window()), []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq, c = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum(), (w * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + 6.5025) * (2 * c + 58.5225) / ((mp**2 + mq**2 + 6.5025) * (vp + vq + 58.5225)))
    return float(np.mean(values))


def test_ssim_is_the_formula_place_by_place():
    a, b = noise(), noise(seed=1)
    assert ssim(a, b) == pytest.approx(naive_ssim(a, b), abs=1e-9)
    blend = (0.7 * a + 0.3 * b).astype(np.uint8)
    assert ssim(a, blend) == pytest.approx(naive_ssim(a, blend), abs=1e-9)
    assert naive_ssim(a, b) < naive_ssim(a, blend) < 1


def test_ssim_of_itself_is_one_and_of_two_greys_their_luminance():
    assert ssim(noise(3), noise(3)) == pytest.approx(1)
    dark, light = np.full((12, 12, 3), 50, np.uint8), np.full((12, 12, 3), 100, np.uint8)
    assert ssim(dark, light) == pytest.approx((2 * 50 * 100 + 6.5025) / (50**2 + 100**2 + 6.5025))
    with pytest.raises(ValueError, match="at least 11"):
        ssim(dark[:10], light[:10])


def test_an_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(5, 2, 400)
    made = measures.measure("x", "dream", {str(i): v for i, v in enumerate(values)})
    assert made.value == pytest.approx(values.mean())
    assert made.high - made.low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)


def test_psnr_pools_the_errors_of_episodes_and_a_lone_one_has_no_interval():
    made = measures.measure("PSNR", "dream", {"a": 100.0, "b": 1600.0}, statistic="psnr")
    assert made.value == pytest.approx(10 * np.log10(255**2 / 850))
    alone = measures.measure("PSNR", "dream", {"a": 100.0, "b": float("nan")}, statistic="psnr")
    assert (alone.low, alone.high, list(alone.samples)) == (None, None, ["a"])
    assert measures.measure("PSNR", "dream", {"a": 0.0}, statistic="psnr").value is None


def test_a_measure_survives_json():
    made = measures.measure("SSIM", "dream", {"1": 0.5, "2": 0.75}, 4, "", "higher")
    assert measures.Measure.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    with pytest.raises(ValueError, match="no measure"):
        measures.Measure.from_dict({"name": "x"})


# Stretches and their dreams


def test_a_stretch_has_its_context_before_it_and_reality_after_it(engine, episodes):
    found = stretches.stretches_of(episodes, engine, 5, np.random.default_rng(0))
    for stretch in found:
        episode = next(e for e in episodes if str(e.seed) == stretch.name)
        length = context_length(engine.spec)
        at = next(
            t
            for t in range(length, len(episode.frames))
            if (episode.frames[t] == stretch.frames[0]).all()
            and (episode.frames[t - 1] == stretch.start.frames[-1]).all()
        )
        assert len(stretch.start.frames) == length
        assert len(stretch) == min(5, len(episode.frames) - at) or (stretch.frames == episode.frames[at : at + 5]).all()
    with pytest.raises(ValueError, match="0 of 1 real episodes"):
        stretches.stretches_of(play(engine, SQUARE, ["random"], 1, limit=2), engine, 5, np.random.default_rng(0))


def test_dreams_of_unequal_length_are_those_dreamed_alone(engine, episodes):
    found = stretches.stretches_of(episodes, engine, 6, np.random.default_rng(0))[:3]
    actions = [s.actions[:n] for s, n in zip(found, (6, 2, 4), strict=True)]
    together = stretches.dream(engine, found, actions, np.random.default_rng(1), "test")
    seeds = np.random.default_rng(1).integers(2**62, size=3)
    for i, (stretch, rows) in enumerate(zip(found, actions, strict=True)):
        world = engine.open(stretch.start, int(seeds[i]))
        blocks = [engine.step([world], [Condition.of(row[None])])[0] for row in rows]
        engine.close(world)
        assert together[i].rewards == pytest.approx([b.reward for b in blocks], abs=1e-3)
        apart = np.abs(np.stack([b.frames[-1] for b in blocks]).astype(int) - together[i].frames)
        assert apart.max() <= 2


def test_wrong_actions_are_the_next_episodes_as_often_as_needed(engine, episodes):
    found = stretches.stretches_of(episodes, engine, 8, np.random.default_rng(0))
    wrong = stretches.wrong_actions(found)
    assert [len(w) for w in wrong] == [len(s) for s in found]
    count = min(len(found[1]), len(found[0]))
    assert (wrong[0][:count] == found[1].actions[:count]).all()


def test_reality_itself_is_as_close_as_can_be_and_baselines_are_below(episodes, engine):
    found = stretches.stretches_of(episodes, engine, 6, np.random.default_rng(0))
    real = [s.frames.copy() for s in found]
    for frames in real:
        frames[:, 0, 0] ^= 1  # the least that is not the same, so that decibels are finite
    frames = {"dream": real, "repeat last frame": [closeness.repeated(s) for s in found]}
    made = {m.key: m for m in closeness.measures_of(found, frames, (1, 4, 50))}
    assert made["PSNR", "dream", 4].value > 60
    assert made["SSIM", "dream", 4].value == pytest.approx(1, abs=1e-3)
    assert made["sharpness over reality's", "dream", 4].value == pytest.approx(1, abs=1e-2)
    assert made["PSNR", "repeat last frame", 4].value < made["PSNR", "dream", 4].value
    assert ("PSNR", "dream", 50) not in made
    assert made["PSNR", "dream", 1].better == "higher"
    assert made["PSNR", "repeat last frame", 1].better == ""


# Outcomes


def test_reward_errors_are_those_of_the_first_steps(engine, episodes):
    found = stretches.stretches_of(episodes, engine, 6, np.random.default_rng(0))
    off = [np.append(s.rewards[:1] + 2, s.rewards[1:]) for s in found]
    made = {m.key: m for m in outcomes.reward_measures(found, {"dream": off}, (1, 4))}
    assert made[outcomes.REWARD, "dream", 1].value == pytest.approx(2)
    assert made[outcomes.REWARD, "dream", 4].value == pytest.approx(0.5)
    assert made[outcomes.REWARD, "mean real reward", 4].value == pytest.approx(0, abs=1e-12)


def test_ends_asked_episode_by_episode_and_scored(engine, episodes):
    asked = outcomes.ask_each(engine, episodes)
    assert [len(a.ended) for a in asked] == [e.steps for e in episodes]
    assert [bool(a.ended[-1]) for a in asked] == [e.terminated for e in episodes]
    made = {(m.name, m.of): m for m in outcomes.end_measures(asked)}
    base = np.concatenate([a.ended for a in asked]).mean()
    assert made["average precision of ends", "base rate"].value == pytest.approx(base)
    assert made["Brier score of ends", "base rate"].value == pytest.approx(base * (1 - base))


def test_a_head_that_knows_and_one_that_is_sure_and_wrong():
    ended = np.array([False] * 9 + [True])
    knows = Asked(ended.astype(float), ended, ended * 0.0, ended * 0.0, ended * 0)
    wrong = Asked(1 - ended.astype(float), ended, ended * 0.0, ended * 0.0, ended * 0)
    assert outcomes.precision([knows, knows]) == 1
    assert outcomes.calibration_error([knows]) == 0
    assert outcomes.calibration_error([wrong]) == 1
    assert outcomes.precision([wrong]) == pytest.approx(0.1)


# Control


def squares(rng: np.random.Generator, count: int, steps: int, discrete: bool):
    """Stretches in which a square moves as its action says, and the same with frames that say nothing of it."""
    made = []
    for i in range(count):
        moves = rng.integers(3, size=steps) if discrete else rng.uniform(-1, 1, steps)
        actions = np.eye(3, dtype=np.float32)[moves] if discrete else np.float32(moves)[:, None]
        frames, x = np.full((steps, 32, 32, 3), 20, np.uint8), 13.0
        for t, move in enumerate(moves):
            x = np.clip(x + ((0, -3, 3)[move] if discrete else 4 * move), 0, 26)
            frames[t, 12:18, round(x) : round(x) + 6] = 230
        made.append(stretches.Stretch(str(i), None, frames, actions, np.zeros(steps)))
    return made


@pytest.mark.parametrize("discrete", [True, False])
def test_the_probe_reads_actions_where_they_show_and_none_where_they_do_not(engine, slider, discrete, monkeypatch):
    rng = np.random.default_rng(0)
    train, test = squares(rng, 25, 12, discrete), squares(rng, 8, 12, discrete)
    spec = engine.spec if discrete else make_spec(1)
    still = {"dream": [np.broadcast_to(s.frames[0], s.frames.shape) for s in test]}
    learned = [type("Played", (), {"frames": s.frames, "actions": s.actions}) for s in train]
    size = ProbeSize(epochs=20)
    made = steering.steer_measures(spec, learned, test, still, size, 0, torch.device("cpu"))
    real, dream = (m.value for m in made)
    assert real > (0.8 if discrete else 0.5)
    assert dream < (0.5 if discrete else 0.3)
    assert made[1].better == "higher"


def make_spec(width: int):
    return replace(TINY, actions=ContinuousActions((-1.0,) * width, (1.0,) * width), variables=())


def test_shares_add_up_to_the_balanced_accuracy():
    rng = np.random.default_rng(0)
    rows = np.array([(i, t) for i in range(4) for t in range(1, 8 + i)])
    labels, found = rng.integers(3, size=len(rows)), rng.integers(3, size=len(rows))
    given = steering.balanced(Pairs([], rows, labels), found, list("abcd"))
    assert np.mean(list(given.values())) == pytest.approx(balanced_accuracy(labels, found))


# Real and recorded episodes


def test_a_box_game_settles_and_keeps_its_actions(slider):
    [episode, *_] = play(slider, SLIDER, ["sticky"], 2, limit=9, settle=4)
    assert episode.frames[0].max() > 60  # past the fade of its first four frames
    assert episode.actions.shape == (10, 2)
    assert not episode.actions[0].any()
    assert np.abs(episode.actions[1:]).max() <= 1
    assert (episode.choices == episode.actions).all()
    assert not episode.terminated
    with pytest.raises(ValueError, match="has the actions Discrete"):
        RealGame(SQUARE, slider.spec, 1)


def test_a_world_without_a_real_env_says_what_to_give(engine):
    with pytest.raises(ValueError, match="names no real env: give --env, or episodes"):
        RealGame.of_card(engine.spec, {})


@pytest.mark.parametrize(
    "text", ["dance", "sticky:0", "sticky:x", "script:jump", "no.module:name", "agents.driver:Nobody"]
)
def test_a_policy_that_is_none_is_refused(engine, text):
    with pytest.raises(ValueError, match=r"policy|jump|action"):
        make_player(text, engine.spec)


def test_players_repeat_themselves_with_the_same_seed_alone(slider):
    frame = np.zeros((32, 32, 3), np.uint8)
    for text in ("random", "sticky:3", "noop", "script:go(-0.5)*2, light*3"):
        runs = []
        for seed in (1, 1, 2):
            player = make_player(text, slider.spec).twin()
            player.reset(seed)
            runs.append(np.stack([player(frame) for _ in range(8)]))
        assert (runs[0] == runs[1]).all()
        assert (runs[0] != runs[2]).any() == (text in ("random", "sticky:3"))
    assert runs[0][:5].tolist() == [[-0.5, 0], [-0.5, 0], [0, 1], [0, 1], [0, 1]]


def of_two(argument: str, env):
    assert env.action_space.n == 3
    return lambda frame: int(argument)


def test_a_policy_of_ones_own_is_named_by_its_module(engine):
    player = make_player("tests.test_fidelity:of_two:2", engine.spec)
    assert player(np.zeros((32, 32, 3), np.uint8)) == 2
    with pytest.raises(ValueError, match=r"policy tests\.test_fidelity:of_two:7: action 7"):
        make_player("tests.test_fidelity:of_two:7", engine.spec)(np.zeros((32, 32, 3), np.uint8))


def test_episodes_of_a_rollout_are_read_as_they_were(engine, tiny, tmp_path):
    rollout = prepare(Settings(world=str(tiny), policy="random", episodes=2, out=tmp_path, max_steps=6, video=False))
    roll_out(rollout)
    rollout.env.close()
    found = recorded([tmp_path], engine.spec, 10)
    assert len(found) == 2
    with np.load(tmp_path / "episode-000.npz") as data:
        assert (found[0].frames[-1] == data["frames"][-1]).all()
        assert (found[0].choices[1:] == data["actions"]).all()
        assert (found[0].rewards[1:] == data["rewards"]).all()
    lines = [json.loads(line) for line in (tmp_path / "episode-000.jsonl").read_text().splitlines()[1:]]
    assert found[0].variables[1:, 0].tolist() == [line["variables"]["energy"] for line in lines]
    assert found[0].terminated == lines[-1]["terminated"]
    (tmp_path / "episode-001.jsonl").unlink()
    with pytest.raises(ValueError, match=r"episode-001\.jsonl"):
        recorded([tmp_path], engine.spec, 10)


def test_episodes_of_training_shards_are_read_as_they_were(engine, tmp_path):
    rng = np.random.default_rng(0)
    whole = [
        Rows(
            rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8),
            rng.integers(3, size=n),
            rng.random(n, np.float32),
            np.uint8([*[0] * (n - 1), end]),
            np.uint8([*[1] * (n - 1), 0]),
            rng.random((n, 2), np.float32),
        )
        for n, end in ((7, 1), (5, 2))
    ]
    write_shard(tmp_path / "train-000.safetensors", whole, {"variables": ["other", "energy"]})
    found = recorded([tmp_path / "train-000.safetensors"], engine.spec, 10)
    assert [len(e.frames) for e in found] == [6, 4]
    assert [e.terminated for e in found] == [True, False]
    assert (found[1].variables[:, 0] == whole[1].variables[:, 1].astype(np.float64)).all()
    assert (found[0].choices == [-1, *whole[0].actions[1:]]).all()
    write_shard(tmp_path / "train-001.safetensors", whole, {"variables": ["other", "another"]})
    with pytest.raises(ValueError, match="wants"):
        recorded([tmp_path], engine.spec, 10)
    with pytest.raises(ValueError, match="expected an npz"):
        recorded([tmp_path / "nothing"], engine.spec, 10)


# Networks


def test_the_frechet_distance_of_two_gaussians():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (200_000, 2)), rng.normal((3, 0), (2, 1), (200_000, 2))
    assert perceptual.frechet(a, b) == pytest.approx(9 + 1, rel=0.02)  # |mean|² and (2 - 1)²
    assert perceptual.frechet(a[:50], a[:50]) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow  # importing transformers alone takes seconds
def test_a_video_mae_of_any_size_gives_features_and_a_distance(tmp_path):
    from transformers import VideoMAEConfig, VideoMAEModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    VideoMAEModel(VideoMAEConfig(image_size=32, patch_size=16, num_frames=16, **sizes)).save_pretrained(tmp_path)
    features = perceptual.features_of(str(tmp_path), torch.device("cpu"))
    clips = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 32, 3), dtype=np.uint8)
    assert features(clips).shape == (3, 16)
    named = [stretches.Stretch(str(i), None, clip, np.zeros((16, 3)), np.zeros(16)) for i, clip in enumerate(clips)]
    shown = {"dream": list(clips), "repeat last frame": [np.repeat(clip[:1], 16, 0) for clip in clips]}
    same, still = perceptual.video_distances(named, shown, features)
    assert (same.at, same.better) == (16, "lower")
    assert same.value == pytest.approx(0, abs=1e-6)
    assert still.value > 1e-4


def test_a_scripted_network_gives_features_and_others_are_refused(tmp_path):
    class Pooled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3, 4))

    torch.jit.script(Pooled()).save(str(tmp_path / "i3d.pt"))
    clip = np.full((1, 16, 24, 32, 3), 255, np.uint8)
    assert perceptual.features_of(str(tmp_path / "i3d.pt"), torch.device("cpu"))(clip) == pytest.approx(1)
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no TorchScript file"):
        perceptual.features_of(str(tmp_path / "bad.pt"), torch.device("cpu"))
    with pytest.raises(ValueError, match="no VideoMAE"):
        perceptual.features_of(str(tmp_path), torch.device("cpu"))


def test_lpips_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    with pytest.raises(ValueError, match=r"inferix-env\[metrics\]"):
        perceptual.lpips_distance(torch.device("cpu"))
