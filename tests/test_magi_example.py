"""The example of MAGI-1 runs, on its files as they are published, and does what it says."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

from examples import magi_world


def test_a_new_prompt_shows_when_its_block_is_finished(tmp_path, capsys):
    out = tmp_path / "new" / "magi.png"
    frames = magi_world.main(seconds=7, out=out)
    assert frames.shape == (7, 24, 64, 96, 3)
    assert frames.std((2, 3, 4)).min() > 1  # noise, and not one colour
    with Image.open(out) as sheet:
        assert sheet.size == (6 * 98 - 2, 7 * 66 - 2)
    lines = capsys.readouterr().out.splitlines()
    seen = [line for line in lines if line.startswith("second ")]
    assert [line.endswith("another picture") for line in seen] == [False] * 5 + [True] * 2
    assert "new prompt 'a ship on a stormy sea'" in seen[2]
    assert any("the weights are random" in line for line in lines)


def test_it_writes_the_files_that_are_published(tmp_path):
    world = magi_world.write_tiny(tmp_path)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    weights = world.relative_to(tmp_path)
    assert made >= {
        f"{weights}/config.json",
        f"{weights}/inference_weight.distill/model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "t5/t5-v1_1-xxl/config.json",
        "t5/t5-v1_1-xxl/spiece.model",
        "special_tokens.npz",
    }
    with np.load(tmp_path / "special_tokens.npz") as file:
        assert file["other_tokens"].shape == (100, magi_world.SIZES.text_width)
