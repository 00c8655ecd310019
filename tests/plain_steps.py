"""The algorithm boxes of the papers, one image at a time, with every softmax and logarithm written out.

The reference for ``test_steps.py``; it imports nothing from the packages under test. ``METHODS`` has each method as
``step(net, *teachers, x, y, noise, epoch, **options) -> loss``. Its options, ``o`` in its code, are flags, and above it
are their official defaults. The number, order and BatchNorm mode of its calls of ``net`` are the official ones. The
attack starts at ``x + noise``. A method with state is a class: ``name(net, peer)`` before the first step,
``after_step()`` after each.
s, t, u are logits of the student, the robust and the standard teacher on the images, s_, t_, u_ on x_adv.
"""

from copy import deepcopy
from math import cos, log, pi
from types import SimpleNamespace

import torch

EPSILON, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4


# For one image: z, a, b are logits (C,), y is the label.


def softmax(z, temp=1.0):
    e = torch.exp(z / temp)
    return e / e.sum()


def cross_entropy(z, y):
    return -torch.log(softmax(z)[y])


def kl(a, b, temp=1.0):
    p, q = softmax(a, temp), softmax(b, temp)
    return sum(p[c] * (torch.log(p[c]) - torch.log(q[c])) for c in range(len(p)))


def largest_other(z, y):
    """Return the class other than the label with the largest logit."""
    return max((c for c in range(len(z)) if c != y), key=lambda c: z[c].item())


def swapped(z, i, j):
    z = z.clone()
    z[i], z[j] = z[j].item(), z[i].item()
    return z


def mean(values):
    values = list(values)
    return sum(values) / len(values)


# Attacks.


def no_grad(net, x):
    with torch.no_grad():
        return net(x)


def pgd(net, x, start, losses, attack_bn):
    """Maximize ``losses`` (images -> one loss each) in the ball around ``x``; leaves ``net`` in train mode."""
    net.train(attack_bn == "train")
    x_adv = start
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(sum(losses(x_adv)), x_adv)
        x_adv = x_adv.detach() + STEP_SIZE * torch.sign(gradient)
        x_adv = torch.minimum(torch.maximum(x_adv, x - EPSILON), x + EPSILON)
        x_adv = torch.clamp(x_adv, 0, 1)
    net.train()
    return x_adv


def label_attack(net, x, y, start, attack_bn):
    return pgd(net, x, start, lambda images: map(cross_entropy, net(images), y), attack_bn)


def adaad_attack(net, teacher, x, noise, attack_bn):  # the gradient also flows through the teacher
    return pgd(net, x, x + noise, lambda images: map(kl, teacher(images), net(images)), attack_bn)


def target_attack(net, target, x, noise, attack_bn):
    return pgd(net, x, x + noise, lambda images: map(kl, target, net(images)), attack_bn)


def trades_attack(net, x, noise, attack_bn):
    net.train(attack_bn == "train")
    s = no_grad(net, x)  # the official code repeats it at every step, without effect in eval mode
    return target_attack(net, s, x, noise, attack_bn)


METHODS = {}


def with_options(step, **defaults):
    """Make the last argument of a step, ``o``, from the epoch and from keyword arguments."""

    def call(*args, **options):
        assert options.keys() <= defaults.keys(), options
        return step(*args[:-1], SimpleNamespace(**(defaults | options), epoch=args[-1]))

    return call


def method(name, **defaults):
    def register(step):
        METHODS[name] = with_options(step, **defaults)
        return step

    return register


# Without teacher.


@method("Natural")
def natural(net, x, y, noise, o):
    s = net(x)
    return mean(cross_entropy(s[i], y[i]) for i in range(len(x)))


@method("AT", attack_bn="eval")
def at(net, x, y, noise, o):
    s_ = net(label_attack(net, x, y, torch.clamp(x + noise, 0, 1), o.attack_bn))
    return mean(cross_entropy(s_[i], y[i]) for i in range(len(x)))


@method("TRADES", trades_beta=6.0, temp=1.0, attack_bn="eval")
def trades(net, x, y, noise, o):
    x_adv = trades_attack(net, x, noise, o.attack_bn)
    s = net(x)
    s_ = net(x_adv)
    again = net(x)

    def loss(i):
        return cross_entropy(s[i], y[i]) + o.trades_beta * o.temp**2 * kl(again[i], s_[i], o.temp)

    return mean(loss(i) for i in range(len(x)))


@method("MART", mart_beta=5.0, attack_bn="eval")
def mart(net, x, y, noise, o):
    x_adv = label_attack(net, x, y, x + noise, o.attack_bn)
    s = net(x)
    s_ = net(x_adv)

    def loss(i):
        p, p_ = softmax(s[i]), softmax(s_[i])
        boosted = -torch.log(p_[y[i]]) - torch.log(1 - p_[largest_other(s_[i], y[i])])
        return boosted + o.mart_beta * kl(s[i], s_[i]) * (1 - p[y[i]])

    return mean(loss(i) for i in range(len(x)))


class PeerAiD:
    def __init__(self, net, peer):
        self.peer = peer

    def step(self, net, x, y, noise, o):
        x_adv = target_attack(net, no_grad(self.peer.eval(), x), x, noise, o.attack_bn)
        p_, first, again, s = self.peer.train()(x_adv), net(x_adv), net(x_adv), net(x)

        def loss(i):
            classes = len(s[i])
            peer = cross_entropy(p_[i], y[i]) + o.gamma2 * kl(first[i], p_[i]) / classes
            soft = o.lambda2 * kl(p_[i].detach(), again[i], o.temp) + o.lambda3 * kl(s[i], again[i], o.temp)
            return peer + o.lambda1 * cross_entropy(again[i], y[i]) + o.temp**2 * soft / classes

        return mean(loss(i) for i in range(len(x)))

    __call__ = with_options(step, temp=5.0, gamma2=0.1, lambda1=0.0, lambda2=1.0, lambda3=1.0, attack_bn="eval")


class ADR:
    def __init__(self, net, peer):
        self.net, self.average, self.steps = net, deepcopy(net).eval(), 0

    def step(self, net, x, y, noise, o):
        annealed = 0.5 * (1 + cos(pi * self.steps / o.epochs))  # an epoch has one step here
        temp, lam = 2.0 + (o.temp_high - 2.0) * annealed, 0.95 + (o.lambda_low - 0.95) * annealed
        t, labels = no_grad(self.average, x), []
        for i in range(len(x)):
            p = softmax(t[i], temp)
            mixing = torch.clamp(lam - (max(p) - p[y[i]]), 0, 1)
            labels.append([mixing * p[c] + (1 - mixing) * (c == y[i]) for c in range(len(p))])

        def losses(logits):
            for z, q in zip(logits, labels, strict=True):
                yield -sum(q[c] * torch.log(softmax(z)[c]) for c in range(len(z)))

        x_adv = pgd(net, x, torch.clamp(x + noise, 0, 1), lambda images: losses(net(images)), o.attack_bn)
        return mean(losses(net(x_adv)))

    def after_step(self):
        self.steps += 1
        for old, new in zip(self.average.state_dict().values(), self.net.state_dict().values(), strict=True):
            if old.is_floating_point():
                old.copy_(0.995 * old + 0.005 * new)

    __call__ = with_options(step, epochs=200, temp_high=2.5, lambda_low=0.7, attack_bn="train")


IKL_OPTIONS = {"ikl_alpha": 4.0, "ikl_beta": 20.0, "dataset": "CIFAR10", "attack_bn": "eval"}


class IKL:
    def __init__(self, net, peer):
        self.weights = None  # of the classes, a row for each label

    def step(self, net, x, y, noise, o):
        classes = range(net.linear.out_features)
        self.weights = self.weights or [[1 / len(classes)] * len(classes) for _ in classes]
        gamma = given_or(o.gkl_gamma, 0.4 if o.dataset == "CIFAR100" else 0.2)
        in_attack = [self.weights[label] for label in y]
        in_loss = [[weight**gamma for weight in row] for row in in_attack]

        def differences(p, i, s, s_):
            d, norm = s - s_, sum(sum(row) ** 2 for row in p)  # the number of images if gamma is 1
            return sum(p[i][j] * p[i][k] * (d[j] - d[k]) ** 2 for j in classes for k in classes) / 4 / norm

        def soft(i, s, s_):
            q = softmax(s).detach()
            return -sum(q[c] * torch.log(softmax(s_)[c]) for c in classes) / len(x)

        net.train(o.attack_bn == "train")
        start = no_grad(net, x)
        beta = 1 if o.dataset == "CIFAR100" else 0  # of the attack

        def losses(images):
            for i, s_ in enumerate(net(images)):
                yield soft(i, start[i], s_) + (differences(in_attack, i, start[i], s_) if beta else 0)

        s_ = net(pgd(net, x, x + noise, losses, o.attack_bn))
        s = net(x)
        self.rows = {c: [softmax(s[i].detach(), o.temp) for i in range(len(x)) if y[i] == c] for c in classes}
        images = range(len(x))
        terms = (o.ikl_beta * differences(in_loss, i, s[i], s_[i]) + o.ikl_alpha * soft(i, s[i], s_[i]) for i in images)
        return mean(cross_entropy(s[i], y[i]) for i in images) + sum(terms)

    def after_step(self):  # an epoch has one step here; a class without images keeps its row
        self.weights = [sum(rows) / len(rows) if rows else self.weights[c] for c, rows in self.rows.items()]

    __call__ = with_options(step, temp=4.0, gkl_gamma=1.0, **IKL_OPTIONS)


class GKL(IKL):
    __call__ = with_options(IKL.step, temp=1.0, gkl_gamma=None, **IKL_OPTIONS)


# With a robust teacher.

# None: the weight of the official code, which another flag or the number of classes determines.
WEIGHTS = {"teacher_weight": None, "label_weight": None}


def given_or(value, otherwise):
    return otherwise if value is None else value


@method("ARD", iad_alpha=1.0, temp=30.0, kl_weight=None, self_weight=0.0, attack_bn="train", **WEIGHTS)
def ard(net, teacher, x, y, noise, o):
    x_adv = label_attack(net, x, y, x + noise, o.attack_bn)
    t = no_grad(teacher, x)
    s_ = net(x_adv)
    s = net(x)
    kl_weight = given_or(o.kl_weight, 1 / t.shape[1])  # the official mean is over images and classes

    def loss(i):
        distillation = given_or(o.teacher_weight, o.iad_alpha) * o.temp**2 * kl_weight * kl(t[i], s_[i], o.temp)
        own = o.self_weight * kl(s[i], s_[i])  # IAD, table 12
        return distillation + own + given_or(o.label_weight, 1 - o.iad_alpha) * cross_entropy(s[i], y[i])

    return mean(loss(i) for i in range(len(x)))


def igdm_term(net, teacher, x, x_adv, s_, o, epochs=200):
    """The term of IGDM with its weight, one value per image; 0 without ``igdm``."""
    if o.igdm is None:
        return [0.0] * len(x)
    x_minus = x - (x_adv - x)
    s_minus, t_minus, t_ = net(x_minus), no_grad(teacher, x_minus), no_grad(teacher, x_adv)
    return [o.igdm * (o.epoch + 1) / epochs * kl(t_[i] - t_minus[i], s_[i] - s_minus[i]) for i in range(len(x))]


INTROSPECTION = {"iad_alpha": 1.0, "iad_beta": 0.1, "iad_begin": 60, "iad_coefficient": None, "iad_down": False}
INTROSPECTION |= {"self_weight": None, "igdm": None, **WEIGHTS}


def introspective(teacher_images, net, teacher, x, x_adv, y, o):
    """IAD-I and AdaIAD after the attack; they differ in the teacher's images in the first term."""
    t = no_grad(teacher, teacher_images)
    t_ = no_grad(teacher, x_adv)
    s_ = net(x_adv)
    target = net(x) if o.epoch >= o.iad_begin else None
    s = net(x)
    terms = igdm_term(net, teacher, x, x_adv, s_, o)

    def loss(i):
        distillation = given_or(o.teacher_weight, o.iad_alpha) * o.temp**2 * kl(t[i], s_[i], o.temp)
        hard = given_or(o.label_weight, 1 - o.iad_alpha) * cross_entropy(s[i], y[i])
        if o.epoch < o.iad_begin:
            return distillation + hard + terms[i]
        reliability = softmax(t_[i])[y[i]] ** o.iad_beta
        if o.iad_down:
            distillation = reliability * distillation
        own = given_or(o.self_weight, o.iad_alpha) * given_or(o.iad_coefficient, 1 - reliability) * kl(target[i], s_[i])
        return distillation + own + hard + terms[i]

    return mean(loss(i) for i in range(len(x)))


@method("IAD-I", temp=1.0, attack_bn="train", **INTROSPECTION)
def iad1(net, teacher, x, y, noise, o):
    x_adv = label_attack(net, x, y, x + noise, o.attack_bn)
    return introspective(x, net, teacher, x, x_adv, y, o)


@method("AdaIAD", temp=30.0, attack_bn="eval", **INTROSPECTION)
def adaiad(net, teacher, x, y, noise, o):
    x_adv = adaad_attack(net, teacher, x, noise, o.attack_bn)
    return introspective(x_adv, net, teacher, x, x_adv, y, o)


@method("RSLAD", kl_weight=0.1, igdm=None, attack_bn="eval")
def rslad(net, teacher, x, y, noise, o):
    t = no_grad(teacher, x)
    x_adv = target_attack(net, t, x, noise, o.attack_bn)
    s_ = net(x_adv)
    s = net(x)
    terms = igdm_term(net, teacher, x, x_adv, s_, o)
    return o.kl_weight * mean(5 / 6 * kl(t[i], s_[i]) + 1 / 6 * kl(t[i], s[i]) for i in range(len(x))) + mean(terms)


@method("AdaAD", adaad_alpha=1.0, kl_weight=None, dataset="CIFAR10", attack_bn="eval")
def adaad(net, teacher, x, y, noise, o):
    x_adv = adaad_attack(net, teacher, x, noise, o.attack_bn)
    s = net(x)
    s_ = net(x_adv)
    t, t_ = no_grad(teacher, x), no_grad(teacher, x_adv)

    def loss(i):
        return o.adaad_alpha * kl(t_[i], s_[i]) + (1 - o.adaad_alpha) * kl(t[i], s[i])

    return given_or(o.kl_weight, 0.1 if o.dataset == "CIFAR10" else 1.0) * mean(loss(i) for i in range(len(x)))


DGAD = {"map": True, "els": True, "alp": "on", "alp_beta": 1.0}
DGAD |= {"distill_weight": 1.0, "igdm": None, "attack_bn": "eval"}


@method("DGAD", iad_begin=None, **DGAD)
@method("DGAD-IAD", iad_begin=60, iad_beta=0.1, **DGAD)
def dgad(net, teacher, x, y, noise, o):
    x_adv = adaad_attack(net, teacher, x, noise, o.attack_bn)
    s = net(x)
    s_ = net(x_adv)
    t, t_ = no_grad(teacher, x), no_grad(teacher, x_adv)

    def distillation(i):
        predicted = t[i].argmax()
        if o.map and predicted != y[i]:  # misclassification-aware partitioning: the clean image
            return kl(swapped(t[i], y[i], predicted) if o.els else t[i], s[i])
        other = largest_other(t_[i], y[i])
        target = swapped(t_[i], y[i], other) if o.els and t_[i][y[i]] < t_[i][other] else t_[i]
        value = kl(target, s_[i])
        if o.iad_begin is not None and o.epoch >= o.iad_begin:  # DGAD-IAD
            value = value + (1 - softmax(target)[y[i]] ** o.iad_beta) * kl(s[i], s_[i])
        return value

    loss = o.distill_weight * mean(distillation(i) for i in range(len(x)))
    if o.alp == "on":  # predictive consistency, mean over images and classes
        differences = [softmax(s_[i]) - softmax(s[i]) for i in range(len(x))]
        loss = loss + o.alp_beta * mean(each[c] ** 2 for each in differences for c in range(len(each)))
    return loss + mean(igdm_term(net, teacher, x, x_adv, s_, o))


@method("IGDM", igdm=1.0, attack_bn="eval")
def igdm(net, teacher, x, y, noise, o):
    x_adv = adaad_attack(net, teacher, x, noise, o.attack_bn)
    t_, s_ = no_grad(teacher, x_adv), net(x_adv)
    terms = igdm_term(net, teacher, x, x_adv, s_, o)
    return mean(kl(t_[i], s_[i]) + terms[i] for i in range(len(x)))


@method("SAAD", igdm=1.0, saad_beta=0.0, saad_gamma=1.0, attack_bn="eval")
def saad(net, teacher, x, y, noise, o):
    images = x.clone().requires_grad_()
    t = teacher(images)
    (gradient,) = torch.autograd.grad(sum(t[i][y[i]] for i in range(len(x))), images)
    t = t.detach()

    def losses(z):  # the teacher's logit of the label moves along its gradient at x
        moved = [t[i] + torch.eye(t.shape[1])[y[i]] * (gradient[i] * (z[i] - x[i])).sum() for i in range(len(x))]
        return map(kl, moved, net(z))

    def entropy(p):
        if o.saad_gamma == 1:
            return -sum(c * torch.log(c + 1e-12) for c in p)
        return torch.log(sum(c**o.saad_gamma for c in p) + 1e-12) / (1 - o.saad_gamma)

    x_adv = pgd(net, x, x + noise, losses, o.attack_bn)
    t_, s_ = no_grad(teacher, x_adv), net(x_adv)
    terms = igdm_term(net, teacher, x, x_adv, s_, o)
    s = net(x)
    entropies = [entropy(softmax(t_[i])) for i in range(len(x))]
    w = [5 * (h - min(entropies)) for h in entropies]
    v = [(each - min(w)) / (max(w) - min(w) + 1e-8) for each in w]

    def loss(i):
        return w[i] * (kl(t_[i], s_[i]) + terms[i]) + o.saad_beta * (1 - v[i]) * kl(t[i], s[i])

    return mean(loss(i) for i in range(len(x)))


# With a robust and a standard teacher.


class MTARD:
    temp_rate = 0.0

    def __init__(self, net, peer):
        self.weight, self.first, self.temps = 0.5, None, [1.0, 1.0]  # weight of the clean term; robust, standard

    def step(self, net, teacher, std_teacher, x, y, noise, o):
        drops = sum(o.epoch >= milestone for milestone in o.milestones)
        x_adv = label_attack(net, x, y, x + noise, o.attack_bn)
        s_, s = net(x_adv), net(x)
        pairs = (no_grad(teacher, x_adv), s_), (no_grad(std_teacher, x), s)

        def term(t, s, temp):
            q, p = softmax(t, temp), softmax(s)
            return sum(q[c] * (torch.log(q[c] + 1e-5) - torch.log(p[c])) for c in range(len(q)))

        terms = [
            o.kl_weight * mean(term(t[i], s[i], temp) for i in range(len(x)))
            for (t, s), temp in zip(pairs, self.temps, strict=True)
        ]
        values = [each.item() for each in terms]
        self.first = self.first or values
        r_adv, r_nat = (value / first for value, first in zip(values, self.first, strict=True))
        self.weight -= 0.025 * 0.1**drops * (self.weight - r_nat / (r_adv + r_nat))
        h_adv, h_nat = (
            mean(-sum(c.item() * log(c.item()) for c in softmax(t[i], temp)) for i in range(len(x)))
            for (t, _), temp in zip(pairs, self.temps, strict=True)
        )
        change = self.temp_rate * 0.1**drops * (1 if h_adv > h_nat else -1)
        self.temps = [min(max(temp, 1.0), 10.0) for temp in (self.temps[0] - change, self.temps[1] + change)]
        return (1 - self.weight) * terms[0] + self.weight * terms[1]

    __call__ = with_options(step, kl_weight=0.1, milestones=(), attack_bn="eval")


class BMTARD(MTARD):
    temp_rate = 0.001


AKD2 = {"robust_weight": 0.5, "std_weight": 0.25, "temp": 1.0, "iad_beta": 0.1, "attack_bn": "train"}


@method("AKD2", akd2_partial=False, **AKD2)
def akd2(net, teacher, std_teacher, x, y, noise, o):
    x_adv = label_attack(net, x, y, x + noise, o.attack_bn)
    t_, u_ = no_grad(teacher, x_adv), no_grad(std_teacher, x_adv)
    s_ = net(x_adv)

    def loss(i):
        hard = (1 - o.robust_weight - o.std_weight) * cross_entropy(s_[i], y[i])
        trust = softmax(t_[i])[y[i]] ** o.iad_beta if o.akd2_partial else 1
        robust, standard = trust * kl(t_[i], s_[i], o.temp), kl(u_[i], s_[i], o.temp)
        return hard + o.temp**2 * (o.robust_weight * robust + o.std_weight * standard)

    return mean(loss(i) for i in range(len(x)))


@method("IAD-II", iad_begin=40, iad_coefficient=None, akd2_partial=False, **AKD2)
def iad2(net, teacher, std_teacher, x, y, noise, o):
    if o.epoch < o.iad_begin:
        return akd2(net, teacher, std_teacher, x, y, noise, o)
    x_adv = label_attack(net, x, y, x + noise, o.attack_bn)
    t_, u_ = no_grad(teacher, x_adv), no_grad(std_teacher, x_adv)
    s_ = net(x_adv)
    s = net(x)

    def loss(i):
        reliability = softmax(t_[i])[y[i]] ** o.iad_beta
        own = given_or(o.iad_coefficient, 1 - reliability) * kl(s[i], s_[i])  # temperature 1
        robust, standard = reliability * kl(t_[i], s_[i], o.temp) + own, kl(u_[i], s_[i], o.temp)
        hard = (1 - o.robust_weight - o.std_weight) * cross_entropy(s_[i], y[i])
        return hard + o.temp**2 * (o.robust_weight * robust + o.std_weight * standard)

    return mean(loss(i) for i in range(len(x)))


METHODS |= {"MTARD": MTARD, "B-MTARD": BMTARD, "PeerAiD": PeerAiD, "ADR": ADR, "IKL": IKL, "GKL": GKL}

# Methods whose attack starts uniformly in the ball; the others add 0.001 times standard normal noise.
UNIFORM_START = ("ARD", "IAD-I", "AKD2", "IAD-II", "ADR")


def sgd(parameters, gradients, velocities):
    """One step of SGD with momentum and with weight decay on every parameter; ``velocities`` start at 0."""
    for parameter, gradient, velocity in zip(parameters, gradients, velocities, strict=True):
        velocity.copy_(MOMENTUM * velocity + gradient + WEIGHT_DECAY * parameter.detach())
        parameter.detach().sub_(LEARNING_RATE * velocity)
