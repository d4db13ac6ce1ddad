"""A recorded case: its metadata, its tensors by group, and how far what we compute is from them.

The format is that of tests/parity: one safetensors file with `weights.*`, `in.*`, `out.*` and a JSON object in its
metadata, which says the sizes, the sampler, the cache and the tolerance: "case", or of MAGI-1 "json". Of the latter the
kind is told by which tables the object has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# Of a kind of recording, the tables of its metadata that are results.
TABLES = {"magi_rollout": ("schedule", "chunks"), "magi_schedule": ("sequences",)}
ROUNDING = 1e-6  # of times in [0, 1], which tables hold as float32


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
                info = info_of(file.metadata() or {})
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
        known = self.info["tolerance"]
        return float(known["atol"]), float(known[relative_of(known)])

    @property
    def of_largest(self) -> bool:
        """Whether the tolerance is relative to the largest number of a tensor (MAGI-1), and not to each."""
        return relative_of(self.info["tolerance"]) == "rel"

    @property
    def told(self) -> str:
        """The tolerance in words."""
        return ("{:g} + {:g} " + ("max |want|" if self.of_largest else "|want|")).format(*self.tolerance)

    def frames_first(self, x: Tensor) -> Tensor:
        """[..., C, F, H, W] or [..., F, C, H, W] of the file <-> [..., F, C, H, W]."""
        return x.transpose(-4, -3) if self.info["latent_layout"] == "BCFHW" else x

    def compare(
        self, name: str, got: Tensor, want: Tensor | None = None, note: str = "", slack: Tensor | float = 0.0
    ) -> None:
        """Note how far `got` is from `out.<name>`, or from `want`, a part of it. Nothing if that was not recorded.

        Args:
            slack: allowed besides the tolerance.
        """
        if name not in self["out"]:
            return
        want = self["out"][name] if want is None else want
        if got.shape != want.shape:
            self.rows.append(Row(name, torch.inf, torch.inf, torch.inf, f"{list(got.shape)} for {list(want.shape)}"))
            return
        off, relative = differences(got, want)
        limit = self._limit(want) + slack
        share = torch.where(off == 0, off, off / limit)  # a tolerance of zero is fine, of what is equal
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

    def compare_table(self, name: str, got: Sequence[Any]) -> None:
        """Compare a table of the metadata: as many entries, all equal, numbers with a fraction to rounding."""
        want = self.info[name]
        off = [i for i, (a, b) in enumerate(zip(got, want, strict=False)) if not alike(a, b)]
        note = f"{len(got)} entries for {len(want)}" if len(got) != len(want) else ""
        note = f"entry {off[0]}: {got[off[0]]} for {want[off[0]]}" if off else note
        self.rows.append(Row(f"json.{name}", float(len(off)), 0.0, torch.inf if note else 0.0, note))

    def missing(self) -> list[str]:
        """Outputs, and tables of the metadata, that nothing was compared with."""
        seen = {row.name for row in self.rows}
        names = [*self["out"], *(f"bf16 {name}" for name in self["out_bf16"])]
        names += [f"json.{name}" for name in TABLES.get(self.info["kind"], ())] if self.of_largest else []
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
        """What a difference may be: the tolerance, or one ulp of what was recorded in bfloat16; of integers nothing."""
        atol, rtol = self.tolerance
        if self.of_largest:
            exact = not want.is_floating_point()
            return torch.full(want.shape, 0.0 if exact else atol + rtol * largest(want.double().abs()))
        limit = atol + rtol * want.double().abs()
        return torch.maximum(limit, ulp(want)) if want.dtype == torch.bfloat16 else limit


def info_of(metadata: dict[str, str]) -> Any:
    """The JSON object of a file's metadata; of MAGI-1 with the kind that it is."""
    if "json" not in metadata:
        return json.loads(metadata.get("case", "null"))
    info = json.loads(metadata["json"])
    return {**info, "kind": info.get("kind", kind_of(info))} if isinstance(info, dict) else info


def kind_of(info: dict[str, Any]) -> str:
    """Which kind a recording of MAGI-1 is, by the tables that it has."""
    call = info.get("call", {})
    for kind, found in (
        ("magi_rollout", "schedule" in info),
        ("magi_schedule", "sequences" in info),
        ("magi_text", "variants" in info),
        ("magi_vae", "calls" in info),
        ("magi_cached", "calls" in call),
        ("magi_forward", "chunks" in call),
        ("magi_fp8", bool(call) and set(call) <= {"T", "S"}),
    ):
        if found:
            return kind
    return str(info.get("case"))


def relative_of(tolerance: Any) -> str:
    """What a tolerance calls its relative part."""
    return "rel" if isinstance(tolerance, dict) and "rel" in tolerance else "rtol"


def alike(a: Any, b: Any) -> bool:
    """Whether two values of JSON are equal; numbers with a fraction to the rounding of float32."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, float) or isinstance(b, float):
        return not isinstance(a, str) and not isinstance(b, str) and abs(a - b) <= ROUNDING
    return bool(a == b)


def check_info(info: Any) -> dict[str, Any]:
    """A case's metadata, if they say what it is and how close is close enough.

    Raises:
        ValueError: they do not.
    """
    if not isinstance(info, dict) or "kind" not in info:
        raise ValueError("has no 'case' with a 'kind' in its metadata: expected a recording of published code")
    tolerance = info.get("tolerance")
    numbers = [tolerance.get(key) for key in ("atol", relative_of(tolerance))] if isinstance(tolerance, dict) else []
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
