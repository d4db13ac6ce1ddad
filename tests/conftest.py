"""Shared fixtures: one tiny world a session, and threads that leave room for what runs beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.worlds import make_world


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random world's folder. Its episodes end at random; see `endless` for one that does not end."""
    return make_world(tmp_path_factory.mktemp("worlds") / "tiny")


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random world whose end head never fires."""
    return make_world(tmp_path_factory.mktemp("worlds") / "endless", end_bias=-50.0)
