"""The PGD loop of a training attack as one CUDA graph: one launch instead of one per kernel and step."""

import dis
from collections.abc import Callable
from functools import cache
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.pgd import Objective, pgd
from engine.fast.frozen import FoldedModel, FrozenModel
from engine.sync_batchnorm import SYNCED
from utils.errors import first_line
from utils.log import logger

WARM_UP = 3  # runs before a capture, in which libraries allocate workspaces and choose algorithms
MAX_GRAPHS = 4  # each holds the activations of a step; a method has one or two attacks
CONSTANTS = (int, float, str, type(None))
GLOBALS = (*CONSTANTS, ModuleType, FunctionType, BuiltinFunctionType, type)


class NotCapturable(Exception):
    """The values of an objective depend on more than tensors, networks and constants; the message is the reason."""


class Graph(NamedTuple):
    """A captured loop: ``replay()`` computes its result, in a fixed tensor, from the values in ``inputs``."""

    inputs: list[Tensor]
    replay: Callable[[], Tensor]


def capture_cuda_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture ``run`` as a CUDA graph on the current device; return a function that replays it."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # the outer context leaves the stream even if the capture fails
        for _ in range(WARM_UP):
            run()
        with torch.cuda.graph(graph, stream=stream):
            result = run()
    torch.cuda.current_stream().wait_stream(stream)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class GraphedPGD:
    """:func:`attacks.pgd.pgd`, captured as a graph once for each objective and replayed for every batch.

    An objective is a new closure for every batch. Its tensors (images, labels, logits of a teacher) become inputs of
    the graph, which are copied before a replay; its networks are :class:`FoldedModel` and :class:`FrozenModel`, whose
    tensors change in place. If the objective uses anything else, or the capture fails, the loop runs eagerly, which is
    logged once. Batches smaller than the captured one, such as the last of an epoch, also run eagerly.

    Args:
        capture: Takes a function without arguments, which it may call several times, and returns its replay.
    """

    def __init__(self, capture: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] = capture_cuda_graph):
        self.graphs: dict[tuple, Graph] = {}
        self._capture, self._capture_failed, self._log_once = capture, False, cache(logger.warning)

    def __call__(
        self, objective: Objective, x: Tensor, start: Tensor, *, epsilon: float, step_size: float, steps: int
    ) -> Tensor:
        """Return adversarial images (B, C, H, W); arguments as for :func:`attacks.pgd.pgd`."""
        inputs = [x, start.detach(), x.new_full((), epsilon), x.new_full((), step_size)]
        graph = None
        try:
            if not self._capture_failed:
                graph = self._graph_for(objective, inputs, steps)
        except (NotCapturable, ValueError) as reason:  # ValueError: an unassigned variable of a closure
            self._log_once("CUDA graphs: an attack runs eagerly because %s", str(reason))
        except RuntimeError as error:
            self._capture_failed = True
            cause = first_line(error.__context__ or error)  # ending a failed capture raises a second error
            self._log_once("CUDA graphs: the capture failed and attacks run eagerly; use --compile off (%s)", cause)
        if graph is None:
            return pgd(objective, x, start, epsilon=epsilon, step_size=step_size, steps=steps)
        for static, value in zip(graph.inputs, inputs, strict=True):
            static.copy_(value)
        return graph.replay().clone()

    def _graph_for(self, objective: Objective, inputs: list[Tensor], steps: int) -> Graph | None:
        """Return the graph for an objective, None for a smaller batch; append its tensors to ``inputs``."""
        cells, key = scan_closure(objective)
        key = (steps, *key)
        inputs += [cell.cell_contents.detach() for cell in cells]
        graph = self.graphs.get(key)
        if graph and [(t.shape, t.dtype) for t in graph.inputs] == [(t.shape, t.dtype) for t in inputs]:
            return graph
        if graph and len(inputs[0]) < len(graph.inputs[0]):
            return None
        if not graph and len(self.graphs) == MAX_GRAPHS:
            raise NotCapturable("the constants of its objective or the addresses of its network change")
        # The warm-up must not change BatchNorm's running statistics.
        buffers = [buffer for model in key if isinstance(model, FrozenModel) for buffer in model.network.buffers()]
        contents, saved = [cell.cell_contents for cell in cells], [buffer.clone() for buffer in buffers]
        static = [value.clone() for value in inputs]
        x, start, epsilon, step_size, *tensors = static
        try:
            for cell, value in zip(cells, tensors, strict=True):
                cell.cell_contents = value
            replay = self._capture(lambda: pgd(objective, x, start, epsilon=epsilon, step_size=step_size, steps=steps))
        finally:
            for cell, value in zip(cells, contents, strict=True):
                cell.cell_contents = value
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)
        self.graphs[key] = Graph(static, replay)
        return self.graphs[key]


def scan_closure(function) -> tuple[list[CellType], list]:
    """Return the cells of an objective's closure that contain tensors, and a key of everything else.

    Equal keys mean the same function of the tensors. Raises NotCapturable if the function may change and its key not.
    """
    if type(function) is not FunctionType:
        raise NotCapturable(f"its objective uses a {type(function).__name__}")
    code, variables = function.__code__, function.__globals__
    if not _is_plain(code) or function.__defaults__ or function.__kwdefaults__:
        raise NotCapturable("its objective has default arguments, assigns to outer variables or defines functions")
    cells, key = [], [code, function.__module__]
    for name in code.co_names:
        if name in variables and not isinstance(variables[name], GLOBALS):
            raise NotCapturable(f"its objective reads the global variable {name}")
        key.append(variables.get(name))
    for cell in function.__closure__ or ():
        value = cell.cell_contents
        if isinstance(value, Tensor):
            cells.append(cell)
            key.append(Tensor)
        elif isinstance(value, FoldedModel):
            key.append(value)
        elif isinstance(value, FrozenModel):
            key += _state_of(value)
        elif isinstance(value, CONSTANTS):
            key += [type(value), value]
        else:
            inner_cells, inner_key = scan_closure(value)
            cells += inner_cells
            key += inner_key
    return cells, key


@cache
def _is_plain(code: CodeType) -> bool:
    """Return whether a function neither assigns to variables outside of it nor defines functions."""
    assigns = any(
        step.opname == "STORE_GLOBAL" or (step.opname == "STORE_DEREF" and step.argval in code.co_freevars)
        for step in dis.get_instructions(code)
    )
    return not assigns and not any(isinstance(constant, CodeType) for constant in code.co_consts)


def _state_of(model: FrozenModel) -> list:
    """Return a key of the mode of a network and of the addresses of its tensors."""
    modules = list(model.network.modules())
    if any(isinstance(module, SYNCED) for module in modules):
        raise NotCapturable("its BatchNorm communicates between processes")
    tensors = [*model.network.parameters(), *model.network.buffers()]
    return [model, *(module.training for module in modules), *(tensor.data_ptr() for tensor in tensors)]
