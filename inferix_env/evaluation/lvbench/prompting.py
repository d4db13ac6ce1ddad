"""A text world led through the captions of a video, each from its own second on: continuous prompting.

Knows a text world's env and captions; keeps no frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from engine import TextActions
from inferix_env.env import WorldSimEnv
from inferix_env.evaluation.lvbench.manifest import Caption, Video
from inferix_env.record import Recorder


def check_text_world(env: WorldSimEnv) -> None:
    """Raise ValueError unless the world is steered by prompts."""
    if not isinstance(env.world_spec.actions, TextActions):
        raise ValueError(
            f"{env.world_spec.name} has {env.world_spec.actions.kind} actions: captions need a world that is steered "
            "by prompts: give a checkpoint with --preset self-forcing, causvid, longlive or another text preset"
        )


def caption_at(captions: Sequence[Caption], second: float) -> str:
    """The last caption that has begun; before the first, the first."""
    begun = [caption.text for caption in captions if caption.start <= second]
    return begun[-1] if begun else captions[0].text


def dream(env: WorldSimEnv, captions: Sequence[Caption], num_frames: int, seed: int) -> Iterator[np.ndarray]:
    """Frames uint8 [T, H, W, 3], block by block, `num_frames` in all.

    A block is prompted by the caption that holds when it begins; the world goes on from one to the next without a cut.

    Raises:
        ValueError: a prompt that the world does not take.
    """
    _, info = env.reset(seed=seed, options={"prompt": captions[0].text})
    seen, fps = 0, env.world_spec.fps
    while True:
        frames = info["frames"][: num_frames - seen]
        yield frames
        seen += len(frames)
        if seen == num_frames:
            return
        *_, info = env.step(caption_at(captions, seen / fps))


def length_of(env: WorldSimEnv, video: Video, longest: float | None) -> int:
    """How many frames a video's dream has: until its captions end, or for `longest` seconds.

    Raises:
        ValueError: the video has no captions.
    """
    if not video.captions:
        raise ValueError(f"{video.path} has no captions: there is nothing to prompt the world with")
    end = max(caption.end for caption in video.captions)
    return max(1, round(min(end, longest or end) * env.world_spec.fps))


def recorded(blocks: Iterator[np.ndarray], recorder: Recorder) -> Iterator[np.ndarray]:
    """The same blocks of frames, each written before it is handed on."""
    for frames in blocks:
        recorder.add(frames)
        yield frames
