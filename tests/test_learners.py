"""Learners as they are: Stable-Baselines3 and TorchRL on single envs, a CleanRL-style loop on the vector env."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import nn
from torch.distributions import Categorical

from inferix_env.env import WorldSimEnv
from inferix_env.vector import WorldSimVectorEnv

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_stable_baselines3_learns_on_envs_that_share_one_engine(endless):
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([lambda: Monitor(WorldSimEnv(world=endless, max_episode_steps=10))] * 3)
    assert len({id(env.unwrapped.engine) for env in envs.envs}) == 1
    learner = sb3.PPO("MlpPolicy", envs, n_steps=32, batch_size=32, n_epochs=2, seed=0, device="cpu")
    before = [p.clone() for p in learner.policy.parameters()]
    learner.learn(total_timesteps=300)
    assert learner.num_timesteps >= 300
    assert {episode["l"] for episode in learner.ep_info_buffer} == {10}
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.policy.parameters(), strict=True))


def test_torchrl_takes_the_env_as_it_is(endless):
    pytest.importorskip("torchrl", exc_type=ImportError)
    from torchrl.collectors import Collector
    from torchrl.envs import GymEnv, SerialEnv
    from torchrl.envs.utils import RandomPolicy, check_env_specs

    def make() -> GymEnv:
        return GymEnv("inferix_env/World-v0", world=str(endless), max_episode_steps=5)

    check_env_specs(make())
    envs = SerialEnv(3, make)
    envs.set_seed(0)
    collector = Collector(envs, RandomPolicy(envs.action_spec), frames_per_batch=60, total_frames=120)
    for data in collector:
        assert data["pixels"].shape == (3, 20, 32, 32, 3)
        assert data["next", "truncated"].sum() == 3 * 4
        assert not data["next", "terminated"].any()
        chained = ~data["next", "done"][:, :-1, 0]
        assert torch.equal(data["next", "pixels"][:, :-1][chained], data["pixels"][:, 1:][chained])
    collector.shutdown()


class Policy(nn.Module):
    """Action logits and a value from uint8 pictures [N, 32, 32, 3]."""

    def __init__(self, num_actions: int):
        super().__init__()
        self.trunk = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.Tanh())
        self.head = nn.Linear(32, num_actions + 1)

    def forward(self, pictures: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        out = self.head(self.trunk(pictures.permute(0, 3, 1, 2).float() / 255))
        return Categorical(logits=out[:, :-1]), out[:, -1]


@pytest.mark.parametrize("tensors", [False, True])
def test_an_actor_critic_loop_runs_on_the_vector_env(tiny, tensors):
    torch.manual_seed(0)
    envs = WorldSimVectorEnv(4, world=tiny, max_episode_steps=20, tensors=tensors)
    loop = envs if tensors else RecordEpisodeStatistics(envs)
    policy = Policy(int(envs.single_action_space.n))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    obs, _ = loop.reset(seed=0)
    resets = torch.zeros(4, dtype=torch.bool)
    ended = 0
    for _ in range(100):  # one-step actor-critic; the value behind a truncation counts, that behind an end does not
        actions, value = policy(torch.as_tensor(obs))
        action = actions.sample()
        obs, reward, terminated, truncated, _ = loop.step(action if tensors else action.numpy())
        reward, terminated, truncated = (torch.as_tensor(x) for x in (reward, terminated, truncated))
        with torch.no_grad():
            target = reward.float() + 0.99 * policy(torch.as_tensor(obs))[1] * ~terminated
        gain = (target - value) * ~resets  # a step that reset a world teaches nothing
        loss = (gain.pow(2) - gain.detach() * actions.log_prob(action) - 0.01 * actions.entropy()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        resets = terminated | truncated
        ended += int(resets.sum())
    assert torch.isfinite(loss)
    assert ended > 4
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    if not tensors:
        assert loop.episode_count == ended
        assert np.all(np.array(loop.length_queue) <= 20)
