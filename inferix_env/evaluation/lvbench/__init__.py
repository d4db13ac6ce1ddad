"""LV-Bench: manifests of captioned videos, text worlds led through them, scores that are kept as they come.

from inferix_env.evaluation.lvbench import Config, measure
summary = measure(Config(manifest=Path("lvbench/manifest.json"), limit=20))
"""

from inferix_env.evaluation.lvbench.command import Config, measure, run
from inferix_env.evaluation.lvbench.manifest import Caption, Video, read_manifest

__all__ = ["Caption", "Config", "Video", "measure", "read_manifest", "run"]
