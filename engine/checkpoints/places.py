"""Where weights lie: a file, a folder, or a repository of the Hugging Face hub -> one file or index on this disk.

Knows the names that published repositories give their files; opens none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from engine.checkpoints.formats import INDEX, SUFFIXES

# What to take of a folder with several weights: the denoiser, by the names it was published under.
DENOISERS = (
    "checkpoints/self_forcing_dmd.pt",
    "autoregressive_checkpoint/model.pt",
    "models/longlive_base.pt",
    "base_distilled_model/base_distill.safetensors",
    "gta_distilled_model/gta_keyboard2dim.safetensors",
    "templerun_distilled_model/templerun_7dim_onlykey.safetensors",
    "krea-realtime-video-14b.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "transformer/diffusion_pytorch_model.safetensors",
)
LORAS = ("models/lora.pt",)
HUB_ID = re.compile(r"(?P<scheme>hf://)?(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w.-]+))?(?:/(?P<path>[^/].*))?")


def locate(path: str | Path, known: Sequence[str] = DENOISERS) -> Path:
    """The weights file, or index of shards, that a path or hub id means. What exists on disk wins over a hub id.

    Raises:
        ValueError: nothing is there, or more than one file could be meant.
    """
    here = Path(path).expanduser()
    if here.is_dir():
        names = [file.relative_to(here).as_posix() for file in here.rglob("*") if file.is_file()]
        return here / choose(names, known, str(here))
    if here.exists():
        return here
    match = HUB_ID.fullmatch(str(path))
    if match is None or (not match["scheme"] and _looks_local(here)):
        raise ValueError(f"no weights at {path}: there is no such file or folder")
    return _download(match["repo"], match["revision"], match["path"] or "", known)


def _looks_local(path: Path) -> bool:
    """Whether a path that does not exist was meant to: its first folder is there, or it is a file in one folder."""
    return Path(path.parts[0]).is_dir() or (len(path.parts) == 2 and path.suffix in (*SUFFIXES, ".json"))


def choose(names: Sequence[str], known: Sequence[str], where: str) -> str:
    """The one file to read of those in a folder: a known one, or the only one there is. An index stands for its shards.

    Args:
        names: paths of all files, relative to the folder.
        known: published names, relative to their repository; in the folder itself their last part is enough.

    Raises:
        ValueError: there is none, or there are several.
    """
    weights = [name for name in _without_shards(names) if name.endswith((*SUFFIXES, INDEX))]
    shallow = [name for name in weights if "/" not in name]
    published = {PurePosixPath(name).name for name in known}
    for found in ([name for name in shallow if name in published], [name for name in weights if name in known]):
        if found:
            return _only(found, where)
    return _only(shallow or weights, where)


def _only(found: Sequence[str], where: str) -> str:
    if not found:
        raise ValueError(f"no weights in {where}: expected a file ending in one of {[*SUFFIXES, INDEX]}")
    if len(found) > 1:
        lines = "".join(f"\n  {where}/{name}" for name in sorted(found)[:20])
        raise ValueError(f"{where} holds several weights; give the path of the one you mean:{lines}")
    return found[0]


def _without_shards(names: Sequence[str]) -> list[str]:
    """Those that are not the shards of an index beside them (model-00001-of-00002.safetensors)."""
    stems = [name.removesuffix(INDEX) + "-" for name in names if name.endswith(INDEX)]
    return [n for n in names if not (n.endswith(".safetensors") and n.startswith(tuple(stems)))]


def _download(repo: str, revision: str | None, path: str, known: Sequence[str]) -> Path:
    """The file or index on this disk, from the hub's cache or from the hub. Only what is needed is downloaded."""
    try:
        from huggingface_hub import errors, hf_hub_download, snapshot_download
    except ImportError:
        raise ValueError(f"{path or repo} is not on this disk: pip install huggingface_hub to download it") from None
    where = f"{repo}/{path}".rstrip("/")
    try:
        if path.endswith(SUFFIXES):
            return Path(hf_hub_download(repo, path, revision=revision))
        names, cached = _listing(repo, revision)
        chosen = path if path in names else f"{path}/{choose(_below(names, path), known, where)}".lstrip("/")
        shards = [chosen.removesuffix(INDEX) + "-*.safetensors"] if chosen.endswith(INDEX) else []
        root = snapshot_download(repo, revision=revision, allow_patterns=[chosen, *shards], local_files_only=cached)
    except (OSError, errors.HTTPError, errors.EntryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(_not_downloaded(where, repo, revision, path, error)) from None
    return Path(root) / chosen


def _listing(repo: str, revision: str | None) -> tuple[list[str], bool]:
    """All files of a repository, and whether only those in the cache could be listed."""
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        return HfApi().list_repo_files(repo, revision=revision), False
    except errors.HfHubHTTPError:
        raise  # the hub answered: there is no such repository, or no leave to read it
    except (OSError, errors.HTTPError):
        root = Path(snapshot_download(repo, revision=revision, allow_patterns=[], local_files_only=True))
        return [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()], True


def _below(names: Sequence[str], folder: str) -> list[str]:
    prefix = f"{folder}/" if folder else ""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _not_downloaded(where: str, repo: str, revision: str | None, path: str, error: Exception) -> str:
    why = str(error).strip().split("\n")[0]
    fetch = f"hf download {repo}" + (f" {path}" if path.endswith(SUFFIXES) else "")
    fetch += f" --revision {revision}" if revision else ""
    return (
        f"no weights at {where}: there is no such file here, and it could not be downloaded "
        f"({type(error).__name__}: {why}). Where there is a network run `{fetch} --local-dir FOLDER`, copy FOLDER "
        "here, and give its path (or the path of the file in it)"
    )
