"""A TorchRL collector in the dream: its GymEnv takes a world's id, and worlds of one process share an engine."""

import torch
import tyro
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, ExplorationType, GymEnv, SerialEnv
from torchrl.modules import OneHotCategorical

import inferix_env  # noqa: F401  registers the ids


def make_policy(envs: EnvBase) -> ProbabilisticTensorDictSequential:
    """Pictures uint8 [..., H, W, 3] to an action, one-hot, through a small network that has learned nothing yet."""
    num_actions = envs.action_spec.shape[-1]
    network = nn.Sequential(nn.LazyConv2d(16, 8, 4), nn.ReLU(), nn.LazyConv2d(32, 4, 2), nn.ReLU(), nn.Flatten())
    head = nn.LazyLinear(num_actions)

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        pictures = pixels.flatten(0, -4).movedim(-1, -3).float() / 255
        return head(network(pictures)).unflatten(0, pixels.shape[:-3])

    drawn = ProbabilisticTensorDictModule(
        ["logits"], ["action"], distribution_class=OneHotCategorical, default_interaction_type=ExplorationType.RANDOM
    )
    return ProbabilisticTensorDictSequential(TensorDictModule(logits, ["pixels"], ["logits"]), drawn)


def main(
    env: str = "inferix_env/DoomTakeCover-v0",
    world: str | None = None,
    num_envs: int = 2,
    steps: int = 200,
    batch: int = 50,
    seed: int = 0,
) -> float:
    """Collect batches for a learner; returns the mean reward of a step.

    Args:
        env: a world's id.
        world: a world's name or folder, for the id inferix_env/World-v0.
        num_envs: how many worlds, stepped in turn.
        steps: of all worlds together.
        batch: steps a batch.
        seed: of the worlds and the policy.
    """
    torch.manual_seed(seed)
    given = {"world": world} if world else {}
    envs = SerialEnv(num_envs, lambda: GymEnv(env, **given))
    envs.set_seed(seed)
    policy = make_policy(envs)
    collector = Collector(
        envs, policy, frames_per_batch=batch, total_frames=steps, auto_register_policy_transforms=True
    )
    rewards = []
    for data in collector:
        rewards.append(data["next", "reward"].mean())
        shapes = {name: tuple(data[name].shape) for name in ("pixels", "action", ("next", "reward"))}
        print(f"{shapes}, mean reward {rewards[-1]:.3f}, ends {int(data['next', 'done'].sum())}")
    collector.shutdown()
    return float(torch.stack(rewards).mean())


if __name__ == "__main__":
    tyro.cli(main)
