"""networks/attention.py and networks/mixers.py: what mixes the voxels of the deepest map."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from specs import VARIANTS, unet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from plans import LABELS, small_plan
from segpipe.cli.plan import plan_text
from segpipe.core.errors import PlanError
from segpipe.networks.attention import (
    AttentionBlock,
    GaussianMixtureMask,
    RelativePositions,
    SelfAttention,
    resized_table,
    toeplitz,
)
from segpipe.networks.blocks import Layers
from segpipe.networks.build import build, inner_kernels
from segpipe.networks.cost import CPU, cost
from segpipe.networks.initial_weights import transfer_weights
from segpipe.networks.mixers import ComplexPair, ConvMixerBlock, StateSpace, hippo_eigenvalues, scan
from segpipe.networks.parts import Parts, attention_bytes
from segpipe.pipeline.plan import Planned
from segpipe.plan.edit import edit_plan
from segpipe.plan.schema import Plan
from segpipe.train.checkpoint import save_weights
from segpipe.train.losses import supervised_loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own deprecations, met on import
    import timm
    from timm.layers.bottleneck_attn import BottleneckAttn
    from timm.models.convmixer import ConvMixer

TENSORS_ALONE = CPU.model_copy(update={"context_bytes": 0, "slack_fraction": 0.0})
PARTS = "configurations.3d_fullres.network.parts"


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def botnet(n_features: int, map_size: tuple[int, ...], *, scales_positions: bool = False) -> SelfAttention:
    positions = RelativePositions(map_size, n_features // 4)
    return SelfAttention(n_features, 4, positions, scales_positions=scales_positions)


def test_numbers_of_parameters_of_attention():
    assert n_parameters(botnet(320, (4, 4, 4))) == 308_880  # 3 · 320² + 80 · 3 · 7
    assert n_parameters(botnet(64, (4, 5))) == 12_544 == n_parameters(BottleneckAttn(64, feat_size=(4, 5)))


def test_a_resnet_50_with_attention_in_its_last_stage_has_the_published_size():
    with torch.device("meta"):
        network = timm.create_model("resnet50")
        assert n_parameters(network) == 25_557_032
        for block, edge in zip(network.layer4, (14, 7, 7), strict=True):  # of an image of 224
            block.conv2 = botnet(512, (edge, edge))
    assert n_parameters(network) == 20_852_008


@pytest.mark.parametrize("scales_positions", [False, True])
def test_in_2d_and_in_a_single_slice_it_is_timms(scales_positions):
    torch.manual_seed(0)
    theirs = BottleneckAttn(16, feat_size=(4, 5), scale_pos_embed=scales_positions)
    x = torch.randn(2, 16, 4, 5)
    for map_size in ((4, 5), (1, 4, 5)):
        ours = botnet(16, map_size, scales_positions=scales_positions)
        ours.qkv.weight.data = theirs.qkv.weight.data.flatten(1)
        tables = (theirs.pos_embed.height_rel, theirs.pos_embed.width_rel)
        for own, other in zip(ours.positions.tables[-2:], tables, strict=True):
            own.data = other.data
        if len(map_size) == 3:
            nn.init.zeros_(ours.positions.tables[0])  # no distance along Z
        found = ours(x.reshape(2, 16, *map_size))
        torch.testing.assert_close(found.reshape(x.shape), theirs(x), atol=1e-6, rtol=1e-5)


def test_logits_without_content_depend_on_the_distance_alone():
    torch.manual_seed(0)
    edges = (3, 4, 5)
    attention = botnet(16, edges)
    queries = torch.randn(1, 4, 1, 4).expand(-1, -1, math.prod(edges), -1)  # the same everywhere
    logits = attention.logits(queries, torch.zeros_like(queries), edges)[0].unflatten(2, edges).unflatten(1, edges)
    torch.testing.assert_close(
        logits[:, 0, 0, 0, 1:, 1:, 2:], logits[:, 1, 1, 2, 2:, 2:, 4:][:, :0], atol=0, rtol=0
    ) if 0 else None
    for z, y, x in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 2, 3)):
        here = logits[:, : 3 - z, : 4 - y, : 5 - x, : 3 - z, : 4 - y, : 5 - x]
        torch.testing.assert_close(here, logits[:, z:, y:, x:, z:, y:, x:], atol=1e-6, rtol=1e-6)
    by_hand = queries[0, 0, 0] @ (attention.positions.tables[0][2 + 1] + attention.positions.tables[1][3 - 2])
    by_hand = by_hand + queries[0, 0, 0] @ attention.positions.tables[2][4 + 4]
    torch.testing.assert_close(logits[0, 0, 2, 0, 1, 0, 4], by_hand)  # from (0, 2, 0) to (1, 0, 4)


def test_toeplitz_by_hand():
    found = toeplitz(torch.tensor([[10.0, 11.0, 12.0, 13.0, 14.0]]), (3,))[0]  # distances -2 to 2
    assert found.tolist() == [[12, 13, 14], [11, 12, 13], [10, 11, 12]]


def test_a_table_for_another_map_is_interpolated_about_its_middle():
    table = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]])  # of an edge of 3
    assert resized_table(table, 3) is table
    assert resized_table(table, 5).flatten().tolist() == [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]
    assert resized_table(table, 2).flatten().tolist() == [-2, 0, 2]
    assert resized_table(table, 1).flatten().tolist() == [0]
    assert resized_table(table[2:3], 3).flatten().tolist() == [0] * 5  # one voxel knows no distance
    assert botnet(8, (2, 3, 4))(torch.randn(1, 8, 5, 1, 3)).shape == (1, 8, 5, 1, 3)


def test_attention_starts_as_the_identity():
    parts = Parts(bottleneck_attention="botnet", bottleneck_map_zyx=(2, 2, 2))
    x = torch.randn(1, 8, 2, 2, 2)
    assert torch.equal(AttentionBlock(Layers(3, parts), 8)(x), x)


def distances(edges: tuple[int, ...], spacing_mm: tuple[float, ...]) -> Tensor:
    """Squared distances (N, N) in units of the shortest edge, float64, the obvious way."""
    places = torch.cartesian_prod(*(torch.arange(edge, dtype=torch.float64) for edge in edges))
    return ((places[:, None] - places) * torch.tensor(spacing_mm) / min(spacing_mm)).square().sum(-1)


def test_on_8_by_8_the_mask_is_the_authors():
    torch.manual_seed(0)
    mask = GaussianMixtureMask(2, 3, (1.0, 1.0), "multiply")
    assert n_parameters(mask) == 12
    of_one = torch.exp(-distances((8, 8), (1.0, 1.0))).float()  # theirs: powers of this
    powers = 1 / (2 * (mask.width.square() + 1e-5))
    theirs = (mask.weight[..., None, None] * of_one ** powers[..., None, None]).sum(1)
    logits = torch.randn(1, 2, 64, 64)
    torch.testing.assert_close(mask(logits, (8, 8)), logits * theirs, atol=1.3e-6, rtol=2e-5)


def test_the_mask_does_not_underflow_on_16_cubed_where_the_authors_does():
    mask = GaussianMixtureMask(1, 1, (1.0, 1.0, 1.0), "multiply")
    nn.init.constant_(mask.width, 10.0)
    nn.init.ones_(mask.weight)
    far = mask.of_distance((16, 16, 16))
    assert far.min().item() == pytest.approx(math.exp(-3 * 15**2 / 200), rel=1e-4)
    assert torch.exp(-torch.tensor(3 * 15.0**2)) == 0


def test_distances_are_in_mm():
    mask = GaussianMixtureMask(1, 1, (5.0, 1.0, 2.0), "multiply")
    nn.init.constant_(mask.width, 3.0)
    nn.init.ones_(mask.weight)
    found = mask(torch.ones(1, 1, 24, 24), (2, 3, 4))[0, 0]
    expected = torch.exp(-distances((2, 3, 4), (5.0, 1.0, 2.0)) / (2 * (9 + 1e-5))).float()
    torch.testing.assert_close(found, expected)


def test_the_logarithmic_form_adds_the_logarithm_of_the_mixture():
    torch.manual_seed(0)
    mask = GaussianMixtureMask(2, 3, (1.0, 2.0), "log_add")
    nn.init.normal_(mask.weight)
    exponents = -distances((3, 4), (1.0, 2.0)) / (2 * (mask.width.double().square() + 1e-5))[..., None, None]
    mixture = (mask.weight.double().exp()[..., None, None] * exponents.exp()).sum(1)
    logits = torch.randn(1, 2, 12, 12)
    torch.testing.assert_close(mask(logits, (3, 4)), logits + mixture.log().float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["multiply", "log_add"])
def test_infinitely_wide_gaussians_are_plain_attention(form):
    torch.manual_seed(0)
    mask = GaussianMixtureMask(4, 5, (1.0, 1.0, 1.0), form)
    nn.init.constant_(mask.width, 1e6)
    nn.init.constant_(mask.weight, 0.2 if form == "multiply" else math.log(0.2))
    plain, masked = SelfAttention(8, 4), SelfAttention(8, 4, mask=mask)
    masked.qkv = plain.qkv
    x = torch.randn(1, 8, 2, 3, 4)
    torch.testing.assert_close(masked(x), plain(x), atol=1e-6, rtol=1e-5)


def loop(driven: Tensor, power: Tensor, starts: Tensor) -> Tensor:
    """States one after the other, complex."""
    states, state = [], torch.zeros_like(driven[:, 0])
    for step in range(driven.shape[1]):
        state = driven[:, step] + (0 if starts[step] else power * state)
        states.append(state)
    return torch.stack(states, 1)


def scanned(driven: Tensor, power: Tensor, starts: Tensor, longest: int) -> Tensor:
    pairs = (ComplexPair(values.real, values.imag) for values in (driven, power))
    return torch.complex(*scan(*pairs, starts, longest))


def sequence(n_steps: int, n_states: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    power = torch.polar(0.5 + torch.rand(n_states) / 2, 6 * torch.rand(n_states))
    return torch.randn(2, n_steps, n_states, dtype=torch.complex64), power


def test_the_scan_with_resets_is_the_loop():
    driven, power = sequence(37)
    starts = torch.zeros(37, dtype=torch.bool)
    starts[[0, 3, 4, 11, 17, 18, 30, 36]] = True
    difference = (scanned(driven, power, starts, 37) - loop(driven, power, starts)).abs().max()
    assert difference < 2.4e-7 * loop(driven, power, starts).abs().max()
    assert torch.equal(scanned(driven, power, starts, 12), scanned(driven, power, starts, 37))  # the longest has 12


def test_a_reset_makes_two_sequences_and_one_at_every_step_forgets_all():
    driven, power = sequence(20)
    starts = torch.arange(20) == 8
    alone = [
        scanned(part, power, torch.zeros(part.shape[1], dtype=torch.bool), 20) for part in driven.split([8, 12], 1)
    ]
    torch.testing.assert_close(scanned(driven, power, starts, 20), torch.cat(alone, 1), atol=1e-6, rtol=1e-6)
    assert torch.equal(scanned(driven, power, torch.ones(20, dtype=torch.bool), 20), driven)


def test_new_states_are_those_of_hippo_and_decay():
    values, vectors = hippo_eigenvalues(8)
    index = torch.arange(16, dtype=torch.float64)
    root = (2 * index + 1).sqrt()
    normal = torch.diag(index) - torch.tril(torch.outer(root, root)) + torch.outer(root, root) / 2
    basis, found = torch.tensor(vectors), torch.tensor(values)
    torch.testing.assert_close(normal.to(basis.dtype) @ basis, basis * found)
    assert found.imag.min() > 0 and found.real.unique().tolist() == [-0.5]
    space = StateSpace(4, 8, "row")
    power, held = space.discrete()
    assert (torch.complex(*power).abs() < 1).all()
    step = space.log_step.exp()
    assert step.min() >= 1e-3 and step.max() <= 0.1
    space.log_decay.data.fill_(5.0)  # wherever training takes it
    assert (torch.complex(*space.discrete()[0]).abs() < 1).all()
    assert held.real.shape == (8,)


def test_the_held_input_is_eulers_for_short_steps():
    space = StateSpace(4, 8, "row").double()
    errors = []
    for step in (1e-3, 1e-4):
        space.log_step.data.fill_(math.log(step))
        power, held = (torch.complex(*pair) for pair in space.discrete())
        rates = torch.complex(-space.log_decay.exp(), space.frequency)
        torch.testing.assert_close(held, (torch.exp(rates * step) - 1) / rates)
        torch.testing.assert_close(power, torch.exp(rates * step))
        errors.append((held - step).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)  # of second order


# of each order of the axes: the row; the slice, of the fastest axis and the next (ZX, YX and ZY of 3 × 4 × 5); all
@pytest.mark.parametrize(("resets", "n_seen"), [("row", 10), ("slice", 36), ("volume", 60)])
def test_an_impulse_is_seen_up_to_the_resets(resets, n_seen):
    torch.manual_seed(0)
    space = StateSpace(1, 4, resets)
    nn.init.zeros_(space.direct)
    x = torch.zeros(1, 1, 3, 4, 5)
    x[0, 0, 1, 2, 3] = 1
    assert (space(x)[0, 0] != 0).sum() == n_seen


def test_a_state_space_is_the_loop_over_every_axis_and_direction():
    torch.manual_seed(0)
    space, x = StateSpace(3, 4, "row"), torch.randn(1, 3, 2, 3, 4)
    power, held = (torch.complex(*pair) for pair in space.discrete())
    u = x[0].movedim(0, -1)
    driven = u.to(power.dtype) @ (held[:, None] * torch.complex(*space.inward)).T
    expected = space.direct * u
    for is_backward, outward in enumerate(torch.complex(*space.outward).chunk(2, 1)):
        total = torch.zeros_like(driven)
        for axis in range(3):
            rows = driven.movedim(axis, -2).flip(-2) if is_backward else driven.movedim(axis, -2)
            states = loop(rows.flatten(0, 1), power, torch.zeros(rows.shape[-2])).reshape(rows.shape)
            total = total + (states.flip(-2) if is_backward else states).movedim(-2, axis) / 3
        expected = expected + 2 * (total @ outward.T).real
    torch.testing.assert_close(space(x)[0].movedim(0, -1), expected, atol=1e-5, rtol=1e-5)


def test_states_stay_float32_under_autocast_and_with_checkpointing():
    torch.manual_seed(0)
    network = build(VARIANTS["s5"]("3d"), 1, 2)
    space, types = network.mixing.blocks[0].space, []
    inner = space._respond
    space._respond = lambda u: types.append((u.dtype, inner(u).dtype)) or inner(u)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(torch.randn(1, 1, 16, 16, 16))
    sum(output.float().square().mean() for output in outputs).backward()
    assert types == [(torch.float32, torch.float32)] * 2  # forward, and again in backward
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in space.parameters())
    x = torch.randn(1, 8, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = space(x)
    assert torch.equal(found, space(x))


class ClassifyingConvMixer(nn.Module):
    """The authors' classifier around our block, for its number of parameters."""

    def __init__(self, n_features: int, n_blocks: int, kernel: int, patch: int, n_classes: int) -> None:
        super().__init__()
        make = Layers(2, Parts(norm="batch"))
        self.stem = nn.Sequential(nn.Conv2d(3, n_features, patch, patch), nn.BatchNorm2d(n_features))
        self.blocks = nn.Sequential(*(ConvMixerBlock(make, n_features, (kernel, kernel)) for _ in range(n_blocks)))
        self.head = nn.Linear(n_features, n_classes)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((1536, 20, 9, 7, 1000), 51_625_960),
        ((768, 32, 7, 7, 1000), 21_110_248),
        ((1024, 20, 9, 14, 1000), 24_383_464),
        ((256, 8, 5, 2, 10), 594_186),
    ],
)
def test_numbers_of_parameters_of_convmixer(sizes, expected):
    with torch.device("meta"):
        assert n_parameters(ClassifyingConvMixer(*sizes)) == expected


def test_a_convmixer_block_is_timms():
    torch.manual_seed(0)
    theirs = ConvMixer(dim=16, depth=1, kernel_size=5, act_layer=nn.GELU).blocks[0]
    ours = ConvMixerBlock(Layers(2, Parts(norm="batch")), 16, (5, 5))
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 16, 6, 7)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("n_features", "kernel"), [(8, 5), (12, 3)])
def test_parameters_of_a_3d_convmixer_block(n_features, kernel):
    block = ConvMixerBlock(Layers(3, Parts()), n_features, (kernel,) * 3)
    assert n_parameters(block) == n_features * (kernel**3 + 1) + n_features * (n_features + 1) + 4 * n_features


@pytest.mark.parametrize("name", VARIANTS)
def test_multiplications_are_those_of_a_counted_forward(name):
    spec = VARIANTS[name]("3d")
    network = build(spec, 1, 2)
    found = cost(network, 1, 2, (16, 16, 16), 2, precision="fp32", calibration=TENSORS_ALONE)
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(2, 1, 16, 16, 16))
    assert found.n_macs_forward == pytest.approx(counter.get_total_flops() / 2, rel=0.1)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kept_activations_are_those_of_a_real_step(name, precision):
    spec = VARIANTS[name]("3d")
    spec = spec.model_copy(update={"parts": spec.parts.model_copy(update={"checkpointing": False})})
    network = build(spec, 2, 3)
    loss = partial(supervised_loss, labels=LABELS, batch_dice=False)
    found = cost(network, 2, 3, (16, 16, 16), 2, precision=precision, loss=loss, calibration=TENSORS_ALONE)
    images, indices = torch.randn(2, 2, 16, 16, 16), torch.randint(0, 3, (2, 16, 16, 16))
    storages = {}

    def note(saved: Tensor) -> Tensor:
        storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = network(images)
        value = loss(outputs, indices)
    assert value.isfinite()
    for tensor in (*network.parameters(), *network.buffers(), images, indices):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    assert found.kept_activation_bytes == pytest.approx(sum(storages.values()), rel=0.1)


def test_attention_takes_three_copies_of_its_logits_at_the_peak():
    network = botnet(16, (8, 8, 8))
    found = cost(network, 16, 16, (8, 8, 8), 2, precision="fp32", calibration=TENSORS_ALONE)
    assert found.training_bytes == pytest.approx(attention_bytes(512, 2, 4), rel=0.1)


def test_the_plan_holds_the_edges_of_the_deepest_map_and_of_its_voxels():
    edits = [f"{PARTS}.bottleneck_attention=botnet", f"{PARTS}.bottleneck_mask=gaussian_mixture"]
    plan = edit_plan(small_plan(), edits)  # a patch of 8 × 8 × 12, a stride of 2, voxels of 2.5 × 1.5 × 1 mm
    parts = plan.configurations["3d_fullres"].network.parts
    assert (parts.bottleneck_map_zyx, parts.bottleneck_spacing_mm) == ((4, 4, 6), (5.0, 3.0, 2.0))
    assert Plan.parse(plan.model_dump(mode="json"), "plan.yaml") == plan
    larger = edit_plan(plan, ["configurations.3d_fullres.patch_zyx=[16,16,24]"])  # the tables stay as they are
    assert larger.configurations["3d_fullres"].network.parts == parts
    without = edit_plan(plan, [f"{PARTS}.bottleneck_attention=null", f"{PARTS}.bottleneck_mask=null"])
    assert without.configurations == small_plan().configurations


def test_weights_for_another_map_are_taken_with_interpolated_tables(tmp_path):
    parts = {"bottleneck_attention": "botnet", "bottleneck_heads": 2}
    small, large = (
        build(unet("plain", "3d", **parts, bottleneck_map_zyx=edges), 1, 2) for edges in ((2, 4, 4), (4, 8, 4))
    )
    save_weights(tmp_path / "w.safetensors", small, {})
    done = transfer_weights(tmp_path / "w.safetensors", large)
    assert not done.new and len(done.adapted) == 2
    for axis, edge in enumerate((4, 8, 4)):
        one, other = (network.mixing.blocks[0].attention.positions.tables[axis] for network in (small, large))
        assert torch.equal(other, resized_table(one, edge))


def test_the_parts_are_shown_with_the_plan():
    plan = edit_plan(small_plan(), [f"{PARTS}.bottleneck_mixer=s5", f"{PARTS}.mixer_blocks=3"])
    shown = plan_text(Planned(plan, ()))
    assert "plain U-Net, 2 stages, 4–8 features\n              with bottleneck_mixer s5, mixer_blocks 3" in shown


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (["bottleneck_mask=gaussian_mixture"], "bottleneck_mask 'gaussian_mixture' needs a bottleneck_attention"),
        (["bottleneck_heads=2"], "bottleneck_heads belongs to bottleneck_attention botnet and content; found no"),
        (["bottleneck_mixer=s5", "mixer_kernel=7"], "mixer_kernel belongs to bottleneck_mixer convmixer; found"),
        (["bottleneck_mixer=convmixer", "mixer_kernel=4"], "mixer_kernel is 4, expected an odd number"),
        (["block=convmixer"], "kind 'plain' does not use parts.block"),
        (["block=convmixer", "dropout_fraction=0.1"], "block 'convmixer' has no place for dropout_fraction"),
        (["bottleneck_attention=content", "bottleneck_heads=3"], "heads 3 cannot share the 8 features"),
        (["bottleneck_attention=botnet", "bottleneck_map_zyx=[4,4]"], r"bottleneck_map_zyx is \[4, 4\], expected 3"),
        (
            ["bottleneck_attention=content", "bottleneck_mask=gaussian_mixture", "bottleneck_spacing_mm=[1,1,1]"],
            r"spacing_mm and strides_zyx give \[5.0, 3.0, 2.0\]. Set it to null",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(edits, message):
    with pytest.raises(PlanError, match=message):
        edit_plan(small_plan(), [f"{PARTS}.{edit}" for edit in edits])


def test_attention_on_4096_tokens_is_refused_with_its_memory():
    patch = "configurations.3d_fullres.patch_zyx=[{0},{0},{0}]"
    with pytest.raises(PlanError, match=r"16 × 16 × 16 = 4096 tokens .* takes 1.5 GiB for a batch of 2 with 4 heads"):
        edit_plan(small_plan(), [patch.format(32), f"{PARTS}.bottleneck_attention=botnet"])
    edit_plan(small_plan(), [patch.format(24), f"{PARTS}.bottleneck_attention=botnet"])


def test_muon_takes_the_matrices_and_not_the_states():
    network = build(VARIANTS["s5"]("3d"), 1, 2)
    block = network.mixing.blocks[0]
    taken = {id(kernel) for kernel in inner_kernels(network)}
    assert id(block.gate.weight) in taken and id(block.value.weight) in taken
    assert not taken & {id(p) for p in block.space.parameters()}
