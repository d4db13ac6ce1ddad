"""The six scorers that need no weights, so that a report always has numbers, labelled for what they are."""

from __future__ import annotations

import numpy as np

from inferix_env.evaluation.scorers import flow, looks
from inferix_env.evaluation.scorers.scorer import Consistency, Interpolated, Mean, Pairs, Scorer, itself


def stand_ins() -> list[Scorer]:
    """Clarity, motion, aesthetic, background, subject and dynamic, none of them with weights."""
    return [clarity(), motion(), aesthetic(), background(), subject(), dynamic()]


def clarity() -> Scorer:
    return Scorer(
        name="clarity",
        method="spectral sharpness: root-mean-square spatial frequency of the luma, cycles a pixel",
        stand_in=True,
        higher_is_better=True,
        moves="falls with blur; rises with noise, which it takes for detail",
        look=looks.spectral_sharpness,
        tally=Mean,
    )


def motion() -> Scorer:
    return Scorer(
        name="motion",
        method="interpolation along Lucas-Kanade flow, by VBench's formula, at a shorter side of 64",
        stand_in=True,
        higher_is_better=True,
        moves="falls with noise, flicker and jumps; rises as motion slows, to 1 for a still",
        look=small,
        tally=lambda: Interpolated(flow.between),
    )


def small(frames: np.ndarray) -> np.ndarray:
    """Frames at the size that flow is looked for at, uint8."""
    pixels = (flow.shrunk(frames) * 255).round().byte()
    return pixels.permute(0, 2, 3, 1).numpy()


def aesthetic() -> Scorer:
    return Scorer(
        name="aesthetic",
        method="colourfulness (Hasler and Süsstrunk 2003)",
        stand_in=True,
        higher_is_better=True,
        moves="falls as colours fade; rises as they saturate or take a cast. It judges colours, not beauty",
        look=looks.colourfulness,
        tally=Mean,
    )


def background() -> Scorer:
    return Scorer(
        name="background",
        method="likeness of colours and edges around the middle, by VBench's consistency",
        stand_in=True,
        higher_is_better=True,
        moves="falls as what surrounds the middle changes; rises towards 1 for a still",
        look=looks.background,
        tally=Consistency,
    )


def subject() -> Scorer:
    return Scorer(
        name="subject",
        method="likeness of colours and edges in the middle, by VBench's consistency",
        stand_in=True,
        higher_is_better=True,
        moves="falls as what is in the middle changes; rises towards 1 for a still",
        look=looks.subject,
        tally=Consistency,
    )


def dynamic() -> Scorer:
    return Scorer(
        name="dynamic",
        method="Lucas-Kanade flow: mean speed of the fastest twentieth, pixels a frame at a height of 256",
        stand_in=True,
        higher_is_better=True,
        moves="falls to 0 as motion stops; rises with speed, and with noise and flicker, which it takes for motion",
        look=itself,
        tally=lambda: Pairs(flow.speed),
    )
