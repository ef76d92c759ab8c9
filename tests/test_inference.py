"""networks/inference.py"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segpipe.networks.inference import OneDnnConv3d, ready_to_predict

CPU = torch.device("cpu")
THIN = (1, 4, 3, 17, 19)  # a batch of one of which torch makes columns


def predicting(**options: object) -> tuple[nn.Conv3d, nn.Conv3d]:
    """torch's convolution, and the same one as it predicts."""
    torch.manual_seed(0)
    one = nn.Conv3d(4, 6, **{"kernel_size": 3, "padding": 1, **options}).eval()
    other = nn.Conv3d(4, 6, **{"kernel_size": 3, "padding": 1, **options})
    other.load_state_dict(one.state_dict())
    ready = ready_to_predict(other, "plain", 3, CPU)
    assert isinstance(ready, OneDnnConv3d)
    return one, ready


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"stride": (1, 2, 2)},
        {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)},
        {"kernel_size": 1, "padding": 0},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"padding": "same"},
        {"padding_mode": "replicate"},
    ],
)
@pytest.mark.parametrize("n_batch", [1, 2])
def test_a_convolution_gives_what_torchs_gives(options, n_batch):
    one, ready = predicting(**options)
    x = torch.randn(n_batch, *THIN[1:])
    with torch.inference_mode():
        assert torch.allclose(ready(x), one(x), rtol=1e-5, atol=1e-5)


def test_a_thin_window_goes_to_onednn():
    ready = predicting()[1]
    with torch.inference_mode(), torch.profiler.profile() as profile:
        ready(torch.randn(THIN))
    names = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in names and "aten::slow_conv3d" not in names


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_gradients_and_autocast_stay_torchs(dtype):
    one, ready = predicting()
    x = torch.randn(THIN)
    assert torch.equal(ready(x), one(x)) and ready(x).requires_grad
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert ready(x).dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.equal(ready.to(dtype)(x.to(dtype)), one.to(dtype)(x.to(dtype)))


def test_weights_and_their_names_stay():
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2, affine=True), nn.ConvTranspose3d(2, 1, 2, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    after = ready_to_predict(network, "plain", 3, CPU).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
