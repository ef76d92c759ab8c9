"""networks/build.py, over every kind of network."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from specs import SPECS, VARIANTS, VIEWS
from torch import nn

from plans import LABELS, small_spec
from segpipe.core.errors import PlanError
from segpipe.networks.build import NETWORKS, build
from segpipe.networks.spec import KINDS, NetworkSpec
from segpipe.train.checkpoint import load_weights, save_weights
from segpipe.train.losses import supervised_loss

PATCH = {"2d": (2, 32, 64), "3d": (32, 32, 64), "anisotropic": (8, 32, 64)}
FAMILIES = list({function: kind for kind, function in reversed(NETWORKS.items())}.values())  # the first kind of each
EVERY = {**SPECS, **VARIANTS}
every_network = pytest.mark.parametrize(
    ("kind", "view"), [(kind, view) for kind in (*FAMILIES, *VARIANTS) for view in VIEWS]
)


def fresh(kind: str, view: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(EVERY[kind](view), 2, 3)


def random_loss(outputs: list[torch.Tensor]) -> torch.Tensor:
    """Of all outputs against random labels."""
    labels = [torch.randint(0, 3, (len(o), *o.shape[2:])) for o in outputs]
    pairs = zip(outputs, labels, strict=True)
    losses = [supervised_loss([o], indices, LABELS, batch_dice=False) for o, indices in pairs]
    return torch.stack(losses).sum()


@every_network
def test_every_network_learns_with_every_parameter_and_is_stored_whole(kind, view, tmp_path):
    network = fresh(kind, view)
    for parameter in network.parameters():  # a branch that starts at 0 lets no gradient through
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    x = torch.randn(1, 2, *PATCH[view])
    outputs = network(x)
    assert outputs[0].shape == (1, 3, *PATCH[view])
    sizes = [output[0, 0].numel() for output in outputs]
    assert sizes == sorted(set(sizes), reverse=True)
    loss = random_loss(outputs)
    loss.backward()
    assert loss.isfinite()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not [name for name, p in network.named_parameters() if p.ndim > 1 and not p.grad.any()]

    save_weights(tmp_path / "w.safetensors", network, {"fold": "0"})
    again = fresh(kind, view, seed=1)
    load_weights(tmp_path / "w.safetensors", again)
    assert torch.equal(again.eval()(x)[0], network.eval()(x)[0])
    assert load_file(tmp_path / "w.safetensors").keys() == network.state_dict().keys()


@every_network
def test_every_network_stays_finite_in_bf16(kind, view):
    network, x = fresh(kind, view), 30 * torch.randn(1, 2, *PATCH[view])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(x)
        loss = random_loss(outputs)
    loss.backward()
    assert loss.isfinite() and all(output.isfinite().all() for output in outputs)
    assert all(p.grad.isfinite().all() for p in network.parameters())


@every_network
def test_no_batch_norm_hides_in_a_network_with_instance_norm(kind, view):
    batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    assert not [m for m in fresh(kind, view).modules() if isinstance(m, batch_norms)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*FAMILIES, *VARIANTS])
def test_every_family_can_be_compiled(kind):
    network, x = fresh(kind, "anisotropic").eval(), torch.randn(1, 2, *PATCH["anisotropic"])
    ours = kind not in ("segresnet", "swin_unetr")  # MONAI's are captured, but not in one piece
    translated = kind == "plain"  # of the others the C++ alone would take minutes; what can break is the capture
    compiled = torch.compile(network, fullgraph=ours, backend="inductor" if translated else "aot_eager")
    with torch.no_grad():
        expected, found = network(x), compiled(x)
    torch._dynamo.reset()
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-3)


@every_network
def test_the_first_output_is_as_large_as_the_input_whatever_its_size(kind, view):
    """On the meta device, where only shapes are computed: each axis runs through every size from 33 to 64.

    Of the variants, through every fifth: what differs is on the deepest map, and sizes change there every fourth.
    """
    with torch.device("meta"):
        network = fresh(kind, view).eval()
    network.to(memory_format=torch.channels_last if view == "2d" else torch.channels_last_3d)  # as in training
    for size in range(33, 65, 1 if kind in SPECS else 5):
        shape = (size, 97 - size, size)  # Y and X differ in parity
        assert network(torch.empty(1, 2, *shape, device="meta"))[0].shape == (1, 3, *shape)


def big(kind: str, blocks: tuple[int, ...], n_convolutions: int) -> NetworkSpec:
    n_stages = len(blocks)
    return NetworkSpec(
        kind=kind,
        features=(32, 64, 128, 256, *(320,) * (n_stages - 4)),
        strides_zyx=((1, 1, 1), *((2, 2, 2),) * (n_stages - 1)),
        kernels_zyx=((3, 3, 3),) * n_stages,
        blocks=blocks,
        decoder_convolutions=(n_convolutions,) * (n_stages - 1),
    )


@pytest.mark.parametrize(
    ("spec", "channels", "outputs", "expected"),
    [
        (big("plain", (2,) * 6, 2), 1, 3, 31_196_399),
        (big("plain", (2,) * 6, 2), 4, 4, 31_199_796),
        (big("residual", (1, 3, 4, 6, 6, 6), 1), 1, 3, 102_350_575),
        (big("residual", (1, 3, 4, 6, 6, 6), 1), 4, 4, 102_353_972),
        (big("residual", (1, 3, 4, 6, 6, 6), 1), 1, 14, 102_359_430),
        (big("residual", (1, 3, 4, 6, 6, 6, 6), 1), 1, 3, 141_890_738),
    ],
)
def test_published_numbers_of_parameters(spec, channels, outputs, expected):
    with torch.device("meta"):
        network = build(spec, channels, outputs)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_the_tables_know_the_same_kinds():
    assert set(NETWORKS) == set(KINDS) == set(SPECS)


def test_a_single_stage_is_refused():
    spec = NetworkSpec(
        kind="plain",
        features=(4,),
        strides_zyx=((1, 1, 1),),
        kernels_zyx=((3, 3, 3),),
        blocks=(2,),
        decoder_convolutions=(),
    )
    with pytest.raises(PlanError, match="1 stage, expected at least 2"):
        build(spec, 1, 2)


def test_a_2d_network_sees_every_slice_alone():
    torch.manual_seed(0)
    network = build(small_spec("plain", 2), 1, 3).eval()
    x = torch.randn(1, 1, 3, 8, 8)
    whole, alone = network(x)[0], network(x[:, :, 1:2])[0]
    assert torch.allclose(whole[:, :, 1:2], alone, atol=1e-6)
