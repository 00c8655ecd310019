"""The training step: what it changes and what not, its forward passes, and that it never waits for the device."""

import pytest
import torch
from tiny import make_trainer, tiny_problem
from torch.utils._python_dispatch import TorchDispatchMode

from engine.fast.precision import Arithmetic
from engine.training.metrics import EpochMetrics
from methods import METHODS


def trainer_of(name, student, teacher, *, lr=0.1, seed=0, **options):
    settings = {"steps": 2, "generator": torch.Generator().manual_seed(seed)}
    return make_trainer(name, student, [teacher] * 2, lr=lr, **settings | options)


def copy_of(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n", [1, 2])
def test_small_batches_train_the_student_and_not_the_teacher(name, n):
    student, teacher, x, y = tiny_problem(n=n, dtype=torch.float32)
    before, of_teacher = copy_of(student), copy_of(teacher)
    assert trainer_of(name, student, teacher).step(x, y).loss.isfinite()
    trains_nothing = (name, n) == ("SAAD", 1)  # its run logs such batches
    assert torch.equal(before["conv1.weight"], student.conv1.weight) == trains_nothing
    assert same(of_teacher, teacher.state_dict()) and not teacher.training


def test_a_state_of_another_memory_format_continues_equally():
    results = []
    for contiguous in (False, True):
        student, teacher, x, y = tiny_problem(n=4, dtype=torch.float32)
        trainer = trainer_of("AT", student, teacher, arithmetic=Arithmetic(channels_last=True))
        trainer.optimizer.param_groups[0]["fused"] = True  # as in a run: it pairs values by their address
        trainer.step(x, y)
        state = {"net": student.state_dict(), "optimizer": trainer.optimizer.state_dict()}
        for buffers in state["optimizer"]["state"].values() if contiguous else ():
            buffers["momentum_buffer"] = buffers["momentum_buffer"].contiguous()
        trainer.restore(state)
        trainer.step(x, y)
        results.append(copy_of(student))
    assert same(*results)


aten = torch.ops.aten
HOST_READS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique2}


class HostReads(TorchDispatchMode):
    """Records operations for which the host would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.recorded = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) else ()
        masked = any(index is not None and index.dtype == torch.bool for index in indices)
        if masked or func.overloadpacket in HOST_READS:
            self.recorded.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("epoch", [0, 60])
def test_a_step_and_its_metrics_never_wait_for_the_device(name, epoch, monkeypatch):
    student, teacher, x, y = tiny_problem(dtype=torch.float32)
    trainer, metrics = trainer_of(name, student, teacher), EpochMetrics("cpu", teacher=True)
    with HostReads() as reads:
        for method in ("cpu", "numpy", "tolist"):  # of CPU tensors they are no operations
            original = getattr(torch.Tensor, method)
            record = lambda tensor, *args, of=original, key=method: reads.recorded.append(key) or of(tensor, *args)  # noqa: E731
            monkeypatch.setattr(torch.Tensor, method, record)
        metrics.add(trainer.step(x, y, epoch), y)
        assert reads.recorded == []
        x[y > 5].sum().item()  # the guard itself
        y.tolist()
    assert reads.recorded == ["aten.index.Tensor", "aten._local_scalar_dense.default", "tolist"]


def test_parts_of_a_batch_without_batchnorm_are_the_batch():
    results = []
    for parts in (1, 3):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)).double()
        x, y = torch.rand(7, 3, 8, 8).double(), torch.arange(7)
        trainer, metrics = trainer_of("TRADES", net, None, parts=parts, clip_grad=0.1), EpochMetrics("cpu", parts=parts)
        start_noise = 0.01 * torch.randn_like(x)
        metrics.add(trainer.step(x, y, start_noise=start_noise), y)
        assert sum(parameter.grad.square().sum() for parameter in net.parameters()).sqrt() == pytest.approx(0.1)
        results.append((net[1].weight.detach(), torch.tensor(metrics.means())))
    torch.testing.assert_close(*results)
