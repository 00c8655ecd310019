"""Convolutions of 3x3 by Winograd's F(2x2, 3x3): 16 multiplications for 4 outputs where the definition takes 36.

Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016. An output tile of 2x2 depends on an
input tile of 4x4, which overlaps its neighbors by two. Both are transformed by additions only; between the transforms
each of the 16 elements of a tile is a matrix product over channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

MIN_CHANNELS = 160  # of input and output; with fewer, the transforms cost as much as the products save
KERNEL = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
OUTPUT = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])
# By whether the kernel is mirrored: its transform has its first and last row exchanged, so the gradient needs no
# separate weights.
ORDERS = {False: [0, 1, 2, 3], True: [3, 1, 2, 0]}
OUTPUTS = {mirrored: torch.kron(OUTPUT[:, order], OUTPUT[:, order]) for mirrored, order in ORDERS.items()}
# Elements of transformed images per chunk: they and their products fit into a CPU's last-level cache.
CHUNK = 2**22


class WinogradConv2d(nn.Module):
    """A 3x3 convolution with stride 1, padding 1 and constant weights, differentiable only in its input.

    Maps features (B, C, H, W) to channels-last features (B, K, H, W); a channels-last input is fastest.
    :meth:`set_weight` stores the weight transformed, as ``planes`` (16, K, C). In bfloat16 the transformed features are
    rounded too: errors are two to three times those of ``nn.Conv2d``.

    Args:
        conv: Source of the numbers of channels and of the bias.
        dtype: Of ``planes``; None for that of the convolution.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype | None = None):
        super().__init__()
        planes = conv.weight.new_empty(16, conv.out_channels, conv.in_channels, dtype=dtype)
        self.planes = nn.Parameter(planes, requires_grad=False)
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved features."""
        return _Convolution.apply(x, self.planes, self.bias, False)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Compute ``planes`` in place from a weight (K, C, 3, 3), preferably in float32."""
        kernel = torch.kron(KERNEL, KERNEL).to(weight)
        rows = weight.permute(0, 2, 3, 1).reshape(len(weight), 9, -1)
        self.planes.copy_((kernel @ rows).transpose(0, 1))


def replace_wide_convolutions(body: fx.GraphModule, skip: set[str], dtype: torch.dtype | None) -> set[str]:
    """Replace every convolution that this accelerates with a :class:`WinogradConv2d`, whose weight the caller sets.

    Returns their paths. Paths in ``skip`` are not replaced.
    """
    modules = dict(body.named_modules())
    called = {node.target for node in body.graph.nodes if node.op == "call_module"}
    wide = {path for path in called - skip if _is_faster(modules[path])}
    for path in wide:
        body.set_submodule(path, WinogradConv2d(modules[path], dtype))
    return wide


def _is_faster(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and min(module.in_channels, module.out_channels) >= MIN_CHANNELS
        and (module.kernel_size, module.stride, module.padding) == ((3, 3), (1, 1), (1, 1))
        and (module.dilation, module.groups, module.padding_mode) == ((1, 1), 1, "zeros")
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, planes: Tensor, bias: Tensor | None, mirrored: bool) -> Tensor:
        ctx.save_for_backward(planes)
        ctx.mirrored = mirrored
        x = x.permute(0, 2, 3, 1)
        matrices = planes if mirrored else planes.transpose(1, 2)
        chunks = x.split(max(1, CHUNK // (4 * x[0].numel())))
        result = x.new_empty(len(x), x.shape[1] + x.shape[1] % 2, x.shape[2] + x.shape[2] % 2, matrices.shape[2])
        for chunk, out in zip(chunks, result.split(len(chunks[0])), strict=True):
            _convolve(chunk, matrices, bias, mirrored, out)
        return result[:, : x.shape[1], : x.shape[2]].permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (planes,) = ctx.saved_tensors
        return _Convolution.apply(gradient, planes, None, not ctx.mirrored), None, None, None


def _convolve(x: Tensor, matrices: Tensor, bias: Tensor | None, mirrored: bool, out: Tensor) -> None:
    """Convolve x (B, H, W, C) into out (B, 2h, 2w, K).

    ``matrices`` (16, C, K) are the transform of a weight, or of the mirrored weight if ``mirrored``.
    """
    n, height, width, channels = out.shape
    h, w, order = height // 2, width // 2, ORDERS[mirrored]
    # Zeros complete the last tile of an odd side.
    padded = F.pad(x, (0, 0, 1, 1 + width - x.shape[2], 1, 1 + height - x.shape[1]))
    rows = x.new_empty(4, n, h, width + 2, x.shape[3])
    _transform(padded.unfold(1, 4, 2).unbind(-1), rows.unbind(0), order)
    tiles = x.new_empty(4, 4, n, h, w, x.shape[3])
    _transform(rows.unfold(3, 4, 2).unbind(-1), tiles.unbind(1), order)
    products = torch.bmm(tiles.view(16, -1, x.shape[3]), matrices)
    outputs = torch.mm(OUTPUTS[mirrored].to(x), products.view(16, -1)).view(2, 2, n, h, w, channels)
    target = out.view(n, h, 2, w, 2, channels).permute(2, 4, 0, 1, 3, 5)
    target.copy_(outputs) if bias is None else torch.add(outputs, bias, out=target)


def _transform(rows: Sequence[Tensor], outs: Sequence[Tensor], order: Sequence[int]) -> None:
    """Transform the four rows of every tile along one axis."""
    torch.sub(rows[0], rows[2], out=outs[order[0]])
    torch.add(rows[1], rows[2], out=outs[order[1]])
    torch.sub(rows[2], rows[1], out=outs[order[2]])
    torch.sub(rows[1], rows[3], out=outs[order[3]])
