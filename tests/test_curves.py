"""Curves of training runs: what is read, drawn and refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from agents import curves

LOG = "update,steps,return,real_return\n1,512,100.0,50.0\n2,1024,200.0,\n3,1536,300.0,250.0\n"


@pytest.fixture
def runs(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.csv").write_text(LOG)
    return tmp_path / "a", tmp_path / "b"


def test_runs_are_drawn_one_over_the_other(runs, tmp_path):
    pytest.importorskip("matplotlib")
    pictures = []
    for count in (1, 2):
        out = tmp_path / "new" / f"{count}.png"
        assert curves.main([*map(str, runs[:count]), "--out", str(out)]) == 0
        pictures.append(np.asarray(Image.open(out).convert("RGB")).astype(int))
    for picture in pictures:
        assert (picture[..., 2] - picture[..., 0] > 80).any()  # the dream's line
        assert (picture[..., 0] - picture[..., 2] > 80).any()  # reality's


def test_what_was_not_looked_at_is_no_number(runs):
    assert [row["real_return"] for row in curves.read_log(runs[0])] == [50.0, None, 250.0]


@pytest.mark.parametrize("text", [None, "", "a,b\n1,2\n", "steps,return,real_return\n1,x,2\n"])
def test_other_folders_are_refused_in_one_line(text, tmp_path, capsys):
    if text is not None:
        (tmp_path / "log.csv").write_text(text)
    assert curves.main([str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "x.png").exists()
