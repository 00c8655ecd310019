"""Networks as an attack sees them: functions of the images alone, whose parameters are constants."""

import gc

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from engine.fast.folding import (
    Fold,
    NotTraceable,
    cast_after_first_convolution,
    fold,
    scales_and_shifts,
    skeleton,
)
from engine.fast.precision import PLAIN, Arithmetic
from engine.fast.winograd import WinogradConv2d, replace_wide_convolutions
from utils.log import logger

# Of the largest logit: float32 sums in another order through some seventy layers; a wrong fold changes first digits.
ROUNDING = 1e-4


class FoldedModel(nn.Module):
    """A network in eval mode: images (B, C, H, W) in [0, 1] to logits (B, classes), differentiable by the images only.

    It computes what ``network.eval()`` would, with each BatchNorm2d folded into the convolution before it. It holds
    copies of the tensors that this needs, so the network may train on, in whatever mode; :meth:`refresh` catches up.
    A network whose forward is no fixed graph is copied whole, and a line of the log says so.

    Args:
        network: Any network; it is never changed.
        arithmetic: Of weights and activations inside. bfloat16 begins behind the first convolution, for it would tell
            pixels between 1/2 and 1 apart by 1/256 only. Logits are float32 at least, gradients of the images' own
            type. Compiled for the largest batch that has come; smaller ones, as an epoch's last, take the plain way.
    """

    def __init__(self, network: nn.Module, arithmetic: Arithmetic = PLAIN):
        super().__init__()
        self.dtype = arithmetic.dtype
        self.memory_format = torch.channels_last if arithmetic.channels_last else torch.contiguous_format
        self.body, folds = _body_of(network)
        coarse = self.dtype is not None and torch.finfo(self.dtype).bits < 32
        graph = isinstance(self.body, fx.GraphModule)
        early = cast_after_first_convolution(self.body, self.dtype) if coarse and graph else set()
        self._entry = None if early else self.dtype
        folded = {each.target for each in folds}
        wide = replace_wide_convolutions(self.body, early, self.dtype) if arithmetic.winograd and graph else set()
        self._copies = self._part_from(network, folded | wide, early)
        # In tuples, so that the network's modules do not become the view's.
        self._folds = [_parts(each, network, self.body) for each in folds]
        self._alone = [(network.get_submodule(path), self.body.get_submodule(path)) for path in sorted(wide - folded)]
        self._compiled = torch.compile(self.body.forward, dynamic=False) if arithmetic.compiled else None
        self._shape = None  # of the images that it is compiled for
        self.refresh()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) for images x (B, C, H, W) in [0, 1]."""
        if self._shape is None or len(x) > self._shape[0]:
            self._shape = x.shape
        body = self._compiled if self._compiled and x.shape == self._shape else self.body
        logits = body(_CastInput.apply(x, self._entry or x.dtype, self.memory_format))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def train(self, mode: bool = True) -> "FoldedModel":
        """Stay in eval mode, whatever an attack asks for."""
        return super().train(False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the network's present parameters and statistics, in place: every tensor keeps its address."""
        for own, owner, key in self._copies:
            own.copy_(getattr(owner, key))
        for conv, target in self._alone:
            target.take(conv.weight)
            if conv.bias is not None:
                target.bias.copy_(conv.bias)
        if self._folds:
            scales, shifts = scales_and_shifts([norm for norm, _, _ in self._folds])
            for (_, conv, target), scale, shift in zip(self._folds, scales, shifts, strict=True):
                _write(target, conv, scale, shift)

    def detach_source(self) -> "FoldedModel":
        """Forget the network, so that its memory is free once nobody else holds it; ``refresh`` does nothing then."""
        self._copies, self._folds, self._alone = [], [], []
        gc.collect()  # tracing leaves cycles behind that still hold its tensors
        return self

    def _part_from(
        self, network: nn.Module, computed: set[str], early: set[str]
    ) -> list[tuple[Tensor, nn.Module, str]]:
        """Give every tensor its own storage; list those to copy again, with whose attribute each is in the network."""
        copies = []
        named = (self.body.named_parameters, self.body.named_buffers)
        for path, shared in [pair for named in named for pair in named(remove_duplicate=False)]:
            owner, _, key = path.rpartition(".")
            own = self._copy(shared, shared.dtype if {path, owner} & early else self.dtype)
            own = nn.Parameter(own, requires_grad=False) if isinstance(shared, nn.Parameter) else own
            setattr(self.body.get_submodule(owner), key, own)
            if owner not in computed and hasattr(source := network.get_submodule(owner), key):
                copies.append((own, source, key))
        return copies

    def _copy(self, value: Tensor, dtype: torch.dtype | None) -> Tensor:
        dtype = dtype if dtype and value.is_floating_point() else value.dtype
        memory_format = self.memory_format if value.ndim == 4 else torch.preserve_format
        return value.detach().to(dtype, memory_format=memory_format, copy=True)


class FrozenModel:
    """``network`` in the mode it is in, with detached parameters: the forward of the network itself, bit for bit.

    In train mode BatchNorm reads the batch and moves the network's running statistics, as it does in a plain forward.
    """

    def __init__(self, network: nn.Module, arithmetic: Arithmetic = PLAIN):
        self.autocast_student = AutocastModel(network, arithmetic)

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) for images x (B, C, H, W) in [0, 1]."""
        network = self.autocast_student.network
        constants = {name: parameter.detach() for name, parameter in network.named_parameters()}
        return self.autocast_student.compute(x, lambda images: functional_call(network, constants, (images,)))


class AutocastModel:
    """The training network itself in some arithmetic: float32 weights, logits in float32 at least."""

    def __init__(self, network: nn.Module, arithmetic: Arithmetic = PLAIN):
        self.network, self.arithmetic = network, arithmetic

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) for images x (B, C, H, W) in [0, 1]."""
        return self.compute(x, self.network)

    def compute(self, x: Tensor, forward) -> Tensor:
        """``forward(x)`` in the arithmetic."""
        with self.arithmetic.autocast(x.device.type):
            logits = forward(x)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def make_attack_model(network: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> nn.Module:
    """Return the copy of a frozen network that the attacks of an evaluation use: a FoldedModel in ``dtype``.

    The folding is verified in float32 on images x (B, C, H, W). If its logits differ from the network's by more than
    rounding, which takes a network of unusual code, the network itself is returned and a warning is logged.
    """
    arithmetic = Arithmetic(channels_last=x.device.type == "cpu")
    folded = FoldedModel(network, arithmetic)
    with torch.no_grad():
        expected, logits = network(x), folded(x)
    if not (logits - expected).abs().max() <= ROUNDING * expected.abs().max():
        logger.warning("%s: cannot be folded faithfully and is attacked as it is", type(network).__name__)
        return network
    return folded if dtype is None else FoldedModel(network, Arithmetic(dtype, channels_last=True))


class _CastInput(torch.autograd.Function):
    """Images in a view's type and memory layout; their gradient returns in their own, which attacks may rely on."""

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
        ctx.dtype = x.dtype
        ctx.memory_format = torch.contiguous_format if x.is_contiguous() else torch.preserve_format
        return x.to(dtype, memory_format=memory_format)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.to(ctx.dtype, memory_format=ctx.memory_format), None, None


def _body_of(network: nn.Module) -> tuple[nn.Module, list[Fold]]:
    try:
        return fold(network)
    except NotTraceable as reason:
        logger.info("%s: attacked as it is, without folded BatchNorm (%s)", type(network).__name__, reason)
        return skeleton(network), []


def _parts(each: Fold, network: nn.Module, body: nn.Module) -> tuple[nn.Module, nn.Module | None, nn.Module]:
    conv = None if each.conv is None else network.get_submodule(each.conv)
    return network.get_submodule(each.norm), conv, body.get_submodule(each.target)


def _write(target: nn.Module, conv: nn.Conv2d | None, scale: Tensor, shift: Tensor) -> None:
    """Let ``target`` compute ``scale * conv(x) + shift``, or ``scale * x + shift`` without a convolution."""
    if conv is None:
        target.weight.copy_(scale.view_as(target.weight))
    else:
        scales = scale.view(-1, 1, 1, 1)
        if isinstance(target, WinogradConv2d):
            target.take(conv.weight * scales)
        else:
            torch.mul(conv.weight, scales, out=target.weight)
        shift = shift if conv.bias is None else torch.addcmul(shift, scale, conv.bias)
    target.bias.copy_(shift.view_as(target.bias))
