"""networks/build.py, over every kind of network."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from plans import LABELS, small_spec
from segpipe.networks.build import NETWORKS, build
from segpipe.networks.spec import KINDS, NetworkSpec
from segpipe.train.checkpoint import load_weights, save_weights
from segpipe.train.losses import supervised_loss


def big(kind: str, blocks: tuple[int, ...], n_convolutions: int) -> NetworkSpec:
    return NetworkSpec(
        kind=kind,
        features=(32, 64, 128, 256, 320, 320),
        strides_zyx=((1, 1, 1), *((2, 2, 2),) * 5),
        kernels_zyx=((3, 3, 3),) * 6,
        blocks=blocks,
        decoder_convolutions=(n_convolutions,) * 5,
    )


@pytest.mark.parametrize(
    ("spec", "channels", "outputs", "expected"),
    [
        (big("plain", (2,) * 6, 2), 1, 3, 31_196_399),
        (big("plain", (2,) * 6, 2), 4, 4, 31_199_796),
        (big("residual", (1, 3, 4, 6, 6, 6), 1), 1, 3, 102_350_575),
        (big("residual", (1, 3, 4, 6, 6, 6), 1), 1, 14, 102_359_430),
    ],
)
def test_published_numbers_of_parameters(spec, channels, outputs, expected):
    with torch.device("meta"):
        network = build(spec, channels, outputs)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_the_table_and_the_spec_know_the_same_kinds():
    assert set(NETWORKS) == set(KINDS)


ANISOTROPIC = {"strides_zyx": ((1, 1, 1), (1, 2, 2)), "kernels_zyx": ((1, 3, 3), (3, 3, 3))}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [{}, ANISOTROPIC, "2d"], ids=["3d", "anisotropic", "2d"])
def test_every_network(kind, change, tmp_path):
    spec = small_spec(kind, 2) if change == "2d" else NetworkSpec(**(small_spec(kind).model_dump() | dict(change)))
    torch.manual_seed(0)
    network = build(spec, 2, 3)
    x, indices = torch.randn(2, 2, 4, 8, 12), torch.randint(0, 3, (2, 4, 8, 12))
    outputs = network(x)
    assert outputs[0].shape == (2, 3, 4, 8, 12)
    supervised_loss(outputs, indices, LABELS, batch_dice=False).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    save_weights(tmp_path / "w.safetensors", network, {"fold": "0"})
    again = build(spec, 2, 3)
    load_weights(tmp_path / "w.safetensors", again)
    assert torch.equal(again(x)[0], network(x)[0])
    assert len(load_file(tmp_path / "w.safetensors")) == len({p.data_ptr() for p in network.state_dict().values()})


def test_a_2d_network_sees_every_slice_alone():
    torch.manual_seed(0)
    network = build(small_spec("plain", 2), 1, 3).eval()
    x = torch.randn(1, 1, 3, 8, 8)
    whole, alone = network(x)[0], network(x[:, :, 1:2])[0]
    assert torch.allclose(whole[:, :, 1:2], alone, atol=1e-6)
