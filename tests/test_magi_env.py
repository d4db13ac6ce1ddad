"""MAGI-1 as an environment: the published files in small, prompts that enter late, pictures, videos, forks."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image
from safetensors.torch import save_file

from engine.published import MagiSpec, MagiVaeSpec
from inferix_env.env import WorldSimEnv
from inferix_env.vector import WorldSimVectorEnv
from tests.magi_published import SMALL, config_json, magi_weights
from tests.test_magi_text import folder as t5  # noqa: F401  (a fixture)
from tests.test_magi_vae import make_vae

SPEC = MagiSpec(**{**SMALL, "layers": 1}, ffn=96, kv_heads=2, distill=True)
VAE = MagiVaeSpec(channels=16, width=256, heads=2, layers=1, hidden=64, grid=(4, 4, 4))


@pytest.fixture(scope="module")
def world(tmp_path_factory, t5) -> dict:  # noqa: F811
    """The arguments of an env on a folder as it is published."""
    base = tmp_path_factory.mktemp("magi")
    weights = base / "magi" / "tiny" / "inference_weight.distill"
    weights.mkdir(parents=True)
    save_file(magi_weights(SPEC), weights / "model.safetensors")
    (weights.parent / "tiny_config.json").write_text(json.dumps(config_json(SPEC, num_steps=8)))
    (base / "t5").mkdir()
    (base / "t5" / "t5-v1_1-xxl").symlink_to(t5[0])
    write_vae(base / "vae")
    rows = {"caption_token": 1, "logo_token": 1, "other_tokens": 100}
    rng = np.random.default_rng(0)
    np.savez(base / "special_tokens.npz", **{n: rng.normal(size=(k, SPEC.text_width)) for n, k in rows.items()})
    return {"world": weights.parent, "preset": "config", "base": base, "codec": "vae", "dtype": "float32"}


def write_vae(folder: Path) -> None:
    folder.mkdir()
    save_file(make_vae(VAE).state_dict(), folder / "diffusion_pytorch_model.safetensors")
    sizes = {"num_heads": VAE.heads, "video_size": 32, "video_length": 16}
    (folder / "config.json").write_text(json.dumps({"_class_name": "ViTVAE", "ddconfig": sizes}))


def dream(env, prompts: list[str], **reset) -> list[np.ndarray]:
    """Frames of the reset and of every step."""
    _, info = env.reset(seed=0, **reset)
    return [info["frames"], *(env.step(p)[4]["frames"] for p in prompts)]


def test_a_step_is_a_second_and_a_prompt_shows_four_steps_later(world):
    env = WorldSimEnv(**world)
    plain = dream(env, [""] * 6, options={"prompt": "a cat sits on the window"})
    assert all(f.shape == (24, 32, 48, 3) for f in plain)
    assert len(np.unique(np.stack(plain))) > 50
    steered = dream(env, ["", "a dog runs over a hill", "", "", "", ""], options={"prompt": "a cat sits on the window"})
    changed = [not np.array_equal(a, b) for a, b in zip(plain, steered, strict=True)]
    # The reset made a first block; the second step brings the prompt, which enters three blocks behind what it shows.
    assert changed == [False] * 5 + [True] * 2
    env.close()


def test_gymnasium_finds_nothing_wrong(world):
    env = WorldSimEnv(**world)
    check_env(env, skip_render_check=True)
    env.close()


def test_pictures_and_videos_come_before_the_first_block(world, tmp_path):
    env = WorldSimEnv(**world)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    frames = dream(env, ["", ""], options={"prompt": "rain", "image": str(tmp_path / "start.png")})
    assert [len(f) for f in frames] == [1, 24, 24]
    assert np.array_equal(frames[0][0], pixels)
    clip = np.random.default_rng(1).integers(0, 256, (32, 32, 48, 3), dtype=np.uint8)
    frames = dream(env, ["", ""], options={"prompt": "rain", "frames": clip})
    assert [len(f) for f in frames] == [32, 16, 24]
    with pytest.raises(ValueError, match="30 start frames: expected a multiple of 4"):
        env.reset(options={"prompt": "rain", "frames": clip[:30]})
    with pytest.raises(ValueError, match="start frames are uint8"):
        env.reset(options={"prompt": "rain", "frames": clip[:, :16]})
    env.close()


def test_forks_snapshots_and_rows_have_one_future(world):
    env, many = WorldSimEnv(**world), WorldSimVectorEnv(2, **world)
    env.reset(seed=0, options={"prompt": "a ship"})
    env.step("")
    snapshot = env.snapshot()
    future = [env.step(p)[4]["frames"] for p in ("rain", "")]
    env.reset(options={"snapshot": snapshot})
    assert all(np.array_equal(f, env.step(p)[4]["frames"]) for f, p in zip(future, ("rain", ""), strict=True))
    many.reset(seed=0, options={"prompt": "a ship"})
    many.step(("", ""))
    for frames, prompts in zip(future, (("rain", "hill"), ("", "")), strict=True):
        infos = many.step(prompts)[4]
        assert np.array_equal(infos["frames"][0], frames)
    env.close()
    many.close()


def test_without_special_tokens_prompts_stand_alone_and_one_is_told(world, tmp_path):
    bare = {**world, "base": tmp_path}
    (tmp_path / "vae").symlink_to(world["base"] / "vae")
    away = tmp_path / "weights"
    away.mkdir()
    for name in ("inference_weight.distill", "tiny_config.json"):
        (away / name).symlink_to(world["world"] / name)
    with pytest.warns(UserWarning, match=r"special_tokens\.npz"):
        env = WorldSimEnv(**{**bare, "world": away})
    with pytest.raises(ValueError, match=r"prompts need t5/t5-v1_1-xxl/config\.json"):
        env.reset(options={"prompt": "rain"})
    env.close()


def test_one_block_in_flight_answers_at_once(world):
    from engine import PRESETS

    chosen = replace(PRESETS["magi-4.5b-distill-window1"], size=(32, 48))
    env = WorldSimEnv(**{**world, "preset": chosen})
    plain = dream(env, [""] * 3, options={"prompt": "a cat"})
    steered = dream(env, ["", "a dog", ""], options={"prompt": "a cat"})
    assert [not np.array_equal(a, b) for a, b in zip(plain, steered, strict=True)] == [False, False, True, True]
    assert asdict(env.world_spec.kv)["window"] == 24
    env.close()
