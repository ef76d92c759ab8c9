"""networks/initial_weights.py: weights from checkpoints of segpipe and nnU-Net."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from specs import unet
from test_unet import nnunets, stirred
from torch import nn

from segpipe.core.errors import UsageError
from segpipe.networks.build import build
from segpipe.networks.initial_weights import transfer_weights
from segpipe.networks.spec import NetworkSpec
from segpipe.train.checkpoint import save_weights


def nnunet_checkpoint(path: Path, spec: NetworkSpec) -> nn.Module:
    """A file with everything that nnUNetTrainer.save_checkpoint writes, and its network."""
    torch.manual_seed(0)
    network = stirred(nnunets(spec, 2, 3))
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99)
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "losses": [np.array([1.0, 2.0])]},
        "_best_ema": np.float64(0.7),
        "current_epoch": 3,
        "init_args": {"plans": {"spacing": [1.0]}, "fold": 0, "device": torch.device("cuda")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content, path)
    return network


@pytest.mark.parametrize("view", ["2d", "anisotropic"])
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_network_of_nnunet_is_loaded_whole(kind, view, tmp_path):
    spec = unet(kind, view)
    theirs, ours = nnunet_checkpoint(tmp_path / "checkpoint_final.pth", spec), build(spec, 2, 3)
    found = transfer_weights(tmp_path / "checkpoint_final.pth", ours)
    assert not found.new and not found.unused and not found.adapted
    assert found.lines() == [f"{len(ours.state_dict())} tensors loaded, 0 left new, 0 of the file not used"]
    x = torch.randn(1, 2, 1, 16, 16) if view == "2d" else torch.randn(1, 2, 4, 16, 16)
    expected = theirs(x[:, :, 0])[0].unsqueeze(2) if view == "2d" else theirs(x)[0]
    assert torch.equal(ours(x)[0], expected)


def test_other_channels_and_labels_are_adapted_or_left_new(tmp_path):
    spec = unet("residual", "3d")
    theirs, ours = nnunet_checkpoint(tmp_path / "c.pth", spec), build(spec, 4, 5)
    heads = {n: v.clone() for n, v in ours.state_dict().items() if "seg_layers" in n}
    found = transfer_weights(tmp_path / "c.pth", ours)
    assert found.adapted == {"encoder.stem.convs.0.conv.weight": "(4, 2, 3, 3, 3) to (4, 4, 3, 3, 3)"}
    assert set(found.new) == set(heads)
    assert found.new["decoder.seg_layers.0.bias"] == "has (3,) in the file, (5,) here"
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in heads.items())
    one, other = (net.encoder.stem["convs"] if net is ours else net.encoder.stem.convs for net in (theirs, ours))
    grey = torch.randn(1, 1, 4, 8, 8)  # the same in all channels: the first convolution must give the same
    expected = one[0].conv(grey.expand(-1, 2, -1, -1, -1))
    torch.testing.assert_close(other[0].conv(grey.expand(-1, 4, -1, -1, -1)), expected)


def test_kernels_of_another_size_are_interpolated(tmp_path):
    one = build(unet("convnext", "3d"), 2, 3)
    save_weights(tmp_path / "w.safetensors", one, {})
    spec = NetworkSpec.model_validate(unet("convnext", "3d").model_dump() | {"kernels_zyx": ((5, 5, 5),) * 3})
    other = build(spec, 2, 3)
    found = transfer_weights(tmp_path / "w.safetensors", other)
    assert not found.new and all(how.endswith("5, 5, 5)") for how in found.adapted.values())
    name = "encoder.stages.0.blocks.0.depthwise.weight"
    small, large = one.state_dict()[name], other.state_dict()[name]
    assert f"adapted: {name}: (4, 1, 3, 3, 3) to (4, 1, 5, 5, 5)" in found.lines()
    torch.testing.assert_close(large[..., 2, 2, 2], small[..., 1, 1, 1])


def test_what_a_changed_network_lacks_is_said(tmp_path):
    """Attention and a residual decoder are new, the plain decoder has no place, the encoder is kept."""
    nnunet_checkpoint(tmp_path / "c.pth", unet("residual", "3d"))
    ours = build(unet("residual", "3d", attention="se", decoder="residual"), 2, 3)
    found = transfer_weights(tmp_path / "c.pth", ours)
    assert {name.split(".")[0] for name in found.loaded} == {"encoder", "decoder"}
    assert found.new["gates.0.gate.0.weight"] == "the file has no such tensor"
    assert "decoder.stages.0.convs.0.conv.weight" in found.unused
    assert not [name for name in found.new if name.startswith("encoder")]
    text = "\n".join(found.lines())
    assert "left new: gates.0.gate.0.weight: the file has no such tensor" in text
    assert "not used: decoder.stages.0.convs.0.conv.weight" in text


@pytest.mark.parametrize("view", ["2d", "3d"])
def test_our_own_checkpoints_are_loaded_whole(view, tmp_path):
    torch.manual_seed(0)
    spec = unet("residual", view, bottleneck="aspp_simple", dilations_zyx=((1,) * (2 if view == "2d" else 3),))
    one, files = build(spec, 2, 3), [tmp_path / "w.safetensors", tmp_path / "state.pt", tmp_path / "bare.pt"]
    save_weights(files[0], one, {})
    torch.save({"network": one.state_dict(), "epoch": 3}, files[1])
    torch.save({f"module._orig_mod.{name}": value for name, value in one.state_dict().items()}, files[2])
    for path in files:
        other = build(spec, 2, 3)
        assert not transfer_weights(path, other).new
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("is_archive", [True, False])  # as before torch 1.6
def test_a_file_that_would_run_code_is_refused_by_name(is_archive, tmp_path):
    content = {"network_weights": {"a": torch.zeros(1)}, "path": Path("x")}
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=is_archive)
    with pytest.raises(UsageError, match=r"holds pathlib.\w+, which would run code"):
        transfer_weights(tmp_path / "c.pth", build(unet("plain", "3d"), 2, 3))


def test_a_file_from_before_torch_1_6_is_read(tmp_path):
    one, other = build(unet("plain", "3d"), 2, 3), build(unet("plain", "3d"), 2, 3)
    torch.save(one.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert not transfer_weights(tmp_path / "old.pth", other).new
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    whole = (tmp_path / "old.pth").read_bytes()
    for name, part in (("cut.pth", whole[:-100]), ("start.pth", whole[:100]), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(UsageError, match=rf"{name}: cannot be read as weights"):
            transfer_weights(tmp_path / name, other)
    (tmp_path / "blocked.pth").write_bytes(b"\x80\x02cposix\nsystem\nq\x00.")
    with pytest.raises(UsageError, match=r"holds posix\.system, which would run code"):
        transfer_weights(tmp_path / "blocked.pth", other)


FAULTS = {
    "missing.pth": (None, "no such file"),
    "text.pth": (b"weights", "not a complete file of torch.save"),
    "text.safetensors": (b"weights", "cannot be read as weights"),
    "list.pth": ([1], "holds a list"),
    "empty.pth": ({}, "holds no tensors by name \\(found: nothing\\)"),
    "numbered.pth": ({0: torch.zeros(2)}, "holds no tensors by name \\(found: 0\\)"),
    "other.pth": (
        OrderedDict(fc=torch.zeros(2)),
        "0 of 16 tensors of the encoder fit \\(.* 1 without a place in it: fc\\)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_file_is_told_by_its_fault(name, tmp_path):
    content, message = FAULTS[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(UsageError, match=message):
        transfer_weights(tmp_path / name, build(unet("plain", "3d"), 2, 3))


def test_weights_of_a_training_that_failed_are_refused(tmp_path):
    one, other = build(unet("plain", "3d"), 2, 3), build(unet("plain", "3d"), 2, 3)
    one.decoder.seg_layers[1].bias.data[2] = float("nan")
    save_weights(tmp_path / "w.safetensors", one, {})
    with pytest.raises(UsageError, match=r"decoder\.seg_layers\.1\.bias holds numbers that are not finite"):
        transfer_weights(tmp_path / "w.safetensors", other)
    assert all(p.isfinite().all() for p in other.parameters())


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e5m2])
def test_quantised_and_complex_weights_are_no_start(dtype, tmp_path):
    network = build(unet("plain", "3d"), 2, 3)
    torch.save({name: value.to(dtype) for name, value in network.state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=f"is {str(dtype).removeprefix('torch.')}, expected float32"):
        transfer_weights(tmp_path / "w.pth", network)


def test_the_weights_of_another_architecture_are_refused_though_its_decoder_fits(tmp_path):
    before = build(unet("residual", "3d"), 2, 3)
    nnunet_checkpoint(tmp_path / "plain.pth", unet("plain", "3d"))
    weights = {name: value.clone() for name, value in before.state_dict().items()}
    with pytest.raises(UsageError, match=r"plain\.pth: holds another network: 0 of \d+ tensors of the encoder fit"):
        transfer_weights(tmp_path / "plain.pth", before)
    assert all(torch.equal(value, weights[name]) for name, value in before.state_dict().items())


def test_half_a_file_is_refused(tmp_path):
    nnunet_checkpoint(tmp_path / "c.pth", unet("plain", "3d"))
    whole = (tmp_path / "c.pth").read_bytes()
    for n_bytes in (len(whole) // 2, len(whole) - 100):
        (tmp_path / "half.pth").write_bytes(whole[:n_bytes])
        with pytest.raises(UsageError, match=r"half\.pth"):
            transfer_weights(tmp_path / "half.pth", build(unet("plain", "3d"), 2, 3))
