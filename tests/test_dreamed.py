"""Dreams along recorded episodes: what is drawn, what heads are shown, and what is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import Condition, Engine
from engine.loading import assemble
from engine.training import dreamed as module
from engine.training.dreamed import GROUP, Dreams, DreamsConfig, drawn, dreamed, dreams_of, start_of, watched
from engine.training.heads import Batches, HeadsConfig, Rows
from engine.training.latents import Episodes
from tests.sims import check_pages
from tests.worlds import TINY, make_modules

CPU = torch.device("cpu")
LENGTHS = (20, 9, 4, 30)


def make_episodes(lengths=LENGTHS) -> Episodes:
    """Random latents; energy falls by 10 at every seventh row, and each episode ends after its last one."""
    rng, rows = np.random.default_rng(0), sum(lengths)
    first = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    last = np.repeat(np.cumsum(lengths) - 1, lengths)
    age = np.arange(rows) - first
    actions = np.eye(3, dtype=np.float32)[rng.integers(0, 3, rows)]
    actions[age == 0] = 0
    latents = torch.from_numpy(rng.normal(size=(rows, *TINY.latent)).astype(np.float16))
    return Episodes(
        latents=latents,
        rarity=latents[:, 0],
        actions=actions,
        variables=(100 - 10 * (age // 7))[:, None].astype(np.float32),
        rewards=np.ones(rows, np.float32),
        motion=np.ones(rows, np.float32),
        first=first,
        last=last,
        ends_next=(np.arange(rows) == last).astype(np.float32),
    )


def rare_of(episodes: Episodes) -> np.ndarray:
    return Rows(episodes, TINY, HeadsConfig()).rare


def test_dreams_are_drawn_towards_events_and_weighed_back():
    episodes = make_episodes()
    rare = rare_of(episodes)
    config = DreamsConfig(count=20_000, given=3, steps=4, events=0.5, openings=0.2)
    starts, weights = drawn(config, episodes, rare)
    assert (starts + config.given <= episodes.last[starts]).all()
    can = np.flatnonzero(np.arange(len(rare)) + config.given <= episodes.last)
    assert weights.mean() == pytest.approx(1, abs=0.02)
    plain = episodes.variables[can, 0].mean()
    assert (weights * episodes.variables[starts, 0]).mean() == pytest.approx(plain, rel=0.01)
    opening = np.mean(starts == episodes.first[starts])
    assert opening > 0.2 > np.mean(can == episodes.first[can])
    plain_opening = np.mean(can == episodes.first[can])
    assert (weights * (starts == episodes.first[starts])).mean() == pytest.approx(plain_opening, rel=0.05)


def test_no_dream_begins_where_no_real_row_follows():
    with pytest.raises(ValueError, match=r"lower --heads\.dreams\.given"):
        drawn(DreamsConfig(given=4), make_episodes((4, 3)), np.zeros(7, bool))


def test_heads_are_shown_what_they_see_in_the_engine():
    """The features of a dreamed row are those that a world of the same noise has there, whatever its heads are."""
    episodes, modules = make_episodes(), make_modules(TINY)
    config, start, seed = DreamsConfig(given=3, steps=4), 2, 11
    sim = Engine(watched(TINY, modules.denoiser, CPU), max_worlds=2, deterministic=False)
    made = dreamed(sim, config, episodes, np.array([start]), seed)
    assert made["age"].tolist() == [3, 4, 5, 6]
    played = Engine(assemble(TINY, modules), deterministic=False)
    world = played.open(start_of(episodes, start, config.given), seed)
    for features, row in zip(made["features"], range(start + 3, start + 7), strict=True):
        world.variables = episodes.variables[row - 1].astype(np.float64)
        played.step([world], [Condition.of(episodes.actions[row : row + 1])])
        there = modules.heads.summarise(features[None].to(world.head_state.dtype))[0]
        torch.testing.assert_close(there, world.head_state, atol=2e-3, rtol=1e-2)
    check_pages(sim, [])


def test_dreams_stop_at_the_last_real_row():
    episodes = make_episodes()
    sim = Engine(watched(TINY, make_modules(TINY).denoiser, CPU), max_worlds=2, deterministic=False)
    made = dreamed(sim, DreamsConfig(given=3, steps=8), episodes, np.array([24, 40]), 0)  # 4 and 19 rows to go
    assert np.bincount(made["which"].numpy()).tolist() == [2, 8]


def test_files_are_read_back_until_the_trunk_or_the_settings_change(tmp_path, monkeypatch):
    episodes, modules = make_episodes(), make_modules(TINY)
    config, rare = DreamsConfig(count=GROUP + 2, given=2, steps=2), rare_of(episodes)
    given = episodes, rare, tmp_path / "dreams", CPU
    first = dreams_of(TINY, config, modules.denoiser, *given)
    assert len(list(tmp_path.glob("dreams-*.safetensors"))) == 2
    assert len(first.rows) == len(first.features) == len(first.weights) > GROUP
    assert (first.rows > episodes.first[first.rows]).all()
    asked = []
    monkeypatch.setattr(module, "dreamed", lambda *args: asked.append(args) or dreamed(*args))
    again = dreams_of(TINY, config, modules.denoiser, *given)
    assert not asked
    assert torch.equal(first.features, again.features)
    assert np.array_equal(first.rows, again.rows)
    dreams_of(TINY, replace(config, seed=1), modules.denoiser, *given)
    assert len(asked) == 2
    dreams_of(TINY, replace(config, seed=1), make_modules(TINY, seed=3).denoiser, *given)
    assert len(asked) == 4
    assert dreams_of(TINY, replace(config, count=0), modules.denoiser, *given) is None


def test_batches_mix_real_and_dreamed_rows_and_weigh_both():
    episodes, config = make_episodes(), HeadsConfig(frames=4, rare=0.5, dreamed=0.75)
    rows, rng = Rows(episodes, TINY, config), np.random.default_rng(0)
    odd = np.flatnonzero(np.arange(63) % 2 == 1)
    features = torch.zeros(len(odd), TINY.stream.tokens, TINY.denoiser.width, dtype=torch.float16) + 7
    dreams = Dreams(features, odd, np.where(odd < 20, 2.0, 1.0))
    batches = Batches(rows, dreams, make_modules(TINY).denoiser, config, CPU)
    drawn_features, picks, weights = batches.draw(rng, 16)
    assert (drawn_features == 7).flatten(1).all(1).tolist() == [False] * 4 + [True] * 12
    assert (picks[4:] % 2 == 1).all()
    _, picks, weights = batches.dreamt(rng, 40_000)
    share = (2.0 * (odd < 20)).sum() / dreams.weights.sum()
    assert (weights * (picks < 20)).mean() == pytest.approx(share, rel=0.03)
    assert rows.rare[picks].mean() > rows.rare[odd].mean()
