"""Published worlds as environments, end to end with tiny checkpoints: prompts, keys and mouse, resets, many worlds."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import gymnasium as gym
import numpy as np
import pygame
import pytest
import tokenizers
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from PIL import Image

import inferix_env  # noqa: F401  (registers the ids)
from agents import rollout
from engine import PRESETS, Preset
from engine.codecs.wan_vae import WanVae
from engine.conditioners.layouts import ClipSizes, TextSizes
from engine.published import ActionModule, WanVaeSpec
from inferix_env import play, viewer
from inferix_env.env import WorldSimEnv
from inferix_env.play_config import PlayConfig
from inferix_env.session import Session
from inferix_env.vector import WorldSimVectorEnv
from inferix_env.viewer import Window
from tests import published

SIZE = (32, 48)
T2V = replace(published.TINY_T2V, width=24, ffn=32, heads=2, layers=1)
GAME = replace(
    published.TINY_ACTIONS,
    width=24,
    ffn=32,
    heads=2,
    layers=1,
    image_width=80,
    actions=ActionModule((0,), hidden=8, heads=1),
)
MODES = {"universal": (4, 2), "gta_drive": (2, 2), "templerun": (7, 0)}
TEXT_SIZES = TextSizes(vocabulary=300, width=32, inner=16, heads=2, ffn=16, layers=1, buckets=8)
CLIP_SIZES = ClipSizes(width=80, ffn=16, heads=1, layers=2, patch=16, side=16, projection=8)
VAE_SIZES = WanVaeSpec(channels=16, width=8, multiples=(1, 1, 1, 1), depth=1)


def tiny(preset: Preset, window: int = 6) -> Preset:
    return replace(preset, size=SIZE, window=window, head_width=12, text_tokens=320)


TEXT = tiny(PRESETS["self-forcing"])
PICTURE = tiny(PRESETS["self-forcing-i2v"], window=7)
LONGLIVE = replace(tiny(PRESETS["longlive"]), window=7, sink=1)
CAUSVID = replace(tiny(PRESETS["causvid"]), rollout=replace(PRESETS["causvid"].rollout, restart=(9, 3)))
GAMES = {
    mode: tiny(PRESETS[f"matrix-game-2-{mode.replace('_', '-')}"], window=4 + 2 * (mode != "gta_drive"))
    for mode in MODES
}


def scaled(shapes: dict, scale: float = 0.2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}


def write_encoders(folder: Path) -> None:
    """Text encoder, tokenizer, picture encoder and VAE under the names they were published with."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"<0x{i:02X}>", -20.0) for i in range(256))]
    pieces += [("▁", -3.0), ("▁a", -2.0), *((letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    ends = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.post_processor = ends
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    tokenizer.save(str(folder / "google" / "umt5-xxl" / "tokenizer.json"))
    torch.save(scaled(TEXT_SIZES.shapes()), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    clip = {f"visual.{name}": x for name, x in scaled(CLIP_SIZES.shapes()).items()}
    torch.save(clip, folder / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    torch.manual_seed(0)
    torch.save(WanVae(VAE_SIZES).state_dict(), folder / "Wan2.1_VAE.pth")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with everything that goes with denoisers, and these in folders of their own."""
    folder = tmp_path_factory.mktemp("published")
    write_encoders(folder)
    published.write_self_forcing(folder / "text", published.tiny_wan_tensors(T2V))
    for mode, (keys, mouse) in MODES.items():
        spec = replace(GAME, actions=replace(GAME.actions, keyboard=keys, mouse=mouse))
        published.write_matrix_game(folder / mode, published.tiny_wan_tensors(spec))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "start.png")
    return folder


@pytest.fixture
def text_world(base):
    return {"world": base / "text", "preset": TEXT, "base": base, "codec": "preview"}


@pytest.fixture
def game_world(base):
    return game_of(base, "universal")


def game_of(base: Path, mode: str) -> dict:
    return {"world": base / mode, "preset": GAMES[mode], "base": base, "image": str(base / "start.png")}


def dream(env, actions, **reset) -> list[np.ndarray]:
    """Frames of the reset and of every step."""
    frames = [env.reset(**{"seed": 0, **reset})[1]["frames"]]
    return frames + [env.step(action)[4]["frames"] for action in actions]


def same(first, second) -> bool:
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# ---- Gymnasium's contract


@pytest.mark.parametrize("obs", ["frame", "block"])
@pytest.mark.parametrize("kind", ["text", "universal", "templerun"])
def test_check_env_passes_without_warnings(base, text_world, kind, obs, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    arguments = text_world if kind == "text" else game_of(base, kind)
    env = gym.make("inferix_env/World-v0", **arguments, obs=obs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="cut to 320 tokens")  # random prompts are long ones
        check_env(env.unwrapped, skip_render_check=obs == "block")
    env.close()


def test_spaces(base, text_world):
    space = WorldSimEnv(**text_world).action_space
    assert isinstance(space, gym.spaces.Text)
    assert (space.min_length, space.max_length) == (0, 2048)
    assert all(prompt in space for prompt in ("", "A red fox, seen from the side!", "x" * 2048))
    for mode, (keys, mouse) in MODES.items():
        env = WorldSimEnv(**game_of(base, mode), obs="block")
        parts = {"keyboard": gym.spaces.MultiBinary(keys)}
        if mouse:
            parts["mouse"] = gym.spaces.Box(-1, 1, (mouse,))
        assert env.action_space == gym.spaces.Dict(parts)
        assert env.observation_space.shape == (12, *SIZE, 3)


def test_a_text_world_begins_with_a_dreamed_block(text_world):
    env = WorldSimEnv(**text_world, obs="block")
    obs, info = env.reset(seed=0)
    assert "forest" in info["prompt"]
    assert info["frames"].shape == (9, *SIZE, 3)
    assert obs.shape == (12, *SIZE, 3)
    assert np.array_equal(obs[3:], info["frames"])
    assert (obs[:3] == info["frames"][0]).all()
    assert info["frames"].std() > 10
    obs, reward, terminated, truncated, info = env.step("")
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert np.array_equal(obs, info["frames"])
    assert info["end_probability"] == 0


def test_prompts_of_the_env_and_of_a_reset(text_world):
    env = WorldSimEnv(**text_world, prompt="a forest")
    forest, info = env.reset(seed=0)
    assert info["prompt"] == "a forest"
    sea, info = env.reset(seed=0, options={"prompt": "a sea"})
    assert info["prompt"] == "a sea"
    assert not np.array_equal(forest, sea)
    assert np.array_equal(env.reset(options={"seed": 0, "prompt": ""})[0], forest)
    assert not np.array_equal(env.reset(options={"seed": 1})[0], forest)
    with pytest.raises(ValueError, match="seed 1 and options seed 2"):
        env.reset(seed=1, options={"seed": 2})


def test_a_prompt_takes_effect_with_its_step_and_lasts(text_world):
    env = WorldSimEnv(**text_world, prompt="a forest")
    kept, switched = dream(env, ["", "", ""]), dream(env, ["", "a sea", ""])
    assert env.step("")[4]["prompt"] == "a sea"
    assert same(kept[:2], switched[:2])
    assert not any(np.array_equal(a, b) for a, b in zip(kept[2:], switched[2:], strict=True))
    assert same(dream(env, ["", "a sea", "a sea"]), switched)
    assert not same(dream(env, ["a sea", "", ""]), switched)


@pytest.mark.parametrize("preset", [LONGLIVE, CAUSVID], ids=["longlive", "causvid"])
def test_other_text_worlds_switch_and_roll(base, preset):
    # CausVid begins anew from pictures, and needs the encoder for it.
    codec = "vae" if preset.rollout.restart else "preview"
    # These weights are of no base that needs an adapter.
    env = WorldSimEnv(world=base / "text", preset=preset, base=base, codec=codec, prompt="a forest", lora="none")
    actions = ["", "", "a sea", "", ""]
    first = dream(env, actions)
    assert [len(frames) for frames in first] == [9, 12, 12, 12, 12, 12]
    assert same(first, dream(env, actions))
    assert not same(first, dream(env, [""] * 5))


def test_a_text_world_may_begin_from_a_picture(base):
    env = WorldSimEnv(world=base / "text", preset=PICTURE, base=base, prompt="a forest", obs="block")
    plain = dream(env, ["", ""])
    assert [len(frames) for frames in plain] == [1, 12, 12]
    pictured = dream(env, ["", ""], options={"image": base / "start.png"})
    assert [len(frames) for frames in pictured] == [1, 12, 12]
    assert np.array_equal(pictured[0][0], seen_by_the_world(base / "start.png"))
    assert not np.array_equal(plain[1], pictured[1])


def seen_by_the_world(path: Path) -> np.ndarray:
    """A picture of 50 x 60 pixels, cut to the shape of 32 x 48 from its middle, and resized."""
    with Image.open(path) as image:
        cut = image.convert("RGB").crop((0, 5, 60, 45))
        return np.asarray(cut.resize(SIZE[::-1], Image.Resampling.BILINEAR))


# ---- Matrix-Game


def test_a_game_begins_with_its_picture(base, game_world):
    env = WorldSimEnv(**game_world, obs="block")
    obs, info = env.reset(seed=0)
    expected = seen_by_the_world(base / "start.png")
    assert "prompt" not in info
    assert np.array_equal(info["frames"], expected[None])
    assert (obs == expected).all()
    assert [len(env.step(env.action_space.sample())[4]["frames"]) for _ in range(3)] == [9, 12, 12]
    with Image.open(base / "start.png") as image:
        for picture in (image, np.asarray(image)):
            assert np.array_equal(env.reset(options={"image": picture})[0], obs)
    other = env.reset(options={"image": np.zeros((20, 20, 3), np.uint8)})[0]
    assert not other.any()


def test_keys_and_mouse_steer_a_game(game_world):
    env = WorldSimEnv(**game_world)
    still = {"keyboard": np.zeros(4, np.int8), "mouse": np.zeros(2, np.float32)}
    forward = {**still, "keyboard": np.array([1, 0, 0, 0], np.int8)}
    turn = {**still, "mouse": np.array([0, 0.1], np.float32)}
    # The first block is shown only what was done at its beginning.
    runs = [dream(env, [still, action, still]) for action in (still, forward, turn)]
    assert all(same(run[:2], runs[0][:2]) for run in runs)
    assert not np.array_equal(runs[0][2], runs[1][2])
    assert not np.array_equal(runs[0][2], runs[2][2])
    assert not np.array_equal(runs[1][2], runs[2][2])


def test_an_action_for_every_frame(game_world):
    env = WorldSimEnv(**game_world)
    held = {"keyboard": np.array([1, 0, 1, 0], np.int8), "mouse": np.array([0.1, 0], np.float32)}
    each = [{name: np.tile(value, (count, 1)) for name, value in held.items()} for count in (9, 12)]
    assert same(dream(env, [held, held]), dream(env, each))
    mixed = {"keyboard": held["keyboard"], "mouse": each[1]["mouse"]}
    assert same(dream(env, [held, held]), dream(env, [each[0], mixed]))
    changing = {"keyboard": each[1]["keyboard"].copy(), "mouse": each[1]["mouse"]}
    changing["keyboard"][:4] = 0
    assert not same(dream(env, [held, held]), dream(env, [held, changing]))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="each of 12 frames: expected 9, the frames of this step"):
        env.step(each[1])
    env.step(held)
    with pytest.raises(ValueError, match="each of 9 frames: expected 12, the frames of this step"):
        env.step(each[0])


def test_keys_of_the_three_modes(base):
    def press(env, *names):
        return env.get_keys_to_action()[tuple(sorted(map(KEYS.__getitem__, names)))]

    env = WorldSimEnv(**game_of(base, "universal"))
    assert press(env)["keyboard"].tolist() == [0, 0, 0, 0]
    both = press(env, "w", "d", "up", "j")
    assert both["keyboard"].tolist() == [1, 0, 0, 1]
    assert both["mouse"].tolist() == pytest.approx([0.1, -0.1])
    looks = {"i": (0.1, 0), "k": (-0.1, 0), "j": (0, -0.1), "l": (0, 0.1), "right": (0, 0.1), "down": (-0.1, 0)}
    for key, mouse in looks.items():
        assert press(env, key)["mouse"].tolist() == pytest.approx(mouse)
    assert [press(env, key)["keyboard"].argmax() for key in "wsad"] == [0, 1, 2, 3]
    assert all(action in env.action_space for action in env.get_keys_to_action().values())
    env = WorldSimEnv(**game_of(base, "gta_drive"))
    driven = press(env, "w", "a")
    assert (driven["keyboard"].tolist(), driven["mouse"].tolist()) == ([1, 0], pytest.approx([0, -0.1]))
    assert press(env, "s", "d")["mouse"].tolist() == pytest.approx([0, 0.1])
    env = WorldSimEnv(**game_of(base, "templerun"))
    assert press(env)["keyboard"].tolist() == press(env, "q")["keyboard"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert [press(env, key)["keyboard"].tolist() for key in "qwszcad"] == np.eye(7).tolist()


KEYS = {"up": 1073741906, "down": 1073741905, "left": 1073741904, "right": 1073741903}
KEYS |= {letter: ord(letter) for letter in "abcdefghijklmnopqrstuvwxyz"}


# ---- episodes


def test_reward_fn_pays_and_ends(text_world):
    def judge(frames, action, info):
        assert len(frames) == 12
        assert info["prompt"]
        return float(len(action)), action == "the end"

    env = WorldSimEnv(**text_world, reward_fn=judge)
    env.reset(seed=0)
    assert env.step("")[1:4] == (0.0, False, False)
    assert env.step("the end")[1:4] == (7.0, True, False)
    with pytest.raises(ResetNeeded):
        env.step("")
    env.reset()
    assert env.step("a")[1:4] == (1.0, False, False)


@pytest.mark.parametrize("kind", ["text", "game"])
@pytest.mark.parametrize("num_before", [0, 2])
def test_snapshots_and_forks_go_on_to_the_bit(text_world, game_world, kind, num_before):
    env = WorldSimEnv(**(text_world if kind == "text" else game_world))
    env.action_space.seed(3)
    samples = [env.action_space.sample() for _ in range(5)]
    actions = ["", "a sea", "", "a sea", "x"] if kind == "text" else samples
    env.reset(seed=0)
    for action in actions[:num_before]:
        env.step(action)
    blob, fork, frames = env.snapshot(), env.fork(), env.frames

    def rest(one):
        outcomes = [one.step(action)[4] for action in actions[num_before:]]
        return [info["frames"] for info in outcomes], [info.get("prompt") for info in outcomes]

    expected, prompts = rest(env)
    assert same(rest(fork)[0], expected)
    other = WorldSimEnv(**(text_world if kind == "text" else game_world))
    _, info = other.reset(options={"snapshot": blob})
    assert np.array_equal(info["frames"], frames)
    assert rest(other)[1] == prompts
    env.restore(blob)
    assert same(rest(env)[0], expected)
    assert not same(rest(fork.fork(seed=9))[0], expected)


def test_a_fork_is_on_its_envs_engine_whatever_was_opened_since(text_world, game_world):
    env = WorldSimEnv(**text_world)
    env.reset(seed=0)
    others = [WorldSimEnv(**game_world), WorldSimEnv(**{**text_world, "size": (32, 32)})]
    fork = env.fork()
    assert fork.engine is env.engine
    assert all(other.engine is not env.engine for other in others)
    assert np.array_equal(fork.step("")[0], env.step("")[0])


# ---- many worlds


def test_many_text_worlds_are_as_each_alone(text_world):
    envs = WorldSimVectorEnv(3, **text_world, obs="block", prompt="a forest")
    obs, infos = envs.reset(seed=5, options={"prompt": ["a sea", None, "a fox"]})
    assert infos["prompt"].tolist() == ["a sea", "a forest", "a fox"]
    assert infos["num_frames"].tolist() == [9, 9, 9]
    assert obs.shape == (3, 12, *SIZE, 3)
    seen = [obs]
    for actions in (("", "a sea", ""), ("", "", "it rains")):
        obs, rewards, *_, infos = envs.step(actions)
        seen.append(obs)
    assert infos["prompt"].tolist() == ["a sea", "a sea", "it rains"]
    assert infos["num_frames"].tolist() == [12, 12, 12]
    assert not rewards.any()
    for i, prompt in enumerate(["a sea", "a forest", "a fox"]):
        env = WorldSimEnv(**text_world, obs="block")
        alone = [env.reset(seed=5 + i, options={"prompt": prompt})[0]]
        alone += [env.step(action)[0] for action in (("", "a sea", "")[i], ("", "", "it rains")[i])]
        assert same(alone, [row[i] for row in seen])


def test_a_prompt_is_encoded_once(text_world, monkeypatch):
    envs = WorldSimVectorEnv(3, **text_world)
    asked = []
    contextualise = envs.engine.contextualise
    monkeypatch.setattr(envs.engine, "contextualise", lambda **given: asked.append(1) or contextualise(**given))
    envs.reset(seed=0, options={"prompt": ["one prompt", "one prompt", "and another"]})
    envs.step(("and another", "", "one prompt"))
    envs.reset(seed=0, options={"prompt": "one prompt"})
    assert len(asked) == 2


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("tensors", [False, True])
def test_ends_and_autoresets_in_many_worlds(text_world, mode, tensors):
    def judge(frames, action, info):
        return 1.0, action == "the end"

    envs = gym.make_vec(
        "inferix_env/World-v0",
        2,
        **text_world,
        reward_fn=judge,
        autoreset_mode=mode,
        tensors=tensors,
        prompt="a forest",
    )
    envs.reset(seed=0)
    obs, _, terminated, _, infos = envs.step(("", "the end"))
    assert terminated.tolist() == [False, True]
    if mode == "SameStep":
        assert infos["num_frames"].tolist() == [12, 9]
        assert infos["prompt"].tolist() == ["a forest", "a forest"]
        assert infos["final_info"]["prompt"][1] == "the end"
    if mode == "Disabled":
        obs, infos = envs.reset(options={"reset_mask": np.array([False, True])})
        assert infos["num_frames"][1] == 9
    obs, rewards, terminated, _, infos = envs.step(("", ""))
    assert not terminated.any()
    assert rewards.tolist() == ([1.0, 0.0] if mode == "NextStep" else [1.0, 1.0])
    assert infos["num_frames"].tolist() == ([12, 9] if mode == "NextStep" else [12, 12])
    assert tuple(infos["frames"].shape) == (2, 12, *SIZE, 3)
    assert tuple(obs.shape) == (2, *SIZE, 3)


def test_many_games_take_dicts_of_rows(base, game_world):
    envs = WorldSimVectorEnv(2, **game_world)
    black = np.zeros((32, 48, 3), np.uint8)
    obs, _ = envs.reset(seed=0, options={"image": [None, black]})
    assert obs[0].any()
    assert not obs[1].any()
    actions = {"keyboard": np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.int8), "mouse": np.zeros((2, 2), np.float32)}
    assert actions["keyboard"][0] in gym.spaces.MultiBinary(4)
    for _ in range(2):
        obs = envs.step(actions)[0]
    env = WorldSimEnv(**game_world)
    env.reset(seed=1, options={"image": black})
    for _ in range(2):
        alone = env.step({name: rows[1] for name, rows in actions.items()})[0]
    assert np.array_equal(obs[1], alone)
    assert envs.action_space.contains(envs.action_space.sample())
    envs.step(envs.action_space.sample())


# ---- what is refused


def test_bad_resets_are_named_and_leave_the_episode(base, text_world, game_world):
    env = WorldSimEnv(**text_world)
    env.reset(seed=0)
    for options, message in [
        ({"prompt": 3}, "expected a prompt"),
        ({"prompt": "x" * 2049}, "2049 characters"),
        ({"image": str(base / "start.png")}, "from a prompt alone"),
        ({"start": 0}, r"reset options \['start'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)
    env.step("")
    for action in (3, None, "x" * 2049, ["a", "b"]):
        with pytest.raises(ValueError, match=r"expected a prompt|expected at most 2048"):
            env.step(action)
    env = WorldSimEnv(**{**game_world, "image": None})
    with pytest.raises(ValueError, match=r"begins from a picture: give reset options \{'image'"):
        env.reset(seed=0)
    for options, message in [
        ({"prompt": "a forest"}, "steered by keys, from a picture"),
        ({"image": str(base / "none.png")}, "no picture at"),
        ({"image": 3}, "expected a path, a PIL picture or an array"),
        ({"image": np.zeros((4, 4), np.uint8)}, "a picture of shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            env.reset(seed=0, options=options)


def test_bad_arguments_are_named(base, text_world, game_world, endless):
    for arguments, error, message in [
        ({"world": endless, "prompt": "a forest"}, ValueError, "prompt: for published checkpoints only"),
        ({"world": endless, "text_device": "cpu"}, ValueError, "text_device: for published checkpoints only"),
        ({**text_world, "colour": 3}, TypeError, "unexpected keyword argument .colour."),
        ({**text_world, "preset": "self-forcin"}, ValueError, "Did you mean 'self-forcing'"),
        ({**text_world, "image": str(base / "start.png")}, ValueError, "from a prompt alone"),
        ({**game_world, "prompt": "a forest"}, ValueError, "steered by keys"),
        ({**text_world, "world": base / "nowhere"}, ValueError, "no weights at"),
        ({"world": base / "text"}, ValueError, "together with preset="),
    ]:
        with pytest.raises(error, match=message):
            WorldSimEnv(**arguments)


def test_actions_of_many_worlds_that_do_not_fit(text_world):
    envs = WorldSimVectorEnv(2, **text_world)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"world 1: .*expected a prompt.*no world has moved"):
        envs.step(("", 3))
    for actions in ("ab", ("",), 3):
        with pytest.raises(ValueError, match="one for each of the 2 worlds"):
            envs.step(actions)


# ---- play


class WatchedEnv(WorldSimEnv):
    """Keeps the actions it was given."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.taken: list = []

    def step(self, action):
        self.taken.append(action)
        return super().step(action)


@pytest.fixture
def open_session(monkeypatch, tmp_path):
    """Makes a paused session of a world."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    viewer.start_display()
    pygame.event.clear()
    made = []

    def make(**arguments) -> Session:
        env = WatchedEnv(**arguments)
        window = Window(SIZE[::-1], "test", env.world_spec.fps, scale=14, strip=True)
        session = Session(env, window, PlayConfig(out=tmp_path))
        made.append(session)
        session.pause()
        until(session, lambda: session.num_episodes == 1)
        return session

    yield make
    for session in made:
        session.close()
        session.env.close()


def until(session: Session, condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        for event in session.window.events():
            session.handle(event)
        session.tick()
        time.sleep(0.002)


def post(session: Session, kind: int, **fields) -> None:
    pygame.event.post(pygame.Event(kind, fields))
    for event in session.window.events():
        session.handle(event)
    session.tick()


def tap(session: Session, key: int) -> None:
    post(session, pygame.KEYDOWN, key=key)
    post(session, pygame.KEYUP, key=key)


def single(session: Session):
    """One step; returns the action that it took."""
    count = len(session.env.taken)
    tap(session, pygame.K_n)
    until(session, lambda: session.pending is None and len(session.env.taken) > count)
    return session.env.taken[-1]


def picture(session: Session) -> np.ndarray:
    session.tick()
    return pygame.surfarray.array3d(session.window.window.get_surface())


def test_a_prompt_is_typed_and_sent(open_session, text_world):
    session = open_session(**text_world, prompt="a forest")
    assert session.episode.prompt == "a forest"
    assert single(session) == ""
    plain = picture(session)
    tap(session, pygame.K_t)
    for text in ("a red fox", " runs  r", "x"):
        post(session, pygame.TEXTINPUT, text=text)
    tap(session, pygame.K_r)  # a letter, and no command
    tap(session, pygame.K_BACKSPACE)
    assert session.line.text == "a red fox runs  r"
    assert not session.wants_reset
    assert (picture(session) != plain).mean() > 0.02
    tap(session, pygame.K_RETURN)
    assert session.line.text is None
    assert [single(session), single(session)] == ["a red fox runs  r", ""]
    assert session.episode.prompt == "a red fox runs  r"
    tap(session, pygame.K_RETURN)
    post(session, pygame.TEXTINPUT, text="never sent")
    tap(session, pygame.K_ESCAPE)
    assert not session.done
    assert single(session) == ""
    assert (["t"], "type a prompt: Enter sends it, Esc leaves it") in session.help_rows


def test_keys_and_mouse_play_a_game(open_session, game_world):
    session = open_session(**game_world)
    post(session, pygame.KEYDOWN, key=pygame.K_w)
    post(session, pygame.KEYDOWN, key=pygame.K_LEFT)
    session.pause()  # the mouse is not looked at while it is paused
    post(session, pygame.MOUSEMOTION, rel=(500, 0))
    session.paused = True
    until(session, lambda: session.pending is None)
    action = single(session)
    assert action["keyboard"].tolist() == [1, 0, 0, 0]
    assert action["mouse"].tolist() == pytest.approx([0, -0.1])
    post(session, pygame.KEYUP, key=pygame.K_LEFT)
    session.paused = False
    session.due = time.perf_counter() + 100
    post(session, pygame.MOUSEMOTION, rel=(9, -400))
    session.paused = True
    action = single(session)
    assert action["mouse"].tolist() == pytest.approx([0.1, 0.015])
    assert single(session)["mouse"].tolist() == [0, 0]
    assert "t" not in session.commands
    labels = {text: keys for keys, text in session.help_rows}
    assert labels["forward"] == ["w"]
    assert sorted(labels["look up"]) == ["i", "up"]
    assert len(session.caps) == 8


def test_all_frames_of_a_block_are_shown_at_the_worlds_pace(open_session, text_world, monkeypatch):
    session = open_session(**text_world)
    shown = []
    monkeypatch.setattr(session.window, "show", lambda frame, hud: shown.append(frame))
    until(session, lambda: not session.frames)
    single(session)
    begin = time.perf_counter()
    until(session, lambda: not session.frames)
    assert time.perf_counter() - begin > 0.5 * 11 / 16
    frames = [frame for i, frame in enumerate(shown) if i == 0 or frame is not shown[i - 1]]
    assert same(frames[-12:], list(session.env.frames))


@pytest.mark.parametrize(("kind", "more"), [("text", []), ("text", ["--script", '"a sea", ""']), ("universal", [])])
def test_headless_play_writes_a_clip_and_a_sheet(base, tmp_path, monkeypatch, capsys, kind, more):
    monkeypatch.setitem(PRESETS, "tiny", TEXT if kind == "text" else GAMES[kind])
    given = ["--codec", "preview"] if kind == "text" else ["--image", str(base / "start.png")]
    arguments = ["--world", str(base / kind), "--preset", "tiny", "--base", str(base), *given, *more]
    command = ["play", *arguments, "--headless", "--steps", "3", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    play.main()
    [clip] = tmp_path.glob("*.mp4")
    with av.open(str(clip)) as file:
        count = sum(1 for _ in file.decode(video=0))
    assert count == (9 + 36 if kind == "text" else 1 + 9 + 24)
    [sheet] = tmp_path.glob("*-sheet.png")
    with Image.open(sheet) as image:
        assert image.size[0] > SIZE[1]
    assert "3 steps, 0 episodes ended" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "script"), [("text", '"a sea", ""'), ("universal", "w*2, look(0,0.1)")])
def test_a_rollout_is_kept_and_replays(base, tmp_path, monkeypatch, capsys, kind, script):
    monkeypatch.setitem(PRESETS, "tiny", TEXT if kind == "text" else GAMES[kind])
    given = ["--codec", "preview"] if kind == "text" else ["--image", str(base / "start.png")]
    world = ["--world", str(base / kind), "--preset", "tiny", "--base", str(base), *given]
    out = ["--policy", f"script:{script}", "--max-steps", "3", "--out", str(tmp_path / "out"), "--no-video"]
    assert rollout.main([*world, *out]) == 0
    log = tmp_path / "out" / "episode-000.jsonl"
    header, *lines = (json.loads(line) for line in log.read_text().splitlines())
    assert header["header"]["env"] == "inferix_env/World-v0"
    assert [line["frames"] for line in lines] == ([12] * 3 if kind == "text" else [9, 12, 12])
    if kind == "text":
        assert [line["prompt"] for line in lines] == ["a sea"] * 3
    assert rollout.main(["--replay", str(log)]) == 0
    assert "every frame equal, steps 3" in capsys.readouterr().out
