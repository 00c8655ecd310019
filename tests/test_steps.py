"""A whole training step, from attack to optimizer, against the algorithm boxes in ``plain_steps.py``."""

from copy import deepcopy
from functools import partial

import plain_steps as plain
import pytest
import tiny
import torch
import torch.nn.functional as F
from test_trainer import HostReads, copy_of, same
from torch import nn

from engine.training.weight_perturbation import WeightPerturbation
from methods import METHODS, count_teachers

CLASSES = 7  # not 10, where a mean over classes and a factor of 0.1 are the same

# Two steps in float64 accumulate a rounding error of up to 1e-13; any wrong term, factor or forward changes far more.
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def case(name, epoch=0, attack_bn=None, **options):
    parts = [name, f"epoch={epoch}", f"attack_bn={attack_bn}" if attack_bn else ""]
    parts += [f"{key}={value}" for key, value in options.items()]
    return pytest.param(name, epoch, attack_bn, options, id=" ".join(filter(None, parts)))


CASES = [
    *(case(name) for name in plain.METHODS),
    *(case(name, attack_bn="train") for name in ("AT", "TRADES", "MART", "RSLAD", "AdaAD", "DGAD")),
    *(case(name, attack_bn="eval") for name in ("ARD", "IAD-I", "AKD2", "IAD-II")),
    case("MART", mart_beta=3.0),
    case("ARD", iad_alpha=0.6, temp=1.0, kl_weight=1.0),
    case("RSLAD", kl_weight=1.0),
    case("AdaAD", adaad_alpha=0.8, dataset="CIFAR100"),
    case("AdaAD", adaad_alpha=0.5, kl_weight=0.3),
    # Introspection starts when the epoch, counted from 0, is 60; for IAD-II 40.
    *(case(name, epoch) for name in ("IAD-I", "AdaIAD", "DGAD-IAD") for epoch in (59, 60)),
    *(case("IAD-II", epoch) for epoch in (39, 40)),
    *(
        case(name, epoch, iad_alpha=0.9, iad_beta=0.5, iad_begin=3, temp=5.0)
        for name in ("IAD-I", "AdaIAD")
        for epoch in (2, 3)
    ),
    *(
        case("IAD-II", epoch, iad_begin=3, iad_beta=0.5, robust_weight=0.6, std_weight=0.1, temp=5.0)
        for epoch in (2, 3)
    ),
    # The appendix of IAD: tables 7 to 10, and 12.
    *(case("AKD2", akd2_partial=p, iad_beta=0.5, robust_weight=0.6, std_weight=0.1, temp=2.0) for p in (True, False)),
    *(case("IAD-I", epoch, iad_begin=3, iad_down=True, iad_beta=0.5, temp=2.0) for epoch in (2, 3)),
    *(case(name, 3, iad_begin=3, iad_coefficient=2.0) for name in ("IAD-I", "IAD-II")),
    case("TRADES", temp=20.0, trades_beta=2.5),
    case("ARD", temp=1.0, kl_weight=1.0, label_weight=1.0, self_weight=6.0, teacher_weight=0.5),
    case("ARD", iad_alpha=0.9, label_weight=2.0),
    *(case("IAD-I", e, iad_begin=3, label_weight=1.0, self_weight=6.0, teacher_weight=0.5) for e in (2, 3)),
    case("DGAD", alp_beta=5.0),
    case("DGAD", map=False),
    case("DGAD", els=False),
    case("DGAD", map=False, els=False),
    case("DGAD", alp="off"),
    case("DGAD", distill_weight=0.5),
    *(case("DGAD-IAD", epoch, iad_begin=3, iad_beta=0.5, alp_beta=5.0, distill_weight=0.5) for epoch in (2, 3)),
    case("DGAD-IAD", 3, "train", iad_begin=3, els=False),
    case("DGAD-IAD", 3, iad_begin=3, map=False, alp="off"),
    case("IGDM", 99, igdm=10.0),
    *(case(name, 99, igdm=2.0) for name in ("RSLAD", "DGAD")),
    *(case("AdaIAD", 3, iad_begin=begin, igdm=2.0) for begin in (3, 4)),
    case("SAAD", 99, saad_beta=0.5, saad_gamma=2.0, igdm=10.0),
    *(case(name, epoch, milestones=(2, 3)) for name in ("MTARD", "B-MTARD") for epoch in (1, 3)),
    case("MTARD", kl_weight=1.0),
    case("PeerAiD", temp=2.0, gamma2=3.0, lambda1=0.5, lambda2=2.0, lambda3=0.5),
    case("ADR", epochs=3, temp_high=3.0, lambda_low=0.4),
    case("ADR", attack_bn="eval"),
    *(case(name, dataset="CIFAR100") for name in ("IKL", "GKL")),
    case("GKL", ikl_alpha=2.0, ikl_beta=30.0, gkl_gamma=0.7, temp=2.0),
]


def images(n):
    """Coarse colors with noise, including black and white pixels, (n, 3, 8, 8)."""
    coarse = torch.rand(n, 3, 2, 2, dtype=torch.float64).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return (2 * coarse - 0.7 + 0.4 * torch.rand(n, 3, 8, 8, dtype=torch.float64)).clamp(0, 1)


def network():
    """A tiny network with BatchNorm parameters and statistics away from their initial values.

    Its logits are small enough for the softmax and logarithm of ``plain_steps.py``.
    """
    net = tiny.TinyNet(num_classes=CLASSES).double()
    with torch.no_grad():
        for bn in (net.bn1, net.bn2):
            bn.weight.uniform_(0.5, 1.5)
            bn.bias.uniform_(-0.5, 0.5)
        net.linear.weight.mul_(5)
        for _ in range(10):
            net(images(64))
    return net


def as_teacher(net):
    """``net`` with logits of standard deviation 1.5 around 0: an attack changes some predictions, not all."""
    net.eval()
    with torch.no_grad():
        net.linear.weight.mul_(1.5 / net(images(64)).std(0).mean())
        net.linear.bias.sub_(net(images(64)).mean(0))
    return net.requires_grad_(False)


def problem(seed=6):
    """A student, two frozen teachers, and two batches of different size: images, labels, standard normal noise.

    The robust teacher classifies every other image correctly.
    """
    torch.manual_seed(seed)
    student, teachers = network(), [as_teacher(network()) for _ in range(2)]
    batches = []
    for n in (7, 5):
        x = images(n)
        y = (teachers[0](x).argmax(1) + torch.arange(n) % 2 * torch.randint(1, CLASSES, (n,))) % CLASSES
        batches.append((x, y, torch.randn_like(x)))
    return student, teachers, batches


def start_noise(name, normal):
    if name in plain.UNIFORM_START:
        return plain.EPSILON * torch.erf(normal / 2**0.5)  # uniform in (-epsilon, epsilon)
    return 0.001 * normal


def state_after(loss, net, gradients):
    """Everything that a step computes or updates, by name."""
    names = [key for key, _ in net.named_parameters()]
    return {
        "loss": loss.detach().clone(),
        **{f"gradient of {key}": gradient.clone() for key, gradient in zip(names, gradients, strict=True)},
        **{key: value.detach().clone() for key, value in net.state_dict().items()},
    }


def make_trainer(name, student, teachers, gamma=None, **options):
    """A trainer, with AWP if ``gamma`` is given; ``options`` are those of ``tiny.make_trainer``."""
    rates = {"lr": plain.LEARNING_RATE, "weight_decay": plain.WEIGHT_DECAY}
    options |= {"perturbation": WeightPerturbation(student, gamma)} if gamma else {}
    return tiny.make_trainer(name, student, teachers, make_network=partial(peer_of, teachers), **rates | options)


def peer_of(teachers):
    """Return another network than the student, to be trained beside it."""
    return deepcopy(teachers[1]).requires_grad_(True)


def trainer_steps(name, epoch, attack_bn, options, student, teachers, batches):
    trainer = make_trainer(name, student, teachers, config=options, attack_bn=attack_bn)
    for x, y, normal in batches:
        loss = trainer.step(x, y, epoch, start_noise=start_noise(name, normal)).loss
        yield state_after(loss, student, [parameter.grad for parameter in student.parameters()])
        trainer.after_epoch(epoch, ())  # an epoch has one step here


def plain_steps(name, epoch, attack_bn, options, student, teachers, batches):
    method, parameters = plain.METHODS[name], list(student.parameters())
    if isinstance(method, type):  # with state
        method = method(student, peer_of(teachers))
        parameters += getattr(method, "peer", nn.Module()).parameters()
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    options = options | ({"attack_bn": attack_bn} if attack_bn else {})
    for x, y, normal in batches:
        student.train()
        noise = start_noise(name, normal)
        loss = method(student, *teachers[: count_teachers(name)], x, y, noise, epoch, **options)
        gradients = torch.autograd.grad(loss, parameters)
        plain.sgd(parameters, gradients, velocities)
        getattr(method, "after_step", lambda: None)()
        yield state_after(loss, student, gradients[: len(list(student.parameters()))])


@pytest.mark.parametrize(("name", "epoch", "attack_bn", "options"), CASES)
def test_two_steps_equal_the_plain_algorithm(name, epoch, attack_bn, options):
    student, teachers, batches = problem()
    expected = plain_steps(name, epoch, attack_bn, options, deepcopy(student), teachers, batches)
    for step, got in enumerate(trainer_steps(name, epoch, attack_bn, options, student, teachers, batches)):
        for (key, a), b in zip(got.items(), next(expected).values(), strict=True):
            torch.testing.assert_close(a, b, **EXACT, msg=lambda m, key=key, step=step: f"step {step}, {key}: {m}")


@pytest.mark.parametrize("name", plain.METHODS)
def test_without_start_noise_the_trainer_draws_that_of_the_algorithm(name):
    losses = []
    for drawn in (True, False):
        student, teachers, [(x, y, _), _] = problem()
        generator, same = (torch.Generator().manual_seed(0) for _ in range(2))
        if name in plain.UNIFORM_START:
            noise = plain.EPSILON * (2 * torch.rand(x.shape, generator=same, dtype=x.dtype) - 1)
        else:
            noise = 0.001 * torch.randn(x.shape, generator=same, dtype=x.dtype)
        trainer = make_trainer(name, student, teachers, generator=generator)
        losses.append(trainer.step(x, y, start_noise=None if drawn else noise).loss)
    torch.testing.assert_close(*losses, **EXACT)


def test_the_teacher_is_correct_fooled_and_wrong_in_every_batch():
    student, (teacher, _), batches = problem()
    for x, y, normal in batches:
        x_adv = plain.adaad_attack(student, teacher, x, start_noise("DGAD", normal), "eval")
        clean, robust = teacher(x).argmax(1) == y, teacher(x_adv).argmax(1) == y
        assert (clean & robust).any() and (clean & ~robust).any() and (~clean).any()


# Adversarial weight perturbation: whole steps against a plain transcription, and what it leaves unchanged.


def at_loss(net, x, x_adv, y):
    return F.cross_entropy(net(x_adv), y)


def trades_loss(net, x, x_adv, y):
    clean, adv = net(x), net(x_adv)
    with torch.no_grad():
        net(x)
    target = clean.softmax(1)
    return F.cross_entropy(clean, y) + 6 * (target * (target.log() - adv.log_softmax(1))).sum(1).mean()


def trades_attack(net, x, y, start, attack_bn):
    return plain.trades_attack(net, x, start - x, attack_bn)


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


@pytest.mark.parametrize(("name", "attack_bn"), [("AT", "eval"), ("AT", "train"), ("TRADES", "eval")])
def test_steps_equal_the_plain_transcription_of_the_official_codes(name, attack_bn):
    student, _, batches = problem()
    expected = deepcopy(student)
    rates = {"lr": plain.LEARNING_RATE, "momentum": plain.MOMENTUM, "weight_decay": 5e-2}
    optimizer = torch.optim.SGD(expected.parameters(), **rates)
    trainer = make_trainer(name, student, [], OFFICIAL[name][3], attack_bn=attack_bn, weight_decay=5e-2)
    for x, y, normal in batches:
        noise = start_noise(name, normal)
        loss = trainer.step(x, y, start_noise=noise).loss
        torch.testing.assert_close(loss, plain_awp_step(expected, optimizer, name, attack_bn, x, y, noise), **EXACT)
        torch.testing.assert_close(student.state_dict(), expected.state_dict(), **EXACT)
        gradients = ([parameter.grad for parameter in net.parameters()] for net in (student, expected))
        torch.testing.assert_close(*gradients, **EXACT)


@pytest.mark.parametrize("name", METHODS)
def test_with_a_vanishing_perturbation_every_method_takes_its_usual_step(name):
    results = []
    for gamma in (None, 1e-13):
        student, teachers, [(x, y, normal), _] = problem()
        trainer = make_trainer(name, student, teachers, gamma)
        trainer.step(x, y, epoch=60, start_noise=start_noise(name, normal))
        results.append([copy_of(student), trainer.weights().get("method_state")])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)  # BatchNorm's statistics and counters too


def test_a_step_of_rate_0_leaves_the_bytes_of_the_weights_and_warm_up_epochs_are_usual():
    student, _, [(x, y, _), _] = problem()
    student.float()
    before = [parameter.clone() for parameter in student.parameters()]
    trainer = make_trainer("AT", student, [], 0.01, lr=0.0, clip_grad=1.0, parts=2)
    with HostReads() as reads:
        trainer.step(x.float(), y)
    assert reads.recorded == []
    assert all(map(torch.equal, student.parameters(), before))
    students = deepcopy(student), deepcopy(student)
    for each, gamma in zip(students, (None, 0.01), strict=True):
        trainer = make_trainer("AT", each, [], gamma, generator=torch.Generator().manual_seed(0))
        if gamma:
            trainer.perturbation.start = 4
        trainer.step(x.float(), y, epoch=3)
    assert same(*map(copy_of, students))
