"""python -m inferix_env.evaluation lvbench: LV-Bench: a text world led through captions, or videos that are there.

Each video is scored by VDE and VBench's dimensions. Every video's result is kept as it comes, and the same command goes
on with a run that was stopped. The layout of the manifest and of the weights is in docs/lvbench.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from inferix_env.env import WorldSimEnv
from inferix_env.evaluation import runs, written
from inferix_env.evaluation.clip_scores import ClipScores, score_clip, score_video
from inferix_env.evaluation.drift import NUM_CHUNKS
from inferix_env.evaluation.lvbench.manifest import Video, read_manifest
from inferix_env.evaluation.lvbench.prompting import check_text_world, dream, length_of, recorded
from inferix_env.evaluation.lvbench.summary import lines_of, summarise
from inferix_env.evaluation.lvbench.workers import WorkerLost, spread
from inferix_env.evaluation.scorers import Name, Scorer, choose
from inferix_env.record import Recorder, import_av
from inferix_env.world_options import WorldOptions

SCORERS = "scorers.json"  # in a run's folder: what the scorers are


@dataclass(frozen=True)
class Config(WorldOptions):
    """Score a text world on LV-Bench, or videos that are there.

    Attributes:
        world: a text world to be led through the captions: a published checkpoint's file, folder or hub id, with its
            preset; by default none: the manifest's own videos are scored, or those of --videos.
        manifest: .json, .jsonl or .csv: the videos with their classes, splits and captions (docs/lvbench.md).
        videos: folder that the manifest's paths start from, such as one of videos made elsewhere under the same names;
            the manifest's own by default. Not with a world.
        split: which videos: eval, train or all.
        limit: the first so many of them.
        longest: seconds after which a dream is cut; by default where its captions end.
        chunks: that a video is cut into.
        models: scorers to measure by their published models, in place of stand-ins: clarity, motion, aesthetic,
            background, subject, dynamic.
        weights: folder of the models' weights; by default what is on the hub is taken from there.
        devices: of the workers in turn, for the world and the models, such as cuda:0 cuda:1; --device by default.
        workers: processes, each with the world and the models of its own.
        seed: of the dreams.
        out: folder for the dreamed videos, a JSON for each video, and summary.json. The same command goes on with a
            run that was stopped.
    """

    manifest: Path = Path("lvbench.json")
    videos: Path | None = None
    split: Literal["eval", "train", "all"] = "eval"
    limit: int | None = None
    longest: float | None = None
    chunks: int = NUM_CHUNKS
    models: tuple[Name, ...] = ()
    weights: Path | None = None
    devices: tuple[str, ...] = ()
    workers: int = 1
    seed: int = 0
    out: Path = Path("out/evaluation/lvbench")

    def check(self) -> None:
        """Raise ValueError for a setting that is wrong."""
        for name, least in (("limit", 1), ("chunks", 2), ("workers", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} {value}: expected {least} or more")
        if self.longest is not None and not self.longest > 0:
            raise ValueError(f"--longest {self.longest}: expected seconds above 0")
        if self.world is None and self.preset is not None:
            raise ValueError(f"--preset {self.preset} without --world: name the checkpoint that is run so")
        if self.world is not None and self.videos is not None:
            raise ValueError("--videos with --world: give --videos alone to score them, or --world alone to dream")

    def device_of(self, worker: int) -> str:
        return self.devices[worker % len(self.devices)] if self.devices else self.device or "cpu"


def chosen(config: Config) -> list[Video]:
    """The videos that the config asks for.

    Raises:
        ValueError: there are none.
    """
    videos = read_manifest(config.manifest)
    asked = [video for video in videos if config.split in ("all", video.split)][: config.limit]
    if not asked:
        raise ValueError(
            f"manifest {config.manifest.name}: none of {len(videos)} videos is of the split {config.split!r}"
        )
    return asked


def setting_of(config: Config) -> dict[str, Any]:
    """What a video's result depends on, as JSON: not which others are asked for, nor who works on them, and where."""
    left_out = ("out", "workers", "devices", "device", "manifest", "split", "limit", "text_device", "text_cache")
    given = {name: runs.plain(value) for name, value in asdict(config).items() if name not in left_out}
    digest = hashlib.sha256(config.manifest.expanduser().read_bytes()).hexdigest()
    return json.loads(json.dumps({"manifest": digest, **given}))


def begin(config: Config) -> None:
    """Open a run's folder, or go on in it.

    Raises:
        ValueError: it holds results of another setting.
    """
    path, setting = config.out / "run.json", setting_of(config)
    folders = [config.out / name for name in ("videos", "results")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or not any(any(folder.iterdir()) for folder in folders):
        written.write_json(path, setting)
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    other = [f"{k}: {there.get(k)!r} there, {v!r} here" for k, v in setting.items() if there.get(k) != v]
    if other:
        raise ValueError(f"{config.out} holds results of another setting ({'; '.join(other)}): give another --out")


def result_path(config: Config, video: Video) -> Path:
    return config.out / "results" / f"{video.key}.json"


def is_done(path: Path) -> bool:
    """Whether a video has its scores; one that could not be read is tried again, as its file may have been mended."""
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["reason"] is None


def work(videos: Sequence[Video], worker: int, config: Config) -> Iterator[str]:
    """Dream and score videos; each result is kept under its name when it is whole. Yields what is done."""
    device = config.device_of(worker)
    scorers = choose(config.models, config.weights, device)
    env = open_world(config, device)
    if worker == 0:
        written.write_json(config.out / SCORERS, [scorer.about for scorer in scorers])
    try:
        for video in videos:
            result = result_of(video, env, scorers, config)
            written.write_json(result_path(config, video), result)
            yield video.key
    finally:
        if env is not None:
            env.close()


def open_world(config: Config, device: str) -> WorldSimEnv | None:
    """The text world, or None where there is none to dream.

    Raises:
        ValueError: it is not there, or is no text world.
    """
    if config.world is None:
        return None
    env = WorldSimEnv(**{**config.options, "device": device})
    try:
        check_text_world(env)
    except ValueError:
        env.close()
        raise
    return env


def result_of(video: Video, env: WorldSimEnv | None, scorers: Sequence[Scorer], config: Config) -> dict[str, Any]:
    """One video's result as plain JSON; where there is none, the reason."""
    try:
        if env is None:
            path = (config.videos or config.manifest.parent).expanduser() / video.path
            scores = score_video(path, scorers, config.chunks)
        else:
            scores = dream_and_score(video, env, scorers, config)
    except ValueError as error:
        scores = ClipScores(reason=str(error))
    return {"video": video.path, "class": video.label, "split": video.split, **scores.to_dict()}


def dream_and_score(video: Video, env: WorldSimEnv, scorers: Sequence[Scorer], config: Config) -> ClipScores:
    """Score frames as they are dreamed, and keep them as an mp4, whose compression is not part of the score.

    Raises:
        ValueError: the captions cannot be dreamed, or the dream is too short to be scored.
    """
    count = length_of(env, video, config.longest)
    path = config.out / "videos" / f"{video.key}.mp4"
    with Recorder(path, env.world_spec.frame, env.world_spec.fps, scale=1) as recorder:
        blocks = recorded(dream(env, video.captions, count, config.seed), recorder)
        return score_clip(blocks, count, scorers, config.chunks)


def measure(config: Config) -> dict[str, Any]:
    """Run, or go on; returns the summary, which is in summary.json too.

    Raises:
        ValueError: a setting, the manifest or the world is wrong.
        WorkerLost: a process was killed.
    """
    config.check()
    import_av()
    config = replace(config, out=config.out.expanduser())
    videos = chosen(config)
    begin(config)
    left = [video for video in videos if not is_done(result_path(config, video))]
    with tqdm(total=len(videos), initial=len(videos) - len(left), desc="lvbench", unit="video", disable=None) as bar:
        for _ in spread(partial(work, config=config), left, config.workers):
            bar.update()
    results = [json.loads(result_path(config, video).read_text(encoding="utf-8")) for video in videos]
    summary = summarise(results, json.loads((config.out / SCORERS).read_text(encoding="utf-8")))
    asked = {"split": config.split, "limit": config.limit}
    data = {"part": "lvbench", "setting": setting_of(config) | asked, **summary}
    written.write_json(config.out / "summary.json", data)
    return data


def run(config: Config) -> int:
    """The command; exit status 1 where not one video could be read."""
    try:
        data = measure(config)
    except WorkerLost as error:
        raise ValueError(str(error)) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the videos that were done are kept; the same command goes on") from None
    print("\n".join(lines_of(data)))
    print(f"wrote {config.out / 'summary.json'}")
    return 0 if data["total"]["read"] else 1
