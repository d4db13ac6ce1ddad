"""Which exchange a sharded engine's ranks are to use, and whether to change it: the planner, asked with its figures.

Knows shapes and prices; knows no ranks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.parallel.layout import Exchange, Numbers
from engine.parallel.links import Links
from engine.parallel.machines import MACHINES, Machine
from engine.parallel.planner import Plan, plan
from engine.parallel.shapes import Shape, shape_at
from engine.spec import KVPolicy, WorldSpec

# What a CPU thread computes and its memory moves, of fp32, a second: an assumption, the same on every run.
THREAD, HOST_MEMORY = 3e10, 2e10
ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}


class Planning:
    """The planner's figures for one model on given ranks.

    Args:
        facts: of the model and a rank's device (see `desk.model_facts`).
        share: ranks that share a device or a machine's memory.

    Attributes:
        plan: the last one made.
        plans: those made before, by shapes.
    """

    def __init__(
        self,
        spec: WorldSpec,
        policy: KVPolicy,
        kv_dtype: str | None,
        links: Links,
        facts: Mapping[str, Any],
        share: int,
    ):
        self.spec, self.links, self.facts = replace(spec, kv=policy), links, facts
        self.memory = facts["memory"] / share
        self.numbers = Numbers(ITEM[facts["dtype"]], kv_dtype=kv_dtype)
        self.machine = machine_of(facts)
        self.plans: dict[tuple[Shape, ...], Plan] = {}
        self.plan: Plan | None = None

    def shapes(self, lengths: Sequence[int]) -> tuple[Shape, ...]:
        """Of the next blocks of worlds with such histories, in latent frames."""
        return tuple(shape_at(self.spec, length) for length in sorted(lengths))

    def choose(self, lengths: Sequence[int]) -> Exchange:
        """The exchange for the next blocks of such worlds: the present one, unless the plan is outgrown.

        Raises:
            ValueError: nothing fits in memory.
        """
        shapes = self.shapes(lengths)
        if self.plan is None or self.plan.outgrown(shapes):
            if shapes not in self.plans:
                self.plans[shapes] = self._plan(shapes)
            self.plan = self.plans[shapes]
        return self.plan.exchange

    def _plan(self, shapes: Sequence[Shape]) -> Plan:
        weights, reserved = self.facts["weights"], self.facts["reserved"]
        return plan(self.spec, shapes, self.links, self.memory, self.machine, self.numbers, weights, reserved)


def machine_of(facts: Mapping[str, Any]) -> Machine:
    """The planner's device for one of this name, with the memory that it has; a CPU's figures are assumed."""
    name, memory = str(facts["name"]), float(facts["memory"])
    known = next((m for key, m in MACHINES.items() if key.upper() in name.upper()), None)
    if known is not None:
        return replace(known, memory=memory)
    if name != "CPU":
        return replace(MACHINES["a100"], name=f"{name} (priced as an A100)", memory=memory)
    rate = THREAD * facts["threads"]
    return Machine("CPU", rate, rate, HOST_MEMORY, memory)


def links_file() -> Path:
    """Where measured links are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inferix_env" / "links.json"
