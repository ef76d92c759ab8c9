"""Bytes and multiplications of a training step or a prediction of any module, found without computing it.

The step runs on fake tensors, which know shape, type and storage but hold no values. A mode below autograd sees every
operation, backward included, and counts the storages that are alive, as an allocator would.
"""

# B batch, C channels, Z Y X voxels.
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

LossFunction = Callable[[Sequence[Tensor], Tensor], Tensor]
"""Scalar loss from the network's outputs and the inside labels (B, Z, Y, X) int64."""

_FLOPS_PER_MAC = 2
# Large operations that CUDA's autocast computes in float32 and the CPU's does not, by the name of the Python function
# (ATen/autocast_mode.h, AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE).
_FLOAT32_ON_CUDA = frozenset(
    {"layer_norm", "group_norm", "rms_norm", "interpolate", "softmax", "log_softmax", "softplus", "logsumexp"}
    | {"exp", "log", "pow", "__pow__", "rsqrt", "reciprocal", "cumsum"}
)
_CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)


@dataclass(frozen=True)
class Workload:
    """The input of a network, and how it computes.

    Args:
        n_channels: Channels of the image.
        patch_zyx: Voxels of a patch; Z is 1 for a 2D network.
        batch_size: Patches at once.
        dtype: For autocast; float32 for none.
        on_cuda: Whether autocast follows CUDA's rules, else the CPU's.
    """

    n_channels: int
    patch_zyx: tuple[int, int, int]
    batch_size: int
    dtype: torch.dtype
    on_cuda: bool


@dataclass(frozen=True)
class Traced:
    """Memory and operations of a simulated training step.

    Args:
        n_parameters: Numbers in the parameters.
        parameter_bytes: Their storages; shared ones count once.
        trainable_bytes: Those of parameters that get a gradient.
        buffer_bytes: Storages of buffers.
        batch_bytes: Images and labels.
        kept_bytes: Storages saved for backward when the loss is known, each once, without parameters, buffers, batch.
        peak_bytes: Most that was alive at one moment of forward, loss and backward, all of the above included.
        n_macs_forward: Multiplications with addition in convolutions and matrix products of the forward pass.
        n_macs_step: The same with backward, and with what checkpointing computes again.
    """

    n_parameters: int
    parameter_bytes: int
    trainable_bytes: int
    buffer_bytes: int
    batch_bytes: int
    kept_bytes: int
    peak_bytes: int
    n_macs_forward: int
    n_macs_step: int


def trace_training(network: nn.Module, work: Workload, loss: LossFunction, scratch_share: float) -> Traced:
    """Follow one training step without its optimizer.

    Args:
        network: Any module from (B, C, Z, Y, X) to logits or a list of them, on any device; it is not changed.
        work: What it is given.
        loss: What is made of its outputs.
        scratch_share: Memory of a convolution besides its operands and results, as a share of those.
    """
    live = _LiveStorages(scratch_share)
    with FakeTensorMode(allow_non_fake_inputs=True), live, _autocast_rules(work), _mode(network, training=True):
        parameters, buffers = _like(network.named_parameters()), _like(network.named_buffers())
        batch = _batch(work)
        fixed = [live.mark_fixed(tensors) for tensors in (parameters.values(), buffers.values(), batch)]
        named = {f"network.{name}": tensor for name, tensor in (parameters | buffers).items()}
        kept_bytes, n_flops = torch.func.functional_call(_Step(network, work.dtype, loss, live), named, batch)
    return Traced(
        n_parameters=sum(p.numel() for p in parameters.values()),
        parameter_bytes=fixed[0],
        trainable_bytes=sum(p.nbytes for p in parameters.values() if p.requires_grad),
        buffer_bytes=fixed[1],
        batch_bytes=fixed[2],
        kept_bytes=kept_bytes,
        peak_bytes=live.peak_bytes,
        n_macs_forward=n_flops // _FLOPS_PER_MAC,
        n_macs_step=live.n_flops // _FLOPS_PER_MAC,
    )


def trace_inference(network: nn.Module, work: Workload, scratch_share: float) -> int:
    """Most bytes alive at one moment of a forward pass without gradients, parameters and images included."""
    live = _LiveStorages(scratch_share)
    rules, mode = _autocast_rules(work), _mode(network, training=False)
    with FakeTensorMode(allow_non_fake_inputs=True), live, rules, mode, torch.no_grad():
        named = _like(network.named_parameters()) | _like(network.named_buffers())
        images, _ = _batch(work)
        live.mark_fixed((*named.values(), images))
        with torch.autocast("cpu", work.dtype, enabled=work.dtype != torch.float32):
            torch.func.functional_call(network, named, (images,))
    return live.peak_bytes


class _Step(nn.Module):
    """Forward, loss and backward in one call, so that checkpointed parts meet the fake parameters in backward too."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, loss: LossFunction, live: _LiveStorages) -> None:
        super().__init__()
        self.network, self.dtype, self.loss, self.live = network, dtype, loss, live

    def forward(self, images_BCZYX: Tensor, indices_BZYX: Tensor) -> tuple[int, int]:
        with saved_tensors_hooks(self.live.note_kept, lambda saved: saved):
            with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
                outputs = self.network(images_BCZYX)
            n_flops = self.live.n_flops
            value = self.loss([outputs] if isinstance(outputs, Tensor) else outputs, indices_BZYX)
        del outputs
        kept_bytes = self.live.kept_bytes
        value.backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
        return kept_bytes, n_flops


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch ships it untyped
    """Counts storages from the operation that makes them until they are freed, and multiplications on the way."""

    def __init__(self, scratch_share: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scratch_share = scratch_share
        self.n_flops = self.live_bytes = self.peak_bytes = 0
        self._sizes_bytes: dict[int, int] = {}
        self._kept: set[int] = set()
        self._fixed: set[int] = set()

    def mark_fixed(self, tensors: Iterable[Tensor]) -> int:
        """Take these storages for no activations; the bytes of those that were not marked before."""
        new = {self._add(tensor) for tensor in tensors} - self._fixed
        self._fixed |= new
        return sum(self._sizes_bytes[key] for key in new)

    def note_kept(self, saved: Tensor) -> Tensor:
        """Autograd saves a tensor."""
        self._kept.add(self._add(saved))
        return saved

    @property
    def kept_bytes(self) -> int:
        """Saved storages that are alive."""
        return sum(self._sizes_bytes[key] for key in self._kept - self._fixed)

    def _add(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes_bytes:
            self._sizes_bytes[key] = storage.nbytes()
            self.live_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(storage, self._drop, key).atexit = False
        return key

    def _drop(self, key: int) -> None:
        self.live_bytes -= self._sizes_bytes.pop(key)
        self._kept.discard(key)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results, named = function(*args, **(kwargs or {})), kwargs or {}
        made = _tensors(results)
        for tensor in made:
            self._add(tensor)
        packet = function.overloadpacket
        if packet in _CONVOLUTIONS:
            scratch_bytes = round(self.scratch_share * sum(t.nbytes for t in (*_tensors(args), *made)))
            self.peak_bytes = max(self.peak_bytes, self.live_bytes + scratch_bytes)
        if packet in flop_registry:
            self.n_flops += flop_registry[packet](*args, **named, out_val=results)
        return results


class _CudaAutocast(TorchFunctionMode):
    """Adds to the CPU's autocast what CUDA's computes in float32."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_autocast_enabled("cpu") and getattr(function, "__name__", "") in _FLOAT32_ON_CUDA:
            args = tuple(_as_float32(a) for a in args)
            kwargs = {name: _as_float32(a) for name, a in kwargs.items()}
        return function(*args, **kwargs)


def _as_float32(value: Any) -> Any:
    is_short = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_short else value


@contextmanager
def _mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode, and every module's own again afterwards."""
    before = {module: module.training for module in network.modules()}
    try:
        network.train(training)
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


def _autocast_rules(work: Workload) -> AbstractContextManager[Any]:
    return _CudaAutocast() if work.on_cuda else nullcontext()


def _like(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Fake tensors on the CPU: of all devices it alone has autocast and backward on every machine."""
    return {name: torch.empty(t.shape, dtype=t.dtype, requires_grad=t.requires_grad, device="cpu") for name, t in named}


def _batch(work: Workload) -> tuple[Tensor, Tensor]:
    shape = (work.batch_size, *work.patch_zyx)
    images_BCZYX = torch.empty((*shape[:1], work.n_channels, *shape[1:]), device="cpu")
    return images_BCZYX, torch.empty(shape, dtype=torch.int64, device="cpu")


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
