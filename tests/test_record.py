"""Recording: every frame reaches the file, and a file is whole or not there."""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from inferix_env.record import Recorder, enlarge, write_npz, write_sheet, write_text


def shades(count: int, height: int = 16, width: int = 16) -> np.ndarray:
    """Frames that a decoder can tell apart: uint8 [count, H, W, 3], each brighter than the one before."""
    levels = np.linspace(20, 230, count).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_every_frame_of_every_block_is_kept_in_order(tmp_path):
    frames = shades(23)
    with Recorder(tmp_path / "clip.mp4", (16, 16), fps=8.75) as recorder:
        for begin, end in ((0, 1), (1, 5), (5, 5), (5, 22), (22, 23)):
            recorder.add(frames[begin:end])
    out = decoded(tmp_path / "clip.mp4")
    assert out.shape == (23, 64, 64, 3)
    assert np.abs(out.mean(axis=(1, 2, 3)) - frames.mean(axis=(1, 2, 3))).max() < 2
    assert recorder.num_frames == 23


def test_the_file_is_what_players_show(tmp_path):
    with Recorder(tmp_path / "clip.mp4", (16, 16), fps=8.75) as recorder:
        recorder.add(shades(7))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(35, 4)
        assert stream.duration * stream.time_base == pytest.approx(7 / 8.75)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_odd_sides_are_made_even(tmp_path, scale):
    with Recorder(tmp_path / "clip.mp4", (15, 21), fps=10, scale=scale) as recorder:
        recorder.add(shades(3, 15, 21))
    assert decoded(tmp_path / "clip.mp4").shape[1:3] == (15 * scale + scale % 2, 21 * scale + scale % 2)


def test_pixels_become_crisp_squares_of_the_right_colour(tmp_path):
    frame = np.random.default_rng(0).choice(np.uint8([0, 255]), (16, 16, 3))
    assert np.array_equal(enlarge(frame, 4)[::4, ::4], frame)
    assert np.array_equal(enlarge(frame, 4)[3::4, 3::4], frame)
    colours = np.zeros((1, 16, 16, 3), np.uint8)
    colours[:, :8], colours[:, 8:] = (200, 30, 60), (20, 180, 90)
    with Recorder(tmp_path / "clip.mp4", (16, 16), fps=10) as recorder:
        recorder.add(colours)
    out = decoded(tmp_path / "clip.mp4")[0].astype(int)
    assert np.abs(out[10, 30] - (200, 30, 60)).max() <= 6
    assert np.abs(out[50, 30] - (20, 180, 90)).max() <= 6
    light = out.mean(axis=-1)[:, 30]
    assert np.abs(light[:30] - light[0]).max() < 3
    assert np.abs(light[34:] - light[-1]).max() < 3


def test_nothing_is_left_where_no_frame_came(tmp_path):
    with Recorder(tmp_path / "clip.mp4", (16, 16), fps=10) as recorder:
        recorder.add(shades(0))
    assert recorder.close() is None
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_no_file_and_an_older_one_as_it_was(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older")

    def film():
        with Recorder(path, (16, 16), fps=10) as recorder:
            recorder.add(shades(5))
            assert path.read_bytes() == b"older"
            recorder.add(shades(5, 16, 32))

    with pytest.raises(ValueError, match=r"expected uint8 \[T, 16, 16, 3\]"):
        film()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"older"


def test_ctrl_c_keeps_the_finished_part(tmp_path):
    def film():
        with Recorder(tmp_path / "clip.mp4", (16, 16), fps=10) as recorder:
            recorder.add(shades(5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        film()
    assert len(decoded(tmp_path / "clip.mp4")) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_closing(tmp_path):
    recorder = Recorder(tmp_path / "clip.mp4", (16, 16), fps=10)
    recorder.add(shades(2))
    assert not (tmp_path / "clip.mp4").exists()
    assert recorder.close() == recorder.close() == tmp_path / "clip.mp4"
    with pytest.raises(ValueError, match="closed"):
        recorder.add(shades(1))
    recorder.discard()
    assert (tmp_path / "clip.mp4").exists()


def test_a_file_that_cannot_be_written(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()

    def film():
        with Recorder(folder / "clip.mp4", (16, 16), fps=10) as recorder:
            folder.rmdir()
            recorder.add(shades(1))

    with pytest.raises(OSError, match=r"clip.mp4' cannot be written: .*No such file"):
        film()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_no_file(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("disk full")

    recorder = Recorder(tmp_path / "clip.mp4", (16, 16), fps=10)
    recorder.add(shades(3))
    monkeypatch.setattr("inferix_env.record.os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        recorder.close()
    assert recorder.close() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("clip.avi", {}, "ends in .mp4"),
        ("missing/clip.mp4", {}, "no folder"),
        ("clip.mp4", {"fps": 0}, "fps"),
        ("clip.mp4", {"fps": float("nan")}, "fps"),
        ("clip.mp4", {"scale": 0}, "scale"),
        ("clip.mp4", {"size": (0, 4)}, "size"),
    ],
)
def test_wrong_arguments(tmp_path, name, changes, problem):
    with pytest.raises(ValueError, match=problem):
        Recorder(tmp_path / name, **{"size": (16, 16), "fps": 10, **changes})


def test_a_missing_pyav_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'inferix-env\[video\]'"):
        Recorder(tmp_path / "clip.mp4", (16, 16), fps=10)


def test_a_sheet_shows_every_frame(tmp_path):
    frames = shades(5, 4, 6)
    assert write_sheet(tmp_path / "sheet.png", frames, columns=3, scale=2) == tmp_path / "sheet.png"
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert picture.shape == (2 * (2 * 4 + 2), 2 * (3 * 6 + 2 * 2), 3)
    for i, frame in enumerate(frames):
        y, x = i // 3 * 12, i % 3 * 16
        assert np.array_equal(picture[y : y + 8 : 2, x : x + 12 : 2], frame)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_sheet_needs_frames(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        write_sheet(tmp_path / "sheet.png", shades(0), columns=3)
    with pytest.raises(ValueError, match="float64"):
        write_sheet(tmp_path / "sheet.png", shades(2) / 255, columns=3)
    assert list(tmp_path.iterdir()) == []


def test_arrays_and_texts_come_back(tmp_path):
    arrays = {"frames": shades(3), "rewards": np.array([0.5, 1.0])}
    write_npz(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz") as data:
        assert {name: data[name].tolist() for name in data.files} == {n: a.tolist() for n, a in arrays.items()}
    write_text(tmp_path / "a.txt", "größer\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "größer\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "a.txt"]


def test_a_failed_write_leaves_an_older_file_as_it_was(tmp_path, monkeypatch):
    def broken(*arguments):
        raise OSError("disk full")

    write_text(tmp_path / "a.txt", "older")
    monkeypatch.setattr("inferix_env.record.os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "a.txt", "newer")
    with pytest.raises(OSError, match="disk full"):
        write_npz(tmp_path / "a.npz", {"x": np.zeros(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "older"
