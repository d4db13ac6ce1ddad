"""python -m inferix_env.play: play a world in a window; with no display, a scripted agent plays into a clip.

`--help` lists every setting. Chooses between the window and the player without one; knows nothing of how either plays.
"""

from __future__ import annotations

import os
import sys

import tyro

from engine import has_cuda
from inferix_env.env import WorldSimEnv
from inferix_env.headless import play_headless
from inferix_env.outputs import world_name
from inferix_env.play_config import PlayConfig, check
from inferix_env.scripts import load_script, words_of
from inferix_env.session import Session


def play_in_window(env: WorldSimEnv, config: PlayConfig, script: list | None) -> None:
    """Play in a window until the user quits."""
    from inferix_env.viewer import Window

    height, width = env.world_spec.frame
    title = env.card.get("title", world_name(env))
    window = Window((width, height), title, env.world_spec.fps, config.scale, strip=True)
    session = Session(env, window, config, script)
    try:
        session.run()
    finally:
        session.close()


def why_no_window(config: PlayConfig) -> str:
    """Why no window can be shown, or "" if one can."""
    if config.headless:
        return "headless"
    if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))):
        return "no display"
    try:
        from inferix_env import viewer
    except ImportError as error:
        raise ValueError(f"a window needs pygame-ce: pip install 'inferix-env[play]' ({error})") from None
    return "" if viewer.is_seen() else "the display cannot be reached"


def play(config: PlayConfig) -> None:
    """Play as configured.

    Raises:
        ValueError: the world, the script or a setting is not what it should be, or an extra is missing.
        OSError: a file cannot be written.
    """
    check(config)
    reason = why_no_window(config)
    options = {"device": "cuda", **config.options} if config.preset and has_cuda() else config.options
    env = WorldSimEnv(**options)
    try:
        script = load_script(config.script, env.world_spec.actions, words_of(env)) if config.script else None
        if reason:
            play_headless(env, config, script, reason)
        else:
            play_in_window(env, config, script)
    finally:
        env.close()


def main() -> None:
    try:
        play(tyro.cli(PlayConfig, prog="python -m inferix_env.play", config=(tyro.conf.FlagCreatePairsOff,)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)  # as shells name an end by Ctrl-C


if __name__ == "__main__":
    main()
