"""Guards: signals do not move a world, are the same alone and in company, and can end an episode."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import inferix_env  # noqa: F401  (registers the ids)
from benchmarks import guards
from engine import ContinuousActions
from engine.uncertainty import held, second_opinion
from inferix_env import reference as references
from inferix_env import worlds
from inferix_env.env import WorldSimEnv
from inferix_env.evaluation.episodes import Episode
from inferix_env.evaluation.reference import Run, learn
from inferix_env.guard import SIGNALS
from inferix_env.reference import reference_of, statistics, whitening, write_reference
from inferix_env.vector import WorldSimVectorEnv
from tests.sims import act, footage, make_engine
from tests.worlds import TINY, make_world

ACTIONS = [1, 2, 0, 1, 2, 2, 0, 0, 1]


def make_runs(spec=TINY, count=6, length=12, seed=0) -> list[Run]:
    """Noise whose mean says which action led to it, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        rows = rng.integers(0, 3, length)
        latents = rng.standard_normal((length, *spec.latent)) + rows[:, None, None, None] - 1
        made.append(Run(torch.from_numpy(latents.astype(np.float32)), torch.eye(3)[torch.from_numpy(rows)]))
    return made


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """An endless tiny world with a reference."""
    folder = make_world(tmp_path_factory.mktemp("guarded") / "w", end_bias=-50.0)
    write_reference(folder, learn(TINY, make_runs(), kept=3, epochs=2, seed=0)[0])
    return folder


def play(env, actions=ACTIONS, seed=3):
    rows = [env.reset(seed=seed)]
    rows += [env.step(action) for action in actions]
    return rows


def same_but_for_signals(a, b) -> bool:
    infos = [{k: v for k, v in row[-1].items() if k not in ("frames", "uncertainty")} for row in (a, b)]
    return np.array_equal(a[0], b[0]) and a[1:-1] == b[1:-1] and infos[0] == infos[1]


def test_reading_signals_changes_nothing_else(guarded):
    plain, watched = WorldSimEnv(world=guarded), WorldSimEnv(world=guarded, guard=SIGNALS)
    for a, b in zip(play(plain), play(watched), strict=True):
        assert same_but_for_signals(a, b)
        assert "uncertainty" not in a[-1]
        assert set(b[-1]["uncertainty"]) == set(SIGNALS)
        assert all(type(x) is float for x in b[-1]["uncertainty"].values())


def test_signals_follow_from_the_seed_and_differ_between_seeds(guarded):
    first, again, other = (
        [row[-1]["uncertainty"] for row in play(WorldSimEnv(world=guarded, guard=SIGNALS), seed=seed)]
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first[0] == dict.fromkeys(SIGNALS, 0.0)
    assert all(a["renoise"] != b["renoise"] for a, b in zip(first[1:], other[1:], strict=True))


def test_a_world_in_company_reads_what_it_reads_alone(guarded):
    alone = play(WorldSimEnv(world=guarded, guard=SIGNALS))
    env = WorldSimVectorEnv(3, world=guarded, guard=SIGNALS)
    env.reset(seed=[9, 3, 8])
    for action, row in zip(ACTIONS, alone[1:], strict=True):
        observations, _, _, _, infos = env.step(np.array([0, action, 2]))
        assert np.array_equal(observations[1], row[0])
        for name in SIGNALS:
            assert infos["uncertainty"][name][1] == row[-1]["uncertainty"][name]
            assert infos["uncertainty"][name].shape == (3,)


def test_the_pool_is_as_full_afterwards(guarded):
    env, plain = WorldSimEnv(world=guarded, guard="renoise"), WorldSimEnv(world=guarded)
    play(env, ACTIONS * 2)
    play(plain, ACTIONS * 2)
    assert len(env.world.table.pages) == len(plain.world.table.pages)
    held_by_both = env.engine.pool.num_held if env.engine is plain.engine else 2 * env.engine.pool.num_held
    assert held_by_both == 2 * len(env.world.table.pages)


def test_a_bound_truncates_and_says_why(guarded):
    readings = [row[-1]["uncertainty"]["renoise"] for row in play(WorldSimEnv(world=guarded, guard="renoise"))[1:]]
    bound = sorted(readings)[-2]  # one step lies above it
    env = WorldSimEnv(world=guarded, guard="renoise", guard_bound=bound)
    env.reset(seed=3)
    for action, reading in zip(ACTIONS, readings, strict=True):
        _, _, terminated, truncated, info = env.step(action)
        assert info["uncertainty"]["renoise"] == reading
        assert not terminated
        assert truncated == (reading > bound) == env.over
        if truncated:
            return
    raise AssertionError("no step lay above the bound")


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_vector_env_begins_anew_where_a_bound_was_exceeded(guarded, mode):
    env = WorldSimVectorEnv(
        2, world=guarded, guard=["renoise", "latent"], guard_bound={"renoise": 1e-6}, autoreset_mode=mode
    )
    env.reset(seed=0)
    _, _, terminations, truncations, infos = env.step(np.array([1, 2]))
    assert truncations.all()
    assert not terminations.any()
    if mode == "SameStep":
        assert (infos["final_info"]["uncertainty"]["renoise"] > 0).all()
        assert (infos["uncertainty"]["renoise"] == 0).all()
    if mode == "NextStep":
        assert not env.step(np.array([1, 2]))[3].any()


def test_a_reward_of_the_users_own_may_charge_for_uncertainty(guarded):
    env = WorldSimEnv(
        world=guarded, guard="renoise", reward_fn=lambda frames, action, info: -info["uncertainty"]["renoise"]
    )
    for _, reward, _, _, info in play(env)[1:]:
        assert reward == -info["uncertainty"]["renoise"] < 0


def test_forks_and_snapshots_go_on_with_the_same_signals(guarded):
    env = WorldSimEnv(world=guarded, guard=SIGNALS)
    play(env, ACTIONS[:4])
    fork, blob = env.fork(), env.snapshot()
    other = WorldSimEnv(world=guarded, guard=SIGNALS)
    assert other.restore(blob)[1]["uncertainty"] == env.state.uncertainty
    assert env.state.uncertainty["renoise"] > 0
    for action in ACTIONS[4:]:
        rows = [made.step(action)[-1]["uncertainty"] for made in (env, fork, other)]
        assert rows[0] == rows[1] == rows[2]


def test_an_env_by_id_takes_a_guard(guarded):
    env = gym.make("inferix_env/World-v0", world=str(guarded), guard=["latent"], guard_bound=1e9)
    env.reset(seed=0)
    assert env.step(1)[-1]["uncertainty"]["latent"] > 0
    env.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guard": "doubt"}, "renoise"),
        ({"guard": ["latent", "latent"]}, "each once"),
        ({"guard_bound": 1.0}, "one signal"),
        ({"guard": ["renoise", "latent"], "guard_bound": 1.0}, "one signal"),
        ({"guard": "renoise", "guard_bound": {"latent": 1.0}}, "latent"),
        ({"guard": "renoise", "guard_bound": 0.0}, "positive"),
        ({"guard": "renoise", "guard_bound": float("nan")}, "positive"),
        ({"guard": "renoise", "guard_bound": {"renoise": "high"}}, "positive"),
    ],
)
def test_a_wrong_guard_is_refused(guarded, options, words):
    with pytest.raises(ValueError, match=words):
        WorldSimEnv(world=guarded, **options)


def test_a_world_without_a_reference_says_how_to_get_one(endless):
    with pytest.raises(ValueError, match=r"evaluation\.reference"):
        WorldSimEnv(world=endless, guard="latent")
    WorldSimEnv(world=endless, guard="renoise").close()


def test_a_reference_of_another_codec_is_refused(tmp_path):
    folder = make_world(tmp_path / "w")
    write_reference(folder, learn(TINY, make_runs(), kept=3, epochs=1, seed=0)[0])
    reference_of(folder)
    make_world(folder, seed=1)
    with pytest.raises(ValueError, match="another codec"):
        reference_of(folder)
    (folder / references.NAME).write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="no guard"):
        reference_of(folder)


def test_a_reference_comes_back_as_it_was_written(guarded):
    made, scores = learn(TINY, make_runs(), kept=3, epochs=2, seed=0)
    back, latent = reference_of(guarded), make_runs(seed=5)[0].latents[0]
    assert back.distance(latent) == pytest.approx(made.distance(latent))
    assert 0.7 < scores["distance"] < 1.6
    assert scores["pairs"] == 2 * 11


def test_a_probe_learns_what_led_to_a_frame():
    scores = learn(TINY, make_runs(count=18, length=24), kept=3, epochs=12, seed=0)[1]
    assert scores["accuracy"] > 0.8
    assert scores["missed"] < 0.7


def test_a_probe_of_continuous_actions_is_measured_against_itself():
    runs = make_runs(count=12)
    runs = [Run(r.latents, r.actions @ torch.tensor([[-0.5, 0.2], [0.0, 0.5], [0.5, -0.3]])) for r in runs]
    spec = replace(TINY, actions=ContinuousActions((-1.0, -1.0), (1.0, 1.0)))
    made, scores = learn(spec, runs, kept=3, epochs=3, seed=0)
    assert scores["missed"] == pytest.approx(0.5, rel=1e-3)  # half of the error over itself
    assert "accuracy" not in scores
    near, far = made.residual.new_zeros(1, 2), made.residual.new_full((1, 2), 5.0)
    pair = runs[0].latents[:1], runs[0].latents[1:2]
    assert made.missed(*pair, near) < made.missed(*pair, far)


def test_distance_is_one_on_what_was_measured_and_grows_away_from_it():
    rows = np.random.default_rng(0).normal(size=(4000, 6)) * [1, 2, 3, 0.1, 5, 1] + 3
    mean, whiten = whitening(rows)
    lengths = np.sqrt(np.square((rows - mean) @ whiten.T).mean(1))
    assert np.sqrt(np.square(lengths).mean()) == pytest.approx(1, abs=0.05)
    assert np.sqrt(np.square((rows[:9] + 30 - mean) @ whiten.T).mean(1)).min() > 10
    assert statistics(torch.zeros(2, 4, 3, 5)).shape == (2, 8)


def test_a_second_opinion_moves_no_world_and_leaks_no_page():
    sim = make_engine(max_worlds=4)
    world, twin = sim.open(footage(6), seed=1), sim.open(footage(6), seed=1)
    conditions = act(2)
    with held(sim, [world]) as forks:
        [block] = sim.step([world], conditions)
        opinions = [second_opinion(sim, forks, conditions, world.latents[None], level) for level in (0.2, 0.9, 0.9)]
    assert torch.equal(block.pictures, sim.step([twin], conditions)[0].pictures)
    assert torch.equal(opinions[1], opinions[2])
    near, far = ((opinion[0] - world.latents).square().mean() for opinion in opinions[:2])
    assert 0 < near < far
    assert sim.pool.num_held == len(world.table.pages) + len(twin.table.pages)
    with pytest.raises(ValueError, match="level"):
        second_opinion(sim, [twin], conditions, twin.latents[None], 0.0)


def test_second_opinions_of_worlds_without_a_window_run_by_length():
    sim = make_engine(policy=replace(TINY.kv, window=None), max_worlds=4)
    crew = [sim.open(footage(count), seed=count) for count in (2, 40)]
    with held(sim, crew) as forks:
        sim.step(crew, act(1, 2))
        latents = torch.stack([world.latents for world in crew])
        both = second_opinion(sim, forks, act(1, 2), latents, 0.5)
        apart = [
            second_opinion(sim, [f], [c], x[None], 0.5)[0] for f, c, x in zip(forks, act(1, 2), latents, strict=True)
        ]
    assert torch.equal(both, torch.stack(apart))


def test_held_forks_are_closed_when_the_step_fails():
    sim = make_engine(max_worlds=2)
    world = sim.open(footage(3), seed=0)
    count = sim.pool.num_held
    with pytest.raises(RuntimeError), held(sim, [world]):
        raise RuntimeError
    assert sim.pool.num_held == count


def test_the_shipped_world_has_a_reference():
    reference = reference_of(worlds.find("doom-take-cover"))
    card = json.loads((worlds.find("doom-take-cover") / "world.json").read_text())
    assert reference.kind == card["spec"]["actions"]["kind"]
    assert len(reference.mean) == 2 * card["spec"]["codec"]["channels"]


def make_episodes(count=4, length=14) -> list[Episode]:
    rng, made = np.random.default_rng(0), []
    for seed in range(count):
        choices = np.concatenate([[-1], rng.integers(0, 3, length - 1)])
        actions = np.concatenate([np.zeros((1, 3), np.float32), np.eye(3, dtype=np.float32)[choices[1:]]])
        frames = rng.integers(0, 256, (length, 32, 32, 3), dtype=np.uint8)
        made.append(Episode(seed, frames, choices, actions, np.ones(length), np.full((length, 1), 60.0), False))
    return made


def test_ranks_correlation_and_area_are_the_textbooks():
    assert guards.ranks(np.array([3.0, 1.0, 3.0, 7.0])).tolist() == [1.5, 0.0, 1.5, 3.0]
    rising = np.arange(10.0)
    assert guards.spearman(rising, np.exp(rising)) == pytest.approx(1)
    assert guards.spearman(rising, -rising) == pytest.approx(-1)
    assert np.isnan(guards.spearman(np.ones(5), rising[:5]))
    assert guards.spearman(np.array([1, 2, 3, 4, 5.0]), np.array([2, 1, 4, 3, 5.0])) == pytest.approx(0.8)
    labels = np.array([True, False, True, False])
    assert guards.auc(np.array([4.0, 3, 2, 1]), labels) == pytest.approx(0.75)
    assert guards.auc(np.ones(4), labels) == pytest.approx(0.5)
    assert guards.worst(np.arange(100.0)).sum() == 10
    assert guards.smoothed(np.array([[2.0, 4.0, 6.0, 8.0]]), 2).tolist() == [[2.0, 3.0, 5.0, 7.0]]


def test_the_study_of_signals_runs_whole(guarded, monkeypatch, tmp_path):
    monkeypatch.setattr(guards, "collect", lambda config, folder, model: make_episodes())
    config = guards.GuardsConfig(
        world=str(guarded),
        episodes=4,
        sequences=6,
        horizons=(1, 3),
        levels=(0.5,),
        smooth=2,
        real_steps=2,
        draws=5,
        timed=2,
    )
    rows = guards.run(config)
    assert [row["signal"] for row in rows[:5]] == ["renoise 0.5", "latent", "action", "age", "change"]
    for row in rows:
        assert -1 <= row["spearman"] <= 1
        assert row["auc_low"] <= row["auc_high"]
    by_name = {row["signal"]: row for row in rows}
    assert np.isnan(by_name["age"]["spearman_same_age"])
    assert by_name["renoise 0.5"]["bound_1_in_100"] > 0
    text = json.dumps([guards.finite(row) for row in rows], allow_nan=False)
    assert json.loads(text)[3]["at_1"]["spearman"] is None
    assert guards.picture(rows).shape[2] == 3
    again = guards.run(config)
    clocks = {"cpu_ms", "step_cpu_ms", "load"}
    assert [{k: v for k, v in row.items() if k not in clocks} for row in map(guards.finite, again)] == [
        {k: v for k, v in row.items() if k not in clocks} for row in map(guards.finite, rows)
    ]


def test_the_study_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="ascending"):
        guards.run(guards.GuardsConfig(horizons=(4, 2)))
    with pytest.raises(ValueError, match="count from 1"):
        guards.run(guards.GuardsConfig(sequences=0))
