"""CUDA without a GPU: tensors that know shape, type and device but hold no numbers, and groups that move nothing.

torch has both: FakeTensorMode, which refuses an operation on tensors of two devices, and the process group "fake".
What they leave open is done here, for one process of its own (`gpu_path_worker`), never for the tests' process:

* the build of torch that tests install knows no CUDA, and says so to its autograd engine in two places; there it is
  made to answer as a CUDA build on a machine without a GPU does (`answer_as_a_cuda_build`);
* a few functions of `torch.cuda` that ask a driver (`DRIVER`);
* `nn.Module.cuda` exchanges parameters in place, which fake tensors refuse;
* a number that the host reads from the device: there is none, so it reads 1 (a truth value: True), and every such
  read is recorded, since on a GPU the host waits there.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = 1
"""c10::DeviceType::CUDA."""

OPERATIONS = {
    "allreduce_": "all_reduce", "allreduce_coalesced_": "all_reduce", "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather", "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter", "broadcast_": "broadcast", "send": "send", "recv_": "recv",
}  # fmt: skip
GROUPS = {
    "TENSOR_MODEL_PARALLEL_GROUP": "tp", "PIPELINE_MODEL_PARALLEL_GROUP": "pp",
    "DATA_PARALLEL_GROUP_WITH_CP": "dp", "MODEL_PARALLEL_GROUP": "model", "EMBEDDING_GROUP": "embedding",
    "CONTEXT_PARALLEL_GROUP": "cp",
    "default_pg": "world", "INTRA_DISTRIBUTED_OPTIMIZER_INSTANCE_GROUP": "instance",
}  # fmt: skip
"""The description that megatron-core (or torch) gives a group, to its kind."""


class Collective(NamedTuple):
    """One tensor of one collective: `elements` are those of the larger side."""

    group: str
    operation: str
    elements: int
    dtype: str
    device: str


class Recorder(TorchDispatchMode):
    """Writes down collectives, in order, the names of operations, and how often the host reads from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[Collective] = []
        self.operations: set[str] = set()
        self.host_reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.host_reads += args[0].device.type == "cuda"
            return True if args[0].dtype is torch.bool else 1.0
        name = func._schema.name
        self.operations.add(name)
        if not name.startswith("c10d::"):
            return func(*args, **(kwargs or {}))
        self._record(name.removeprefix("c10d::"), args)
        # torch has fake versions of all but the coalesced ones
        return FakeWork().boxed() if "coalesced" in name else func(*args, **(kwargs or {}))

    def _record(self, name: str, args: tuple) -> None:
        boxed = next(arg for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()))
        group = GROUPS[dist.ProcessGroup.unbox(boxed).group_desc]
        sides = [arg if isinstance(arg, list) else [arg] for arg in args if isinstance(arg, list | torch.Tensor)]
        larger = max(sides, key=lambda side: sum(tensor.numel() for tensor in side))
        for tensor in larger:
            kind = OPERATIONS[name], tensor.numel(), str(tensor.dtype).removeprefix("torch."), tensor.device.type
            self.collectives.append(Collective(group, *kind))


def module_to_cuda(module: torch.nn.Module, *_: object) -> torch.nn.Module:
    """What `nn.Module.cuda` does, with new parameters in place of the old; their marks and what is tied stay."""
    moved: dict[int, torch.nn.Parameter] = {}
    for child in module.modules():
        for name, old in child._parameters.items():
            if old is None:
                continue
            if id(old) not in moved:
                new = torch.nn.Parameter(torch.empty_like(old, device="cuda"), old.requires_grad)
                for mark, value in vars(old).items():
                    vars(new).setdefault(mark, value)
                moved[id(old)] = new
            child._parameters[name] = moved[id(old)]
    return module


def lower_right_triangle(queries: int, keys: int) -> torch.Tensor:
    """The mask that `causal_lower_right` stands for, whole."""
    return torch.ones(queries, keys, dtype=torch.bool, device="cuda").tril(keys - queries)


_STATE = torch.get_rng_state()
DRIVER: dict[str, Callable[..., Any]] = {
    "torch.cuda.set_device": lambda *_: None,
    "torch.cuda.current_device": lambda: 0,
    "torch.cuda.get_device_capability": lambda *_: (9, 0),
    "torch.cuda.synchronize": lambda *_: None,
    "torch.cuda.manual_seed": lambda *_: None,
    "torch.cuda.get_rng_state": lambda *_, **__: _STATE,
    "megatron.core.tensor_parallel.random._get_cuda_rng_state": lambda *_, **__: _STATE,
    "megatron.core.tensor_parallel.random._set_cuda_rng_state": lambda *_, **__: None,
    "torch.nn.Module.cuda": module_to_cuda,
    # a tensor of a class of its own, which cannot be made inside FakeTensorMode
    "megatron_ext.model.context_parallel.causal_lower_right": lower_right_triangle,
    # torch.compile cannot be asked for a kernel from inside FakeTensorMode
    "megatron_ext.platform.kernels.has_triton": lambda: False,
}


@contextlib.contextmanager
def fake_cuda(rank: int, world_size: int) -> Iterator[tuple[Recorder, dict[str, Any]]]:
    """Be rank `rank` of `world_size` on GPUs that are not there; yield the recorder and what NCCL was started with."""
    started: dict[str, Any] = {}

    def init_process_group(backend: str, **given: Any) -> None:
        started.update(given, backend=backend)
        connect("fake", rank=rank, world_size=world_size, store=FakeStore())

    connect = dist.init_process_group
    answer_as_a_cuda_build()
    with contextlib.ExitStack() as stack:
        for name, replacement in {**DRIVER, "torch.distributed.init_process_group": init_process_group}.items():
            stack.enter_context(mock.patch(name, replacement))
        stack.enter_context(mock.patch.dict("os.environ", {"MASTER_ADDR": "nowhere", "LOCAL_RANK": "0"}))
        # the initial weights come from NumPy: real tensors that are copied into fake ones
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(Recorder()), started


_KEPT: list[Any] = []
"""What C++ objects point to from now on."""


def answer_as_a_cuda_build() -> None:
    """Let torch without a GPU, of either build, run autograd over fake CUDA tensors; nothing to do twice.

    FakeTensorMode puts a guard that does nothing in the place of CUDA's device guard if that exists and counts no
    devices, as in a CUDA build. So in a CPU build one is registered whose every function answers 0. The engine then
    asks the hooks of CUDA whether it was built and whether a device is in use; those two of their virtual functions
    answer yes.
    """
    if torch.cuda.is_available() or _KEPT:
        return
    libraries = Path(torch.__file__).parent / "lib"
    c10, aten = (ctypes.CDLL(str(libraries / name)) for name in ("libc10.so", "libtorch_cpu.so"))
    zero, yes = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0), ctypes.CFUNCTYPE(ctypes.c_bool)(lambda: True)
    functions = (ctypes.c_void_p * 64)(*[_address(zero)] * 64)
    guard = ctypes.c_void_p(ctypes.addressof(functions))
    if not torch.backends.cuda.is_built():
        register = c10._ZN3c104impl19registerDeviceGuardENS_10DeviceTypeEPKNS0_24DeviceGuardImplInterfaceE
        register.argtypes = [ctypes.c_int8, ctypes.c_void_p]
        register(CUDA, ctypes.addressof(guard))

    get_hooks = aten._ZN2at6detail12getCUDAHooksEv
    get_hooks.restype = ctypes.c_void_p
    hooks = ctypes.c_void_p.from_address(get_hooks())
    own = ctypes.cast(hooks.value, ctypes.POINTER(ctypes.c_void_p))
    table = (ctypes.c_void_p * 60)(*own[:60])
    # AcceleratorHooksInterface.h: after the two destructors isBuilt, isAvailable, hasPrimaryContext
    table[2] = table[4] = _address(yes)
    hooks.value = ctypes.addressof(table)
    _KEPT.extend((zero, yes, functions, guard, table))


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
