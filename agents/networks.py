"""A small actor-critic on pixels, its file, and nothing of how it is trained.

What the network sees of an episode is a `Memory`: the last frames, shrunk by area averaging, and the last action.
A policy file is safetensors; its metadata hold the `NetworkSpec` and the card. Knows torch and Gymnasium spaces; does
not know envs.

Legend: B batch, K stacked frames, h w shrunk size, A encoded action.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

FORMAT = "inferix_env policy"


@dataclass(frozen=True)
class NetworkSpec:
    """What a network sees and does.

    Attributes:
        frame: (H, W) of the frames.
        num_actions: of a discrete action space; 0 for a Box.
        low, high: bounds of a Box, one for each number.
        shrink: frames are averaged over squares of so many pixels.
        stack: how many frames are seen.
        channels: of the convolutions.
        width: of the hidden layer.
        mirror: what a picture's mirror image does to actions, in games that have this symmetry, else (): of discrete
            actions the index that each becomes, of a Box the sign of each number.
    """

    frame: tuple[int, int]
    num_actions: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    shrink: int = 2
    stack: int = 4
    channels: tuple[int, ...] = (24, 32, 32)
    width: int = 256
    mirror: tuple[int, ...] = ()
    inertia: float = 0.0

    @classmethod
    def of(cls, observations: gym.Space, actions: gym.Space, **changes: Any) -> NetworkSpec:
        """The spec for an env's spaces.

        Raises:
            ValueError: they are no pictures, or neither Discrete nor a flat bounded Box; or `changes` do not fit.
        """
        shape = getattr(observations, "shape", None) or ()
        if len(shape) != 3 or shape[-1] != 3 or observations.dtype != np.uint8:
            raise ValueError(f"observations {observations}: expected one uint8 picture [H, W, 3]")
        made = cls(tuple(shape[:2]), **actions_of(actions), **changes)
        made.check()
        return made

    @property
    def small(self) -> tuple[int, int]:
        """(h, w), the size of shrunk frames."""
        return self.frame[0] // self.shrink, self.frame[1] // self.shrink

    @property
    def action_width(self) -> int:
        """A: one-hot of a discrete action, the numbers of a Box."""
        return self.num_actions or len(self.low)

    def check(self) -> None:
        """Raise ValueError unless the numbers fit each other."""
        if self.shrink < 1 or self.stack < 1 or min(self.small) < 16:
            raise ValueError(
                f"frames of {self.frame} pixels shrunk by {self.shrink}, {self.stack} of them: expected at least one, "
                "16 pixels high and wide"
            )
        twice = [self.mirror[i] for i in self.mirror] if self.num_actions and self.mirror_in_range() else []
        whole = twice == list(range(self.num_actions)) if self.num_actions else {*self.mirror} <= {-1, 1}
        if self.mirror and (len(self.mirror) != self.action_width or not whole):
            raise ValueError(
                f"mirror {list(self.mirror)}: expected for each of {self.num_actions} actions the one that its mirror "
                "image is, such as 0 2 1"
                if self.num_actions
                else f"mirror {list(self.mirror)}: expected 1 or -1 for each of {len(self.low)} numbers"
            )

    def mirror_in_range(self) -> bool:
        return all(0 <= i < len(self.mirror) for i in self.mirror)


def actions_of(space: gym.Space) -> dict[str, Any]:
    """The fields of a `NetworkSpec` that say what actions are."""
    if isinstance(space, gym.spaces.Discrete) and space.start == 0:
        return {"num_actions": int(space.n)}
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        return {"low": tuple(map(float, space.low)), "high": tuple(map(float, space.high))}
    raise ValueError(f"actions {space}: expected Discrete from 0 on, or a Box of bounded numbers")


def shrunk(frames: np.ndarray, factor: int) -> np.ndarray:
    """uint8 [..., H, W, 3] -> [..., h, w, 3] by averaging squares; what is left over at the edges is cut off."""
    height, width = (side // factor for side in frames.shape[-3:-1])
    cut = frames[..., : height * factor, : width * factor, :]
    parts = cut.reshape(*frames.shape[:-3], height, factor, width, factor, 3)
    total = parts.sum(axis=-4, dtype=np.uint16).sum(axis=-2, dtype=np.uint16)
    return ((total + factor * factor // 2) // (factor * factor)).astype(np.uint8)


class Memory:
    """What a network sees of N episodes: the last K frames, shrunk, and the last actions, encoded.

    Attributes:
        frames: uint8 [N, K, h, w, 3], oldest first; an episode's first frame stands in for those before it.
        actions: float32 [N, A]; zeros before the first.
    """

    def __init__(self, spec: NetworkSpec, count: int):
        self.spec = spec
        self.frames = np.zeros((count, spec.stack, *spec.small, 3), np.uint8)
        self.actions = np.zeros((count, spec.action_width), np.float32)

    def begin(self, rows: np.ndarray, frames: np.ndarray) -> None:
        """Episodes begin in some rows, with frames [R, H, W, 3]."""
        self.frames[rows] = shrunk(frames, self.spec.shrink)[:, None]
        self.actions[rows] = 0

    def add(self, frames: np.ndarray, actions: np.ndarray) -> None:
        """In every row an action [N, ...] has led to a frame [N, H, W, 3]."""
        self.frames[:, :-1] = self.frames[:, 1:]
        self.frames[:, -1] = shrunk(frames, self.spec.shrink)
        self.actions[:] = self.encode(actions)

    def encode(self, actions: np.ndarray) -> np.ndarray:
        if self.spec.num_actions:
            return np.eye(self.spec.num_actions, dtype=np.float32)[actions]
        return np.asarray(actions, np.float32)


class ActorCritic(nn.Module):
    """A convolutional trunk over stacked frames, heads for the action and for the value.

    With a mirror symmetry the trunk is shown the picture and its mirror image, and what the heads say of the two is
    joined so that the mirrored picture gives the mirrored action, exactly: half as much is left to learn.

    Attributes:
        bfloat16: compute convolutions in it; worth it where the CPU has AVX-512-BF16 or AMX.
    """

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        self.spec, self.bfloat16 = spec, False
        inputs, layers = 3 * spec.stack, []
        for channels in spec.channels:
            layers += [nn.Conv2d(inputs, channels, 3 if layers else 4, stride=2), nn.ReLU()]
            inputs = channels
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            flat = self.convolutions(torch.zeros(1, 3 * spec.stack, *spec.small)).shape[1]
        self.hidden = nn.Sequential(nn.Linear(flat + spec.action_width, spec.width), nn.ReLU())
        self.policy = nn.Linear(spec.width, spec.action_width)
        self.value = nn.Linear(spec.width, 1)
        self.log_std = None if spec.num_actions else nn.Parameter(torch.full((len(spec.low),), -0.5))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(module.weight, 2**0.5)
                nn.init.zeros_(module.bias)
        nn.init.orthogonal_(self.policy.weight, 0.01)
        nn.init.orthogonal_(self.value.weight, 1.0)
        self.convolutions.to(memory_format=torch.channels_last)  # faster on a CPU

    def forward(self, frames: Tensor, actions: Tensor) -> tuple[Any, Tensor]:
        """Action distribution and value [B].

        Args:
            frames: uint8 [B, K, h, w, 3].
            actions: the last ones, encoded, float32 [B, A].
        """
        pictures = (frames.permute(0, 2, 3, 1, 4).flatten(3).float() / 255 - 0.5).permute(0, 3, 1, 2)
        out, value = self._read(pictures, actions)
        if self.spec.mirror:
            other, other_value = self._read(pictures.flip(-1), self._mirrored(actions))
            out, value = (out + self._mirrored(other)) / 2, (value + other_value) / 2
        return self._distribution(out + self.spec.inertia * actions if self.spec.num_actions else out), value

    def _read(self, pictures: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=self.bfloat16):
            seen = self.convolutions(pictures)
        hidden = self.hidden(torch.cat([seen.float(), actions], dim=1))
        return self.policy(hidden), self.value(hidden)[:, 0]

    def _mirrored(self, rows: Tensor) -> Tensor:
        """[B, A] by action, as the mirror image has them."""
        mirror = list(self.spec.mirror)
        return rows[:, mirror] if self.spec.num_actions else rows * rows.new_tensor(mirror)

    def _distribution(self, out: Tensor) -> Any:
        if self.log_std is None:
            return Categorical(logits=out, validate_args=False)
        return Independent(Normal(out, self.log_std.exp().expand_as(out), validate_args=False), 1)

    def drawn(self, distribution: Any, generator: torch.Generator | None) -> Tensor:
        """A draw, or without a generator the likeliest."""
        if generator is None:
            return distribution.mode
        if self.log_std is None:
            return torch.multinomial(distribution.probs, 1, generator=generator)[:, 0]
        return torch.normal(distribution.mean, distribution.stddev, generator=generator)

    def taken(self, drawn: np.ndarray) -> np.ndarray:
        """The env's actions for what was drawn from the distribution: of a Box, [-1, 1] is the range, clipped."""
        if self.spec.num_actions:
            return drawn
        low, high = np.float32(self.spec.low), np.float32(self.spec.high)
        return low + (np.clip(drawn, -1, 1).astype(np.float32) + 1) / 2 * (high - low)


def save_network(path: Path, network: ActorCritic, card: Mapping[str, Any]) -> None:
    """Write a policy file."""
    tensors = {name: x.detach().contiguous() for name, x in network.state_dict().items()}
    metadata = {"format": FORMAT, "spec": json.dumps(asdict(network.spec)), "card": json.dumps(card)}
    temporary = path.with_name(f".{path.name}.part")
    save_file(tensors, temporary, metadata)
    temporary.replace(path)


def load_network(path: Path) -> tuple[ActorCritic, dict[str, Any]]:
    """The network of a policy file, and its card.

    Raises:
        ValueError: it is no policy file, or its tensors do not fit its spec.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"policy {str(path)!r} cannot be read: {error}") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no policy: expected a file that python -m agents.ppo wrote")
    told = {name: tuple(x) if isinstance(x, list) else x for name, x in json.loads(metadata["spec"]).items()}
    network = ActorCritic(NetworkSpec(**told))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"policy {str(path)!r} does not fit its own spec: {error}") from None
    return network.eval(), json.loads(metadata["card"])
