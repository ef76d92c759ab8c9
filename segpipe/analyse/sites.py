"""Similarity of sites to a trained network: features pooled by case, cosines between sites."""

# F features, S sites.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segpipe.core.figures import figure_bytes, new_figure

Floats = NDArray[np.float64]


@torch.no_grad()
def pooled_features(network: nn.Module, image: Any, patch_zyx: Sequence[int]) -> Floats | None:
    """Mean over a case of each feature of the encoder's deepest map, (F,).

    Args:
        network: In evaluation mode.
        image: (C, Z, Y, X) float32, as it is prepared. Windows of a patch cover it once, with as little overlap as can
            be; an axis shorter than the patch is seen as it is.
        patch_zyx: Voxels that the network sees at once.

    Returns:
        None if the network has no encoder that gives a map for each stage.
    """
    encoder = next((m for name, m in network.named_modules() if name.rpartition(".")[2] == "encoder"), None)
    if encoder is None:
        return None
    means: list[Tensor] = []

    def keep(_: nn.Module, __: Any, maps: list[Tensor]) -> None:
        means.append(maps[-1].double().mean((0, *range(2, maps[-1].ndim))))

    hook = encoder.register_forward_hook(keep)
    try:
        device = next(network.parameters()).device
        starts = [_starts(size, edge) for size, edge in zip(image.shape[1:], patch_zyx, strict=True)]
        for corner in product(*starts):
            window = tuple(slice(start, start + edge) for start, edge in zip(corner, patch_zyx, strict=True))
            network(torch.as_tensor(np.asarray(image[(slice(None), *window)]), device=device)[None].float())
    finally:
        hook.remove()
    return np.asarray(torch.stack(means).mean(0).cpu().numpy(), dtype=np.float64)


def _starts(size: int, edge: int) -> list[int]:
    """Starts of as many windows as cover an axis, at equal steps."""
    n = max(1, -(-size // edge))
    return [0] if n == 1 else [round(place * (size - edge) / (n - 1)) for place in range(n)]


def pair_cosines(
    features: Mapping[str, Floats], sites: Mapping[str, str], patients: Mapping[str, str]
) -> dict[tuple[str, str], list[float]]:
    """Cosines of pairs of cases of different patients, by their two sites in order.

    Args:
        features: By case, of one network. Their mean over the cases is subtracted first: what all cases share would
            make all cosines nearly 1.
        sites, patients: By case.
    """
    centre = np.mean(list(features.values()), axis=0)
    found: dict[tuple[str, str], list[float]] = {}
    for one, other in combinations(sorted(features), 2):
        a, b = features[one] - centre, features[other] - centre
        length = float(np.linalg.norm(a) * np.linalg.norm(b))
        if patients[one] != patients[other] and length > 0:
            first, second = sorted((sites[one], sites[other]))
            found.setdefault((first, second), []).append(float(a @ b) / length)
    return found


def similarity_png(names: Sequence[str], cosines_SS: Floats, title: str) -> bytes:
    """Draw the matrix; NaN, where no pair of cases is, stays white."""
    edge = max(4.0, 0.7 * len(names) + 2.5)
    figure = new_figure(edge + 1, edge)
    panel = figure.subplots()
    image = panel.imshow(cosines_SS, vmin=-1, vmax=1, cmap="RdBu_r")
    panel.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    for row, column in zip(*np.nonzero(np.isfinite(cosines_SS)), strict=True):
        value = cosines_SS[row, column]
        colour = "white" if abs(value) > 0.6 else "black"
        panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    panel.set_title(title, fontsize=10)
    figure.colorbar(image, ax=panel, shrink=0.8, label="mean cosine of pairs of patients")
    return figure_bytes(figure, "png")
