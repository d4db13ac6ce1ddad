"""The example of one world on two ranks runs, and says how far apart they are."""

import numpy as np
import pytest
from PIL import Image

from examples import two_ranks
from tests.worlds import make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return str(make_world(tmp_path_factory.mktemp("world"), end_bias=-80.0))


@pytest.mark.slow
def test_two_ranks_show_what_one_does(world, tmp_path, capsys):
    out = tmp_path / "new" / "two_ranks.png"
    assert two_ranks.main(world, steps=3, columns=2, exchange="ulysses", out=out) <= 1
    said = capsys.readouterr().out
    assert "3 steps" in said
    assert "on 2 (Ulysses 2)" in said
    first, second = np.array_split(np.asarray(Image.open(out))[21:221], 2)
    assert np.abs(first[:96].astype(int) - second[:96].astype(int))[:, 78:].max() <= 1


def test_what_cannot_be_shown(world):
    with pytest.raises(ValueError, match="columns 1: expected at least 1 and 2"):
        two_ranks.main(world, columns=1)
