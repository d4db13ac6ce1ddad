"""Clips scored as streams: chunk by chunk, in one block of memory, with reasons where there is no result."""

from __future__ import annotations

import gc
import resource
import weakref
from collections.abc import Iterator
from dataclasses import replace

import av
import numpy as np
import pytest

from inferix_env.evaluation import videos
from inferix_env.evaluation.clip_scores import cut, score_clip, score_video
from inferix_env.evaluation.drift import drift
from inferix_env.evaluation.live_drift import LiveDrift
from inferix_env.evaluation.scorers import Scorer, stand_ins
from inferix_env.evaluation.scorers.scorer import Mean, blocks_of
from inferix_env.record import Recorder

BRIGHTNESS = Scorer("brightness", "mean", True, True, "rises with light", lambda f: f.mean((1, 2, 3)), Mean)


def ramp(count: int, first: int = 50, step: int = 1) -> np.ndarray:
    """Frames of one grey each, uint8 [count, 16, 24, 3]."""
    greys = np.uint8(first + step * np.arange(count))
    return np.broadcast_to(greys[:, None, None, None], (count, 16, 24, 3)).copy()


def clip(count: int, seed: int = 0) -> np.ndarray:
    """A patch that moves over noise, uint8 [count, 32, 48, 3]."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(40, 90, (1, 32, 48, 3), dtype=np.uint8), count, axis=0)
    for t, frame in enumerate(frames):
        frame[10:20, 2 + t % 30 : 12 + t % 30] = (200, 60, 90 + t % 90)
    return frames


def write(path, frames: np.ndarray, fps: float = 16):
    with Recorder(path, frames.shape[1:3], fps, scale=1) as recorder:
        recorder.add(frames)
    return path


def test_chunks_are_scored_apart_and_trailing_frames_only_count_for_the_whole():
    frames = ramp(23)  # chunks of 5: means 52, 57, 62, 67; trailing 70, 71, 72
    result = score_clip(blocks_of(frames, 7), 23, [BRIGHTNESS], count=4)
    scored = result.scores["brightness"]
    assert scored.chunks == pytest.approx([52, 57, 62, 67])
    assert scored.whole == pytest.approx(61)
    assert scored.drift["published-linear"] == pytest.approx((3 * 5 + 2 * 10 + 15) / 52)
    assert scored.drift["normalised"] == pytest.approx((5 / 6 + 10 / 3 + 15 / 2) / 52)
    assert (result.frames, result.size, scored.reason) == (23, (16, 24), None)


@pytest.mark.parametrize("block", [4, 100])
def test_every_scorer_gives_what_it_gives_of_whole_chunks(block):
    frames = clip(44)
    result = score_clip(blocks_of(frames, block), 44, stand_ins(), count=4)
    for scorer in stand_ins():
        expected = [scorer.score(frames[i : i + 11]) for i in range(0, 44, 11)]
        assert result.scores[scorer.name].chunks == pytest.approx(expected, rel=1e-4)
        assert result.scores[scorer.name].whole == pytest.approx(scorer.score(frames), rel=1e-4)


def test_blocks_are_cut_where_chunks_end():
    lengths = [len(part) for part in cut(blocks_of(ramp(23), 7), 5, 4)]
    assert lengths == [5, 2, 3, 4, 1, 5, 1, 2]


def test_a_scorer_without_a_result_leaves_the_others_theirs():
    result = score_clip([ramp(10, first=0)], 10, [BRIGHTNESS, *stand_ins()], count=5)
    assert "first chunk scores 0" in str(result.scores["clarity"].reason)  # flat frames have no detail
    assert result.scores["clarity"].chunks == [0] * 5
    assert result.scores["clarity"].whole == 0
    assert "chunk 1" in str(result.scores["motion"].reason)  # two frames a chunk
    assert result.scores["brightness"].drift
    assert result.scores["background"].drift


def test_a_look_that_fails_is_one_scorers_reason():
    def broken(frames: np.ndarray) -> np.ndarray:
        raise ValueError("the model takes 12 channels")

    result = score_clip([ramp(10)], 10, [BRIGHTNESS, replace(BRIGHTNESS, name="broken", look=broken)])
    assert result.scores["broken"].reason == "the model takes 12 channels"
    assert result.scores["brightness"].reason is None


def test_videos_are_read_as_they_were_written(tmp_path):
    frames = clip(40)
    path = write(tmp_path / "a.mp4", frames)
    assert videos.measure_video(path) == (40, (32, 48))
    blocks = list(videos.read_blocks(path))
    assert [len(block) for block in blocks] == [32, 8]
    assert blocks[0].dtype == np.uint8
    grey = np.concatenate(list(videos.read_blocks(write(tmp_path / "b.mp4", ramp(20)))))
    assert np.abs(grey.astype(int) - ramp(20)).max() <= 3
    red = np.broadcast_to(np.uint8([200, 60, 90]), (3, 32, 48, 3))  # would be off by 20 by the wrong matrix
    [seen] = videos.read_blocks(write(tmp_path / "c.mp4", red))
    assert np.abs(seen.astype(int) - red).max() <= 4


def test_a_videos_scores_are_those_of_its_frames(tmp_path):
    path = write(tmp_path / "a.mp4", clip(40))
    frames = np.concatenate(list(videos.read_blocks(path)))
    scorers = stand_ins()[2:5]
    assert score_video(path, scorers, 4) == score_clip(videos.read_blocks(path), len(frames), scorers, 4)


def write_two_sizes(path) -> None:
    """H.264 whose picture changes size after five frames: two bare streams, end to end."""
    with path.open("wb") as file:
        for height, width, count in ((32, 48, 5), (64, 80, 5)):
            part = path.with_suffix(".h264")
            with av.open(str(part), "w", format="h264") as container:
                stream = container.add_stream("libx264", rate=10, options={"tune": "zerolatency"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                for _ in range(count):
                    frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            file.write(part.read_bytes())


def test_what_cannot_be_read_says_why(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    whole = write(tmp_path / "whole.mp4", np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8))
    (tmp_path / "torn.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    write_two_sizes(tmp_path / "sizes.mp4")
    write(tmp_path / "short.mp4", ramp(9))
    reasons = {
        "text.mp4": "cannot be decoded",
        "empty.mp4": "cannot be decoded",
        "torn.mp4": "is cut off",
        "sizes.mp4": "changes its size from 48x32 to 80x64 at frame 5",
        "nowhere.mp4": "there is no such file",
        "short.mp4": "9 frames cannot be cut into 10 chunks",
    }
    for name, reason in reasons.items():
        result = score_video(tmp_path / name, [BRIGHTNESS])
        assert result.reason, name
        assert reason in result.reason
        assert not result.scores


class Counted(np.ndarray):
    """Frames that count how many of them are alive."""

    alive = 0
    most = 0

    @classmethod
    def made(cls, frames: np.ndarray) -> Counted:
        made = frames.view(cls)
        cls.alive += len(frames)
        cls.most = max(cls.most, cls.alive)
        weakref.finalize(made, cls.gone, len(frames))
        return made

    @classmethod
    def gone(cls, count: int) -> None:
        cls.alive -= count


def test_a_long_clip_is_held_one_block_at_a_time():
    Counted.alive = Counted.most = 0
    scorers = [BRIGHTNESS, *(s for s in stand_ins() if s.name in ("clarity", "subject", "aesthetic"))]
    blocks = (Counted.made(ramp(20)) for _ in range(100))
    score_clip(blocks, 2_000, scorers)
    gc.collect()
    assert Counted.most <= 60  # one in use, one being made, one not yet collected
    assert Counted.alive <= 20


def test_the_live_drift_is_the_drift_of_its_chunks():
    frames = clip(66)
    for scorer in stand_ins()[1:4]:
        live = LiveDrift(scorer, length=11, mode="published-linear")
        readings = [reading for block in blocks_of(frames, 8) for reading in live.add(block)]
        scores = score_clip([frames], 66, [scorer], count=6).scores[scorer.name].chunks
        assert [reading.score for reading in readings] == pytest.approx(scores, rel=1e-4)
        assert readings[-1].drift == pytest.approx(drift(scores), rel=1e-3, abs=1e-6)
        assert [reading.chunk for reading in readings] == [1, 2, 3, 4, 5, 6]


def test_the_live_drift_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match="chunks of 0 frames"):
        LiveDrift(BRIGHTNESS, 0)
    with pytest.raises(ValueError, match="first chunk scores 0"):
        LiveDrift(BRIGHTNESS, 2).add(np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        LiveDrift(BRIGHTNESS, 2).add(np.zeros((2, 4, 4, 3)))


@pytest.mark.slow
def test_an_hour_does_not_need_an_hours_memory(tmp_path):
    """86,400 frames, 24 a second: 1.6 GB as arrays. Written, read and scored, they raise the peak by little."""

    def hour() -> Iterator[np.ndarray]:
        block = np.repeat(clip(30), 2, axis=1).repeat(2, axis=2)[:24]
        for second in range(3_600):
            yield np.roll(block, second, axis=2)

    scorers = [scorer for scorer in stand_ins() if scorer.name in ("clarity", "aesthetic")]
    path = tmp_path / "hour.mp4"
    score_video(write(tmp_path / "warm.mp4", clip(100)), scorers)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Recorder(path, (64, 96), 24, scale=1) as recorder:
        for block in hour():
            recorder.add(block)
    result = score_video(path, scorers)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert result.frames == 86_400
    assert result.reason is None
    assert (after - before) / 1024 < 300  # MiB
