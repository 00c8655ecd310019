"""Networks as an attack uses them: functions of the images, with constant parameters."""

import gc

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from engine.fast.folding import NotTraceable, cast_after_first_convolution, fold, frozen_copy, scales_and_shifts
from engine.fast.precision import PLAIN, Arithmetic, at_least_float32
from engine.fast.winograd import WinogradConv2d, replace_wide_convolutions
from utils.errors import first_line
from utils.log import logger

# Relative to the largest logit: float32 rounding in up to seventy layers; an error in folding changes the first digits.
ROUNDING = 1e-4


class FoldedModel(nn.Module):
    """A network in eval mode: images (B, C, H, W) in [0, 1] to logits (B, classes), differentiable only in the images.

    Computes the same function as ``network.eval()``, with each BatchNorm2d folded into the preceding convolution. It
    owns its tensors, so the network can continue training; :meth:`refresh` copies the new weights. A network without a
    fixed graph is copied without folding, which is logged; bfloat16 then starts with the images.

    Args:
        network: Any network; it does not change.
        arithmetic: Number format, memory layout and execution. bfloat16 starts after the first convolution, because
            bfloat16 pixels between 1/2 and 1 are 1/256 apart. Logits are float32 or float64, gradients have the type of
            the images. Compiled code runs for the largest batch size seen so far; smaller batches, such as the last
            of an epoch, run eagerly.
    """

    def __init__(self, network: nn.Module, arithmetic: Arithmetic = PLAIN):
        super().__init__()
        self.dtype = arithmetic.dtype
        self.memory_format = torch.channels_last if arithmetic.channels_last else torch.contiguous_format
        try:
            self.body, folds = fold(network)
        except NotTraceable as reason:
            logger.info("%s: attacks use a copy without folded BatchNorm (%s)", type(network).__name__, reason)
            self.body, folds = frozen_copy(network), []
        before_cast, winograd = set(), set()  # paths of modules and tensors in the graph
        if isinstance(self.body, fx.GraphModule):
            if self.dtype is not None and torch.finfo(self.dtype).bits < 32:
                before_cast = cast_after_first_convolution(self.body, self.dtype)
            if arithmetic.winograd:
                winograd = replace_wide_convolutions(self.body, before_cast, self.dtype)
        self._input_dtype = None if before_cast else self.dtype
        targets = {each.target for each in folds}
        self._copies = self._convert(network, targets, before_cast)
        # Tuples, so that modules of the network are not registered as submodules.
        self._folds = [(each.norm, each.conv, self.body.get_submodule(each.target)) for each in folds]
        unfolded = sorted(winograd - targets)
        self._winograd = [(network.get_submodule(path), self.body.get_submodule(path)) for path in unfolded]
        self._compiled = torch.compile(self.body.forward, dynamic=False) if arithmetic.compiled else None
        self._compiled_shape = None
        self.refresh()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) for images x (B, C, H, W) in [0, 1]."""
        if self._compiled_shape is None or len(x) > self._compiled_shape[0]:
            self._compiled_shape = x.shape
        body = self._compiled if self._compiled and x.shape == self._compiled_shape else self.body
        return at_least_float32(body(_CastInput.apply(x, self._input_dtype or x.dtype, self.memory_format)))

    def train(self, mode: bool = True) -> "FoldedModel":
        """Stay in eval mode, whatever ``mode`` is."""
        return super().train(False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the network's current parameters and statistics in place: every tensor keeps its address."""
        for copy, module, name in self._copies:
            copy.copy_(getattr(module, name))
        for conv, target in self._winograd:
            target.set_weight(conv.weight)
        if self._folds:
            scales, shifts = scales_and_shifts([norm for norm, _, _ in self._folds])
            for (_, conv, target), scale, shift in zip(self._folds, scales, shifts, strict=True):
                _write(target, conv, scale, shift)

    def detach_source(self) -> "FoldedModel":
        """Drop all references to the network, so that its memory can be freed; ``refresh`` then does nothing."""
        self._copies, self._folds, self._winograd = [], [], []
        gc.collect()  # tracing leaves reference cycles that hold its tensors
        return self

    def _convert(self, network: nn.Module, computed: set[str], before_cast: set[str]) -> list[tuple]:
        """Give every tensor, shared ones too, its own storage; return those that ``refresh`` copies and their sources.

        A source is a module of the network and the name of its attribute. Tensors of ``computed`` modules have none,
        nor have those that only the copy has, such as transformed weights.
        """
        copies = []
        parameters = self.body.named_parameters(remove_duplicate=False)
        for path, value in [*parameters, *self.body.named_buffers(remove_duplicate=False)]:
            module_path, _, name = path.rpartition(".")
            kept = any(f"{path}.".startswith(f"{each}.") for each in before_cast)  # parametrizations too
            converted = value.is_floating_point() and not kept
            memory_format = self.memory_format if value.ndim == 4 else torch.preserve_format
            copy = value.to(self.dtype if converted else None, memory_format=memory_format, copy=True)
            copy = nn.Parameter(copy, requires_grad=False) if isinstance(value, nn.Parameter) else copy
            setattr(self.body.get_submodule(module_path), name, copy)
            source = None if module_path in computed else network.get_submodule(module_path)
            if hasattr(source, name):
                copies.append((copy, source, name))
        return copies


class AutocastModel:
    """A network under autocast: float32 weights, activations in ``arithmetic.dtype``, logits in float32 or float64."""

    def __init__(self, network: nn.Module, arithmetic: Arithmetic = PLAIN):
        self.network, self.arithmetic = network, arithmetic

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) for images x (B, C, H, W) in [0, 1]."""
        with self.arithmetic.autocast(x.device.type):
            logits = self._forward(x)
        return at_least_float32(logits)

    def _forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class FrozenModel(AutocastModel):
    """A network in its current mode with detached parameters; logits equal those of :class:`AutocastModel` bit for bit.

    In train mode BatchNorm uses the statistics of the batch and updates the network's running statistics.
    """

    def _forward(self, x: Tensor) -> Tensor:
        constants = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
        return functional_call(self.network, constants, (x,))


def make_attack_model(network: nn.Module, x: Tensor, precision: str = "fp32") -> nn.Module:
    """Return the copy of a frozen network that the attacks of an evaluation use: a FoldedModel for ``precision``.

    The folding is verified in float32 on images x (B, C, H, W). If the logits differ from the network's by more than
    rounding, or a copy fails, such as that of a TorchScript program or of a module that holds a lock, a warning is
    logged, and the network itself is used, or its copy in float32 if only that in bfloat16 fails.
    """
    with torch.no_grad():
        expected = network(x)
        # In bfloat16 the loss of a confident prediction has no gradient.
        model = network if at_least_float32(expected) is expected else AutocastModel(network)
        try:
            # In fp32, without tensor cores, a GPU is faster in PyTorch's default layout.
            copy = FoldedModel(network, Arithmetic(channels_last=precision != "fp32" or x.device.type == "cpu"))
            if not (copy(x) - expected).abs().max() <= ROUNDING * expected.abs().max():
                raise ValueError("its logits differ")
            model = copy
            if precision == "bf16":
                copy = FoldedModel(network, Arithmetic(torch.bfloat16, channels_last=True))
                copy(x)
                model = copy
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a network may run any code
            name, reason = type(network).__name__, first_line(error)
            kind = "bfloat16 " if isinstance(model, FoldedModel) else ""
            logger.warning("WARNING: %s: attacks cannot use a folded %scopy (%s)", name, kind, reason)
    return model


class _CastInput(torch.autograd.Function):
    """Convert images to a model's type and memory format; the gradient has the type and format of the images."""

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
        ctx.dtype = x.dtype
        ctx.memory_format = torch.contiguous_format if x.is_contiguous() else torch.preserve_format
        return x.to(dtype, memory_format=memory_format)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.to(ctx.dtype, memory_format=ctx.memory_format), None, None


def _write(target: nn.Module, conv: nn.Conv2d | None, scale: Tensor, shift: Tensor) -> None:
    """Make ``target`` compute ``scale * conv(x) + shift``, or ``scale * x + shift`` without a convolution."""
    if conv is None:
        target.weight.copy_(scale.view_as(target.weight))
    else:
        scales = scale.view(-1, 1, 1, 1)
        if isinstance(target, WinogradConv2d):
            target.set_weight(conv.weight * scales)
        else:
            torch.mul(conv.weight, scales, out=target.weight)
        shift = shift if conv.bias is None else torch.addcmul(shift, scale, conv.bias)
    target.bias.copy_(shift.view_as(target.bias))
