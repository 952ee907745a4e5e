"""Faster steps on a CPU: freed memory is kept, and convolutions run as matrix products where those are faster.

oneDNN's convolutions nearly reach the speed of the machine's matrix product for large maps. They are slower for deep,
small maps and, in bf16, for the weight gradient. In fp32 this holds on Intel's CPUs, where MKL, which multiplies
matrices for PyTorch, is at its best; on AMD's CPUs MKL's products are slower than the convolutions.
`edkd bench engine.cpu_kernels=false` times a machine without these kernels. The mathematics is the same, but sums run
in another order: the last bits differ from PyTorch's own and between such machines, as they do anyway.
"""

import contextlib
import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from edkd.training import hardware

_PRODUCT_PIXELS = 16  # maps of up to 4×4 pixels: the whole convolution as matrix products
_PRODUCT_PIXELS_BF16 = 64  # maps of up to 8×8: in bf16, the weight gradient alone
_PRODUCT_CHANNELS = 64  # either limit applies from this many input channels on

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # constants in glibc's malloc.h


def keep_memory() -> None:
    """Make glibc's allocator keep freed memory instead of returning it to the kernel after every tensor.

    A step allocates and frees the same hundreds of megabytes again and again; each return costs a page fault for every
    4 kB when the memory is next touched. Without glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def use_products(network: nn.Module, *, in_fp32: bool) -> None:
    """Let the network's convolutions run as matrix products where that is faster; names and weights stay.

    in_fp32: use products outside of autocast, too; see `fast_products`.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Convolution
            module.in_fp32 = in_fp32  # type: ignore[assignment]


def fast_products() -> bool:
    """Whether fp32 matrix products come near this CPU's peak, as MKL's do on the CPUs of its maker, Intel."""
    return hardware.cpu_vendor() == "GenuineIntel"


class Convolution(nn.Conv2d):
    """A convolution that chooses its way of computing by its shape."""

    in_fp32: bool

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W'], as `nn.Conv2d`."""
        if self.dilation != (1, 1) or self.padding_mode != "zeros":
            return super().forward(x)
        half = torch.is_autocast_enabled("cpu")
        if self.groups > 1:
            return self._grouped(x)
        if not (half or self.in_fp32):
            return super().forward(x)
        if self.kernel_size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0):
            return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        pixels = x.shape[2] * x.shape[3]
        if (
            (self.kernel_size, self.stride, self.padding) == ((3, 3), (1, 1), (1, 1))
            and self.in_channels >= _PRODUCT_CHANNELS
            and pixels <= (_PRODUCT_PIXELS_BF16 if half else _PRODUCT_PIXELS)
        ):
            weight = self.weight
            if half:
                dtype = torch.get_autocast_dtype("cpu")
                x, weight = x.to(dtype), weight.to(dtype)
            whole = pixels <= _PRODUCT_PIXELS
            made: Tensor = _Products.apply(x, weight, whole)
            if whole:
                made = made.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
            return made if self.bias is None else made + self.bias.to(made.dtype)[:, None, None]
        return super().forward(x)

    def _grouped(self, x: Tensor) -> Tensor:
        """Fp32 even under autocast: with strides, oneDNN's depthwise gradient takes 100 times as long in bf16."""
        if not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class _Products(torch.autograd.Function):
    """A 3×3 convolution, stride 1, padding 1: (x [B, C, H, W], weight [K, C, 3, 3]) -> [B·H·W, K].

    `whole` False: only the gradient with respect to the weights is a matrix product, and the result is [B, K, H, W].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, whole: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.whole = whole
        if not whole:
            return F.conv2d(x, weight, None, 1, 1)
        # Not returned as a view, which could not be changed in place.
        return _neighbourhoods(x) @ _matrix(weight).t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        batch, channels, height, width = x.shape
        gradient = gradients[0] if ctx.whole else gradients[0].contiguous(memory_format=torch.channels_last)
        rows = gradient if ctx.whole else gradient.permute(0, 2, 3, 1).reshape(-1, len(weight))
        of_weight = of_x = None
        if ctx.needs_input_grad[1]:
            of_weight = (rows.t() @ _neighbourhoods(x)).view(-1, 3, 3, channels).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0] and not ctx.whole:
            of_x = conv2d_input(x.shape, weight, gradient, 1, 1)
        elif ctx.needs_input_grad[0]:
            parts = (rows @ _matrix(weight)).view(batch, height, width, 3, 3, channels)
            padded = x.new_zeros(batch, height + 2, width + 2, channels)
            for i in range(3):
                for j in range(3):
                    padded[:, i : i + height, j : j + width] += parts[:, :, :, i, j]
            of_x = padded[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
        return of_x, of_weight, None


def _neighbourhoods(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B·H·W, 9·C], what a 3×3 kernel sees at each pixel."""
    batch, channels, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    row, image = (width + 2) * channels, (width + 2) * (height + 2) * channels
    windows = padded.as_strided((batch, height, width, 3, 3, channels), (image, row, channels, row, channels, 1))
    return windows.reshape(-1, 9 * channels)


def _matrix(weight: Tensor) -> Tensor:
    """[K, C, 3, 3] -> [K, 9·C], in the order of `_neighbourhoods`."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
