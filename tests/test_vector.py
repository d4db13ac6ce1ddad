"""WorldSimVectorEnv: Gymnasium's own vector env of single envs is the reference, value for value."""

from __future__ import annotations

import copy
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers

import inferix_env  # noqa: F401  (registers the ids)
from engine import ContinuousActions, DictActions, DiscreteActions
from inferix_env.env import WorldSimEnv
from inferix_env.vector import WorldSimVectorEnv
from tests.worlds import make_world

NEXT, SAME, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
ACTIONS = np.random.default_rng(0).integers(0, 3, (16, 3))


@pytest.fixture
def envs(endless):
    made = WorldSimVectorEnv(3, world=endless)
    yield made
    made.close()


def reference(world, num: int, mode: AutoresetMode = NEXT, **settings) -> SyncVectorEnv:
    """Gymnasium's vector env of single envs."""
    return SyncVectorEnv([lambda: WorldSimEnv(world=world, **settings)] * num, autoreset_mode=mode)


def same(first, second) -> bool:
    """Whether two results agree in every value, type, key and mask."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, np.ndarray) and first.dtype == object:
        return second.dtype == object and same(list(first), list(second))
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    return type(first) is type(second) and first == second


def roll(envs, actions=ACTIONS, seed=5, reset_what_is_over: bool = False) -> list:
    """All that a reset and some steps return."""
    rows = [envs.reset(seed=seed)]
    for action in actions:
        rows.append(envs.step(action))
        over = rows[-1][2] | rows[-1][3]
        if reset_what_is_over and over.any():
            rows.append(envs.reset(options={"reset_mask": over}))
    return rows


@pytest.mark.parametrize("settings", [{}, {"obs": "block"}, {"max_episode_steps": 3}, {"num_steps": 1, "window": 2}])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_each_row_is_a_single_env_byte_for_byte(tiny, mode, settings):
    expected = roll(reference(tiny, 3, mode, **settings), reset_what_is_over=mode is DISABLED)
    envs = WorldSimVectorEnv(3, world=tiny, autoreset_mode=mode, **settings)
    seen = roll(envs, reset_what_is_over=mode is DISABLED)
    assert any(row[2].any() for row in expected if len(row) == 5), "no episode ended: the test shows nothing"
    assert len(seen) == len(expected)
    for ours, theirs in zip(seen, expected, strict=True):
        assert same(ours, theirs)
    assert envs.observation_space.contains(seen[-1][0])


def test_blocks_of_several_frames(tmp_path):
    world = make_world(tmp_path / "w", block=2)
    envs = WorldSimVectorEnv(3, world=world, obs="block")
    assert envs.observation_space.shape == (3, 2, 32, 32, 3)
    assert same(roll(envs), roll(reference(world, 3, obs="block")))


def test_make_vec_gives_it_without_a_warning(endless):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gym.make_vec("inferix_env/World-v0", num_envs=2, world=str(endless), autoreset_mode="SameStep")
    assert type(envs) is WorldSimVectorEnv
    assert envs.metadata["autoreset_mode"] is SAME
    assert envs.metadata["render_fps"] == 10
    assert WorldSimVectorEnv.metadata["autoreset_mode"] is NEXT
    assert envs.spec.id == "inferix_env/World-v0"
    assert envs.single_observation_space.shape == (32, 32, 3)
    assert envs.action_space == gym.spaces.MultiDiscrete([3, 3])
    rebuilt = gym.make_vec(gym.envs.registration.EnvSpec.from_json(envs.spec.to_json()))
    assert (rebuilt.num_envs, rebuilt.metadata["autoreset_mode"]) == (2, SAME)


def test_the_shipped_id_has_a_vector_entry_point_and_its_horizon_is_the_envs_own(endless):
    assert gym.spec("inferix_env/DoomTakeCover-v0").vector_entry_point == "inferix_env.vector:WorldSimVectorEnv"
    spec = copy.deepcopy(gym.spec("inferix_env/World-v0"))
    spec.max_episode_steps = 3
    envs = gym.make_vec(spec, num_envs=2, world=str(endless))
    truncations = [row[3].tolist() for row in roll(envs, ACTIONS[:7, :2])[1:]]
    assert truncations == [[False] * 2, [False] * 2, [True] * 2, [False] * 2, [False] * 2, [False] * 2, [True] * 2]
    endless_envs = gym.make_vec(spec, num_envs=2, world=str(endless), max_episode_steps=-1)
    assert not any(row[3].any() for row in roll(endless_envs, ACTIONS[:7, :2])[1:])


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_other_vectorization_modes_agree(endless, mode):
    theirs = gym.make_vec("inferix_env/World-v0", num_envs=2, vectorization_mode=mode, world=str(endless))
    try:
        expected = roll(theirs, ACTIONS[:3, :2])
    finally:
        theirs.close()
    assert same(roll(WorldSimVectorEnv(2, world=endless), ACTIONS[:3, :2]), expected)


def test_a_step_that_resets_ignores_its_action_and_pays_nothing(endless):
    envs = WorldSimVectorEnv(2, world=endless, max_episode_steps=2)
    envs.reset(seed=0)
    envs.step([1, 1])
    envs.reset(options={"reset_mask": np.array([False, True])})
    envs.step([1, 1])
    _, rewards, terminations, truncations, infos = envs.step([99, 1])  # world 0 is over, world 1 is not
    assert rewards[0] == infos["end_probability"][0] == 0.0
    assert rewards[1] != 0.0
    assert [terminations[0], truncations[0], truncations[1]] == [False, False, True]
    assert [state.steps for state in envs.states] == [envs.states[0].world.block, 2] == [0, 2]
    assert infos["_frames"].all()


def test_what_ended_in_the_same_step_is_in_the_infos(endless):
    envs = WorldSimVectorEnv(2, world=endless, max_episode_steps=2, autoreset_mode=SAME)
    twin = WorldSimEnv(world=endless)
    envs.reset(seed=0)
    twin.reset(seed=0)
    assert "final_obs" not in envs.step([1, 1])[4]
    envs.reset(options={"reset_mask": np.array([False, True])})
    twin.step(1)
    obs, _, _, truncations, infos = envs.step([2, 2])
    last, _, _, _, info = twin.step(2)
    assert truncations.tolist() == [True, False]
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [True, False]
    assert np.array_equal(infos["final_obs"][0], last)
    assert infos["final_obs"][1] is None
    assert infos["final_info"]["end_probability"][0] == info["end_probability"]
    assert infos["final_info"]["variables"]["_energy"].tolist() == [True, False]
    assert not np.array_equal(obs[0], last)


def test_a_masked_reset_leaves_the_others_as_they_were(endless):
    envs, twin = WorldSimVectorEnv(3, world=endless), WorldSimVectorEnv(3, world=endless)
    roll(envs, ACTIONS[:3])
    expected = roll(twin, ACTIONS[:6])
    options = {"reset_mask": np.array([False, True, False]), "start": 2}
    obs, infos = envs.reset(seed=7, options=options)
    assert set(options) == {"reset_mask", "start"}
    single = WorldSimEnv(world=endless)
    assert np.array_equal(obs[1], single.reset(seed=8, options={"start": 2})[0])
    assert np.array_equal(obs[[0, 2]], expected[3][0][[0, 2]])
    assert infos["_frames"].tolist() == infos["variables"]["_energy"].tolist() == [False, True, False]
    for action, row in zip(ACTIONS[3:6], expected[4:], strict=True):
        seen = envs.step(action)
        assert np.array_equal(seen[0][[0, 2]], row[0][[0, 2]])
        assert np.array_equal(seen[1][[0, 2]], row[1][[0, 2]])
        assert np.array_equal(seen[0][1], single.step(action[1])[0])


BAD_RESETS = [
    ({"options": {"reset_mask": [True, False, False]}}, "expected a NumPy array of 3 booleans"),
    ({"options": {"reset_mask": np.array([True, False])}}, "expected a NumPy array of 3 booleans"),
    ({"options": {"reset_mask": np.array([1, 0, 0])}}, "expected a NumPy array of 3 booleans"),
    ({"options": {"reset_mask": np.zeros(3, bool)}}, "at least one of them True"),
    ({"seed": [1, 2]}, "2 seeds: expected an integer, or one for each of the 3 worlds"),
    ({"options": {"start": [0, 1]}}, "option 'start' lists 2 values: expected one for each of 3 worlds"),
    ({"options": {"start": [0, 1, 4]}}, "expected an integer from 0 to 3"),
    ({"options": {"begin": 1}}, "begin.*expected some of"),
    ({"options": {"snapshot": b"x"}, "seed": 1}, "expected the snapshot alone"),
    ({"options": {"snapshot": [None, b"x", None]}}, "truncated or no snapshot"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_RESETS)
def test_a_bad_reset_touches_no_world(envs, endless, arguments, message):
    twin = WorldSimVectorEnv(3, world=endless)
    expected = roll(twin, ACTIONS[:2])
    roll(envs, ACTIONS[:1])
    with pytest.raises(ValueError, match=message):
        envs.reset(**arguments)
    assert same(envs.step(ACTIONS[1]), expected[2])
    assert same(envs.reset(), twin.reset())  # nor the draws to come


def test_a_first_reset_is_of_all(envs):
    with pytest.raises(ResetNeeded, match="reset"):
        envs.step([0, 0, 0])
    with pytest.raises(ResetNeeded, match=r"worlds \[0, 2\]"):
        envs.reset(options={"reset_mask": np.array([False, True, False])})


def test_options_for_all_and_for_each(envs, endless):
    single = WorldSimEnv(world=endless)
    starts = [single.reset(seed=0, options={"start": i})[0] for i in range(4)]
    assert all(np.array_equal(row, starts[2]) for row in envs.reset(seed=0, options={"start": 2})[0])
    obs, _ = envs.reset(seed=[3, 4, 5], options={"start": [3, 0, None]})
    assert np.array_equal(obs[:2], np.stack([starts[3], starts[0]]))
    assert np.array_equal(obs[2], single.reset(seed=5)[0])


def test_footage_for_all_and_for_each(envs, endless):
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32, 3), dtype=np.uint8)
    single = WorldSimEnv(world=endless)
    given = {"frames": frames[0], "actions": [0, 1, 2], "variables": {"energy": 30.0}}
    envs.reset(seed=0, options=given)
    single.reset(seed=1, options=given)
    assert np.array_equal(envs.step([1, 1, 1])[0][1], single.step(1)[0])
    actions, energy = [[0, 1, 2], [2, 1, 0], [1, 1, 1]], [{"energy": e} for e in (10.0, 20.0, 30.0)]
    infos = envs.reset(seed=0, options={"frames": list(frames), "actions": actions, "variables": energy})[1]
    assert infos["variables"]["energy"].tolist() == [10.0, 20.0, 30.0]
    single.reset(seed=2, options={"frames": frames[2], "actions": actions[2], "variables": energy[2]})
    assert np.array_equal(envs.step([1, 1, 1])[0][2], single.step(1)[0])


BAD_ACTIONS = [
    ([0, 3, 0], "world 1: action .*expected an integer from 0 to 2"),
    (np.array([0.0, 1.0, 2.0]), "world 0: action"),
    (np.zeros((3, 1), int), "world 0: action"),
    ([0, 1], "expected one for each of the 3 worlds"),
    (1, "expected one for each of the 3 worlds"),
    (None, "expected one for each of the 3 worlds"),
    ([0, 1, "left"], "world 2: action 'left'"),
]


@pytest.mark.parametrize(("actions", "message"), BAD_ACTIONS)
def test_bad_actions_are_refused_before_any_world_moves(envs, actions, message):
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.step(actions)
    assert [state.world.block for state in envs.states] == [0, 0, 0]


DICT = DictActions((("move", DiscreteActions(3)), ("look", ContinuousActions((-1.0,), (1.0,)))))
BATCHES = [
    (ContinuousActions((-1.0, 0.0), (1.0, 2.0)), np.zeros((2, 3), np.float32), "world 0"),
    (ContinuousActions((-1.0, 0.0), (1.0, 2.0)), np.float32([[0, 1], [0, 3]]), "world 1"),
    (DICT, {"move": np.array([1, 1]), "look": np.zeros((3, 1))}, "expected one for each of the 2 worlds"),
    (DICT, {"move": np.array([1, 1])}, r"actions \['move'\]: expected a mapping with the keys \['move', 'look'\]"),
]


@pytest.mark.parametrize(("actions", "bad", "message"), BATCHES)
def test_continuous_and_dict_actions(tmp_path, actions, bad, message):
    world = make_world(tmp_path / "w", actions=actions, end_bias=-50.0)
    envs, theirs = WorldSimVectorEnv(2, world=world), reference(world, 2)
    envs.action_space.seed(0)
    batch = [envs.action_space.sample() for _ in range(3)]
    assert same(roll(envs, batch), roll(theirs, batch))
    with pytest.raises(ValueError, match=message):
        envs.step(bad)


@pytest.mark.parametrize("mode", [SAME, DISABLED])
def test_an_episode_that_is_over_needs_a_reset_where_no_step_gives_one(endless, mode):
    envs = WorldSimVectorEnv(2, world=endless, max_episode_steps=2, autoreset_mode=DISABLED)
    roll(envs, ACTIONS[:2, :2])
    over = envs.snapshot(1)
    envs = WorldSimVectorEnv(2, world=endless, autoreset_mode=mode)
    envs.reset(seed=0)
    envs.restore(1, over)
    with pytest.raises(ResetNeeded, match=r"worlds \[1\] are over"):
        envs.step([0, 0])
    envs.reset(options={"reset_mask": np.array([False, True])})
    envs.step([0, 0])


BAD_ARGUMENTS = [
    ({"num_envs": 0}, "num_envs 0"),
    ({"render_mode": "human"}, "render_mode of a vector env 'human'"),
    ({"autoreset_mode": "later"}, r"autoreset_mode 'later': expected .*\['NextStep', 'SameStep', 'Disabled'\]"),
    ({"obs": "pixels"}, "obs 'pixels'"),
    ({"kv_dtype": "int3"}, "kv_dtype 'int3'"),
    ({"max_episode_steps": 1}, "at least 2"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(endless, arguments, message):
    with pytest.raises(ValueError, match=message):
        WorldSimVectorEnv(**{"num_envs": 2, "world": endless, **arguments})


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_tensors_hold_the_same_values_on_the_device(tiny, mode):
    arrays = WorldSimVectorEnv(3, world=tiny, autoreset_mode=mode)
    tensors = WorldSimVectorEnv(3, world=tiny, autoreset_mode=mode, tensors=True)
    assert tensors.metadata["torch"] is True
    assert "torch" not in arrays.metadata
    assert torch.is_tensor(tensors.reset(seed=5)[0])
    arrays.reset(seed=5)
    ended = 0
    for action in ACTIONS:
        theirs, ours = arrays.step(action), tensors.step(torch.from_numpy(action))
        assert [x.dtype for x in ours[:4]] == [torch.uint8, torch.float32, torch.bool, torch.bool]
        assert all(np.array_equal(a.numpy(), b.astype(a.numpy().dtype)) for a, b in zip(ours[:4], theirs, strict=False))
        assert np.array_equal(ours[4]["frames"].numpy(), theirs[4]["frames"])
        assert same(ours[4]["variables"], theirs[4]["variables"])
        for i in np.flatnonzero(theirs[4].get("_final_obs", np.zeros(0))):
            assert np.array_equal(ours[4]["final_obs"][i].numpy(), theirs[4]["final_obs"][i])
            assert np.array_equal(ours[4]["final_info"]["frames"].numpy(), theirs[4]["final_info"]["frames"])
        over = theirs[2] | theirs[3]
        ended += over.sum()
        if mode is DISABLED and over.any():
            masked = [e.reset(options={"reset_mask": over}) for e in (tensors, arrays)]
            assert np.array_equal(masked[0][1]["frames"].numpy(), masked[1][1]["frames"])
    assert ended
    weight = torch.zeros(ours[0][0].numel(), requires_grad=True)
    (ours[0].flatten(1).float() @ weight).sum().backward()


def test_rewards_of_the_users_own(endless):
    def brightness(frames, action, info):
        assert frames is info["frames"]
        return float(frames.mean()) + 10 * action

    envs = WorldSimVectorEnv(2, world=endless, reward_fn=brightness)
    envs.reset(seed=0)
    obs, rewards, *_ = envs.step([1, 2])
    assert rewards == pytest.approx(obs.mean(axis=(1, 2, 3)) + np.array([10, 20]))
    tensors = WorldSimVectorEnv(
        2,
        world=endless,
        reward_fn=lambda frames, action, info: (frames.float().mean() + 10 * action, False),
        tensors=True,
    )
    tensors.reset(seed=0)
    assert tensors.step([1, 2])[1].numpy() == pytest.approx(rewards)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_ends_of_the_users_own_are_ends(endless, mode):
    def touched(frames, action, info):
        return 5.0, bool(action == 2)

    envs = WorldSimVectorEnv(2, world=endless, reward_fn=touched, autoreset_mode=mode)
    envs.reset(seed=0)
    obs, rewards, terminated, truncated, infos = envs.step([2, 1])
    assert terminated.tolist() == [True, False]
    assert not truncated.any()
    if mode is SAME:
        assert infos["_final_obs"].tolist() == [True, False]
        assert not np.array_equal(infos["final_obs"][0], obs[0])
    if mode is DISABLED:
        with pytest.raises(ResetNeeded, match=r"worlds \[0\] are over"):
            envs.step([1, 1])
        envs.reset(options={"reset_mask": terminated})
    rewards, terminated = envs.step([1, 1])[1:3]
    assert not terminated.any()
    assert rewards.tolist() == [0.0 if mode is NEXT else 5.0, 5.0]


def test_actions_may_be_given_for_every_frame(tmp_path):
    envs = WorldSimVectorEnv(2, world=make_world(tmp_path, end_bias=-80.0, block=2))
    envs.reset(seed=0)
    held = envs.step([1, 2])[0]
    envs.reset(seed=0)
    assert np.array_equal(envs.step([[1, 1], 2])[0], held)
    envs.reset(seed=0)
    assert not np.array_equal(envs.step(np.array([[0, 1], [2, 2]]))[0][0], held[0])
    with pytest.raises(ValueError, match=r"world 1: .* expected 2, .*no world has moved"):
        envs.step([1, [1, 1, 1]])


@pytest.mark.parametrize("tensors", [False, True])
def test_render_is_a_tuple_of_frames(endless, tensors):
    envs = WorldSimVectorEnv(2, world=endless, render_mode="rgb_array", tensors=tensors)
    envs.reset(seed=0)
    obs = np.asarray(envs.step([1, 2])[0])
    frames = envs.render()
    assert isinstance(frames, tuple)
    assert all(isinstance(f, np.ndarray) and np.array_equal(f, row) for f, row in zip(frames, obs, strict=True))
    assert WorldSimVectorEnv(2, world=endless).render() is None


def test_closing_twice_is_legal_and_using_it_then_is_not(endless):
    envs = WorldSimVectorEnv(2, world=endless)
    envs.reset(seed=0)
    envs.close()
    envs.close()
    for call in (envs.reset, lambda: envs.step([0, 0]), lambda: envs.snapshot(0), lambda: envs.fork(0, [1])):
        with pytest.raises(ClosedEnvironmentError, match="closed"):
            call()


@pytest.mark.parametrize("tensors", [False, True])
def test_a_world_goes_on_from_a_snapshot_in_any_env_of_either_kind(endless, tensors):
    envs = WorldSimVectorEnv(3, world=endless, tensors=tensors, max_episode_steps=9)
    envs.reset(seed=5)
    for action in ACTIONS[:4]:
        envs.step(action)
    value = envs.snapshot(1)
    obs, info = envs.restore(2, value)
    futures = [np.asarray(envs.step([2, 2, 2])[0]) for _ in range(3)]
    assert all(np.array_equal(f[1], f[2]) and not np.array_equal(f[0], f[1]) for f in futures)
    single = WorldSimEnv(world=endless)
    seen, told = single.restore(value)
    assert np.array_equal(seen, np.asarray(obs))
    assert told["variables"] == info["variables"]
    assert told["expected_variables"] == info["expected_variables"]
    assert told["expected_variables"] != told["variables"]
    assert (single.state.horizon, single.state.steps) == (9, 4)
    assert all(np.array_equal(single.step(2)[0], f[1]) for f in futures)
    envs.reset(options={"snapshot": [None, single.snapshot(), value]})
    assert [state.steps for state in envs.states] == [0, 7, 4]


def test_forks_share_the_past_and_dream_on_their_own(envs, endless):
    roll(envs, ACTIONS[:4])
    envs.fork(0, onto=[1, 2])
    together = envs.step([1, 1, 1])[0]
    assert np.array_equal(together[0], together[1])
    apart = envs.step([1, 2, 1])[0]
    assert np.array_equal(apart[0], apart[2])
    assert not np.array_equal(apart[0], apart[1])
    envs.fork(0, onto=[1, 2], seeds=[7, 8])
    assert len({row.tobytes() for row in envs.step([1, 1, 1])[0]}) == 3
    twin = WorldSimVectorEnv(3, world=endless)
    roll(twin, ACTIONS[:4])
    for _ in range(3):
        alone = twin.step([1, 1, 1])
    assert np.array_equal(alone[0][0], envs.states[0].frames[-1])  # a fork changes nothing in what it is from


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, [0]), "each once"),
        ((0, [1, 1]), "each once"),
        ((0, [3]), "integers from 0 to 2"),
        ((0, [1, 2], [5]), "1 seeds for 2 forks"),
    ],
)
def test_bad_forks_touch_no_world(envs, arguments, message):
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.fork(*arguments)
    assert all(state.world.open for state in envs.states)
    envs.step([0, 0, 0])


@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_episode_statistics(tiny, mode):
    envs, theirs = WorldSimVectorEnv(3, world=tiny, autoreset_mode=mode), reference(tiny, 3, mode)
    both = [roll(wrappers.RecordEpisodeStatistics(e)) for e in (envs, theirs)]
    ended = 0
    for ours, expected in zip(*(rows[1:] for rows in both), strict=True):
        assert ("episode" in ours[-1]) == ("episode" in expected[-1])
        if "episode" in ours[-1]:
            assert all(np.array_equal(ours[-1]["episode"][key], expected[-1]["episode"][key]) for key in ("r", "l"))
            ended += ours[-1]["_episode"].sum()
    assert ended


def test_episode_statistics_see_the_reset_mask(endless):
    envs = wrappers.RecordEpisodeStatistics(WorldSimVectorEnv(2, world=endless, autoreset_mode=DISABLED))
    envs.reset(seed=0)
    rewards = envs.step([1, 1])[1]
    envs.reset(options={"reset_mask": np.array([True, False])})
    assert envs.episode_lengths.tolist() == [0, 1]
    assert envs.episode_returns.tolist() == [0.0, rewards[1]]


@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_normalised_rewards(tiny, mode):
    envs = wrappers.NormalizeReward(WorldSimVectorEnv(3, world=tiny, autoreset_mode=mode))
    theirs = wrappers.NormalizeReward(reference(tiny, 3, mode))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(roll(envs)[1:], roll(theirs)[1:], strict=True))


def test_a_video_of_all_worlds(endless, tmp_path):
    pytest.importorskip("moviepy")
    envs = WorldSimVectorEnv(4, world=endless, render_mode="rgb_array", max_episode_steps=4)
    envs = wrappers.RecordVideo(envs, str(tmp_path / "video"), episode_trigger=lambda episode: True)
    envs.reset(seed=0)
    for _ in range(6):
        envs.step([0, 1, 2, 0])
    envs.close()
    assert list((tmp_path / "video").glob("*.mp4"))
