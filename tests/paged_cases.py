"""Inputs of paged attention for its tests, and `python -m tests.paged_cases FILE`: the Triton kernel's outputs of them.

That command is run with TRITON_INTERPRET=1, which has to be set before Triton is imported: hence its own process.
Legend: N worlds, T pages of a table, P pages of the pool, S tokens, h heads, d head width.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.kv.pages import PlainPages, QuantisedPages
from engine.spec import KVStream


@dataclass(frozen=True)
class Case:
    """Shapes and storage; `inputs` draws the numbers, always the same.

    Attributes:
        counts: real pages of each world's table, which has `table` of them.
        tokens, width, heads: S, d, h.
        queries, own: tokens of the block in flight that ask, and that are asked; S by default.
        spread: of the queries: a large one makes a softmax of few keys.
    """

    counts: tuple[int, ...] = (2, 0, 4)
    tokens: int = 5
    width: int = 16
    heads: int = 2
    table: int = 4
    queries: int | None = None
    own: int | None = None
    dtype: torch.dtype = torch.float32
    code: torch.dtype | None = None
    per_channel: bool = True
    spread: float = 1.0

    def inputs(self, device: str = "cpu") -> dict[str, Tensor]:
        """Arguments of `paged_attend`. What padding points to, page 0, is not a number: nobody may read it."""
        torch.manual_seed(0)
        n, s, h, d = len(self.counts), self.tokens, self.heads, self.width
        store, num_pages = self.store(torch.device(device)), 1 + n * self.table
        for page in range(num_pages):
            store.write(torch.tensor([page]), *torch.randn(2, 1, s, h, d).to(device, self.dtype))
        raw = store.raw()
        for name in ("keys", "values") if self.code is None else ("key_scales", "value_scales"):
            raw[name][0] = torch.nan
        order, pages = (1 + torch.randperm(num_pages - 1)).tolist(), torch.zeros(n, self.table, dtype=torch.int64)
        for row, count in enumerate(self.counts):
            pages[row, self.table - count :] = torch.tensor([order.pop() for _ in range(count)])
        q = torch.randn(n, self.queries or s, h, d) * self.spread
        own = torch.randn(2, n, h, self.own or s, d).transpose(2, 3)
        made = {"q": q, "own_keys": own[0], "own_values": own[1]}
        made = {name: x.to(device, self.dtype) for name, x in made.items()}
        return {**made, "pages": pages.to(device), "counts": torch.tensor(self.counts).int().to(device), **raw}

    def store(self, device: torch.device) -> PlainPages | QuantisedPages:
        stream = KVStream(layers=1, tokens=self.tokens, heads=self.heads, width=self.width)
        num_pages = 1 + len(self.counts) * self.table
        if self.code is None:
            return PlainPages(stream, num_pages, self.dtype, device)
        return QuantisedPages(stream, num_pages, self.dtype, device, code=self.code, per_channel=self.per_channel)


def alone(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """The inputs of one world, its table cut to its real pages."""
    rows = {name: inputs[name][row : row + 1] for name in ("q", "own_keys", "own_values", "pages", "counts")}
    rows["pages"] = rows["pages"][:, rows["pages"].shape[1] - int(rows["counts"]) :]
    return {**inputs, **rows}


SHAPES = {
    "small": Case(),
    "one world": Case(counts=(3,)),
    "no history": Case(counts=(0, 0), table=1),
    "wide": Case(tokens=48, width=64, heads=1, table=2, counts=(1, 2)),
    "few keys matter": Case(spread=40.0),
    "odd": Case(counts=(1, 2), table=2, heads=1, width=40),
    "several tiles": Case(tokens=70, counts=(1, 2), table=2, heads=1, queries=140, own=35),
}
PRECISIONS = {
    "bf16": replace(SHAPES["small"], dtype=torch.bfloat16),
    "fp16": replace(SHAPES["odd"], dtype=torch.float16),
    "bf16 wide": replace(SHAPES["wide"], dtype=torch.bfloat16),
}
CODES = {
    f"{name} {'per channel' if per_channel else 'per head'} {case}": replace(
        shape, code=code, per_channel=per_channel, dtype=dtype
    )
    for name, code in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn))
    for per_channel in (True, False)
    for case, shape, dtype in (
        ("fp32", SHAPES["odd"], torch.float32),
        ("bf16", SHAPES["wide"], torch.bfloat16),
    )
}
CASES = SHAPES | PRECISIONS | CODES
TOGETHER = ("small", "several tiles", "bf16", "int8 per channel fp32")


def main(path: str) -> None:
    """Write the kernel's output of every case, and of each world of some of them alone."""
    from engine.paged_kernel import attend_triton

    made = {name: attend_triton(**case.inputs()) for name, case in CASES.items()}
    for name in TOGETHER:
        inputs = CASES[name].inputs()
        for row in range(len(CASES[name].counts)):
            made[f"{name}, world {row} alone"] = attend_triton(**alone(inputs, row))
    save_file(made, path)


if __name__ == "__main__":
    main(sys.argv[1])
