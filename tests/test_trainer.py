"""The training loop: what a step changes and what it leaves alone, and how an epoch is judged."""

import pytest
import torch
from tiny import TinyNet, tiny_problem

from engine.accuracy import evaluate
from engine.fast.precision import Arithmetic
from engine.training.metrics import EpochMetrics
from engine.training.trainer import Trainer
from methods import METHODS, WITH_TWO_TEACHERS, WITHOUT_TEACHER
from utils.config import TrainConfig


def trainer_of(name, student, teacher, *, lr=0.1, seed=0, **options):
    teachers = [teacher] * (0 if name in WITHOUT_TEACHER else 2 if name in WITH_TWO_TEACHERS else 1)
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9)
    settings = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 2, "generator": torch.Generator().manual_seed(seed)}
    method = METHODS[name](TrainConfig(method=name))
    return Trainer(student, teachers, method, optimizer, **(settings | options))


def copy_of(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", METHODS)
def test_loss_falls_on_one_batch_and_the_teacher_keeps_its_bytes(name):
    student, teacher, x, y = tiny_problem(n=16, dtype=torch.float32)
    before = copy_of(teacher)
    trainer = trainer_of(name, student, teacher)
    losses = [trainer.step(x, y).loss.item() for _ in range(30)]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert same(before, teacher.state_dict()) and not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n", [1, 2])
def test_small_batches_train(name, n):
    student, teacher, x, y = tiny_problem(n=n, dtype=torch.float32)
    before = copy_of(student)
    outcome = trainer_of(name, student, teacher).step(x, y)
    assert outcome.loss.isfinite()
    assert not torch.equal(before["conv1.weight"], student.conv1.weight)


@pytest.mark.parametrize("right", [True, False])
def test_dgad_trains_with_a_teacher_right_or_wrong_on_every_image(right):
    student, teacher, x, _ = tiny_problem(n=4, dtype=torch.float32)
    with torch.no_grad():
        y = teacher(x).argmax(1) if right else teacher(x).argmin(1)
    assert trainer_of("DGAD", student, teacher).step(x, y).loss.isfinite()


def test_a_state_of_another_memory_layout_goes_on_alike():
    ended = []
    for elsewhere in (False, True):
        student, teacher, x, y = tiny_problem(n=4, dtype=torch.float32)
        trainer = trainer_of("AT", student, teacher, arithmetic=Arithmetic(channels_last=True))
        trainer.optimizer.param_groups[0]["fused"] = True  # as in a run: it pairs values by their address
        trainer.step(x, y)
        state = {"net": student.state_dict(), "optimizer": trainer.optimizer.state_dict()}
        for memory in state["optimizer"]["state"].values() if elsewhere else ():
            memory["momentum_buffer"] = memory["momentum_buffer"].contiguous()
        trainer.restore(state)
        trainer.step(x, y)
        ended.append(copy_of(student))
    assert same(*ended)


# Student forwards in train mode per step, in the attack (of 2 steps here) and after it, before and from the epoch of
# introspection on. They are the official ones, less those that exist for logging alone (docs/differences.md).
TRAIN_FORWARDS = {
    "Natural": (1, 1),  # x
    "AT": (1, 1),  # x'
    "TRADES": (3, 3),  # x, x', x
    "MART": (2, 2),  # x, x'
    "ARD": (4, 4),  # attack, x', x
    "IAD-I": (4, 5),  # attack, x', x, and x again
    "RSLAD": (2, 2),  # x', x
    "AdaAD": (2, 2),  # x, x'
    "AdaIAD": (2, 3),  # x', x, and x again
    "DGAD": (2, 2),  # x, x'
    "DGAD-IAD": (2, 2),  # x, x'
    "AKD2": (3, 3),  # attack, x'
    "IAD-II": (3, 4),  # attack, x', and x
}


@pytest.mark.parametrize("name", TRAIN_FORWARDS)
@pytest.mark.parametrize("epoch", [0, 60])
def test_batchnorm_moves_once_per_official_forward(name, epoch):
    student, teacher, x, y = tiny_problem()
    trainer_of(name, student, teacher).step(x, y, epoch)
    assert student.bn1.num_batches_tracked.item() == TRAIN_FORWARDS[name][epoch >= 60]


def test_attack_bn_train_moves_batchnorm_at_every_step_of_the_attack():
    student, teacher, x, y = tiny_problem()
    trainer_of("AT", student, teacher, attack_bn="train").step(x, y)
    assert student.bn1.num_batches_tracked.item() == 1 + 2


def test_start_noise_of_the_caller_replaces_the_draw():
    finals = []
    for seed in (1, 2):
        student, teacher, x, y = tiny_problem()
        trainer_of("DGAD", student, teacher, seed=seed).step(x, y, start_noise=torch.full_like(x, 0.001))
        finals.append(copy_of(student))
    assert same(*finals)


def test_epoch_means_weigh_every_image_equally():
    student, _, x, y = tiny_problem(n=5)
    trainer = trainer_of("Natural", student, None, lr=0.0)
    batches = [(x[:4], y[:4]), (x[4:].repeat(2, 1, 1, 1), y[4:].repeat(2))]
    student.train()
    logits = [student(images).detach() for images, _ in batches]
    losses = [
        torch.nn.functional.cross_entropy(z, t, reduction="sum") for z, (_, t) in zip(logits, batches, strict=True)
    ]
    correct = sum((z.argmax(1) == t).sum().item() for z, (_, t) in zip(logits, batches, strict=True))
    metrics = EpochMetrics("cpu")
    assert [each.batches for each in trainer.epoch(batches, 0, 0.0, metrics)] == [1, 2]
    means = metrics.means()
    assert means.loss == pytest.approx(sum(losses).item() / 6)
    assert means.clean_acc == pytest.approx(100 * correct / 6)
    assert means.adv_acc is None


def test_evaluation_counts_images_and_leaves_the_network_alone():
    student, _, x, y = tiny_problem(n=7)
    before = copy_of(student)
    with torch.no_grad():
        correct = (student.eval()(x).argmax(1) == y).sum().item()
    score = evaluate(student.train(), [(x[:4], y[:4]), (x[4:], y[4:])])
    assert (score.accuracy, score.n) == (pytest.approx(100 * correct / 7), 7)
    assert same(before, student.state_dict())


def test_evaluation_attacks_every_batch():
    net, _, x, y = tiny_problem(n=4)
    seen = []

    def perturb(model, images, labels, noise):
        seen.append((model.training, len(images)))
        return images * 0

    zero = torch.zeros_like(x)
    with torch.no_grad():
        expected = (net.eval()(zero).argmax(1) == y).float().mean().item() * 100
    assert evaluate(net, [(x[:3], y[:3]), (x[3:], y[3:])], perturb).accuracy == pytest.approx(expected)
    assert seen == [(False, 3), (False, 1)]


def test_any_module_is_a_student():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    outcome = trainer_of("DGAD", net, TinyNet().eval()).step(torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2]))
    assert outcome.clean.shape == outcome.adv.shape == (3, 10)
