"""The planner: what it draws, what it chooses, that it knows no future, and that it goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from agents.planner import Dreamed, Lived, main, picture, read_rows, run, summary
from agents.planning import Categorical, Dreams, Gaussian, Planner, PlannerConfig, belief_of
from engine import ContinuousActions
from inferix_env.env import WorldSimEnv
from tests.worlds import make_world

REAL = "inferix_env_tests/Bars-v0"


class Bars(gym.Env):
    """A real env of the tiny world's size: noise, energy that falls, an end after `lives` steps."""

    observation_space = gym.spaces.Dict(
        {"screen": gym.spaces.Box(0, 255, (32, 32, 3), np.uint8), "energy": gym.spaces.Box(0, 100, (1,))}
    )
    action_space = gym.spaces.Discrete(3)
    lives = 9

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._see(), {}

    def step(self, action):
        self.steps += 1
        return self._see(), 1.0 + action, self.steps >= self.lives, False, {}

    def _see(self):
        screen = self.np_random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        return {"screen": screen, "energy": np.array([100.0 - 10 * self.steps], np.float32)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An endless tiny world whose card names a real env."""
    folder = make_world(tmp_path_factory.mktemp("planned") / "w", end_bias=-50.0)
    card = json.loads((folder / "world.json").read_text())
    (folder / "world.json").write_text(json.dumps({**card, "data": {"env": REAL, "frame_skip": 1}}))
    if REAL not in gym.registry:
        gym.register(REAL, entry_point=Bars)
    return folder


def config_of(world, tmp_path, **changes) -> PlannerConfig:
    given = {"candidates": (1, 6), "horizon": 4, "repeat": 2, "interval": 2, "episodes": 1, "max_steps": 6}
    return PlannerConfig(world=str(world), out=tmp_path / "out", **{**given, **changes})


def test_categorical_draws_its_odds_and_fits_the_best():
    belief = Categorical(np.array([[0.1, 0.9], [1.0, 0.0]]))
    drawn = belief.draw(np.random.default_rng(0), 2000)
    assert drawn.shape == (2000, 2)
    assert drawn[:, 0].mean() == pytest.approx(0.9, abs=0.03)
    assert not drawn[:, 1].any()
    fitted = belief.fit(np.array([[0, 1], [0, 1]]))
    assert fitted.odds == pytest.approx(np.array([[0.82, 0.18], [0.2, 0.8]]))


def test_gaussian_stays_in_bounds_and_fits_the_best():
    space = gym.spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))
    belief = belief_of(space, 3)
    assert isinstance(belief, Gaussian)
    drawn = belief.draw(np.random.default_rng(0), 500)
    assert drawn.shape == (500, 3, 2)
    assert all(space.contains(row) for row in drawn.reshape(-1, 2))
    fitted = belief.fit(np.full((5, 3, 2), 1.0))
    assert fitted.mean == pytest.approx(np.tile([0.8, 1.2], (3, 1)))
    assert (fitted.deviation < belief.deviation).all()


def test_other_actions_are_refused():
    with pytest.raises(ValueError, match="discrete"):
        belief_of(gym.spaces.MultiBinary(3), 2)


def test_dreams_are_worth_what_the_env_pays(world, tmp_path):
    """With one noise, a dream's value is the sum of rewards of an env in the same state under the same actions."""
    config = config_of(world, tmp_path, weights={"energy": 0.5}, end_cost=2.0, discount=0.9)
    acting = WorldSimEnv(world=world)
    acting.reset(seed=1)
    acting.step(1)
    dreams = Dreams(config, 3)
    actions = np.array([[0, 1, 2, 1], [2, 2, 2, 2], [0, 1, 2, 1]])
    dreams.place({"snapshot": acting.snapshot()}, [7, 7, 8])
    values = dreams.values(actions)
    for i, seed in enumerate((7, 7, 8)):
        fork, total, energy = acting.fork(seed=seed), 0.0, acting.world.variables[0]
        for step, action in enumerate(actions[i]):
            _, reward, _, _, info = fork.step(int(action))
            change = info["expected_variables"]["energy"] - energy
            total += 0.9**step * (reward + 0.5 * change - 2.0 * info["end_probability"])
            energy = info["variables"]["energy"]
        assert values[i] == pytest.approx(total, abs=1e-3)
    assert dreams.steps == 12
    dreams.close()


def test_an_end_ends_a_dream_and_the_others_go_on(tmp_path):
    mortal = make_world(tmp_path / "mortal")
    config = config_of(mortal, tmp_path, horizon=30)
    dreams = Dreams(config, 4)
    dreams.place({"start": 0}, [1, 2, 3, 4])
    values = dreams.values(np.zeros((4, 30), np.int64))
    assert np.isfinite(values).all()
    assert 4 <= dreams.steps < 120
    dreams.close()


def test_the_best_candidate_is_taken_and_what_it_left_to_do_is_tried_again(world, tmp_path, monkeypatch):
    seen = []

    def count_twos(self, actions):
        seen.append(actions)
        return (actions == 2).sum(1).astype(float)

    config = config_of(world, tmp_path, horizon=6, repeat=2, interval=2)
    planner = Planner(config, gym.spaces.Discrete(3), 12)
    monkeypatch.setattr(Dreams, "values", count_twos)
    planner.reset(0)
    taken = planner.plan({"start": 0})
    best = seen[0][(seen[0] == 2).sum(1).argmax()]
    assert taken.tolist() == best[:2].tolist()
    planner.plan({"start": 0})
    assert seen[1][0, :4].tolist() == best[2:].tolist()
    planner.close()


def test_rounds_of_cem_come_closer_than_one_draw(world, tmp_path, monkeypatch):
    """A vector to be hit in every slot: rounds of 8 find a nearer one than 32 at once."""
    folder = make_world(tmp_path / "box", end_bias=-50.0, actions=ContinuousActions((-1.0, -1.0), (1.0, 1.0)))
    monkeypatch.setattr(Dreams, "values", lambda self, actions: -np.square(actions - 0.4).sum((1, 2)))
    misses = {}
    for method in ("shooting", "cem"):
        config = config_of(folder, tmp_path, method=method, candidates=(32,), rounds=4, repeat=1, interval=1)
        planner = Planner(config, gym.spaces.Box(-1.0, 1.0, (2,)), 32)
        plans = []
        for seed in range(6):
            planner.reset(seed)
            plans.append(planner.plan({"start": 0})[0])
        misses[method] = np.square(np.array(plans) - 0.4).mean()
        planner.close()
    assert misses["cem"] < misses["shooting"]


def test_the_same_seed_plans_the_same_and_does_not_see_the_noise_that_comes(world, tmp_path):
    config = config_of(world, tmp_path, futures=2)
    place, planner = Dreamed(config), Planner(config, gym.spaces.Discrete(3), 6)
    place.reset(3)
    plans = []
    for _ in range(2):
        planner.reset(5)
        plans.append([planner.plan(place.state()).tolist() for _ in range(2)])
    assert plans[0] == plans[1]
    seeds = {state.world.noise.seed for state in planner.dreams.env.states}
    assert len(seeds) == 2
    assert place.env.unwrapped.world.noise.seed not in seeds


def test_a_plan_in_the_real_env_goes_on_from_its_last_frames(world, tmp_path):
    config = config_of(world, tmp_path, context=4)
    place = Lived(config)
    place.reset(0)
    for action in (1, 2, 0, 1, 2):
        place.step(action)
    state = place.state()
    assert state["frames"].shape == (4, 32, 32, 3)
    assert state["actions"] == [0, 1, 2]
    assert state["variables"] == {"energy": [80.0, 70.0, 60.0, 50.0]}
    dreams = Dreams(config, 2)
    dreams.place(state, [1, 1])
    assert np.array_equal(dreams.env.states[0].frames[-1], place.seen[-1][1])
    assert dreams.env.states[0].world.table.length == 4
    assert dreams.env.states[0].world.variables.tolist() == [50.0]
    dreams.close()


def test_both_places_are_played_and_a_second_run_plays_only_what_is_missing(world, tmp_path):
    config = config_of(world, tmp_path)
    rows = run(config)
    assert [(row["mode"], row["candidates"]) for row in rows] == [("dream", 1), ("dream", 6), ("real", 1), ("real", 6)]
    assert [row["dream_steps"] for row in rows] == [0, 3 * 6 * 4, 0, 3 * 6 * 4]
    assert all(row["steps"] == 6 and not row["ended"] for row in rows)
    assert run(config) == rows
    more = run(replace(config, episodes=2, modes=("real",), candidates=(1,)))
    assert more[0] == rows[2]
    assert more[1]["seed"] == config.seed + 1
    assert len(read_rows(config.out / "episodes.jsonl")) == 5


def test_real_episodes_end_where_the_real_env_ends_them(world, tmp_path):
    [row] = run(config_of(world, tmp_path, modes=("real",), candidates=(1,), max_steps=50))
    assert row["ended"]
    assert row["steps"] == Bars.lives


def test_the_summary_and_its_plot(world, tmp_path):
    config = config_of(world, tmp_path, candidates=(1, 8))
    rows = [
        {"mode": m, "method": p, "candidates": n, "return": r, "steps": 4, "dream_steps": n * 4, "seconds": 2.0}
        for m in ("dream", "real")
        for p, n in (("shooting", 1), ("shooting", 8), ("random", 0))
        for r in (10.0, 20.0)
    ]
    found = summary(rows)
    assert [(row["mode"], row["candidates"]) for row in found] == [(m, n) for m in ("dream", "real") for n in (0, 1, 8)]
    assert found[2]["mean"] == 15.0
    assert found[2]["error"] == pytest.approx(5.0)
    assert found[2]["dream_steps_per_step"] == 8.0
    assert picture(config, found).shape[2] == 3


def test_policies_play_the_same_episodes_beside_the_planner(world, tmp_path):
    config = config_of(world, tmp_path, candidates=(1,), beside=("random", "script:1*3, 2*3"), max_steps=50)
    rows = run(config)
    assert [(row["mode"], row["method"], row["candidates"]) for row in rows[3:]] == [
        ("real", "shooting", 1),
        ("real", "random", 0),
        ("real", "script:1*3, 2*3", 0),
    ]
    assert rows[5]["return"] == 3 * 2 + 3 * 3 + 3 * 2  # of the nine steps that the real env has
    assert {row["dream_steps"] for row in rows} == {0}
    assert run(config) == rows


def test_a_policy_that_there_is_not_is_named_before_an_episode(world, tmp_path):
    with pytest.raises(ValueError, match="policy 'clever'"):
        run(config_of(world, tmp_path, beside=("clever",)))
    assert not (tmp_path / "out" / "episodes.jsonl").exists()


def test_the_command(world, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["--world", str(world), "--modes", "real", "--candidates", "1", "--episodes", "1", "--out", str(out)]
    assert main([*given, "--max-steps", "4"]) == 0
    assert "mode real, method shooting, candidates 1, episodes 1" in capsys.readouterr().out
    assert (out / "planner.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--horizon", "0"], "--horizon 0"),
        (["--candidates", "0"], "from 1"),
        (["--interval", "20"], "at most the horizon"),
        (["--method", "cem", "--candidates", "8"], "4 a round"),
        (["--discount", "0"], "--discount 0"),
        (["--weights", "mana", "1"], "mana"),
        (["--world", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_setting_is_one_line(world, tmp_path, capsys, options, words):
    given = ["--world", str(world), "--out", str(tmp_path / "out"), "--modes", "dream", "--episodes", "1"]
    assert main([*given, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1


def test_a_file_of_something_else_is_left_alone(world, tmp_path):
    config = config_of(world, tmp_path)
    config.out.mkdir()
    (config.out / "episodes.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="another --out"):
        run(config)
    assert (config.out / "episodes.jsonl").read_text() == '{"a": 1}\n'
