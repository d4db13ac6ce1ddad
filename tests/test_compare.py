"""Compare: what changed beyond noise, what is a regression, and a world that was blurred on purpose."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from engine import Engine, load
from inferix_env import worlds
from inferix_env.evaluation import changes, fidelity, runs, written
from inferix_env.evaluation.__main__ import main
from inferix_env.evaluation.dreaming import GROUP, reconstruct
from inferix_env.evaluation.episodes import RealGame
from inferix_env.evaluation.measures import Measure, measure
from inferix_env.evaluation.players import make_player
from tests.worlds import make_world

SQUARE = "tests.synthetic:tests/MovingSquare-v0"


HEAD = {"format": runs.FORMAT, "version": runs.VERSION}


def result(path: Path, *measures: Measure, part: str = "fidelity", **setting) -> Path:
    data = {**HEAD, "part": part, "setting": {"world": "w", **setting}}
    written.write_json(path, {**data, "measures": [m.to_dict() for m in measures]})
    return path


def episodes(mean: float, seed: int = 0, count: int = 20, spread: float = 1.0) -> dict[str, float]:
    luck = np.random.default_rng(0).normal(0, spread, count)  # the same episodes are as hard for every model
    own = np.random.default_rng(seed + 1).normal(0, 0.1, count)
    return {str(i): float(mean + a + b) for i, (a, b) in enumerate(zip(luck, own, strict=True))}


def of(samples: dict[str, float], better: str = "higher", **given) -> Measure:
    return measure("m", "dream", samples, better=better, **given)


def status(tmp_path: Path, a: Measure, b: Measure, *options: str) -> int:
    return main(["compare", str(result(tmp_path / "a.json", a)), str(result(tmp_path / "b.json", b)), *options])


@pytest.mark.parametrize(
    ("better", "after", "expected"),
    [("higher", 8, 1), ("higher", 12, 0), ("lower", 12, 1), ("lower", 8, 0), ("one", 12, 1), ("one", 8, 0)],
)
def test_what_got_worse_is_a_regression_whichever_way_is_better(tmp_path, capsys, better, after, expected):
    assert status(tmp_path, of(episodes(10), better), of(episodes(after, 1), better)) == expected
    assert ("REGRESSION" in capsys.readouterr().out) == bool(expected)


def test_the_same_result_has_not_changed(tmp_path, capsys):
    assert status(tmp_path, of(episodes(10)), of(episodes(10))) == 0
    assert "0 changed beyond noise, 0 regressed" in capsys.readouterr().out


def test_pairs_find_what_the_spread_of_episodes_hides(tmp_path):
    before, after = episodes(10, spread=5), episodes(9.5, 1, spread=5)
    assert status(tmp_path, of(before), of(after)) == 1
    others = {f"other {name}": x for name, x in after.items()}
    assert status(tmp_path, of(before), of(others)) == 0


def test_a_change_below_the_threshold_is_told_and_let_through(tmp_path, capsys):
    assert status(tmp_path, of(episodes(10)), of(episodes(9.5, 1)), "--threshold", "0.1") == 0
    assert "worse, within the threshold" in capsys.readouterr().out
    assert status(tmp_path, of(episodes(10)), of(episodes(9.5, 1)), "--threshold", "0.01") == 1


def test_what_the_second_result_no_longer_knows_is_said(tmp_path, capsys):
    a = result(tmp_path / "a.json", of(episodes(10)), measure("gone", "dream", episodes(1), 4, better="higher"))
    b = result(tmp_path / "b.json", of(episodes(10)))
    assert main(["compare", str(a), str(b)]) == 0
    assert "known in A and not in B: fidelity: gone at 4" in capsys.readouterr().out


def test_intervals_alone_decide_where_there_are_no_samples(tmp_path):
    def known(value: float, half: float | None) -> Measure:
        ends = (None, None) if half is None else (value - half, value + half)
        return Measure("m", "dream", value, *ends, better="lower")

    assert status(tmp_path, known(1.0, 0.1), known(2.0, 0.1)) == 1
    assert status(tmp_path, known(1.0, 1.0), known(2.0, 1.0)) == 0
    assert status(tmp_path, known(1.0, None), known(2.0, None)) == 0  # nobody knows the noise


def test_baselines_are_not_judged_and_only_chooses(tmp_path, capsys):
    worse = [of(episodes(10)), of(episodes(5, 1))]
    files = [
        str(result(tmp_path / f"{name}.json", measure("other", "dream", episodes(1), better="higher"), changed))
        for name, changed in zip("ab", worse, strict=True)
    ]
    assert main(["compare", *files, "--only", "other"]) == 0
    assert main(["compare", *files, "--only", "nothing"]) == 2
    assert "no measure in common" in capsys.readouterr().err
    baselines = [str(result(tmp_path / f"c{i}.json", of(m.samples, ""))) for i, m in enumerate(worse)]
    assert main(["compare", *baselines]) == 2


def test_many_measures_of_noise_are_no_regression():
    rng = np.random.default_rng(3)
    rows = [
        [
            measure(f"m{i}", "dream", {str(j): float(x) for j, x in enumerate(rng.normal(5, 1, 16))}, better="higher")
            for i in range(60)
        ]
        for _ in range(2)
    ]
    found = list(changes.changes_between("fidelity", *([m.to_dict() for m in side] for side in rows)))
    z = NormalDist().inv_cdf(1 - 0.05 / 2 / len(found))
    assert len(found) == 60
    assert sum(c.beyond(z) for c in found) <= 1
    assert sum(c.beyond(1.0) for c in found) > 5  # which one interval alone would have taken for changes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("{}", "no result"),
        ('{"format": "inferix_env evaluation", "version": 9}', "version 9"),
        ('{"format": "inferix_env evaluation", "version": 1}', "no measures"),
        (json.dumps({**HEAD, "part": "fidelity", "setting": {"world": "w"}, "measures": [{}]}), "no measure"),
    ],
)
def test_input_that_is_no_result_is_one_clear_line(tmp_path, capsys, text, message):
    good, bad = result(tmp_path / "a.json", of(episodes(1))), tmp_path / "b.json"
    bad.write_text(text)
    assert main(["compare", str(good), str(bad)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_results_of_different_things_are_refused(tmp_path, capsys):
    a = result(tmp_path / "a.json", of(episodes(1)), limit=100)
    b = result(tmp_path / "b.json", of(episodes(1)), limit=200)
    assert main(["compare", str(a), str(b)]) == 2
    assert "limit 100 in A, 200 in B" in capsys.readouterr().err
    assert main(["compare", str(a), str(tmp_path / "c.json")]) == 2
    assert main(["compare", str(a), str(a), "--threshold", "-1"]) == 2


# A blurred world


def blur(folder: Path, to: Path) -> Path:
    """A copy of a world whose decoder's last layer is smoothed: it dreams the same and shows it out of focus."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("guard*", "policy*"))
    with safe_open(to / "model.safetensors", "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    for kind in ("weight", "bias"):
        name = f"codec.decoder.layers.8.{kind}"
        x = tensors[name].float()  # [3 colours x 4 places, channels, 3, 3]
        x = x.view(3, 4, *x.shape[1:]).mean(1, keepdim=True).expand(3, 4, *x.shape[1:]).reshape(x.shape)
        x = x.mean((2, 3), keepdim=True).expand(x.shape) if kind == "weight" else x
        tensors[name] = x.to(tensors[name].dtype).contiguous()
    save_file(tensors, to / "model.safetensors", metadata=about)
    return to


def measured(folder: Path, reality: fidelity.Reality, out: Path) -> Path:
    """A result of a tiny world's fidelity, without its pictures."""
    config = fidelity.Config(horizons=(1, 2, 4), learn=0)
    engine = Engine(load(folder, dtype="float32"), max_worlds=GROUP, deterministic=False)
    return result(out, *fidelity.measure_all(engine, reality, config).measures)


def test_a_blurred_world_is_caught(tmp_path):
    folder = make_world(tmp_path / "world")
    model = load(folder, dtype="float32")
    game = RealGame(SQUARE, model.spec, 1)
    players = [make_player("noop", model.spec)]
    reality = fidelity.Reality(list(game.follow(players, range(8), 12, "test")), [])
    game.close()
    # A random decoder's frames are all detail: "reality" is what it makes of real ones, so that it is true at first.
    seen = [replace(e, frames=reconstruct(model, e.frames)) for e in reality.tested]
    reality = fidelity.Reality(seen, [])
    a = measured(folder, reality, tmp_path / "a.json")
    b = measured(blur(folder, tmp_path / "blurred"), reality, tmp_path / "b.json")
    assert main(["compare", str(a), str(a)]) == 0
    assert main(["compare", str(a), str(b), "--only", "sharpness"]) == 1
    assert main(["compare", str(b), str(a), "--only", "sharpness"]) == 0


@pytest.mark.slow
def test_the_shipped_car_blurred_is_caught_by_the_command(tmp_path, capsys):
    folder = blur(worlds.find("car-racing"), tmp_path / "car_racing")
    given = ["--episodes", "6", "--limit", "40", "--horizons", "1", "4", "8", "--learn", "0", "--shown", "0"]
    for world, out in (("car-racing", "a"), (str(folder), "b")):
        assert main(["fidelity", "--world", world, "--out", str(tmp_path / out), *given]) == 0
    files = [str(tmp_path / out / "fidelity.json") for out in "ab"]
    assert main(["compare", *files]) == 1
    printed = capsys.readouterr().out
    assert any("sharpness" in line and "REGRESSION" in line for line in printed.splitlines())
    assert main(["compare", files[0], files[0]]) == 0
    assert json.loads(Path(files[0]).read_text())["setting"]["weights"] not in Path(files[1]).read_text()
