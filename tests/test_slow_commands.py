"""The commands on the real game: a training that is killed on the way, and an evaluation of the shipped world."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

import inferix_env  # noqa: F401  (registers the ids)
from inferix_env.evaluation.sections import SECTIONS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PATIENCE = 600.0  # seconds that a training may take until it is killed; a few tens are expected

# Every stage in a few steps: the denoiser's are enough to be caught on the way, and it saves itself after each.
DENOISER_STEPS, KILLED_AFTER = 150, 10
SETTINGS = f"""
--env VizdoomTakeCover-v1 --frames 1200 --shard-frames 400 --height 48 --width 64 --num-starts 4
--codec.channels 4 --codec.widths 8 8 16 --codec.depth 1
--codec.fit.steps 20 --codec.fit.batch 4 --codec.fit.validate-every 10
--world.width 32 --world.layers 2 --world.heads 2 --kv.window 4
--denoiser.frames 8 --denoiser.own-after 0 --denoiser.fit.muon --denoiser.fit.warmup 5
--denoiser.fit.steps {DENOISER_STEPS} --denoiser.fit.batch 4 --denoiser.fit.every 0 --denoiser.fit.validate-every 50
--heads.frames 5 --heads.dreams.count 6 --heads.dreams.steps 4
--heads.fit.steps 20 --heads.fit.batch 4 --heads.fit.validate-every 10
""".split()


def popen(module: str, *arguments: str, folder: Path) -> subprocess.Popen:
    """`python -m module`, begun in a folder in which it may leave what it likes."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *arguments]
    with (folder / f"{module}.log").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)


def finish(module: str, *arguments: str, folder: Path) -> None:
    """Run a command to its good end."""
    code = popen(module, *arguments, folder=folder).wait()
    assert code == 0, (folder / f"{module}.log").read_text()[-4_000:]


def train_until_killed(out: Path, folder: Path) -> None:
    """Begin a training, and kill it in the denoiser's stage."""
    process = popen("engine.training", *SETTINGS, "--out", str(out), folder=folder)
    deadline = time.monotonic() + PATIENCE
    try:
        while step_of(out / "training" / "denoiser.pt") < KILLED_AFTER:
            assert process.poll() is None, (folder / "engine.training.log").read_text()[-4_000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


def step_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0


def logged_steps(log: Path) -> list[int]:
    return [json.loads(line)["step"] for line in log.read_text().splitlines()]


def test_a_training_killed_on_the_way_goes_on_and_ends_with_a_world_that_plays(tmp_path):
    """The same command again ends with the very weights of a denoiser that was trained at one go."""
    out, whole = tmp_path / "killed" / "take_cover", tmp_path / "whole" / "take_cover"
    train_until_killed(out, tmp_path)
    assert KILLED_AFTER <= step_of(out / "training" / "denoiser.pt") < DENOISER_STEPS
    assert not (out / "world.json").exists()
    shutil.copytree(out, whole, ignore=shutil.ignore_patterns("denoiser*"))
    for folder in (out, whole):
        finish("engine.training", *SETTINGS, "--out", str(folder), folder=tmp_path)
        assert logged_steps(folder / "training" / "codec.jsonl") == [10, 20]
        assert logged_steps(folder / "training" / "denoiser.jsonl") == [50, 100, 150]
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    check_plays(out)


def check_plays(world: Path) -> None:
    env = gym.make("inferix_env/World-v0", world=str(world))
    env.action_space.seed(0)
    obs, info = env.reset(seed=0)
    assert obs.shape == (48, 64, 3)
    assert 0 <= info["variables"]["health"] <= 100
    for _ in range(20):
        obs, reward, terminated, _, _ = env.step(env.action_space.sample())
        assert obs in env.observation_space
        assert obs.std() > 0
        assert np.isfinite(reward)
        if terminated:
            env.reset()
    env.close()


def not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Names of the numbers, however deep, that are nan or infinite (strict JSON has them as text)."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from not_finite(part, f"{name}/{value.get('what', '')}/{key}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from not_finite(part, f"{name}/{i}")
    elif value in ("nan", "inf", "-inf"):
        yield name


def may_be_undefined(name: str) -> bool:
    """What a few short episodes may have none of: fire on the screen, and ends of dreams."""
    return "fire" in name or name.endswith("_last")


def test_a_quick_evaluation_of_the_shipped_world_fills_every_section(tmp_path):
    out = tmp_path / "evaluation"
    finish("inferix_env.evaluation", "--quick", "--out", str(out), folder=tmp_path)
    results, page = json.loads((out / "results.json").read_text()), (out / "results.md").read_text()
    assert results["setting"]["world"] == "doom-take-cover"
    assert list(results["sections"]) == list(SECTIONS)
    for section in results["sections"].values():
        check_section(section, page, out)
    assert {path.name for path in out.glob("*.png")} == {
        picture["file"] for section in results["sections"].values() for picture in section["pictures"]
    }
    printed = (tmp_path / "inferix_env.evaluation.log").read_text()
    assert f"of {sum(len(section['checks']) for section in results['sections'].values())} targets met" in printed


def check_section(section: dict[str, Any], page: str, out: Path) -> None:
    """A section has its text, its targets, its numbers and its pictures, and what can be a number is one."""
    assert f"## {section['title']}" in page
    assert section["method"]
    assert all(section[part] for part in ("checks", "numbers", "pictures"))
    assert [name for name in not_finite(section["numbers"]) if not may_be_undefined(name)] == []
    for check in section["checks"]:
        finite = isinstance(check["value"], int | float) and math.isfinite(check["value"])
        assert finite or may_be_undefined(check["name"]), check
        assert isinstance(check["passed"], bool)
    for picture in section["pictures"]:
        with Image.open(out / picture["file"]) as image:
            assert min(image.size) > 100
            assert np.asarray(image).std() > 5
