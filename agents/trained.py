"""Policies that were trained: a network and what it has seen of its episode, and where such policies lie.

torch is imported when a policy is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from inferix_env import worlds

if TYPE_CHECKING:
    from agents.networks import ActorCritic

# A shipped policy, in the folder of its world.
FILE = "policy.safetensors"


class TrainedPolicy:
    """What a network does with what it has seen of an episode: a callable from a frame uint8 [H, W, 3] to an action.

    Args:
        greedy: take the likeliest action, in place of one drawn with the episode's seed.

    Attributes:
        card: what its file says of it.
    """

    def __init__(self, network: ActorCritic, card: dict[str, Any] | None = None, greedy: bool = False):
        import torch

        from agents.networks import Memory

        self.network, self.card, self.greedy = network, card or {}, greedy
        self.memory = Memory(network.spec, 1)
        self.generator = torch.Generator()
        self.last: Any = None
        self.reset(0)

    def reset(self, seed: int = 0) -> None:
        self.generator.manual_seed(seed)
        self.last = None

    def __call__(self, observation: np.ndarray) -> Any:
        """The next action.

        Raises:
            ValueError: the frame is not of the size that the network has learned from.
        """
        import torch

        frame, size = np.asarray(observation), self.network.spec.frame
        if frame.shape != (*size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"a frame {frame.dtype} {list(frame.shape)}: this policy reads uint8 {[*size, 3]}")
        if self.last is None:
            self.memory.begin(np.arange(1), frame[None])
        else:
            self.memory.add(frame[None], self.last)
        with torch.inference_mode():
            seen = torch.from_numpy(self.memory.frames), torch.from_numpy(self.memory.actions)
            distribution, _ = self.network(*seen)
            drawn = self.network.drawn(distribution, None if self.greedy else self.generator)
        self.last = self.network.taken(drawn.numpy())
        return int(self.last[0]) if self.network.spec.num_actions else self.last[0]


def load_policy(name: str | Path = "doom-take-cover", greedy: bool | None = None) -> TrainedPolicy:
    """The trained policy that is shipped with a world, or that of a file.

    Args:
        name: a shipped world's name, a world folder that holds a policy, or a file that `agents.ppo` wrote.
        greedy: the likeliest action, or a drawn one; by default as its card says.

    Raises:
        ValueError: there is no such policy; lists the shipped ones.
    """
    named = worlds.HERE / str(name).replace("-", "_") / FILE
    given = Path(name).expanduser()
    path = next((p for p in (named, given / FILE, given) if p.is_file()), None)
    if path is None:
        shipped = sorted(p.parent.name.replace("_", "-") for p in worlds.HERE.glob(f"*/{FILE}"))
        raise ValueError(f"no policy {str(name)!r}: expected one of {shipped}, or a file that agents.ppo wrote")
    from agents.networks import load_network

    network, card = load_network(path)
    return TrainedPolicy(network, card, bool(card.get("greedy", False)) if greedy is None else greedy)


def make_trained(name: str | Path, env: gym.Env, greedy: bool | None) -> TrainedPolicy:
    """`load_policy` for an env.

    Raises:
        ValueError: the env has other frames or actions.
    """
    policy = load_policy(name, greedy)
    spec = policy.network.spec
    from agents.networks import NetworkSpec

    theirs = NetworkSpec.of(env.observation_space, env.action_space)
    same = ("frame", "num_actions", "low", "high")
    wrong = [x for x in same if getattr(theirs, x) != getattr(spec, x)]
    if wrong:
        pairs = ", ".join(f"{x} {getattr(spec, x)} for {getattr(theirs, x)}" for x in wrong)
        raise ValueError(f"the policy {str(name)!r} was not made for this env: {pairs}")
    return policy


def world_behind(env: gym.Env) -> str | Path:
    """The folder of the world that an env dreams.

    Raises:
        ValueError: it dreams none.
    """
    folder = getattr(env.unwrapped, "folder", None)
    if folder is None:
        raise ValueError("policy 'trained': this env is no world with a policy beside it; name a file, trained:PATH")
    return folder
