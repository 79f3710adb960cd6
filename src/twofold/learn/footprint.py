"""How much memory a step takes, counted without one: every tensor that is alive in it, at its fullest moment.

The step runs on the meta device, where tensors have sizes and nothing in them. What a real device does otherwise there
is put in its place: attention that keeps no matrix of weights, half precision as autocast gives it, the convolutions
that CPUs are given (`networks.convolve`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from ..networks.convolve import MIN_CHANNELS, MIN_PIXELS

SHORT = 256  # tokens up to which a CPU in bfloat16 makes the matrix of attention (`networks.blocks.attend`)
HALF = {F.linear, F.conv2d, F.conv_transpose2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm}
FULL = {F.layer_norm, F.group_norm, F.batch_norm, torch.softmax, F.softmax}


def step_bytes(
    network: nn.Module | None,
    call: Callable[[], Any],
    *,
    known: Iterable[Tensor] = (),
    half: bool = False,
    cpu: bool = True,
    backward: bool = True,
    again: bool = False,
) -> int:
    """Bytes of a call of this network, and of its backward pass, at the fullest moment, beside weights and buffers.

    network: on the meta device. known: other tensors there that are not to be counted. call: returns a tensor, or
    several. half: bfloat16 or float16 by autocast. cpu: the device is a CPU. again: gradients are there from earlier
    parts of the batch, and are not counted; otherwise those that this pass makes are.
    """
    network = network or nn.Module()
    alive = _Alive([*network.parameters(), *network.buffers(), *known])
    trained = [p for p in network.parameters() if p.requires_grad and p.grad is None] if backward else []
    for p in trained if again else []:
        p.grad = torch.empty_like(p)
        alive.ignore(p.grad)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(backward))
            stack.enter_context(alive)
            with _AsDevice(half, cpu) as mode:
                outputs = [t for t in tree_iter(call()) if isinstance(t, Tensor)]
            if backward:
                loss = torch.stack([t.float().square().mean() for t in outputs]).sum()
                stack.enter_context(_recomputed(network, mode))
                loss.backward()
                del loss
            del outputs
    finally:
        for p in trained:
            p.grad = None
    return alive.most


def evaluation_bytes(module: nn.Module, arguments: tuple[Tensor, ...], *, half: bool = False, cpu: bool = True) -> int:
    """Bytes of a call without gradients at its fullest moment, beside the weights, wherever those are.

    arguments: on the meta device.
    """
    named = (*module.named_parameters(), *module.named_buffers())
    meta = {name: torch.empty_like(value, device="meta") for name, value in named}
    call = partial(functional_call, module, meta, arguments)
    return step_bytes(None, call, half=half, cpu=cpu, backward=False, known=meta.values())


class _Alive(TorchDispatchMode):
    """Counts the bytes of all storages that are made within it and still held. most: at the fullest moment."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen = WeakIdKeyDictionary()
        for tensor in known:
            self.ignore(tensor)

    def ignore(self, tensor: Tensor) -> None:
        """This one is counted elsewhere."""
        self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_iter(found):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self.ignore(tensor)
                size = storage.nbytes()
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, size)
        return found

    def _freed(self, size: int) -> None:
        self.now -= size


class _AsDevice(TorchFunctionMode):
    """Calls on the meta device keep what they would keep on a real one."""

    def __init__(self, half: bool, cpu: bool) -> None:
        super().__init__()
        self.half, self.cpu = half, cpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k, v = (_cast(t, torch.bfloat16) if self.half else t for t in args[:3])
            if self.cpu and self.half and q.shape[2] <= SHORT:
                return torch.softmax((q * q.shape[3] ** -0.5) @ k.transpose(2, 3), dim=3).to(v.dtype) @ v
            return _Attention.apply(q, k, v)
        if self.half and func in HALF:
            args, kwargs = _all(args, kwargs, torch.bfloat16)
        elif self.half and not self.cpu and func in FULL:  # a CPU leaves them as they come
            args, kwargs = _all(args, kwargs, torch.float32)
        elif self.cpu and func is F.conv2d and _winograd(*args, **kwargs):
            return _Winograd.apply(*args[:2])
        return func(*args, **kwargs)


@contextmanager
def _recomputed(network: nn.Module, mode: _AsDevice) -> Iterator[None]:
    """Modules that run again in the backward pass (checkpointing) run as they did: no such mode reaches that pass."""
    outermost: list[nn.Module] = []

    def before(module: nn.Module, args: Any) -> None:
        if not outermost:
            outermost.append(module)
            mode.__enter__()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if outermost == [module]:
            outermost.clear()
            mode.__exit__(None, None, None)

    handles = [m.register_forward_pre_hook(before, prepend=True) for m in network.modules()]
    handles += [m.register_forward_hook(after, always_call=True) for m in network.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _winograd(x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, *rest: Any) -> bool:
    """Whether a CPU multiplies less in this convolution, and keeps more (`networks.convolve`)."""
    if tuple(weight.shape[2:]) != (3, 3) or stride != (1, 1) or padding != (1, 1) or rest not in ((), ((1, 1), 1)):
        return False
    many = min(weight.shape[:2]) >= MIN_CHANNELS and x.shape[0] * x.shape[2] * x.shape[3] >= MIN_PIXELS
    return many and x.shape[3] >= 16 and x.shape[3] % 4 == 0


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _all(args: Any, kwargs: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    return tuple(_cast(a, dtype) for a in args), {name: _cast(a, dtype) for name, a in kwargs.items()}


class _Attention(torch.autograd.Function):
    """What fused attention keeps: its inputs, its output, and a number for each row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        q, k, v = ctx.saved_tensors[:3]
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _Winograd(torch.autograd.Function):
    """What `networks.convolve.Winograd` keeps, six sums of a quarter of its input each, and what it holds meanwhile."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        sums = [torch.empty_like(x[..., ::4]) for _ in range(6)]
        ctx.save_for_backward(*sums, weight)
        out = x.new_empty(len(x), len(weight), *x.shape[2:])
        held = [torch.empty_like(out[..., ::4]) for _ in range(10)]  # six products and four sums of them
        del held
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        sums, weight = ctx.saved_tensors[:6], ctx.saved_tensors[6]
        held = [torch.empty_like(grad[..., ::4]) for _ in range(6)] + [torch.empty_like(s) for s in sums]
        found = torch.empty_like(sums[0]).repeat(1, 1, 1, 4), torch.empty_like(weight)
        del held
        return found
