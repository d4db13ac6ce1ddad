"""python -m agents.ppo --env inferix_env/DoomTakeCover-v0 --seed 1 --out DIR: learn in the dream, by PPO on pixels.

Proximal policy optimisation (Schulman et al., 2017, arXiv:1707.06347) in CleanRL's form (one file), with generalised
advantages (arXiv:1506.02438). N worlds are stepped in one batched call. Episodes may begin amid recorded ones
(`--starts midway`) and be cut short (`--horizon`): a world model is truest near what was really seen (MBPO,
arXiv:1906.08253), and behind a cut the value of what was seen last stands for the rest. The env never resets by itself
(autoreset mode DISABLED): the last observation of an episode is what `step` returned, and no step is ignored.

Every few updates the policy plays the real env, which teaches it nothing. `--real` learns there, for comparison.

DIR gets policy.safetensors (what `agents.policies.load_policy` reads), policy.json (its card), log.csv, gap.png and
checkpoint.pt: the same command goes on from it. When a checkpoint is written all episodes are begun anew, so that a run
that goes on gives the numbers of one that never stopped. The policy that is kept is that of the checkpoint before which
`--keep` updates were paid most for each end where they were played: in the dream, for a policy of the dream.

Legend: T steps of an update, N worlds, K stacked frames, h w shrunk size, A encoded action.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor, nn
from tqdm import tqdm

import inferix_env  # noqa: F401, registers the ids
from agents.curves import plot_gap
from agents.networks import ActorCritic, Memory, NetworkSpec, save_network
from agents.score import play_episodes
from agents.trained import TrainedPolicy
from inferix_env.real import real_env
from inferix_env.record import write_text

# What a run may be continued with other values of.
FREE = ("total_steps", "stop", "out", "real_every", "real_episodes", "real_limit")
# Of the first real episode: no training data were recorded from seeds this high.
REAL_SEED = 20_000


@dataclass(frozen=True)
class Settings:
    """Learn to act in a world.

    Attributes:
        env: an id of inferix_env.
        world: a world's name or folder; by default the id's own.
        out: the folder to write; a run that it holds goes on.
        real: learn in the real env behind the world, in place of the dream.
        seed: of everything that is drawn.
        total_steps: env steps to learn from.
        stop: stop after so many of them; the learning rate falls as if all were still to come.
        num_envs: N, worlds side by side.
        num_steps: T, steps of each world an update learns from.
        starts: "openings" of real episodes, or "midway" in them, where the world has such; the real env has openings.
        start_variables: "health=16" has training episodes begin with these named variables.
        horizon: steps after which a training episode is cut.
        passes: denoising passes of a dreamed step; by default the world's own.
        soft_ends: weigh what is behind a step by its probability not to end the episode (`info["end_probability"]`),
            in place of whether it happened to: the same in the mean, and less left to chance.
        soft_changes: `shape` weighs the changes that were expected (`info["expected_variables"]`), in place of those
            that were drawn: the same in the mean, again.
        guard: a signal of `inferix_env.guard` that is read off every dreamed step, such as "latent".
        guard_bound: cut a training episode where the signal exceeds it, as at the horizon.
        learning_rate: falls linearly to nothing.
        gamma, gae_lambda: discount, and decay of the advantage's traces.
        epochs, minibatch: passes over an update's steps, and how many of them a gradient is of.
        clip, entropy, value_weight, max_grad_norm, target_kl: of PPO; an update ends early above `target_kl`.
        average: of the weights' running mean, what stays at each gradient (Polyak averaging): the policy that is
            written and looked at has the mean's weights; 0 for the last ones.
        reward_scale: rewards are multiplied by it.
        shape: "health=0.05" adds 0.05 of every change of that variable to the reward while an episode goes on.
        mirror: what a mirrored picture does to the actions, "0 2 1" (see `NetworkSpec`); empty for no symmetry.
        shrink: frames are averaged over squares of so many pixels.
        save_every: updates between two checkpoints.
        keep: updates whose returns say which checkpoint's policy is kept; 0 keeps the last one.
        real_every: updates between two looks at the real env; 0 for none.
        real_episodes: how many are played there.
        real_limit: steps after which they are cut; by default what the id says, or 1,000.
        greedy: the likeliest action in place of a drawn one, in the real env; the policy's card says so, too.
        stack: frames that the network sees.
        inertia: added to the logit of the last discrete action (see `NetworkSpec`).
        bfloat16: compute convolutions in it while learning (for CPUs with AVX-512-BF16 or AMX).
        device: where the world runs.
    """

    env: str = "inferix_env/DoomTakeCover-v0"
    world: str | None = None
    out: Path | None = None
    real: bool = False
    seed: int = 1
    total_steps: int = 30_000
    stop: int | None = None
    num_envs: int = 16
    num_steps: int = 32
    starts: str = "openings"
    start_variables: str = ""
    horizon: int = 525
    passes: int | None = None
    soft_ends: bool = False
    soft_changes: bool = False
    guard: str = ""
    guard_bound: float | None = None
    learning_rate: float = 1e-3
    gamma: float = 0.95
    gae_lambda: float = 0.95
    epochs: int = 6
    minibatch: int = 128
    clip: float = 0.2
    entropy: float = 0.01
    value_weight: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float = 0.04
    average: float = 0.0
    reward_scale: float = 0.025
    shape: str = ""
    mirror: str = ""
    shrink: int = 2
    save_every: int = 4
    keep: int = 8
    real_every: int = 20
    real_episodes: int = 10
    real_limit: int | None = None
    greedy: bool = False
    stack: int = 4
    inertia: float = 0.0
    bfloat16: bool = False
    device: str = "cpu"

    @property
    def batch(self) -> int:
        """Steps of an update."""
        return self.num_envs * self.num_steps

    @property
    def num_updates(self) -> int:
        return -(-self.total_steps // self.batch)

    @property
    def last_update(self) -> int:
        """The one to stop after."""
        return min(self.num_updates, -(-(self.stop or self.total_steps) // self.batch))


def check(settings: Settings) -> None:
    """Raise ValueError for settings that cannot be."""
    if settings.out is None:
        raise ValueError("--out DIR is missing: where does the policy go?")
    counts = ("total_steps", "num_envs", "num_steps", "epochs", "minibatch", "save_every", "real_episodes")
    wrong = [name for name in counts if getattr(settings, name) < 1]
    if wrong:
        raise ValueError(f"--{wrong[0].replace('_', '-')} {getattr(settings, wrong[0])}: expected at least 1")
    if not 0 <= settings.average < 1:
        raise ValueError(f"--average {settings.average}: expected a share from 0 to below 1, such as 0.99")
    if settings.real and settings.starts != "openings":
        raise ValueError(f"--starts {settings.starts}: the real env begins at openings alone")
    if settings.real and (settings.start_variables or settings.soft_ends or settings.soft_changes):
        raise ValueError("--start-variables, --soft-ends and --soft-changes are for dreams: the real env has none")
    if settings.real and settings.passes is not None:
        raise ValueError("--passes are of dreams: the real env has none")
    if settings.real and settings.guard:
        raise ValueError("--guard watches dreams: the real env needs none")
    if bool(settings.guard) != (settings.guard_bound is not None):
        raise ValueError(
            "--guard and --guard-bound go together: a signal, such as latent, and where it cuts, such as 2"
        )
    named(settings.shape)
    named(settings.start_variables)
    if find_spec("matplotlib") is None:
        raise ValueError("the plot needs the package matplotlib: pip install 'inferix-env[train]'")


def named(text: str) -> dict[str, float]:
    """The numbers of "health=0.05, ammo=0.1"."""
    try:
        pairs = [part.split("=") for part in text.split(",") if part.strip()]
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise ValueError(f"{text!r}: expected names and numbers, such as health=0.05") from None


def mirror_of(text: str) -> tuple[int, ...]:
    """The numbers of "0 2 1"."""
    try:
        return tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise ValueError(f"--mirror {text!r}: expected whole numbers, such as '0 2 1'") from None


def world_of(settings: Settings) -> str:
    """The world that an id of inferix_env dreams."""
    try:
        told = gym.spec(settings.env).kwargs
    except gym.error.Error as error:
        raise ValueError(f"no Gymnasium env {settings.env!r}: {error}") from None
    world = settings.world or told.get("world")
    if world is None:
        raise ValueError(
            f"--env {settings.env} has no world of its own: give one with --world, or an id of inferix_env"
        )
    return str(world)


def make_envs(settings: Settings) -> VectorEnv:
    """N dreams in one engine, or N real envs; none of them resets by itself."""
    world = world_of(settings)
    if settings.real:
        makers = [lambda: real_env(world, max_episode_steps=settings.horizon)] * settings.num_envs
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    return gym.make_vec(
        settings.env,
        num_envs=settings.num_envs,
        world=world,
        device=settings.device,
        num_steps=settings.passes,
        deterministic=False,
        autoreset_mode=AutoresetMode.DISABLED,
        max_episode_steps=settings.horizon,
        **({"guard": settings.guard, "guard_bound": settings.guard_bound} if settings.guard else {}),
    )


@dataclass
class Batch:
    """What an update learns from: [T, N, ...] of frames uint8 [K, h, w, 3], last actions [A], what was drawn, its log
    probability, advantage and return."""

    frames: Tensor
    lasts: Tensor
    drawn: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, index: Tensor) -> list[Tensor]:
        """The steps of a flat index, in the order of the fields."""
        return [x.flatten(0, 1)[index] for x in vars(self).values()]


class Tally:
    """Rewards, ends and lengths of what an update has played; ends are 0 or 1 a step, or probabilities."""

    def __init__(self) -> None:
        self.reward, self.shaped, self.steps, self.ends, self.cuts = 0.0, 0.0, 0, 0.0, 0

    def add(self, rewards: np.ndarray, shaped: np.ndarray, ends: np.ndarray, cut: np.ndarray) -> None:
        self.reward += float(rewards.sum())
        self.shaped += float(shaped.sum())
        self.steps += len(rewards)
        self.ends += float(ends.sum())
        self.cuts += int(cut.sum())

    def row(self) -> dict[str, float]:
        """Return and steps for each end that there was (of less than one, as though it were about to come), episodes
        that were cut, and what is learned from, a step: rewards as they are scaled and shaped."""
        ends = max(1, self.ends)
        shaped = self.shaped / max(1, self.steps)
        return {
            "return": self.reward / ends,
            "life": self.steps / ends,
            "ends": round(self.ends, 3),
            "cuts": self.cuts,
            "shaped": shaped,
        }


def advantages_of(
    rewards: Tensor, values: Tensor, nexts: Tensor, ends: Tensor, over: Tensor, gamma: float, decay: float
) -> Tensor:
    """Generalised advantages [T, N].

    Args:
        nexts: value of what each step led to, before any reset.
        ends: whether each step was an end, behind which nothing counts: 0 or 1, or a probability.
        over: ended or cut: no trace leads across.
    """
    deltas = rewards + gamma * nexts * (1 - ends) - values
    out, trace = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        trace = deltas[t] + gamma * decay * trace * ~over[t]
        out[t] = trace
    return out


class PPO:
    """A run: envs, network, optimiser, and how far it is.

    Raises:
        ValueError: the settings name nothing there is, or the folder holds another run.
    """

    def __init__(self, settings: Settings):
        check(settings)
        self.settings, self.out = settings, Path(settings.out or ".").expanduser()
        self.weights = named(settings.shape)
        self.envs = make_envs(settings)
        spaces = self.envs.single_observation_space, self.envs.single_action_space
        names = ("shrink", "stack", "inertia")
        seen = {"mirror": mirror_of(settings.mirror)} | {name: getattr(settings, name) for name in names}
        self.spec = NetworkSpec.of(*spaces, **seen)
        torch.manual_seed(settings.seed)  # of the weights
        self.network = ActorCritic(self.spec)
        self.network.bfloat16 = settings.bfloat16
        self.averaged = copy.deepcopy(self.network)
        self.optimiser = torch.optim.Adam(self.network.parameters(), settings.learning_rate, eps=1e-5)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.memory = Memory(self.spec, settings.num_envs)
        self.variables: dict[str, np.ndarray] = {}
        self.update, self.seconds, self.log = 0, 0.0, list[dict[str, Any]]()
        self.tally, self.best = Tally(), -float("inf")
        self.out.mkdir(parents=True, exist_ok=True)
        if (self.out / "checkpoint.pt").exists():
            self.load()

    @property
    def steps(self) -> int:
        """Env steps so far."""
        return self.update * self.settings.batch

    def run(self) -> None:
        """Learn until all steps are done."""
        total = self.settings.last_update
        with tqdm(total=total * self.settings.batch, initial=self.steps, unit="step", disable=None) as bar:
            while self.update < total:
                if self.update % self.settings.save_every == 0:
                    self.begin()
                started = time.perf_counter()
                batch = self.collect(bar)
                row = {"update": self.update + 1, "steps": self.steps + self.settings.batch, **self.tally.row()}
                row |= self.learn(batch)
                self.seconds += time.perf_counter() - started
                self.update += 1
                self.look(row)
                self.log.append({**row, "seconds": round(self.seconds, 1)})
                bar.set_postfix(life=f"{row['life']:.0f}", real=self.last_real())
                if self.update % self.settings.save_every == 0 or self.update == total:
                    self.save()

    def begin(self) -> None:
        """Begin all episodes anew, from seeds that the update gives."""
        seed = self.settings.seed * 1_000_000 + self.update * 1_000
        observations, infos = self.envs.reset(seed=seed, options=self.start_options())
        self.memory.begin(np.arange(self.settings.num_envs), observations)
        self.variables = {name: np.array(infos["variables"][name]) for name in self.weights}

    def start_options(self) -> dict[str, Any]:
        """Reset options of a training episode."""
        variables = named(self.settings.start_variables)
        starts = {} if self.settings.starts == "openings" else {"starts": self.settings.starts}
        return starts | ({"variables": variables} if variables else {})

    @torch.no_grad()
    def collect(self, bar: tqdm) -> Batch:
        """Play T steps in every world."""
        self.tally = Tally()
        self.network.eval()
        columns: dict[str, list[Tensor]] = {name: [] for name in (*NAMES, *PLAYED)}
        for _ in range(self.settings.num_steps):
            frames, lasts = self.seen()
            distribution, values = self.network(frames, lasts)
            drawn = self.network.drawn(distribution, self.generator)
            rewards, nexts, ends, over = self.play(drawn.numpy())
            step = frames, lasts, drawn, distribution.log_prob(drawn), values, rewards, nexts, ends, over
            for name, value in zip(columns, step, strict=True):
                columns[name].append(value)
            bar.update(self.settings.num_envs)
        made = {name: torch.stack(column) for name, column in columns.items()}
        made["nexts"] = torch.where(made["over"], made["nexts"], self.values_after(made["values"]))
        values, rewards, nexts, ends, over = (made.pop(name) for name in PLAYED)
        advantages = advantages_of(rewards, values, nexts, ends, over, self.settings.gamma, self.settings.gae_lambda)
        return Batch(**made, advantages=advantages, returns=advantages + values)

    def seen(self) -> tuple[Tensor, Tensor]:
        """What the network sees of every world now."""
        return torch.from_numpy(self.memory.frames.copy()), torch.from_numpy(self.memory.actions.copy())

    def values_after(self, values: Tensor) -> Tensor:
        """The next step's value for each step [T, N]."""
        last = self.network(*self.seen())[1]
        return torch.cat([values[1:], last[None]])

    def play(self, drawn: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of every world: reward, value of what it led to (where the episode is over), end, over."""
        actions = self.network.taken(drawn)
        observations, rewards, terminated, truncated, infos = self.envs.step(actions)
        self.memory.add(observations, actions)
        shaped = rewards * self.settings.reward_scale + self.changes(infos, terminated)
        ends = np.float32(infos["end_probability"] if self.settings.soft_ends else terminated)
        self.tally.add(rewards, shaped, ends, truncated & ~terminated)
        over = terminated | truncated
        nexts = torch.zeros(len(over))
        if over.any():
            nexts = self.network(*self.seen())[1]
            self.restart(over)
        return torch.from_numpy(np.float32(shaped)), nexts, torch.from_numpy(ends), torch.from_numpy(over)

    def changes(self, infos: dict[str, Any], terminated: np.ndarray) -> np.ndarray:
        """What the changes of named variables add to the rewards."""
        total = np.zeros(len(terminated))
        for name, weight in self.weights.items():
            after = infos["expected_variables" if self.settings.soft_changes else "variables"][name]
            total += np.where(terminated, 0.0, weight * (after - self.variables[name]))
            self.variables[name] = np.array(infos["variables"][name])
        return total

    def restart(self, over: np.ndarray) -> None:
        """Begin new episodes in some rows."""
        observations, infos = self.envs.reset(options={**self.start_options(), "reset_mask": over})
        self.memory.begin(np.flatnonzero(over), observations[over])
        for name in self.weights:
            self.variables[name] = np.where(over, infos["variables"][name], self.variables[name])

    def learn(self, batch: Batch) -> dict[str, float]:
        """Some epochs over a batch; returns what to log."""
        self.network.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * (1 - self.update / self.settings.num_updates)
        rows: list[dict[str, float]] = []
        for _ in range(self.settings.epochs):
            order = torch.randperm(self.settings.batch, generator=self.generator)
            rows += [self.gradient(batch, index) for index in order.split(self.settings.minibatch)]
            if rows[-1]["kl"] > self.settings.target_kl:
                break
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        explained = 1 - float(batch.advantages.var() / batch.returns.var().clamp(min=1e-8))
        return {**means, "kl": rows[-1]["kl"], "explained": explained, "gradients": len(rows)}

    def gradient(self, batch: Batch, index: Tensor) -> dict[str, float]:
        """One step of the optimiser on some of a batch's steps."""
        frames, lasts, drawn, log_probs, advantages, returns = batch.rows(index)
        distribution, values = self.network(frames, lasts)
        log_ratio = distribution.log_prob(drawn) - log_probs
        ratio = log_ratio.exp()
        gains = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip)
        policy_loss = -torch.minimum(gains * ratio, gains * clipped).mean()
        value_loss = (values - returns).pow(2).mean() / 2
        entropy = distribution.entropy().mean()
        loss = policy_loss + self.settings.value_weight * value_loss - self.settings.entropy * entropy
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm)
        self.optimiser.step()
        with torch.no_grad():
            for mean, now in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 1 - self.settings.average)
            kl = (ratio - 1 - log_ratio).mean()
        named = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "kl": kl}
        return {name: float(x.detach()) for name, x in named.items()}

    def look(self, row: dict[str, Any]) -> None:
        """Play the real env, where it is time to, and note what came of it."""
        every, last = self.settings.real_every, self.update == self.settings.last_update
        if not every or (self.update % every and not last and self.update != 1):
            row |= {"real_return": None, "real_life": None}
            return
        limit = self.settings.real_limit or gym.spec(self.settings.env).max_episode_steps or 1_000
        env = real_env(world_of(self.settings), max_episode_steps=limit)
        policy = TrainedPolicy(self.averaged.eval(), greedy=self.settings.greedy)
        seeds = range(REAL_SEED, REAL_SEED + self.settings.real_episodes)
        lives = play_episodes(env, policy, seeds, "real episodes")
        env.close()
        row |= {
            "real_return": float(np.mean([life.total for life in lives])),
            "real_life": float(np.mean([life.steps for life in lives])),
        }

    def last_real(self) -> str:
        known = [row["real_life"] for row in self.log if row["real_life"] is not None]
        return f"{known[-1]:.0f}" if known else "-"

    def save(self) -> None:
        """Write policy, checkpoint, log and plot."""
        found = mean_return(self.log[-self.settings.keep :])
        if not self.settings.keep or found >= self.best or self.update <= self.settings.keep:
            self.best = found
            save_network(self.out / "policy.safetensors", self.averaged, self.card())
            write_text(self.out / "policy.json", json.dumps(self.card(), indent=1) + "\n")
        state = {
            "settings": {name: str(x) for name, x in asdict(self.settings).items()},
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "update": self.update,
            "seconds": self.seconds,
            "best": self.best,
            "log": self.log,
        }
        temporary = self.out / ".checkpoint.pt.part"
        torch.save(state, temporary)
        temporary.replace(self.out / "checkpoint.pt")
        write_text(self.out / "log.csv", table(self.log))
        plot_gap(self.out / "gap.png", [self.log], "real env" if self.settings.real else "dream")

    def load(self) -> None:
        """Go on from the checkpoint."""
        state = torch.load(self.out / "checkpoint.pt", weights_only=True)
        given = {name: str(x) for name, x in asdict(self.settings).items()}
        changed = [name for name in given if name not in FREE and given[name] != state["settings"].get(name)]
        if changed:
            was = {name: state["settings"].get(name) for name in changed}
            raise ValueError(f"--out {self.out} holds a run with other settings ({was}): choose another folder")
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.update, self.seconds, self.log = state["update"], state["seconds"], state["log"]
        self.best = state["best"]

    def card(self) -> dict[str, Any]:
        """What a policy file says of itself."""
        settings = {name: x for name, x in asdict(self.settings).items() if name != "out"}
        return {
            "world": world_of(self.settings),
            "learned_in": "the real env" if self.settings.real else "the dream",
            "greedy": self.settings.greedy,
            "steps": self.steps,
            "seconds": round(self.seconds),
            "settings": settings,
        }


NAMES = ("frames", "lasts", "drawn", "log_probs")
PLAYED = ("values", "rewards", "nexts", "ends", "over")


def mean_return(rows: Sequence[dict[str, Any]]) -> float:
    """What some updates were paid for each end (see `Tally.row`)."""
    paid = sum(row["return"] * max(1, row["ends"]) for row in rows)
    return paid / max(1, sum(row["ends"] for row in rows))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a wrong setting, 130 for Ctrl-C."""
    settings = tyro.cli(Settings, args=arguments, prog="python -m agents.ppo", description=__doc__)
    try:
        PPO(settings).run()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped: the same command goes on from the last checkpoint in {settings.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
