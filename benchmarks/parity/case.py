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

    def __str__(self) -> str:
        mark, note = "" if self.passed else "  MISS", f"  ({self.note})" if self.note else ""
        size = f"max abs {self.largest:9.3g}  rel rms {self.relative:9.3g}"
        return f"  {self.name:32} {size}  {self.share:7.1%}{mark}{note}"


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
        if not path.is_file():
            raise ValueError(f"there is no such {'file' if path.suffix else 'file or folder'}")
        groups: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(path, "pt") as file:
                info = json.loads((file.metadata() or {}).get("case", "null"))
                for name in file.keys():  # noqa: SIM118
                    group, _, rest = name.partition(".")
                    groups.setdefault(group, {})[rest] = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"cannot be read, it is cut short or no recorded case: {error}") from None
        return cls(path, check_info(info), groups)

    def __getitem__(self, group: str) -> dict[str, Tensor]:
        return self.groups.get(group, {})

    @property
    def tolerance(self) -> tuple[float, float]:
        return float(self.info["tolerance"]["atol"]), float(self.info["tolerance"]["rtol"])

    @property
    def told(self) -> str:
        """The tolerance in words."""
        return "{:g} + {:g} |want|".format(*self.tolerance)

    def frames_first(self, x: Tensor) -> Tensor:
        """[..., C, F, H, W] or [..., F, C, H, W] of the file <-> [..., F, C, H, W]."""
        return x.transpose(-4, -3) if self.info["latent_layout"] == "BCFHW" else x

    def compare(self, name: str, got: Tensor, want: Tensor | None = None, note: str = "") -> None:
        """Note how far `got` is from `out.<name>`, or from `want`, a part of it. Nothing if that was not recorded."""
        if name not in self["out"]:
            return
        want = self["out"][name] if want is None else want
        if got.shape != want.shape:
            self.rows.append(Row(name, torch.inf, torch.inf, torch.inf, f"{list(got.shape)} for {list(want.shape)}"))
            return
        off, relative = differences(got, want)
        share = torch.where(off == 0, off, off / self._limit(want))  # a tolerance of zero is fine, of what is equal
        self.rows.append(Row(name, largest(off), relative, largest(share), note))

    def compare_bf16(self, name: str, got: Tensor) -> None:
        """Compare a bfloat16 run by statistics: at most 3 times the kernels' own spread, 4 times its largest."""
        if name not in self["out_bf16"]:
            return
        want, spread = self["out_bf16"][name], (self.info.get("bf16") or {}).get("kernel_spread")
        if spread is None:
            raise ValueError("out_bf16.* is compared by bf16.kernel_spread, which the metadata lack")
        off, relative = differences(got, want)
        rms = float(off.square().mean().sqrt())
        share = max(rms / (3 * spread["rms"]), largest(off) / (4 * spread["max"]))
        self.rows.append(Row(f"bf16 {name}", largest(off), relative, share if share == share else torch.inf))

    def missing(self) -> list[str]:
        """Outputs that nothing was compared with."""
        seen = {row.name for row in self.rows}
        names = [*self["out"], *(f"bf16 {name}" for name in self["out_bf16"])]
        return [name for name in names if name not in seen]

    def write_weights(self, folder: Path) -> Path:
        """The case's weights as a checkpoint of the published layout; an adapter beside it, where there is one.

        Written once: what was opened of it may still be mapped.
        """
        path = folder / "weights.safetensors"
        for name, file in (("weights", path), ("lora", folder / "lora.safetensors")):
            if self[name] and not file.exists():
                save_file({key: x.contiguous() for key, x in self[name].items()}, file)
        return path

    def _limit(self, want: Tensor) -> Tensor:
        """What a difference may be: the tolerance, or one ulp of what was recorded in bfloat16."""
        atol, rtol = self.tolerance
        limit = atol + rtol * want.double().abs()
        return torch.maximum(limit, ulp(want)) if want.dtype == torch.bfloat16 else limit


def check_info(info: Any) -> dict[str, Any]:
    """A case's metadata, if they say what it is and how close is close enough.

    Raises:
        ValueError: they do not.
    """
    if not isinstance(info, dict) or "kind" not in info:
        raise ValueError("has no 'case' with a 'kind' in its metadata: expected a recording of published code")
    tolerance = info.get("tolerance")
    numbers = [tolerance.get(key) for key in ("atol", "rtol")] if isinstance(tolerance, dict) else []
    if not numbers or not all(isinstance(x, int | float) and x >= 0 for x in numbers):
        raise ValueError(f"its tolerance is {tolerance}: expected atol and rtol, each a number of at least 0")
    return info


def differences(got: Tensor, want: Tensor) -> tuple[Tensor, float]:
    """|got - want| in float64 on the CPU, and its root mean square over that of `want`."""
    got, want = got.detach().cpu().double(), want.double()
    off = (got - want).abs()
    if not off.numel():
        return off, 0.0
    return off, float(off.square().mean().sqrt()) / (float(want.square().mean().sqrt()) or 1.0)


def largest(x: Tensor) -> float:
    """The largest value; infinity where one is none."""
    return float(x.nan_to_num(nan=torch.inf).max()) if x.numel() else 0.0


def ulp(x: Tensor) -> Tensor:
    """The distance of neighbours in bfloat16, which has 7 bits behind the point, float64."""
    _, exponent = torch.frexp(x.double())
    return torch.ldexp(torch.ones_like(x, dtype=torch.float64), exponent - 8)
