"""Run a function over overlapping tiles of an image or a latent map and blend the results without seams."""

from collections.abc import Callable

import torch


def run_tiled(
    function: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    cell: int,
    tile: int,
    overlap: int,
    out_channels: int,
    out_cell: int,
    halo: int = 0,
) -> torch.Tensor:
    """`function(x)` computed tile by tile.

    Positions are counted in cells, so that tiles start on the grid of the latents on both sides.

    Args:
        function: maps `(B, C, n * cell, m * cell)` to `(B, out_channels, n * out_cell, m * out_cell)`.
        x: input `(B, C, H, W)`, sides divisible by `cell`.
        cell: side of a cell of the input: F when encoding, 1 when decoding.
        tile: side of a tile in cells.
        overlap: cells that neighboring tiles share; there each fades linearly into the other.
        out_channels: channels of the output.
        out_cell: side of a cell of the output: 1 when encoding, F when decoding.
        halo: cells around a tile that the function sees but whose output is dropped. If a cell's output depends on no
            cells farther away, tiles without overlap give exactly what the whole would.

    Returns:
        The output `(B, out_channels, H / cell * out_cell, W / cell * out_cell)` in the dtype of x.
    """
    rows, columns = x.shape[2] // cell, x.shape[3] // cell
    result = x.new_zeros(x.shape[0], out_channels, rows * out_cell, columns * out_cell)
    weights = torch.zeros(rows * out_cell, columns * out_cell, dtype=torch.float32, device=x.device)
    for top, bottom in _intervals(rows, tile, overlap):
        for left, right in _intervals(columns, tile, overlap):
            above, before = min(halo, top), min(halo, left)
            rows_seen = slice((top - above) * cell, min(bottom + halo, rows) * cell)
            columns_seen = slice((left - before) * cell, min(right + halo, columns) * cell)
            part = function(x[:, :, rows_seen, columns_seen])
            part = part[:, :, above * out_cell :, before * out_cell :]
            part = part[:, :, : (bottom - top) * out_cell, : (right - left) * out_cell]
            window = torch.outer(
                _fade(top, bottom, rows, overlap, out_cell, x.device),
                _fade(left, right, columns, overlap, out_cell, x.device),
            )
            place = (slice(top * out_cell, bottom * out_cell), slice(left * out_cell, right * out_cell))
            result[(..., *place)] += part * window.to(part.dtype) if overlap else part
            weights[place] += window
    return result / weights.to(result.dtype) if overlap else result


def _intervals(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Tiles `[start, stop)` that cover `length`; overlapping ones are all as wide, the last moved back."""
    if length <= tile:
        return [(0, length)]
    starts = list(range(0, length - overlap, tile - overlap))
    if not overlap:
        return [(start, min(start + tile, length)) for start in starts]
    return [(min(start, length - tile), min(start, length - tile) + tile) for start in starts]


def _fade(start: int, stop: int, length: int, overlap: int, scale: int, device: torch.device) -> torch.Tensor:
    """Weights along one side of a tile: linear ramps over the overlap, except at the border of the whole."""
    n, ramp = (stop - start) * scale, overlap * scale
    distance = torch.arange(n, dtype=torch.float32, device=device)
    weight = torch.ones(n, dtype=torch.float32, device=device)
    if ramp and start > 0:
        weight = torch.minimum(weight, (distance + 1) / (ramp + 1))
    if ramp and stop < length:
        weight = torch.minimum(weight, (n - distance) / (ramp + 1))
    return weight
