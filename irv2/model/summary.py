"""Summary of a network: blocks, output shapes, parameters, floating-point operations."""

from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor, nn

from irv2.block_names import PARTS, RESIDUAL
from irv2.model.build import build
from irv2.network_config import NetworkConfig


@dataclass(frozen=True, slots=True)
class BlockSummary:
    """One row: `shape` is the output's (C, H, W); a multiply-add counts as two `flop`."""

    name: str
    shape: tuple[int, ...]
    num_convolutions: int
    num_parameters: int
    flop: int


def summarize(config: NetworkConfig, image_size: int) -> list[BlockSummary]:
    """List rows in forward order for one image, from a forward pass on torch's meta device."""
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
    """Format the rows and their totals, for people."""

    def cells(name: str, shape: str, of: list[BlockSummary]) -> tuple[str, str, int, str, str]:
        return name, shape, sum(row.num_convolutions for row in of), *_totals(of)

    table = [cells(row.name, " x ".join(map(str, row.shape)), [row]) for row in rows]
    table.append(cells("total", "", rows))
    headers = ("block", "output", "convolutions", "parameters", "GFLOP")
    align = ("left", "left", "right", "right", "right")
    return tabulate(table, headers, colalign=align, disable_numparse=True)


def side_by_side(left: NetworkConfig, right: NetworkConfig, image_size: int) -> str:
    """Compare two networks block by block, for people; `right` has every block of `left`."""
    rows, others = (_cells(summarize(config, image_size)) for config in (left, right))
    table = [(block, *rows.get(block, ("", "", "")), *others[block]) for block in others]
    columns = ("parameters", "GFLOP")
    headers = ("", left.arch, *columns, right.arch, *columns)
    align = ("left", *2 * ("left", "right", "right"))
    return tabulate(table, headers, colalign=align, disable_numparse=True)


def _cells(rows: list[BlockSummary]) -> dict[str, tuple[str, str, str]]:
    """Map each block to (output shape and repeats, parameters, GFLOP), and "total" to the sums."""
    cells = {}
    for row in rows:
        block, _, times = row.name.partition(" x")
        output = " x ".join(map(str, row.shape)) + (f", {times} times" if times else "")
        cells[block] = (output, *_totals([row]))
    cells["total"] = (f"{sum(row.num_convolutions for row in rows)} convolutions", *_totals(rows))
    return cells


def _totals(rows: list[BlockSummary]) -> tuple[str, str]:
    parameters, flop = sum(row.num_parameters for row in rows), sum(row.flop for row in rows)
    return f"{parameters:,}", f"{flop / 1e9:.2f}"


def _flop(layer: nn.Module, output: Tensor) -> int:
    """Count 2 x the multiply-adds of a convolution or a linear layer for one image."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    positions = output.numel() // output.shape[1]
    return 2 * weight.numel() * positions
