"""A network in eval mode as a graph in which each BatchNorm2d has become part of the convolution before it."""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from engine.sync_batchnorm import SyncedBatchNorm2d


class NotTraceable(Exception):
    """The forward of a network is no fixed graph; the message says why in one line."""


class Affine(nn.Module):
    """One multiply-add a channel: features (B, C, H, W) times ``weight`` plus ``bias``, (C, 1, 1) both."""

    def __init__(self, channels: int, like: Tensor):
        super().__init__()
        self.weight = nn.Parameter(like.new_empty(channels, 1, 1), requires_grad=False)
        self.bias = nn.Parameter(like.new_empty(channels, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled and shifted features."""
        return torch.addcmul(self.bias, x, self.weight)


class Fold(NamedTuple):
    """A BatchNorm2d that left the graph: paths of it and of its convolution in the network, and of ``target``, the
    convolution or Affine of the graph whose weight and bias are to hold both. ``conv`` is None where there is none.
    """

    norm: str
    conv: str | None
    target: str


def skeleton(network: nn.Module) -> nn.Module:
    """Return a frozen copy in eval mode, free to be rebuilt; its parameters and buffers share the network's storage."""
    shared = {id(value): nn.Parameter(value.detach(), requires_grad=False) for value in network.parameters()}
    shared |= {id(value): value.detach() for value in network.buffers()}
    # Some networks keep features of their last forward, and deepcopy refuses a tensor with a history.
    kept = (value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return deepcopy(network, shared | {id(value): value.detach().clone() for value in kept}).eval()


def fold(network: nn.Module) -> tuple[fx.GraphModule, list[Fold]]:
    """Return the network's eval-mode graph without its BatchNorm2d, and what to write where they were.

    A BatchNorm2d becomes part of the convolution before it where nothing else reads that one's output, an Affine
    elsewhere. The weight and bias of every ``target`` are still to be computed, see :func:`scales_and_shifts`; all
    other tensors share the network's storage. What the forward does not use is not in the graph.

    Raises NotTraceable where the forward depends on its data or has hooks.
    """
    body = _trace(network)
    modules = dict(body.named_modules())
    calls = Counter(node.target for node in body.graph.nodes if node.op == "call_module")
    folds = []
    for node in list(body.graph.nodes):
        if node.op != "call_module" or not _stands_still(modules[node.target]):
            continue
        (source,) = node.all_input_nodes
        conv = modules[source.target] if source.op == "call_module" else None
        if type(conv) is nn.Conv2d and len(source.users) == calls[source.target] == 1:
            folds.append(Fold(node.target, source.target, source.target))
            conv.bias = nn.Parameter(conv.weight.new_empty(conv.out_channels), requires_grad=False)
            node.replace_all_uses_with(source)
            body.graph.erase_node(node)
        else:
            folds.append(Fold(node.target, None, node.target))
            norm = modules[node.target]
            body.set_submodule(node.target, Affine(norm.num_features, norm.running_var))
    body.delete_all_unused_submodules()
    body.recompile()
    return body, folds


def cast_after_first_convolution(body: fx.GraphModule, dtype: torch.dtype) -> set[str]:
    """Let the graph go on in ``dtype`` behind its first convolution; return the paths of what comes before that.

    So no image is rounded: a step of an attack can be as short as bfloat16's spacing of pixels. A graph without a
    convolution is left alone.
    """
    modules = dict(body.named_modules())
    early = set()
    for node in body.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            early.add(node.target)
        if node.op == "call_module" and isinstance(modules[node.target], nn.Conv2d):
            with body.graph.inserting_after(node):
                cast = body.graph.call_method("to", (node, dtype))
            node.replace_all_uses_with(cast)
            cast.args = (node, dtype)
            body.recompile()
            return early
    return set()


def scales_and_shifts(norms: Sequence[nn.BatchNorm2d]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What each BatchNorm in eval mode multiplies its channels by, and then adds: (C,) each, in float32 or better."""
    deviations = torch._foreach_add([_precise(norm.running_var) for norm in norms], [norm.eps for norm in norms])
    torch._foreach_sqrt_(deviations)
    affine = [(norm.weight, norm.bias) if norm.affine else _identity(norm) for norm in norms]
    scales = torch._foreach_div([_precise(weight) for weight, _ in affine], deviations)
    means = [_precise(norm.running_mean) for norm in norms]
    return scales, torch._foreach_addcmul([_precise(bias) for _, bias in affine], means, scales, value=-1)


class _Tracer(fx.Tracer):
    # A buffer stays an attribute of the graph: what is computed from it while tracing would never change again.
    proxy_buffer_attributes = True

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, SyncedBatchNorm2d) or super().is_leaf_module(module, path)


def _trace(network: nn.Module) -> fx.GraphModule:
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        raise NotTraceable("it has forward hooks")
    root = skeleton(network)
    try:
        return fx.GraphModule(root, _Tracer().trace(root))
    except Exception as error:  # a proxy in place of images makes someone else's forward raise anything
        raise NotTraceable(str(error).strip().partition("\n")[0] or type(error).__name__) from error


def _stands_still(module: nn.Module) -> bool:
    return type(module) in (nn.BatchNorm2d, SyncedBatchNorm2d) and module.running_var is not None


def _precise(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _identity(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    return torch.ones_like(norm.running_var), torch.zeros_like(norm.running_var)
