"""docs/your-own-world.md, followed to the letter: its files are saved, its commands run, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "your-own-world.md"
BLOCK = re.compile(r"(?P<before>[^\n]*)\n\n```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)
NAMED = re.compile(r"[Ss]ave (?:it|this) as `([\w.]+)`[:.]$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the name of the file that it is to be saved as, if any."""

    language: str
    text: str
    file: str | None


def blocks() -> Iterator[Block]:
    for found in BLOCK.finditer(PAGE.read_text()):
        named = NAMED.search(found["before"])
        yield Block(found["language"], found["text"], named[1] if named else None)


def bash_script(folder: Path) -> str:
    """The page as one shell script; files are saved on the way."""
    lines = ["set -eux"]
    for number, block in enumerate(blocks()):
        name = block.file or f"block-{number}.py"
        if block.language == "sh":
            lines.append(block.text)
            continue
        assert block.language == "python" or block.file, block
        (folder / name).write_text(block.text)
        if block.file is None:
            lines.append(f"python {name}")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> tuple[Path, str]:
    """The folder in which the page was followed, and what that printed."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{folder}"}
    script = bash_script(folder)
    run = subprocess.run(["bash", "-c", script], cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-6_000:]
    return folder, run.stdout


def test_the_page_names_its_files_and_shows_its_commands():
    found = list(blocks())
    assert [block.file for block in found if block.file] == ["pendulum.json", "my_worlds.py"]
    commands = "".join(block.text for block in found if block.language == "sh")
    for module in ("engine.training", "engine.training.footage", "agents.rollout", "inferix_env.play"):
        assert f"python -m {module} " in commands


def test_both_worlds_are_written_and_make_under_their_ids(followed):
    folder, printed = followed
    lines = printed.splitlines()
    assert "Pendulum Box(-2.0, 2.0, (1,), float32) (64, 64, 3) (1, 64, 64, 3)" in printed
    assert "CartPole Discrete(2) (64, 96, 3) (1, 64, 96, 3)" in printed
    assert "(4, 64, 64, 3)" in lines
    for name in ("pendulum", "cart_pole"):
        world = folder / "worlds" / name
        assert {"world.json", "model.safetensors", "starts.npz", "training"} <= {path.name for path in world.iterdir()}


def test_the_cards_say_what_the_page_says(followed):
    folder, _ = followed
    pendulum, cart_pole = (
        json.loads((folder / "worlds" / name / "world.json").read_text()) for name in ("pendulum", "cart_pole")
    )
    assert pendulum["title"] == "Pendulum"
    assert pendulum["spec"]["actions"] == {"kind": "continuous", "low": [-2.0], "high": [2.0], "names": ["torque"]}
    assert (pendulum["spec"]["frame"], pendulum["spec"]["fps"]) == ([64, 64], 15.0)
    assert cart_pole["spec"]["actions"] == {"kind": "discrete", "n": 2, "names": ["left", "right"]}
    assert (cart_pole["spec"]["frame"], cart_pole["spec"]["fps"]) == ([64, 96], 50.0)
    assert cart_pole["data"]["footage"] == "clips"


def test_sheets_logs_and_clips_are_where_the_page_says(followed):
    folder, _ = followed
    for name in ("pendulum", "cart_pole"):
        training = folder / "worlds" / name / "training"
        for kind in ("codec", "dream"):
            [sheet] = training.glob(f"{kind}-*.png")
            assert np.asarray(Image.open(sheet)).std() > 5
        gains = json.loads((training / "denoiser.jsonl").read_text().splitlines()[-1])
        assert {"gain_1", "gain_4" if name == "pendulum" else "gain_3"} <= set(gains)
        assert {"end_precision", "base_rate"} <= set(
            json.loads((training / "heads.jsonl").read_text().splitlines()[-1])
        )
    assert (folder / "out" / "pendulum-0.mp4").exists()
    assert (folder / "out" / "rollout" / "episode-000.mp4").exists()
    log = [json.loads(line) for line in (folder / "out" / "rollout" / "episode-000.jsonl").read_text().splitlines()]
    actions = [line["action"] for line in log[1:]]  # few, if an untrained head ends the episode
    assert actions == [1, 1, 1, 1, 0, 0, 0, 0, *[1] * 4, *[0] * 4, *[1] * 4][: len(actions)]
