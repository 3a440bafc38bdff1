"""What a network consists of: blocks, output shapes, parameters, floating-point operations."""

from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor, nn

from irv2.block_names import PARTS, RESIDUAL
from irv2.model.build import build
from irv2.model.paper import NetworkConfig


@dataclass(frozen=True, slots=True)
class BlockSummary:
    """One row: `shape` is the output's (C, H, W); `flop` counts a multiply-add as two."""

    name: str
    shape: tuple[int, ...]
    num_convolutions: int
    num_parameters: int
    flop: int


def summarize(config: NetworkConfig, image_size: int) -> list[BlockSummary]:
    """Rows in forward order for one image, from a forward pass without memory (meta device)."""
    with torch.device("meta"):
        meta = build(config).eval()
    rows: list[BlockSummary] = []
    flop_of: dict[nn.Module, int] = {}
    for module in meta.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda layer, _inputs, output: flop_of.__setitem__(layer, _flop(layer, output))
            )
    parts = [(name, child) for name, child in meta.named_children() if name in PARTS]
    x = torch.zeros(1, 3, image_size, image_size, device="meta")
    for name, block in parts:
        x = block(x.mean((2, 3)) if isinstance(block, nn.Linear) else x)
        layers = list(block.modules())
        rows.append(
            BlockSummary(
                f"{name} x{len(list(block.children()))}" if name in RESIDUAL else name,
                tuple(x.shape[1:]),
                sum(isinstance(layer, nn.Conv2d) for layer in layers),
                sum(parameter.numel() for parameter in block.parameters()),
                sum(flop_of.get(layer, 0) for layer in layers),
            )
        )
    return rows


def summary_table(rows: list[BlockSummary]) -> str:
    """The rows and their totals, for people."""
    table = [
        (
            row.name,
            " x ".join(map(str, row.shape)),
            row.num_convolutions,
            f"{row.num_parameters:,}",
            f"{row.flop / 1e9:.2f}",
        )
        for row in rows
    ]
    table.append(
        (
            "total",
            "",
            sum(row.num_convolutions for row in rows),
            f"{sum(row.num_parameters for row in rows):,}",
            f"{sum(r.flop for r in rows) / 1e9:.2f}",
        )
    )
    headers = ("block", "output", "convolutions", "parameters", "GFLOP")
    align = ("left", "left", "right", "right", "right")
    return tabulate(table, headers, colalign=align, disable_numparse=True)


def side_by_side(left: NetworkConfig, right: NetworkConfig, image_size: int) -> str:
    """Two networks, block by block, for people; `right` has every block of `left`."""
    rows, others = (_cells(summarize(config, image_size)) for config in (left, right))
    table = [(block, *rows.get(block, ("", "", "")), *others[block]) for block in others]
    columns = ("parameters", "GFLOP")
    headers = ("", left.arch, *columns, right.arch, *columns)
    align = ("left", *2 * ("left", "right", "right"))
    return tabulate(table, headers, colalign=align, disable_numparse=True)


def _cells(rows: list[BlockSummary]) -> dict[str, tuple[str, str, str]]:
    """Block -> (output and how often, parameters, GFLOP), and the totals."""
    cells = {}
    for row in rows:
        block, _, times = row.name.partition(" x")
        output = " x ".join(map(str, row.shape)) + (f", {times} times" if times else "")
        cells[block] = (output, f"{row.num_parameters:,}", f"{row.flop / 1e9:.2f}")
    cells["total"] = (
        f"{sum(row.num_convolutions for row in rows)} convolutions",
        f"{sum(row.num_parameters for row in rows):,}",
        f"{sum(r.flop for r in rows) / 1e9:.2f}",
    )
    return cells


def _flop(layer: nn.Module, output: Tensor) -> int:
    """2 x multiply-adds of a convolution or a linear layer for one image."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    positions = output.numel() // output.shape[1]
    return 2 * weight.numel() * positions
