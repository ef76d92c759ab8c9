"""networks/simplenet.py and its table."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from specs import SPECS
from torch import nn

from segpipe.core.errors import PlanError
from segpipe.networks.build import build
from segpipe.networks.parts import Parts
from segpipe.networks.pruning import require_prunable
from segpipe.networks.simplenet import CellMaxima
from segpipe.networks.simplenet_table import KINDS_OF_SIMPLENET, simplenet_stages
from segpipe.networks.spec import NetworkSpec, simplenet_spec

STRIDES = (1, 1), *((2, 2),) * 5


def spec_of(kind: str, n_stages: int = 5, n_first: int | None = None, **changes: object) -> NetworkSpec:
    """In 2D; `n_first` channels behind the first stage, None: the authors'."""
    rows = simplenet_stages(kind, n_stages, n_first)
    spec = simplenet_spec(kind, STRIDES[:n_stages], ((3, 3),) * n_stages)
    features = {"features": tuple(row.widths[-1] for row in rows)}
    return NetworkSpec.model_validate({**dict(spec), **features, **changes})


@pytest.mark.parametrize(
    ("kind", "n_first", "n_classes", "published"),
    [
        ("simplenet_310k", None, 10, 312_362),
        ("simplenet_460k", None, 10, 385_790),
        ("simplenet", None, 10, 5_498_378),
        ("simplenet_imagenet_5m", 32, 1000, 1_506_792),  # small_05
        ("simplenet_imagenet_5m", 48, 1000, 3_287_272),  # small_075
        ("simplenet_imagenet_5m", None, 1000, 5_752_808),
        ("simplenet_imagenet_9m", None, 1000, 9_508_968),
    ],
)
def test_the_encoder_and_a_linear_layer_have_the_published_numbers_of_parameters(kind, n_first, n_classes, published):
    with torch.device("meta"):
        encoder = build(spec_of(kind, n_first=n_first, parts=Parts(norm="batch")), 3, 2).network.encoder
        last = encoder.stages[-1][-1].convs[-1].conv.out_channels
        linear = nn.Linear(last, n_classes)
    assert sum(p.numel() for module in (encoder, linear) for p in module.parameters()) == published


@pytest.mark.parametrize("kind", KINDS_OF_SIMPLENET)
def test_two_convolutions_in_a_row_have_a_kernel_of_one_voxel(kind):
    with torch.device("meta"):
        encoder = build(SPECS[kind]("3d"), 1, 2).encoder
    kernels = [m.kernel_size for m in encoder.modules() if isinstance(m, nn.Conv3d)]
    assert kernels.count((1, 1, 1)) == 2
    first = kernels.index((1, 1, 1))
    assert kernels[first + 1] == (1, 1, 1)
    assert set(kernels) == {(1, 1, 1), (3, 3, 3)}


def test_fewer_stages_keep_all_convolutions():
    rows = simplenet_stages("simplenet", 2)
    assert [row.widths for row in rows] == [(64, 128, 128, 128), (128, 128, 256, 256, 256, 512, 2048, 256, 256)]
    assert rows[1].pointwise == (6, 7)  # those to 2048 channels and back to 256


def test_maxima_of_an_odd_size_by_hand():
    x = torch.tensor([[[[1.0, -2, 3, 9, -5], [4, 0, 1, 2, -7]]]])  # 1 × 1 × 2 × 5
    assert CellMaxima((2, 2))(x).tolist() == [[[[4.0, 9.0, -5.0]]]]  # the last cell: -5 and -7, no padding
    assert CellMaxima((1, 2))(x).tolist() == [[[[1.0, 9.0, -5.0], [4.0, 2.0, -7.0]]]]
    assert CellMaxima((4, 2))(x).tolist() == [[[[4.0, 9.0, -5.0]]]]  # fewer voxels than the stride


def test_channels_are_halved_by_maxima_and_not_by_strides():
    with torch.device("meta"):
        encoder = build(SPECS["simplenet"]("anisotropic"), 1, 2).encoder
    assert {m.stride for m in encoder.modules() if isinstance(m, nn.Conv3d)} == {(1, 1, 1)}
    assert [m.stride for m in encoder.modules() if isinstance(m, CellMaxima)] == [(1, 2, 2), (2, 2, 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": (33, 66, 66, 66, 66)}, "33; .* made for 128, .* no whole number. Take 128, or half"),
        ({"features": (128, 256, 256, 256, 128)}, r"must be \(128, 256, 256, 256, 256\) and \(4, 3, 2, 3, 1\)"),
        ({"blocks": (4, 3, 2, 3, 2)}, r"must be \(128, 256, 256, 256, 256\) and \(4, 3, 2, 3, 1\)"),
        ({"parts": Parts(drop_path_fraction=0.1)}, "kind 'simplenet' does not use parts.drop_path_fraction"),
        ({"parts": Parts(residual_scale=0.1)}, "has no addition"),
        ({"sparse": {"family": "wide"}}, "kind 'simplenet' has few dense kernels or widths of its own"),
    ],
)
def test_what_contradicts_its_topology_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        spec_of("simplenet", **changes)


def test_six_stages_are_refused_and_not_planned():
    assert len(simplenet_spec("simplenet", STRIDES, ((3, 3),) * 6).features) == 5
    wrong = {**dict(spec_of("simplenet")), "features": (128,) * 6, "strides_zyx": STRIDES, "kernels_zyx": ((3, 3),) * 6}
    with pytest.raises(ValidationError, match="has 2 to 5 stages, not 6"):
        NetworkSpec.model_validate({**wrong, "blocks": (1,) * 6, "decoder_convolutions": (1,) * 5})


def test_it_cannot_be_pruned():
    with pytest.raises(PlanError, match="kind 'simplenet': cannot be pruned"):
        require_prunable(spec_of("simplenet"), "network")
