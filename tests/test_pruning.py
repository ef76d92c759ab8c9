"""Channels that are removed from a U-Net: the graph across skips and sums, and what is left."""

from __future__ import annotations

import pytest
import torch
from specs import SPECS, VIEWS, unet
from torch import Tensor

from segpipe.core.errors import PlanError
from segpipe.networks.build import build, state_shapes
from segpipe.networks.pruning import (
    CRITERIA,
    PRUNED_KINDS,
    channel_groups,
    choose_dropped,
    mask_channels,
    n_left,
    pruned_spec,
    remove_channels,
    require_prunable,
)
from segpipe.networks.spec import NetworkSpec

EDGES = {"2d": (1, 3, 12, 8), "3d": (1, 8, 12, 8), "anisotropic": (1, 6, 12, 8)}
VARIANTS = {
    "plain": lambda view: unet("plain", view),
    "plain batch": lambda view: unet("plain", view, norm="batch", bias=False, activation="relu"),
    "plain single output": lambda view: unet("plain", view, deep_supervision=False, activation="gelu"),
    "plain residual decoder": lambda view: unet("plain", view, decoder="residual"),
    "plain wide decoder": lambda view: unet("plain", view, decoder_features=(6, 8)),
    "residual": lambda view: unet("residual", view, residual_scale=0.5),
    "residual batch": lambda view: unet("residual", view, norm="batch", decoder="residual", activation="silu"),
    "residual shared sum": lambda view: unet("residual", view).model_copy(update={"features": (4, 8, 8)}),
}


def weights_of(spec: NetworkSpec, seed: int = 0) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """A network in double precision whose norms, biases and statistics are not at their start."""
    torch.manual_seed(seed)
    network = build(spec, 2, 3).double().eval()
    for name, value in network.state_dict().items():
        if value.ndim == 1:
            value.copy_(torch.rand_like(value) + (0.5 if "var" in name else 0))
    return network, network.state_dict()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_pruned_network_computes_what_the_masked_one_does(variant: str, view: str, criterion: str) -> None:
    spec, ratios = VARIANTS[variant](view), (0.25 if variant == "plain" else 0.5, 0.5, 0.5)
    require_prunable(spec, "network")
    smaller = pruned_spec(spec, ratios, "network")
    assert smaller.features == tuple(n_left(n, ratio) for n, ratio in zip(spec.features, ratios, strict=True))
    groups = channel_groups(spec, 2, 3)
    whole, weights = weights_of(spec)
    dropped = choose_dropped(groups, weights, ratios, criterion, seed=1)
    pruned, _ = weights_of(smaller, seed=5)
    pruned.load_state_dict(remove_channels(groups, weights, dropped))
    whole.load_state_dict(mask_channels(groups, weights, dropped))
    image = torch.rand(2, 2, *EDGES[view][1:], dtype=torch.float64)
    with torch.no_grad():
        for one, other in zip(pruned(image), whole(image), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
            assert one.std() > 1e-3
    n_weights = [sum(value.numel() for value in each.parameters()) for each in (pruned, whole)]
    assert n_weights[0] < 0.6 * n_weights[1]


def test_by_whole_numbers_the_two_are_equal_bit_for_bit() -> None:
    """Sums of whole numbers have no rounding: what differs elsewhere is the order of sums alone."""
    spec = unet("plain", "3d", norm="batch", activation="relu")
    network = build(spec, 2, 3).eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        fresh = torch.randint(-1, 2, value.shape, generator=generator).to(value.dtype)
        value.copy_(torch.ones_like(value) * (1 - 1e-5) if "running_var" in name else fresh)
    weights, groups, ratios = network.state_dict(), channel_groups(spec, 2, 3), (0.5, 0.5, 0.5)
    dropped = choose_dropped(groups, weights, ratios, "random", 0)
    pruned = build(pruned_spec(spec, ratios, "network"), 2, 3).eval()
    pruned.load_state_dict(remove_channels(groups, weights, dropped))
    network.load_state_dict(mask_channels(groups, weights, dropped))
    image = torch.randint(0, 3, (1, 2, 8, 8, 8), generator=generator).float()
    with torch.no_grad():
        assert all(map(torch.equal, pruned(image), network(image)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_channel_but_those_of_image_and_logits_is_in_one_group(variant: str) -> None:
    spec = VARIANTS[variant]("3d")
    shapes, seen = state_shapes(spec, 2, 3), dict[tuple[str, int], list[int]]()
    for group in channel_groups(spec, 2, 3):
        for slot in (*group.makers, *group.readers):
            places = seen.setdefault((slot.tensor, slot.axis), [])
            places += range(slot.first, slot.first + group.n_channels)
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        for axis in range(min(2, len(shape))):
            free = range(shape[axis])
            is_image = shape[axis] == 2 and axis == 1
            is_logits = "seg_layers" in name and axis == 0
            assert sorted(seen.get((name, axis), free if is_image or is_logits else ())) == list(free), (name, axis)


def test_the_smallest_channels_go_first() -> None:
    spec = unet("plain", "3d")
    groups, (_, weights) = channel_groups(spec, 2, 3), weights_of(spec)
    first = groups[0]
    weights[f"{first.name}.conv.weight"][2] = 1e-9
    weights[f"{first.name}.norm.weight"][:] = torch.tensor([3.0, -0.1, 2.0, 1.0])
    assert choose_dropped(groups, weights, (0.25, 0, 0), "magnitude", 0)[first.name] == (2,)
    assert choose_dropped(groups, weights, (0.25, 0, 0), "scale", 0)[first.name] == (1,)
    chosen = {choose_dropped(groups, weights, (0.25, 0, 0), "random", seed)[first.name] for seed in range(20)}
    assert len(chosen) == 4
    assert {groups[0].name.split(".")[2], *choose_dropped(groups, weights, (0.25, 0, 0), "random", 0)} >= {"0"}


def test_stages_that_share_a_sum_are_pruned_alike_or_refused() -> None:
    spec = VARIANTS["residual shared sum"]("3d")
    shared = [group for group in channel_groups(spec, 1, 2) if len(group.stages) > 1]
    assert [group.stages for group in shared] == [{1, 2}]
    with pytest.raises(PlanError, match="stages 1 and 2 have 8 and 8 channels and would have 8 and 4; they share"):
        pruned_spec(spec, (0, 0, 0.5), "network")
    with pytest.raises(
        PlanError, match="stages 0 and 1 have 4 and 6 channels and would have 3 and 3; equal ones share"
    ):
        pruned_spec(unet("residual", "3d"), (0.25, 0.5, 0), "network")
    assert pruned_spec(unet("plain", "3d"), (0.25, 0.5, 0), "network").features == (3, 3, 8)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (SPECS["convnext"]("3d"), "network.kind 'convnext': cannot be pruned, expected plain or residual"),
        (unet("plain", "3d", norm="group"), "network.parts.norm 'group': cannot be pruned"),
        (unet("residual", "3d", attention="se"), "network.parts.attention 'se': cannot be pruned"),
    ],
)
def test_what_mixes_channels_otherwise_is_refused(spec: NetworkSpec, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        require_prunable(spec, "network")


def test_every_kind_is_pruned_or_refused_by_name() -> None:
    for kind, spec in SPECS.items():
        if kind in PRUNED_KINDS:
            require_prunable(spec("3d"), "network")
        else:
            with pytest.raises(PlanError, match=f"kind '{kind}'"):
                require_prunable(spec("3d"), "network")
