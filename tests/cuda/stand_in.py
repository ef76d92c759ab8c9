"""CUDA on a machine without a GPU: true values, and each place where a real GPU would be waited for.

Two parts. A library in place of CUDA's runtime (runtime.c) makes torch believe in a GPU: tensors, generators, events,
page-locked memory and autograd's threads are torch's own, but kernels do nothing. `StandIn`, a mode below autograd and
autocast, computes each operation with the CPU's kernel on the same memory, refuses operands on different devices, and
counts operations and waits.

It finds faults of device, type, waiting, memory and logic. It knows nothing of speed, of cuDNN, Triton and NCCL, or of
races between streams. Printing a CUDA tensor under the mode does not end; compiled code does not see the mode.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HERE = Path(__file__).parent
# what the headers of the runtime expect of nvcc's own
_HOST_DEFINES = """#pragma once
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDART_CB
#define __host__
#define __device__
#define __global__
#define __cudart_builtin__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __specialization_static static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __annotate__(a)
#define __location__(a)
"""


class NotHere(Exception):
    """The stand-in cannot be built; the message says what is missing."""


def build(folder: Path) -> dict[str, str]:
    """Compile the runtime; the environment of a process that is to use it.

    Raises:
        NotHere: If torch is not built for CUDA, or a tool is missing.
    """
    names = ("libtorch_cuda.so", "libc10_cuda.so", "libcaffe2_nvrtc.so")
    libraries = [Path(torch.__file__).parent / "lib" / name for name in names]
    headers = sorted(Path(torch.__file__).parent.parent.glob("nvidia/cu*/include/cuda_runtime_api.h"))
    if not all(map(Path.is_file, libraries)) or not headers:
        raise NotHere("this torch is not built for CUDA")
    if missing := [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]:
        raise NotHere(f"{' and '.join(missing)} not found")
    if sys.platform != "linux":
        raise NotHere("it needs Linux's loader")
    said = subprocess.run(
        ["nm", "-D", "--undefined-only", *libraries], check=True, capture_output=True, text=True
    ).stdout
    wanted = set(re.findall(r" (cu(?:da)?[A-Z]\w*)", said))
    ours = set(re.findall(r"^cudaError_t (\w+)\(", (HERE / "runtime.c").read_text(), re.MULTILINE))
    (folder / "crt").mkdir(parents=True)
    (folder / "crt" / "host_defines.h").write_text(_HOST_DEFINES)
    rest = {name: f"int {name}(void) {{ return 0; }}" for name in sorted(wanted - ours)}
    (folder / "rest.c").write_text("\n".join(line for name, line in rest.items() if name.startswith("cuda")))
    (folder / "driver.c").write_text("\n".join(line for name, line in rest.items() if not name.startswith("cuda")))
    compile_ = ["gcc", "-O1", "-w", "-shared", "-fPIC", f"-I{folder}", f"-I{headers[0].parent}"]
    subprocess.run([*compile_, HERE / "runtime.c", folder / "rest.c", "-o", folder / "runtime.so"], check=True)
    subprocess.run(
        [*compile_, folder / "driver.c", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1"], check=True
    )
    return {"LD_PRELOAD": str(folder / "runtime.so"), "LD_LIBRARY_PATH": str(folder)}


def waits() -> int:
    """Waits inside the runtime so far: also those of torch's own C++, which the mode does not see."""
    count: Callable[[], int] = ctypes.CDLL(None).stand_in_waits
    return count()


class Found:
    """What was seen since the last `clear`, by the phase of a step that was set."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.phase = ""
        self.operations: Counter[tuple[str, str]] = Counter()
        self.waits: Counter[str] = Counter()

    def waits_in(self, *phases: str) -> dict[str, int]:
        """Where a GPU would be waited for in these phases, and how often."""
        return {place: n for place, n in self.waits.items() if place.split(":")[0] in phases}


FOUND = Found()
# operations whose result decides what the host does next, or whose size it must know
_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "_unique2", "unique_dim", "histc"}
_WAITING |= {"repeat_interleave", "is_nonzero"}
_WITHOUT_KERNEL = {"set_", "resize_", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "view"}
_WITHOUT_KERNEL |= {"detach", "lift_fresh", "alias", "is_pinned", "_pin_memory", "record_stream", "_unsafe_view"}
_WITHOUT_KERNEL |= {"_reshape_alias", "as_strided"}
_TAKES_BOTH = {"copy_", "_to_copy", "where", "set_", "_pin_memory", "_amp_update_scale_"}
_SHORT = (torch.float16, torch.bfloat16)
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class StandIn(TorchDispatchMode):
    """Computes what CUDA tensors ask for; `install` puts it in place."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = call.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_cuda = [tensor for tensor in tensors if tensor.is_cuda]
        wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        makes_cuda = wanted is not None and wanted.type == "cuda"
        if not on_cuda and not makes_cuda:
            return call(*args, **kwargs)
        if call.namespace == "segpipe":  # operations of ours are Python; this mode sees what they do
            with self:
                return _python_of(name)(*args, **kwargs)
        if torch.is_inference_mode_enabled():  # there operations that consist of others arrive whole, such as `to`
            with self:
                result = call.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if call.is_view or name in _WITHOUT_KERNEL:
            return call(*args, **kwargs)
        _refuse_mixed(call, name, tensors, on_cuda)
        _note(name, args, kwargs, wanted)
        device = on_cuda[0].device if on_cuda else torch.device("cuda", wanted.index or 0 if wanted else 0)
        target = device if wanted is None or (makes_cuda and wanted.index is None) else wanted
        return _compute(call, name, args, kwargs, target)


def _python_of(name: str) -> Callable[..., Any]:
    from segpipe.train import losses

    return {"tubes": losses.tubes._init_fn}[name]


def _refuse_mixed(call: Any, name: str, tensors: list[Tensor], on_cuda: list[Tensor]) -> None:
    apart = [t for t in tensors if not t.is_cuda and t.dim()]
    allowed = name in _TAKES_BOTH | _INDEXING or name.startswith(("_foreach", "_fused"))
    if on_cuda and ((apart and not allowed) or (len({t.device for t in on_cuda}) > 1 and name not in _TAKES_BOTH)):
        raise RuntimeError(f"{call}: operands on {sorted({str(t.device) for t in tensors})}, at {_place()}")


def _note(name: str, args: Any, kwargs: Any, wanted: torch.device | None) -> None:
    reasons = []
    if name in _WAITING:
        reasons.append(name)
    if name == "_to_copy" and wanted is not None and wanted.type != args[0].device.type:
        reasons += [] if kwargs.get("non_blocking") else [f"copy to {wanted.type}"]
    if name == "copy_" and args[0].device.type != args[1].device.type:
        asynchronous = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        reasons += [] if asynchronous else [f"copy to {args[0].device.type}"]
    if name in _INDEXING:
        chosen = [index for index in args[1] if index is not None]
        reasons += ["index of booleans" for index in chosen if index.dtype in (torch.bool, torch.uint8)]
        reasons += ["index from the host" for index in chosen if not index.is_cuda]
    with FOUND.lock:
        FOUND.operations[FOUND.phase, name] += 1
        for reason in reasons:
            FOUND.waits[f"{FOUND.phase}: {reason} at {_place()}"] += 1


def _place() -> str:
    """The line of segpipe that is being carried out."""
    frame = sys._getframe(1)
    while frame is not None:
        before, inside, path = frame.f_code.co_filename.rpartition("/segpipe/")
        if inside and "site-packages" not in before:
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "backward"


def _compute(call: Any, name: str, args: Any, kwargs: Any, target: torch.device) -> Any:
    twins: dict[int, tuple[Tensor, Tensor]] = {}

    def to_host(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if isinstance(value, torch.Generator) and value.device.type == "cuda":
            return torch.Generator().manual_seed(value.initial_seed())
        if not isinstance(value, Tensor) or not value.is_cuda:
            return value
        if id(value) not in twins:
            twins[id(value)] = (_twin(value), value)
        return twins[id(value)][0]

    host_args, host_kwargs = tree_map(to_host, (args, kwargs))
    if host_kwargs.get("pin_memory"):
        host_kwargs["pin_memory"] = False
    if name == "_to_copy":
        host_kwargs.pop("non_blocking", None)
    result = _call(call, name, host_args, host_kwargs)
    own = {id(twin): tensor for twin, tensor in twins.values()}

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in own:
            return own[id(value)]
        return value if target.type == "cpu" else _placed(value, target)

    return tree_map(back, result)


def _call(call: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The CPU's kernel; what only CUDA has, by what computes the same."""
    if name == "cudnn_batch_norm":
        outputs = torch.ops.aten.native_batch_norm(*args[:8])
        return *outputs, torch.empty(0, dtype=torch.uint8)
    if name == "cudnn_batch_norm_backward":
        x, slope, weight, mean, variance, own_mean, own_scale, epsilon, _ = args
        return torch.ops.aten.native_batch_norm_backward(
            slope, x, weight, mean, variance, own_mean, own_scale, True, epsilon, [True, True, True]
        )
    if name in ("_softmax", "_log_softmax") and args[2]:  # from half precision to float32 in one kernel
        return call(args[0].float(), args[1], False)
    if name in ("_softmax_backward_data", "_log_softmax_backward_data") and args[3] != args[0].dtype:  # and back
        return call(*args[:3], args[0].dtype).to(args[3])
    if name in ("convolution", "convolution_backward") and args[0].dtype == torch.float16:  # minutes on a CPU
        return _call_in_float32(call, args, kwargs)
    try:
        return call(*args, **kwargs)
    except NotImplementedError as fault:
        if "'Half'" not in str(fault) and "'BFloat16'" not in str(fault):
            raise
        return _call_in_float32(call, args, kwargs)


def _call_in_float32(call: Any, args: Any, kwargs: Any) -> Any:
    """What CUDA computes of a short type and the CPU does not; the result is of that type again."""
    short = next(x.dtype for x in tree_leaves(args) if isinstance(x, Tensor) and x.dtype in _SHORT)
    wide = tree_map(lambda x: x.float() if isinstance(x, Tensor) and x.dtype == short else x, args)
    return tree_map(lambda x: x.to(short) if isinstance(x, Tensor) else x, call(*wide, **kwargs))


def _twin(tensor: Tensor) -> Tensor:
    """A CPU tensor on the memory of a CUDA one."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr())
    whole = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    twin = torch.empty(0, dtype=tensor.dtype).set_(whole, tensor.storage_offset(), tensor.size(), tensor.stride())
    return twin.conj() if tensor.is_conj() else twin


def _placed(value: Tensor, device: torch.device) -> Tensor:
    result = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=device)
    if value.numel():
        _twin(result).copy_(value)
    return result


def install() -> None:
    """Put the mode in place for this thread and those that pools start."""
    StandIn().__enter__()
    submit = concurrent.futures.ThreadPoolExecutor.submit

    def with_mode(pool: Any, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            with StandIn():
                return call(*args, **kwargs)

        return submit(pool, run)

    concurrent.futures.ThreadPoolExecutor.submit = with_mode  # type: ignore[method-assign]
