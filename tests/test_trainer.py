"""The training step: what it changes and what not, its forward passes, and that it never waits for the device."""

import numpy as np
import pytest
import torch
from commands import SMALL
from conftest import ROOT
from run_files import folder_of, rows_of, state_of
from tiny import make_trainer, part, tiny_from, tiny_problem
from torch.utils._python_dispatch import TorchDispatchMode

from data import TEST_SUBSET_SEED, load, subset
from engine.checkpoint import LAST
from engine.fast.precision import Arithmetic
from engine.training.averaging import Ema, Swa
from engine.training.metrics import EpochMetrics
from engine.training.weight_perturbation import WeightPerturbation
from methods import METHODS, WITH_SOFT_LABELS
from models import build


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


@pytest.mark.parametrize("name", sorted(WITH_SOFT_LABELS - {"TRADES"}))  # its attack with mixed labels is another one
def test_classes_and_their_probabilities_train_equally(name):
    states = []
    for convert in (lambda y: y, lambda y: torch.nn.functional.one_hot(y, 10).double()):
        student, teacher, x, y = tiny_problem()
        trainer_of(name, student, teacher).step(x, convert(y))
        states.append(student.state_dict())
    torch.testing.assert_close(*states)


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


@pytest.mark.parametrize("name", METHODS)
def test_a_step_creates_tensors_only_on_the_device_of_the_images(name):
    with torch.device("meta"):  # operations on it and another device fail, as on a GPU
        student, teacher, x, y = tiny_problem(dtype=torch.float32)
    pieces = {"average": Ema(student, 0.9), "perturbation": WeightPerturbation(student, 0.01), "clip_grad": 1.0}
    trainer = make_trainer(name, student, [teacher] * 2, steps=2, **pieces)
    for epoch in (0, 60):
        assert trainer.step(x, y, epoch).loss.is_meta


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
        results.append((net[1].weight.detach(), torch.tensor(list(metrics.means().values()))))
    torch.testing.assert_close(*results)


# The average of the weights: its values, and what a run does with it.

RUN = f"{SMALL} --method AT --lr_schedule constant"


@pytest.mark.recorded
def test_the_average_of_recorded_weights():
    with np.load(ROOT / "tests" / "recorded" / "ema_DM.npz") as file:
        steps, weights, averages = (torch.from_numpy(file[key]) for key in ("steps", "weights", "averages"))
    student = torch.nn.Linear(16, 4, bias=False).double()
    student.weight.data.copy_(averages[0])
    average = Ema(student, tau=0.995)
    for step, weight, expected in zip(steps, weights, averages[1:], strict=True):
        student.weight.data.copy_(weight)
        average.count = int(step) - 1
        average.after_step()
        torch.testing.assert_close(average.network.weight.data, expected, rtol=1e-12, atol=1e-15)


def test_parameters_and_batchnorm_statistics_are_averaged_after_every_step():
    student, teacher, x, y = tiny_problem()
    average = Ema(student, tau=0.15)
    trainer = trainer_of("DGAD", student, teacher, average=average)
    expected = copy_of(student)
    for k in (1, 2):
        with HostReads() as reads:
            trainer.step(x, y)
        assert reads.recorded == []
        decay = min(0.15, (1 + k) / (10 + k))
        for key, value in copy_of(student).items():
            expected[key] = decay * expected[key] + (1 - decay) * value if value.is_floating_point() else value
    torch.testing.assert_close(average.network.state_dict(), expected)
    assert not average.network.training and not any(p.requires_grad for p in average.network.parameters())


@pytest.mark.recorded
def test_the_mean_of_recorded_weights_and_its_batchnorm_statistics():
    path = ROOT.parent / "shared" / "golden2" / "swa.npz"
    if not path.exists():
        pytest.skip("the recorded networks are not in this folder")
    with np.load(path) as file:  # c00: statistics weighted by images
        keys = [key for key in file.files if key.startswith("c00.") and key != "c00.meta"]
        arrays = {key.removeprefix("c00."): torch.from_numpy(np.asarray(file[key])) for key in keys}
    student = tiny_from(part(arrays, "model0"))
    average = Swa(student, start=0)
    for epoch in range(3):
        student.load_state_dict(part(arrays, f"model{epoch + 1}"))
        for _ in range(2):  # the second time is that of a resumed run
            average.after_epoch(epoch, [arrays[f"loader_x{k}"] for k in range(3)])
        expected, got = part(arrays, f"swa{epoch + 1}"), average.network.state_dict()
        for key in expected.keys() - {"bn1.num_batches_tracked", "bn2.num_batches_tracked"}:
            torch.testing.assert_close(got[key], expected[key], rtol=1e-12, atol=1e-14)


def test_the_mean_of_the_weights_from_an_epoch_on(train, tmp_path):
    raw = {}
    for epoch in (1, 2, 3):
        train(f"{RUN} --swa_start 2 --epochs {epoch} --resume")
        state = state_of(tmp_path)
        raw[epoch] = state["net_raw"]
        averaged = range(2, epoch + 1) if epoch > 1 else [1]
        mean = {key: sum(raw[e][key] for e in averaged) / len(averaged) for key in raw[1]}
        for key in raw[1]:
            if epoch == 1 or not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
                torch.testing.assert_close(state["net"][key], mean[key], check_dtype=False)
    key = next(key for key in raw[1] if key.endswith("running_mean"))
    assert not torch.allclose(state["net"][key], state["net_raw"][key])


def test_validation_and_checkpoints_use_the_average_and_keep_the_raw_network(train, tmp_path):
    train(f"{RUN} --ema 0.9 --epochs 2")
    checkpoint = torch.load(folder_of(tmp_path) / LAST, weights_only=True)
    state = state_of(tmp_path)
    assert same(state["net"], checkpoint["net"]) and same(state["net_raw"], checkpoint["net_raw"])
    assert state["averaged"] == 2 * 3
    images = subset(load("Digits", None, image_size=16).test, 40, TEST_SUBSET_SEED)
    losses = {}
    for key in ("net", "net_raw"):
        network = build("small_resnet", 10, 16)
        network.load_state_dict(checkpoint[key])
        losses[key] = torch.nn.functional.cross_entropy(network.eval()(images.images / 255), images.labels).item()
    assert float(rows_of(tmp_path)[-1]["clean_loss"]) == pytest.approx(losses["net"], rel=2e-5)
    assert losses["net"] != pytest.approx(losses["net_raw"], rel=2e-4)
