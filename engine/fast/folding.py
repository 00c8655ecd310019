"""A network in eval mode as an fx graph in which each BatchNorm2d is part of the preceding convolution."""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from engine.fast.precision import at_least_float32
from engine.sync_batchnorm import SYNCED
from utils.errors import first_line


class NotTraceable(Exception):
    """The network has no fixed graph; the message is one line."""


class Affine(nn.Module):
    """Multiply-add per channel: features (B, C, H, W) times ``weight`` plus ``bias``, both (C, 1, 1)."""

    def __init__(self, channels: int, like: Tensor):
        super().__init__()
        self.weight = nn.Parameter(like.new_empty(channels, 1, 1), requires_grad=False)
        self.bias = nn.Parameter(like.new_empty(channels, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled and shifted features."""
        return torch.addcmul(self.bias, x, self.weight)


class Fold(NamedTuple):
    """A BatchNorm2d that was removed from the graph.

    ``norm`` and ``conv`` (None without a convolution) are modules of the network. ``target`` is the path of the
    convolution or Affine in the graph whose weight and bias replace both.
    """

    norm: nn.Module
    conv: nn.Conv2d | None
    target: str


def frozen_copy(network: nn.Module) -> nn.Module:
    """Return a copy of a network in eval mode and without gradients."""
    # Some networks store features of their last forward pass, and deepcopy fails for tensors with a grad_fn.
    features = (value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return deepcopy(network, {id(value): value.detach().clone() for value in features}).eval().requires_grad_(False)


def fold(network: nn.Module) -> tuple[fx.GraphModule, list[Fold]]:
    """Return the network's eval-mode graph without BatchNorm2d modules, and a list of the removed ones.

    A BatchNorm2d is folded into the preceding convolution if nothing else uses the convolution's output; otherwise an
    Affine replaces it. The caller computes weight and bias of every ``target`` with :func:`scales_and_shifts`; all
    other tensors are copies. Modules that the forward pass does not use are not in the graph.

    Raises NotTraceable if the operations of the forward pass depend on its input, or a module has hooks.
    """
    body = _trace(network)
    modules = dict(body.named_modules())
    calls = Counter(node.target for node in body.graph.nodes if node.op == "call_module")
    folds = []
    for node in list(body.graph.nodes):
        module = modules[node.target] if node.op == "call_module" else None
        if type(module) not in (nn.BatchNorm2d, *SYNCED) or module.running_var is None:
            continue
        (source,) = node.all_input_nodes
        conv = modules[source.target] if source.op == "call_module" else None
        norm = network.get_submodule(node.target)
        if type(conv) is nn.Conv2d and len(source.users) == calls[source.target] == 1:
            folds.append(Fold(norm, network.get_submodule(source.target), source.target))
            conv.bias = nn.Parameter(conv.weight.new_empty(conv.out_channels), requires_grad=False)
            node.replace_all_uses_with(source)
            body.graph.erase_node(node)
        else:
            folds.append(Fold(norm, None, node.target))
            body.set_submodule(node.target, Affine(norm.num_features, norm.running_var))
    body.delete_all_unused_submodules()
    body.recompile()
    return body, folds


def cast_after_first_convolution(body: fx.GraphModule, dtype: torch.dtype) -> set[str]:
    """Cast the output of the graph's first convolution to ``dtype``; return the paths of what is used before the cast.

    Images stay float32: a step of an attack can be as small as the spacing of bfloat16 pixels. A graph without a
    convolution, or whose images something else than this convolution reads, does not change.
    """
    modules = dict(body.named_modules())
    before_cast, earlier, images = set(), set(), set()  # images: those of the graph, and what is computed from them
    for node in body.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            before_cast.add(node.target)
        earlier.add(node)
        if node.op == "call_module" and isinstance(modules[node.target], nn.Conv2d):
            users = {user for value in images for user in value.users}
            if any(user not in earlier and not _reads_shape(user) for user in users):
                break
            with body.graph.inserting_after(node):
                cast = body.graph.call_method("to", (node, dtype))
            node.replace_all_uses_with(cast)
            cast.args = (node, dtype)
            body.recompile()
            return before_cast
        if node.op == "placeholder" or (images.intersection(node.all_input_nodes) and not _reads_shape(node)):
            images.add(node)
    return set()


def _reads_shape(node: fx.Node) -> bool:
    return node.target in (getattr, "size", "dim")


def scales_and_shifts(norms: Sequence[nn.BatchNorm2d]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return the scale and the shift (C,) of every BatchNorm in eval mode, in float32 or float64."""
    variances = [at_least_float32(norm.running_var) for norm in norms]
    deviations = torch._foreach_sqrt(torch._foreach_add(variances, [norm.eps for norm in norms]))
    means = [at_least_float32(norm.running_mean) for norm in norms]
    pairs = list(zip(norms, means, strict=True))
    weights = [at_least_float32(norm.weight) if norm.affine else torch.ones_like(mean) for norm, mean in pairs]
    biases = [at_least_float32(norm.bias) if norm.affine else torch.zeros_like(mean) for norm, mean in pairs]
    scales = torch._foreach_div(weights, deviations)
    return scales, torch._foreach_addcmul(biases, means, scales, value=-1)


class _Tracer(fx.Tracer):
    # Buffers stay attributes of the graph; otherwise values computed from them would become constants.
    proxy_buffer_attributes = True

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, SYNCED) or super().is_leaf_module(module, path)


def _trace(network: nn.Module) -> fx.GraphModule:
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        raise NotTraceable("it has forward hooks")
    root = frozen_copy(network)
    try:
        return fx.GraphModule(root, _Tracer().trace(root))
    except Exception as error:  # a forward pass may raise anything when it receives a proxy
        raise NotTraceable(first_line(error)) from error
