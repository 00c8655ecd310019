"""The PGD loop captured as a graph gives the eager loop's images for every batch; on a CPU a recorder replaces CUDA."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from test_trainer import trainer_of
from tiny import CUDA, tiny_problem
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attacks.objectives import cross_entropy
from attacks.pgd import pgd
from engine.fast.frozen import FoldedModel, FrozenModel
from engine.fast.graphs import MAX_GRAPHS, GraphedPGD, capture_cuda_graph
from engine.training.averaging import Ema
from engine.training.weight_perturbation import WeightPerturbation
from methods import METHODS, WITHOUT_ATTACK

BALL = {"epsilon": 8 / 255, "step_size": 2 / 255}
CHANGING = []


class Recorder(TorchDispatchMode):
    """Records kernels with the tensors that they read and write, as a CUDA graph records them with addresses."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


def record(run):
    """Capture on the CPU: warm up, then record; a replay runs the recorded kernels without calling ``run``."""
    run()
    with Recorder() as recorder:
        result = run()

    def replay():
        recorder.replay()
        return result

    return replay


def trained(name, loop, device, pieces):
    """Train on batches of several sizes; return adversarial images and the student's state."""
    student, teacher, _, _ = tiny_problem()
    teacher.linear.weight.mul_(20)  # SAAD gives no weight to images of which the teacher is equally uncertain
    student, teacher, options = student.to(device), teacher.to(device), {}
    if pieces:
        options = {"average": Ema(student, 0.9), "perturbation": WeightPerturbation(student, 0.01), "parts": 2}
    trainer = trainer_of(name, student, teacher, **options)
    trainer.pgd = partial(loop, steps=2)
    images, attack = [], trainer.attack
    trainer.attack = lambda *args, **options: images.append(attack(*args, **options)) or images[-1]
    # Weights, images, labels and running statistics change between batches; the first batch and the fourth are smaller.
    for seed, n in enumerate((4, 6, 6, 3, 6)):
        x, y = (value.to(device) for value in tiny_problem(seed, n)[2:])
        trainer.step(x, y, start_noise=torch.full_like(x, 0.001))
    return [value.cpu() for value in (*images, *student.state_dict().values())]


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("name", sorted(METHODS.keys() - WITHOUT_ATTACK))
def test_training_with_replays_equals_eager_training(name, pieces, device):
    captures, capture = [], record if device == "cpu" else capture_cuda_graph
    graphed = GraphedPGD(lambda run: captures.append(1) or capture(run))
    got, expected = trained(name, graphed, device, pieces), trained(name, pgd, "cpu", pieces)
    assert len(graphed.graphs) == 1 and len(captures) == 2
    # float64: only the order of sums differs between the devices.
    tolerances = {"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(got, expected, **tolerances)


class Problem:
    """A folded student, images, their labels and a start."""

    def __init__(self):
        self.student, _, self.x, self.y = tiny_problem()
        self.model, self.start = FoldedModel(self.student), self.x + 0.001

    def check(self, loop, objective, **options):
        """Compare the loop with PGD on an objective."""
        options = BALL | {"steps": 2} | options
        x_adv = loop(objective, self.x, self.start, **options)
        assert torch.equal(x_adv, pgd(objective, self.x, self.start, **options))
        return x_adv


def objective_of(model, y, weight=1.0):
    return lambda z: weight * cross_entropy(model(z), y)


def test_epsilon_and_step_size_may_change_but_constants_make_graphs_up_to_a_limit(caplog):
    problem, graphed = Problem(), GraphedPGD(record)
    objective = objective_of(problem.model, problem.y)
    results = [problem.check(graphed, objective, epsilon=epsilon, step_size=epsilon / 3) for epsilon in (0.1, 0.2)]
    assert len(graphed.graphs) == 1 and not torch.equal(*results)  # results are copies
    problem.check(graphed, objective, steps=3)
    assert len(graphed.graphs) == 2
    for weight in (-1.0, *range(MAX_GRAPHS + 2)):
        problem.check(graphed, objective_of(problem.model, problem.y, weight))
    assert len(graphed.graphs) == MAX_GRAPHS
    assert [line.partition(" because ")[0] for line in caplog.messages] == ["CUDA graphs: an attack runs eagerly"]


def counting(model, y, count=0):
    def losses(z):
        nonlocal count
        count += 1
        return count * cross_entropy(model(z), y)

    return losses


# From a network, its module and labels: objectives whose values can change although their tensors do not.
OPAQUE = {
    "default argument": lambda model, module, y: lambda z, y=y: cross_entropy(model(z), y),
    "module": lambda model, module, y: lambda z: cross_entropy(module(z), y),
    "global variable": lambda model, module, y: lambda z: cross_entropy(model(z), y) * (1 + len(CHANGING)),
    "assignment": lambda model, module, y: counting(model, y),
    "inner function": lambda model, module, y: lambda z: (lambda logits: cross_entropy(logits, y))(model(z)),
    "partial": lambda model, module, y: partial(objective_of(model, y)),
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_an_opaque_objective_runs_eagerly(kind, caplog):
    problem, graphed = Problem(), GraphedPGD(lambda run: pytest.fail("captured"))
    for _ in range(2):
        objectives = (OPAQUE[kind](problem.model, problem.student.eval(), problem.y) for _ in range(2))
        got, expected = (
            loop(objective, problem.x, problem.start, **BALL, steps=2)
            for loop, objective in zip((graphed, pgd), objectives, strict=True)
        )
        assert torch.equal(got, expected)
    (line,) = caplog.messages
    assert line.startswith("CUDA graphs: an attack runs eagerly because its objective ")


def test_a_failed_capture_runs_eagerly_and_leaves_network_and_objective_as_they_were(caplog):
    problem, graphed = Problem(), GraphedPGD(record)
    twin, y = deepcopy(problem.student), problem.y

    def objective_with(model):
        def losses(z):
            values = cross_entropy(model(z), y)
            return values if values.sum().item() > 0 else -values  # waits for the device, which a capture cannot

        return losses

    for _ in range(2):
        got, expected = (
            loop(objective_with(FrozenModel(network)), problem.x, problem.start, **BALL, steps=2)
            for loop, network in ((graphed, problem.student), (pgd, twin))
        )
        assert torch.equal(got, expected)
    torch.testing.assert_close(problem.student.state_dict(), twin.state_dict(), rtol=0, atol=0)
    reason = "operation not permitted when stream is capturing"
    line = f"CUDA graphs: the capture failed and attacks run eagerly; use --compile off ({reason})"
    assert caplog.messages == [line]
    assert not graphed.graphs and y is problem.y
