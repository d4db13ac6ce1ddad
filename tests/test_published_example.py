"""The example of a published checkpoint runs, as its files are published, and does what it says."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from PIL import Image

from examples import published_checkpoint

SMALL = {"height": 32, "width": 48}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return published_checkpoint.write_tiny(tmp_path_factory.mktemp("published"))


def test_it_writes_the_files_that_are_published(checkpoint):
    tensors = torch.load(checkpoint, weights_only=True)
    assert tensors.keys() == {"generator", "generator_ema"}
    assert tensors["generator_ema"]["model.patch_embedding.weight"].shape == (256, 16, 1, 2, 2)
    base = checkpoint.parents[1] / "wan_models" / "Wan2.1-T2V-1.3B"
    names = {"Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google"}
    assert {path.name for path in base.iterdir()} == names


def test_it_writes_a_clip_and_a_sheet(tmp_path, capsys):
    out = tmp_path / "new" / "clip.mp4"
    frames = published_checkpoint.main(out=out, **SMALL)
    assert frames.shape == (9 + 12 + 12, 32, 48, 3)
    assert frames.std((1, 2, 3)).min() > 1  # noise, and not one colour
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 33
    with Image.open(out.with_suffix(".png")) as sheet:
        assert sheet.size == (4 * 50 - 2, 3 * 34 - 2)
    printed = capsys.readouterr().out
    assert "33 frames in 3 blocks, 2 prompts" in printed
    assert "the weights are random, so the pictures are noise" in printed


def test_a_new_prompt_changes_what_follows_and_nothing_before(checkpoint, tmp_path, capsys):
    first, switched = (
        published_checkpoint.main(checkpoint, prompts=prompts, blocks=2, out=tmp_path / "clip.mp4", **SMALL)
        for prompts in (("a cat",), ("a cat", "a very big dog"))
    )
    assert np.array_equal(first[:9], switched[:9])
    assert not np.array_equal(first[9:], switched[9:])
    assert "random" not in capsys.readouterr().out
