"""Supervised contrast: voxels of one label are pulled together in feature space, those of others pushed apart."""

# S sampled voxels, D numbers of a projected feature, B batch, C channels, Z Y X voxels of a feature map.
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from segpipe.core.errors import PlanError
from segpipe.networks.spec import KINDS, NetworkSpec
from segpipe.plan.loss import SUPCON, Loss

_PROJECTED = 64
_MOST_VOXELS = 1024  # of all labels together: their similarities are a matrix of 4 MiB


class VoxelContrast(nn.Module):
    """The projection of features, and the map they come from: the decoder's at half the resolution, or its only one.

    It is trained and forgotten: not exported, not packed, no part of the network.

    Args:
        network: As `build` makes it.
        spec: Its description.
        loss: What is sampled.

    Raises:
        PlanError: If the network is one of those with a topology of its own, which have no such decoder.
    """

    def __init__(self, network: nn.Module, spec: NetworkSpec, loss: Loss) -> None:
        super().__init__()
        if KINDS[spec.kind].own_features is not None:
            raise PlanError(
                f"training.loss: {SUPCON} reads the decoder of a U-Net, which network.kind {spec.kind} does not have. "
                "Leave the term out, or choose another kind."
            )
        decoder = network.get_submodule("network.decoder" if spec.n_axes == 2 else "decoder")
        stages = decoder.get_submodule("stages")
        assert isinstance(stages, nn.ModuleList)
        place = max(0, len(stages) - 2)  # the deepest is first
        self._maps: list[Tensor] = []  # of the newest forward pass in training
        stages[place].register_forward_hook(self._keep)
        n_features = spec.decoder_features[len(stages) - 1 - place]
        self.projection = nn.Sequential(
            nn.Linear(n_features, n_features), nn.LayerNorm(n_features), nn.ReLU(), nn.Linear(n_features, _PROJECTED)
        )
        self.loss = loss

    def _keep(self, _: nn.Module, __: Any, output: Tensor) -> None:
        if torch.is_grad_enabled():
            self._maps[:] = [output]

    def forward(self, indices_BZYX: Tensor, generator: np.random.Generator) -> Tensor:
        """The term's value, with its weight, for the batch that the network has just seen; float32.

        It is 0 where no label has two voxels.

        Args:
            indices_BZYX: Inside labels at full resolution. Background counts in patches that hold a label.
            generator: Chooses the voxels.
        """
        map_BCZYX = self._maps.pop()
        if map_BCZYX.ndim == 4:  # (B · Z, C, Y, X)
            map_BCZYX = map_BCZYX.view(*indices_BZYX.shape[:2], *map_BCZYX.shape[1:]).transpose(1, 2)
        labels = functional.interpolate(indices_BZYX.unsqueeze(1).float(), map_BCZYX.shape[2:], mode="nearest-exact")
        places, chosen = self._sample(labels.squeeze(1).long(), generator)
        features = map_BCZYX.movedim(1, -1).flatten(0, 3)[places]
        with torch.autocast(features.device.type, enabled=False):
            value = supervised_contrast(self.projection(features.float()), chosen, self.loss.supcon_temperature)
        return self.loss.terms[SUPCON] * value

    def _sample(self, labels_BZYX: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Flat places of as many voxels of each label as the plan says, and their labels."""
        holds_label = (labels_BZYX > 0).any(3).any(2).any(1)
        known = torch.where(holds_label.view(-1, 1, 1, 1), labels_BZYX, -1).flatten().cpu().numpy()
        present = np.unique(known[known >= 0])
        n_each = min(self.loss.supcon_voxels, _MOST_VOXELS // max(1, len(present)))
        places: list[int] = []
        for label in present:
            found = np.flatnonzero(known == label)
            places += generator.choice(found, min(n_each, len(found)), replace=False).tolist()
        at = torch.tensor(places, dtype=torch.long, device=labels_BZYX.device)
        return at, labels_BZYX.flatten()[at]


def contrast_for(network: nn.Module, spec: NetworkSpec, loss: Loss, *, restores: bool) -> VoxelContrast | None:
    """The term of a loss that reads features, on the network's device; None if the loss does not have it.

    Args:
        network, spec: In training, and its description. It is watched from now on.
        loss: The plan's.
        restores: Whether the network restores images, so that no other term is needed.

    Raises:
        PlanError: If nothing else would train the layers that make logits, or the network has no such features.
    """
    if SUPCON not in loss.terms:
        return None
    if set(loss.terms) == {SUPCON} and not restores:
        raise PlanError(
            f"training.loss: {SUPCON} alone does not train the layers that make logits. Add terms, e.g. --set "
            f"'training.loss.terms={{dice: 1, ce: 1, {SUPCON}: 0.1}}'."
        )
    return VoxelContrast(network, spec, loss).to(next(network.parameters()).device)


def supervised_contrast(features_SD: Tensor, labels_S: Tensor, temperature: float) -> Tensor:
    """Mean over anchors of -mean over others of the label of log(exp(z·z⁺/T) / Σ exp(z·z'/T)); z of length 1.

    A voxel that is alone with its label has nothing to be like: it is no anchor, but others are still pushed from it.

    Args:
        features_SD: Any length above 0, float32.
        labels_S: Whole numbers.
        temperature: T.

    Returns:
        A scalar; 0 with gradient 0 if no label has two voxels.

    Source:
        Khosla et al. 2020, Supervised Contrastive Learning, L_out. Their code multiplies by T / 0.07 and keeps lonely
        anchors in the mean with 0; here, as in pytorch-metric-learning, neither.
    """
    directions = functional.normalize(features_SD, dim=1)
    itself = torch.eye(len(labels_S), dtype=torch.bool, device=labels_S.device)
    alike = (labels_S.unsqueeze(0) == labels_S.unsqueeze(1)) & ~itself
    logits = (directions @ directions.T / temperature).masked_fill(itself, -torch.inf)
    logs = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(~alike, 0)
    n_alike = alike.sum(1)
    if not bool(n_alike.any()):
        return features_SD.sum() * 0
    anchors = n_alike > 0
    return -(logs.sum(1)[anchors] / n_alike[anchors]).mean()
