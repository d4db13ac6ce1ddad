"""A recorded case: its metadata, its tensors by group, and how far what we compute is from them.

The format is that of tests/parity: one safetensors file with `weights.*`, `in.*`, `out.*` and a JSON object "case" in
its metadata, which says the sizes, the sampler, the cache and the tolerance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One compared output.

    Attributes:
        largest: absolute difference.
        relative: root mean square of the difference over that of what was expected.
        share: the largest share of the tolerance; above 1 is a miss.
        note: what was compared, where it is not all of the tensor.
    """

    name: str
    largest: float
    relative: float
    share: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.share <= 1


@dataclass
class Case:
    """One file of the format.

    Attributes:
        info: the metadata's JSON object.
        groups: tensors by group ("weights", "in", "out", "out_bf16", "lora") and name.
        rows: what was compared so far.
    """

    path: Path
    info: dict[str, Any]
    groups: dict[str, dict[str, Tensor]]
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Case:
        """Read a file.

        Raises:
            ValueError: it cannot be read, or is of another format.
        """
        groups: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(path, "pt") as file:
                info = json.loads((file.metadata() or {}).get("case", "null"))
                for name in file.keys():  # noqa: SIM118
                    group, rest = name.split(".", 1)
                    groups.setdefault(group, {})[rest] = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a recorded case: {error}") from None
        if not isinstance(info, dict) or "kind" not in info:
            raise ValueError(f"{path} has no 'case' in its metadata: expected a recording of published code")
        return cls(path, info, groups)

    def __getitem__(self, group: str) -> dict[str, Tensor]:
        return self.groups.get(group, {})

    @property
    def tolerance(self) -> tuple[float, float]:
        return float(self.info["tolerance"]["atol"]), float(self.info["tolerance"]["rtol"])

    def compare(self, name: str, got: Tensor, want: Tensor | None = None, note: str = "") -> None:
        """Note how far `got` is from `out.<name>`, or from `want`."""
        want = self["out"][name] if want is None else want
        if got.shape != want.shape:
            self.rows.append(Row(name, torch.inf, torch.inf, torch.inf, f"{list(got.shape)} for {list(want.shape)}"))
            return
        got, want = got.double(), want.double()
        off, (atol, rtol) = (got - want).abs(), self.tolerance
        size = float(want.square().mean().sqrt()) or 1.0
        share = float((off / (atol + rtol * want.abs())).max())
        self.rows.append(Row(name, float(off.max()), float(off.square().mean().sqrt()) / size, share, note))

    def compare_bf16(self, got: Tensor) -> None:
        """Compare the bfloat16 run by statistics: at most 3 times the kernels' own spread, 4 times its largest."""
        spread = self.info["bf16"]["kernel_spread"]
        for name, want in self["out_bf16"].items():
            off = (got.double() - want.double()).abs()
            rms = float(off.square().mean().sqrt())
            share = max(rms / (3 * spread["rms"]), float(off.max()) / (4 * spread["max"]))
            relative = rms / float(want.double().square().mean().sqrt())
            self.rows.append(Row(f"bf16 {name}", float(off.max()), relative, share))

    def missing(self) -> list[str]:
        """Outputs that nothing was compared with."""
        seen = {row.name for row in self.rows}
        return [name for name in self["out"] if name not in seen]

    def write_weights(self, folder: Path) -> Path:
        """The case's weights as a checkpoint of the published layout; an adapter beside it, where there is one."""
        path = folder / f"{self.info['name']}.safetensors"
        save_file({name: x.contiguous() for name, x in self["weights"].items()}, path)
        if self["lora"]:
            save_file({name: x.contiguous() for name, x in self["lora"].items()}, folder / "lora.safetensors")
        return path
