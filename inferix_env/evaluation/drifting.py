"""python -m inferix_env.evaluation drift: a long free dream, scored as a stream: whether it stays what it was.

One world begins with a real frame and is dreamed on for thousands of steps. Its frames are cut into equal chunks; a
chunk's score is the mean over its windows, each scored as it comes, so that memory does not grow with the length, and
the Video Drift Error says how far the chunks move away from the first one. Windows of real episodes under the same
player are scored beside it: what they drift is noise. After every chunk the run is kept, and the same command goes on
where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import numpy as np
from tqdm import tqdm

from engine import Engine
from inferix_env.evaluation import runs
from inferix_env.evaluation.drift_config import Config
from inferix_env.evaluation.drift_findings import findings_of
from inferix_env.evaluation.drift_state import State
from inferix_env.evaluation.episodes import RealGame, require
from inferix_env.evaluation.free_dream import FreeDream
from inferix_env.evaluation.players import Player, make_player
from inferix_env.evaluation.scorers import Scorer, stand_ins


def score(frames: np.ndarray, scorers: Sequence[Scorer]) -> list[float]:
    """What each scorer says of a window, uint8 [T, H, W, 3]."""
    return [scorer.score(frames) for scorer in scorers]


def real_windows(game: RealGame, player: Player, config: Config) -> Iterator[np.ndarray]:
    """Windows of real episodes, one after another, each within one episode, uint8 [T, H, W, 3]; without end.

    Raises:
        ValueError: many episodes in a row are shorter than a window.
    """
    seed, barren = config.seed + 1, 0
    while barren < 50:
        [episode] = game.follow([player], [seed], config.steps, "drift")
        frames = episode.frames[1:]
        for i in range(0, len(frames) - config.length + 1, config.length):
            yield frames[i : i + config.length]
        barren = barren + 1 if len(frames) < config.length else 0
        seed += 1
    raise ValueError(f"50 real episodes in a row end within --window {config.length} steps: give a shorter one")


def first_frame(game: RealGame, player: Player, seed: int):
    """The first row of a real episode, to dream from."""
    [episode] = game.follow([player], [seed], 1, "drift")
    return episode.rows(0, 1)


def dream_chunk(dream: FreeDream, config: Config, scorers: Sequence[Scorer], state: State, bar: tqdm) -> None:
    """Dream and score one chunk, and what it leaves over."""
    dream.turn()
    rows = []
    for _ in range(config.windows):
        frames = np.stack(list(dream.go(config.length)))
        rows.append(score(frames, scorers))
        state.see(frames)
        bar.update(len(frames))
    for _ in dream.go(config.steps // config.chunks - config.windows * config.length):
        bar.update()
    state.add(rows, dream.frame)


@contextmanager
def timed(state: State) -> Iterator[None]:
    """Count what is done meanwhile, so that a run that was stopped knows how long it took in all."""
    began = time.monotonic()
    yield
    state.seconds += time.monotonic() - began


def go_on(opened: runs.Opened, game: RealGame, player: Player, config: Config, state: State) -> None:
    """Dream what is left, keeping the run after every chunk."""
    scorers = stand_ins()
    dream = FreeDream(Engine(opened.model), player, first_frame(game, player, config.seed), config.seed)
    try:
        state.folder.mkdir(parents=True, exist_ok=True)
        if state.chunks:
            dream.load(state.folder, state.steps, state.frame)
        with tqdm(total=config.steps, initial=state.steps, desc="drift", unit="step", disable=None) as bar:
            while len(state.chunks) < config.chunks:
                with timed(state):
                    dream_chunk(dream, config, scorers, state, bar)
                dream.save(state.folder)
                state.write(dream.steps)
    finally:
        dream.close()
    if not state.real:  # quick beside the dream, so kept only whole
        total = config.chunks * config.real
        windows = islice(real_windows(game, player.twin(), config), total)
        with timed(state):
            rows = [score(frames, scorers) for frames in tqdm(windows, "real windows", total, disable=None)]
        state.real = [rows[i : i + config.real] for i in range(0, total, config.real)]
        state.write(state.steps)


def measure(config: Config) -> dict:
    """The part `drift` of a report: measured, or as it was kept.

    Raises:
        ValueError: a setting is wrong, or the world has no real env.
    """
    config.check()
    require("matplotlib", "evaluation")
    opened, folder, setting, kept = runs.begin(config, "drift")
    if kept:
        return kept
    runs.check_seed(config.seed, opened)
    player = make_player(config.policy, opened.spec, opened.card)
    game = RealGame.of_card(opened.spec, opened.card, config.env)
    state = State.read(folder / "drift", setting, config.again)
    try:
        go_on(opened, game, player, config, state)
        findings = findings_of(state, config, stand_ins(), opened.spec.fps)
        data = runs.keep(folder, "drift", findings, setting, opened.model, state.seconds)
        state.forget()
        return data
    finally:
        game.close()


def run(config: Config) -> int:
    """The command: measure, and say where it stands."""
    try:
        data = measure(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the chunks that were done are kept; the same command goes on") from None
    runs.tell(data, runs.folder_of(config.out, config.world))
    return 0
