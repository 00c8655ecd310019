"""Adversarial weight perturbation: whole steps against a plain transcription, and what it leaves unchanged."""

from copy import deepcopy

import plain_steps as plain
import pytest
import torch
import torch.nn.functional as F
from test_steps import EXACT, problem, start_noise
from test_trainer import HostReads, copy_of, same
from tiny import make_trainer

from engine.training.weight_perturbation import WeightPerturbation
from methods import METHODS


def at_loss(net, x, x_adv, y):
    return F.cross_entropy(net(x_adv), y)


def trades_loss(net, x, x_adv, y):
    clean, adv = net(x), net(x_adv)
    with torch.no_grad():
        net(x)
    target = clean.softmax(1)
    return F.cross_entropy(clean, y) + 6 * (target * (target.log() - adv.log_softmax(1))).sum(1).mean()


def trades_attack(net, x, y, start, attack_bn):
    target = plain.no_grad(net.eval(), x)
    return plain.pgd(net, x, start, lambda images: map(plain.kl, target, net(images)), attack_bn)


# The official codes: attack, loss, learning rate of the proxy, which has no effect, and gamma.
OFFICIAL = {"AT": (plain.label_attack, at_loss, 0.01, 0.01), "TRADES": (trades_attack, trades_loss, 0.1, 0.005)}


def plain_awp_step(net, optimizer, name, attack_bn, x, y, noise):
    attack, loss_of, lr, gamma = OFFICIAL[name]
    start = (x + noise).clamp(0, 1) if name == "AT" else x + noise
    x_adv = attack(net, x, y, start, attack_bn)
    proxy = deepcopy(net).train()
    gradients = torch.autograd.grad(-loss_of(proxy, x, x_adv, y), list(proxy.parameters()))
    perturbations = {}
    with torch.no_grad():
        for (key, w), gradient in zip(net.named_parameters(), gradients, strict=True):
            if "weight" in key and w.ndim > 1:
                difference = (w - lr * gradient) - w
                perturbations[w] = gamma * w.norm() / (difference.norm() + 1e-20) * difference
        for w, v in perturbations.items():
            w += v
    optimizer.zero_grad()
    loss = loss_of(net.train(), x, x_adv, y)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for w, v in perturbations.items():
            w -= v
    return loss.detach()


def trainer_with(name, student, teachers, gamma, attack_bn=None, lr=plain.LEARNING_RATE, **options):
    options |= {"perturbation": WeightPerturbation(student, gamma)} if gamma else {}
    return make_trainer(name, student, teachers, lr=lr, weight_decay=5e-2, attack_bn=attack_bn, **options)


@pytest.mark.parametrize(("name", "attack_bn"), [("AT", "eval"), ("AT", "train"), ("TRADES", "eval")])
def test_steps_equal_the_plain_transcription_of_the_official_codes(name, attack_bn):
    student, _, batches = problem()
    expected = deepcopy(student)
    rates = {"lr": plain.LEARNING_RATE, "momentum": plain.MOMENTUM, "weight_decay": 5e-2}
    optimizer = torch.optim.SGD(expected.parameters(), **rates)
    trainer = trainer_with(name, student, [], gamma=OFFICIAL[name][3], attack_bn=attack_bn)
    for x, y, normal in batches:
        noise = start_noise(name, normal)
        loss = trainer.step(x, y, start_noise=noise).loss
        torch.testing.assert_close(loss, plain_awp_step(expected, optimizer, name, attack_bn, x, y, noise), **EXACT)
        for (key, parameter), other in zip(student.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(parameter, other, **EXACT, msg=key)
            torch.testing.assert_close(parameter.grad, other.grad, **EXACT, msg=key)
        torch.testing.assert_close(dict(student.named_buffers()), dict(expected.named_buffers()), **EXACT)


@pytest.mark.parametrize("name", METHODS)
def test_with_a_vanishing_perturbation_every_method_takes_its_usual_step(name):
    results = []
    for gamma in (None, 1e-13):
        student, teachers, [(x, y, normal), _] = problem()
        trainer = trainer_with(name, student, teachers, gamma)
        trainer.step(x, y, epoch=60, start_noise=start_noise(name, normal))
        results.append([copy_of(student), trainer.weights().get("method_state")])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)  # BatchNorm's statistics and counters too


def test_a_step_of_rate_0_leaves_the_bytes_of_the_weights_and_warm_up_epochs_are_usual():
    student, _, [(x, y, _), _] = problem()
    student.float()
    before = [parameter.clone() for parameter in student.parameters()]
    trainer = trainer_with("AT", student, [], 0.01, lr=0.0, clip_grad=1.0, parts=2)
    with HostReads() as reads:
        trainer.step(x.float(), y)
    assert reads.recorded == []
    assert all(map(torch.equal, student.parameters(), before))
    students = deepcopy(student), deepcopy(student)
    for each, gamma in zip(students, (None, 0.01), strict=True):
        trainer = trainer_with("AT", each, [], gamma, generator=torch.Generator().manual_seed(0))
        if gamma:
            trainer.perturbation.start = 4
        trainer.step(x.float(), y, epoch=3)
    assert same(*map(copy_of, students))
