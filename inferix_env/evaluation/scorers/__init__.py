"""Scorers of clips: `scorer.score(frames uint8 [T, H, W, 3]) -> float`, by stand-ins or by published models.

clarity, motion, aesthetic, background, subject, dynamic = stand_ins()
scorers = choose(models=("subject", "background"), weights="weights", device="cuda")
"""

from inferix_env.evaluation.scorers.choosing import NAMES, Name, choose
from inferix_env.evaluation.scorers.scorer import Scorer, Tally
from inferix_env.evaluation.scorers.stand_ins import stand_ins

__all__ = ["NAMES", "Name", "Scorer", "Tally", "choose", "stand_ins"]
