"""The report end to end on a world of continuous actions; the long dream, stopped and taken up; the page."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import ContinuousActions
from inferix_env.evaluation import drift_findings, drift_state, drifting, page, runs, sheets
from inferix_env.evaluation.__main__ import main
from inferix_env.evaluation.drift import drift
from inferix_env.evaluation.episodes import RealGame
from inferix_env.evaluation.players import make_player
from inferix_env.evaluation.scorers import stand_ins
from tests.worlds import make_world

SLIDER = "tests.synthetic:tests/Slider-v0"
BOX = ContinuousActions((-1.0, 0.0), (1.0, 1.0), ("go", "light"))
LONG = {"steps": 36, "chunks": 3, "window": 4, "policy": "noop", "dtype": "float32"}


def with_env(folder: Path, env: str, **data) -> Path:
    card = json.loads((folder / "world.json").read_text())
    (folder / "world.json").write_text(json.dumps({**card, "keys": {}, "data": {"env": env, **data}}))
    return folder


@pytest.fixture(scope="module")
def slider(tmp_path_factory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("worlds") / "slider", actions=BOX, variables=(), name="slider")
    return with_env(folder, SLIDER, settle=4)


@pytest.fixture(scope="module")
def reported(slider, tmp_path_factory) -> Path:
    """The folder of a quick report of the slider: its parts, and its page in `pages`."""
    out = tmp_path_factory.mktemp("report")
    given = ["--world", str(slider), "--out", str(out), "--pages", str(out / "pages"), "--dtype", "float32", "--quick"]
    assert main(["report", *given, "--ranked", "random", "noop", "script:go(1)*2, go(-1)*2"]) == 0
    return out


class Links(HTMLParser):
    """All that a page points to, its pictures, and whether its tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.targets += [given[name] for name in ("src", "href", "data", "poster") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read_page(path: Path) -> Links:
    links = Links()
    links.feed(path.read_text(encoding="utf-8"))
    assert not links.open
    return links


def test_the_page_holds_all_that_it_shows(reported):
    text = (reported / "pages" / "slider.html").read_text()
    links = read_page(reported / "pages" / "slider.html")
    assert all(x.startswith(("data:", "#")) for x in links.targets)
    assert {x[1:] for x in links.targets if x.startswith("#")} <= set(links.ids)
    assert not re.search(r"https?://|<script|@import|url\(", text)
    pictures = [x for x in links.targets if x.startswith("data:image")]
    assert len(pictures) >= 3 + 3 + 1 + 3
    kinds = set()
    for source in pictures:
        with Image.open(BytesIO(base64.b64decode(source.split(",", 1)[1]))) as image:
            kinds.add((image.format, getattr(image, "n_frames", 1) > 1))
            assert min(image.size) >= 32
            assert np.asarray(image.convert("RGB")).std() > 2
    assert kinds == {("PNG", False), ("WEBP", True)}


@pytest.mark.parametrize("name", ["doom-take-cover", "car-racing"])
def test_a_shipped_page_holds_all_that_it_shows_and_is_of_modest_size(name):
    path = Path(__file__).parents[1] / "docs" / "reports" / f"{name}.html"
    assert path.stat().st_size < 6e6
    links = read_page(path)
    assert all(x.startswith(("data:", "#")) for x in links.targets)
    parts = runs.read(path.with_suffix(".json"))["parts"]
    assert set(parts) <= set(links.ids)
    assert parts["fidelity"]["measures"]


def test_the_page_says_how_it_was_made(reported):
    text = (reported / "pages" / "slider.html").read_text()
    data = json.loads((reported / "pages" / "slider.json").read_text())
    weights = data["world"]["weights"]
    assert re.fullmatch("[0-9a-f]{64}", weights)
    assert data["world"]["env"] == SLIDER
    for name, part in data["parts"].items():
        assert part["setting"]["weights"] == weights
        assert {"command", "date", "hardware", "versions"} <= set(part["about"])
        assert {"torch", "numpy", "python", "inferix_env"} <= set(part["about"]["versions"])
        for words in (
            part["title"],
            part["about"]["hardware"],
            f'id="{name}"',
            f"seeds from {part['setting']['seed']}",
        ):
            assert words in text
    assert weights in text


def test_every_part_measures_the_dream_beside_baselines(reported):
    data = json.loads((reported / "pages" / "slider.json").read_text())
    assert list(data["parts"]) == ["fidelity", "ranking", "drift"]
    found = {(m["name"], m["of"], m["at"]): m for part in data["parts"].values() for m in part["measures"]}
    for h in (1, 2, 4, 8):
        for name in ("PSNR", "SSIM", "sharpness over reality's"):
            for of in ("dream", "wrong actions", "repeat last frame", "codec"):
                m = found[name, of, h]
                assert m["low"] <= m["value"] <= m["high"]
        assert ("reward error a step", "mean real reward", h) in found
    assert ("actions explained (R²)", "wrong actions", None) in found
    assert ("Spearman's rank correlation", "dream", None) in found
    assert ("drift: clarity", "reality", None) in found
    assert ("average precision of ends", "dream", None) not in found  # the slider never ends
    assert "No real episode ended" in (reported / "pages" / "slider.html").read_text()


def test_a_second_report_takes_what_stands_and_another_model_does_not(reported, slider, tmp_path, capsys):
    given = ["--out", str(reported), "--pages", str(tmp_path), "--dtype", "float32", "--quick", "--only", "drift"]
    assert main(["report", "--world", str(slider), *given]) == 0
    assert "drift: as it was kept" in capsys.readouterr().out
    assert runs.read(tmp_path / "slider.json")["parts"]["drift"] == runs.read(reported / "drift.json")
    assert main(["compare", str(reported / "pages" / "slider.json"), str(tmp_path / "slider.json")]) == 0


def test_a_missing_picture_is_named(reported):
    report = runs.read(reported / "pages" / "slider.json")
    with pytest.raises(ValueError, match=r"cannot be read.*--again"):
        page.page(report, reported / "elsewhere")


def test_markup_in_names_stays_text():
    assert page.table(["<b>"], [["a & b"]]).count("<b>") == 0
    assert page.prose("*so* `x<y` & *that*") == "<p><em>so</em> <code>x&lt;y</code> &amp; <em>that</em></p>"


# The long dream


def dream(world: Path, out: Path) -> drift_state.State:
    """The scores of a long dream, kept in `out`, and no pictures."""
    config = drifting.Config(world=str(world), out=out, seed=20_000, **LONG)
    opened = runs.open_world(str(world), "cpu", "float32")
    state = drift_state.State.read(out / "drift", runs.setting_of(opened, config), again=False)
    game = RealGame.of_card(opened.spec, opened.card)
    drifting.go_on(opened, game, make_player(config.policy, opened.spec), config, state)
    return state


@pytest.fixture(scope="module")
def whole(slider, tmp_path_factory) -> drift_state.State:
    return dream(slider, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("at", [5, 13, 30])
def test_a_dream_that_was_stopped_is_the_one_that_was_not(slider, whole, tmp_path, monkeypatch, at):
    steps, go = [0], drifting.FreeDream.go

    def stops(self, count):
        for frame in go(self, count):
            steps[0] += 1
            if steps[0] == at:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(drifting.FreeDream, "go", stops)
    with pytest.raises(KeyboardInterrupt):
        dream(slider, tmp_path)
    monkeypatch.undo()
    steps_kept = [path.stem for path in (tmp_path / "drift").glob("*.world")]
    assert steps_kept == ([f"step-{(at - 1) // 12 * 12}"] if at > 12 else [])
    resumed = dream(slider, tmp_path)
    assert (resumed.chunks, resumed.real) == (whole.chunks, whole.real)
    assert (resumed.first == whole.first).all()
    assert (np.stack(resumed.shown) == np.stack(whole.shown)).all()


def test_the_drift_is_that_of_the_chunks_means(whole):
    scores = np.array(whole.chunks)
    assert scores.shape == (3, 3, 6)
    clarity = stand_ins()[0]
    made = drift_findings.drifts(scores[..., 0], clarity, "dream", "normalised")
    assert made.value == pytest.approx(drift(scores[..., 0].mean(1), "normalised"))
    assert made.low <= made.value <= made.high
    assert made.better == "lower"
    still = drift_findings.drifts(np.ones((4, 5)), clarity, "dream", "normalised")
    assert (still.value, still.low, still.high) == (0, 0, 0)
    assert drift_findings.drifts(np.zeros((4, 5)), clarity, "dream", "normalised").value is None


def test_a_stopped_run_of_another_setting_is_not_mixed_in(slider, tmp_path):
    (tmp_path / "drift").mkdir()
    (tmp_path / "drift" / "state.json").write_text('{"setting": {}}')
    with pytest.raises(ValueError, match="of another setting: give --again"):
        dream(slider, tmp_path)
    (tmp_path / "drift" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        dream(slider, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["drift", "--steps", "5", "--chunks", "4"], "windows of at least 3 frames"),
        (["drift", "--policy", "dance"], "policy 'dance'"),
        (["fidelity", "--episodes", "1"], "at least 2 episodes"),
        (["fidelity", "--recorded", "nothing.npz"], "expected an npz"),
        (["ranking", "--policies", "random", "noop"], "at least 3 to rank"),
        (["report", "--ranked", "random", "noop", "dance"], "policy 'dance'"),
        (["report", "--world", "nowhere"], "no world 'nowhere'"),
        (["fidelity", "--world", "doom-take-cover", "--seed", "5"], "trained on seeds below 10000"),
    ],
)
def test_a_bad_setting_is_one_clear_line(slider, tmp_path, capsys, arguments, message):
    world = [] if "--world" in arguments else ["--world", str(slider)]
    assert main([*arguments, *world, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_clips_stand_abreast_under_their_labels():
    black, white = np.zeros((3, 20, 31, 3), np.uint8), np.full((3, 20, 31, 3), 255, np.uint8)
    made = sheets.abreast([("real", black), ("dream", white)])
    assert made.shape[0] == 3
    assert all(side % 2 == 0 for side in made.shape[1:3])
    assert made[:, -30, 5].max() == 0
    assert made[:, -30, -5].min() == 255
    assert made[0, :18].std() > 0  # the labels


def test_without_a_command_it_says_which_there_are(capsys):
    assert main([]) == 0
    assert "compare" in capsys.readouterr().out
