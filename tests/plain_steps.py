"""The algorithm boxes of the papers, one image at a time, with every softmax and logarithm written out.

The reference for ``test_steps.py``; it imports nothing from the packages under test. A method is
``name(net, *teachers, x, y, noise, epoch, **options) -> loss``. Its options are flags with the official defaults; the
number, order and BatchNorm mode of its calls of ``net`` are the official ones. The attack starts at ``x + noise``.
A method with state is a class: ``name(net, peer)`` before the first step, ``after_step()`` after each.
s, t, u are logits of the student, the robust and the standard teacher on the images, s_, t_, u_ on x_adv.
"""

from copy import deepcopy
from math import cos, log, pi

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


def rslad_attack(net, teacher, x, noise, attack_bn):
    t = no_grad(teacher, x)
    return pgd(net, x, x + noise, lambda images: map(kl, t, net(images)), attack_bn)


def trades_attack(net, x, noise, attack_bn):
    net.train(attack_bn == "train")
    s = no_grad(net, x)  # the official code repeats it at every step, without effect in eval mode
    return pgd(net, x, x + noise, lambda images: map(kl, s, net(images)), attack_bn)


# Without teacher.


def natural(net, x, y, noise, epoch):
    s = net(x)
    return mean(cross_entropy(s[i], y[i]) for i in range(len(x)))


def at(net, x, y, noise, epoch, *, attack_bn="eval"):
    s_ = net(label_attack(net, x, y, torch.clamp(x + noise, 0, 1), attack_bn))
    return mean(cross_entropy(s_[i], y[i]) for i in range(len(x)))


def trades(net, x, y, noise, epoch, *, trades_beta=6.0, temp=1.0, attack_bn="eval"):
    x_adv = trades_attack(net, x, noise, attack_bn)
    s = net(x)
    s_ = net(x_adv)
    again = net(x)
    return mean(cross_entropy(s[i], y[i]) + trades_beta * temp**2 * kl(again[i], s_[i], temp) for i in range(len(x)))


def mart(net, x, y, noise, epoch, *, mart_beta=5.0, attack_bn="eval"):
    x_adv = label_attack(net, x, y, x + noise, attack_bn)
    s = net(x)
    s_ = net(x_adv)

    def loss(i):
        p, p_ = softmax(s[i]), softmax(s_[i])
        boosted = -torch.log(p_[y[i]]) - torch.log(1 - p_[largest_other(s_[i], y[i])])
        return boosted + mart_beta * kl(s[i], s_[i]) * (1 - p[y[i]])

    return mean(loss(i) for i in range(len(x)))


class PeerAiD:
    def __init__(self, net, peer):
        self.peer = peer

    def __call__(self, net, x, y, noise, epoch, *, temp=5.0, attack_bn="eval", **weights):
        gamma2, lambda1, lambda2, lambda3 = (
            {"gamma2": 0.1, "lambda1": 0.0, "lambda2": 1.0, "lambda3": 1.0} | weights
        ).values()
        p = no_grad(self.peer.eval(), x)
        x_adv = pgd(net, x, x + noise, lambda images: map(kl, p, net(images)), attack_bn)
        p_, first, again, s = self.peer.train()(x_adv), net(x_adv), net(x_adv), net(x)

        def loss(i):
            classes = len(s[i])
            peer = cross_entropy(p_[i], y[i]) + gamma2 * kl(first[i], p_[i]) / classes
            soft = lambda2 * kl(p_[i].detach(), again[i], temp) + lambda3 * kl(s[i], again[i], temp)
            return peer + lambda1 * cross_entropy(again[i], y[i]) + temp**2 * soft / classes

        return mean(loss(i) for i in range(len(x)))

    def after_step(self):
        pass


class ADR:
    def __init__(self, net, peer):
        self.net, self.average, self.steps = net, deepcopy(net).eval(), 0

    def __call__(self, net, x, y, noise, epoch, *, attack_bn="train", epochs=200, temp_high=2.5, lambda_low=0.7):
        falling = 0.5 * (1 + cos(pi * self.steps / epochs))  # an epoch has one step here
        temp, lam = 2.0 + (temp_high - 2.0) * falling, 0.95 + (lambda_low - 0.95) * falling
        t, labels = no_grad(self.average, x), []
        for i in range(len(x)):
            p = softmax(t[i], temp)
            mixing = torch.clamp(lam - (max(p) - p[y[i]]), 0, 1)
            labels.append([mixing * p[c] + (1 - mixing) * (c == y[i]) for c in range(len(p))])

        def losses(logits):
            for z, q in zip(logits, labels, strict=True):
                yield -sum(q[c] * torch.log(softmax(z)[c]) for c in range(len(z)))

        x_adv = pgd(net, x, torch.clamp(x + noise, 0, 1), lambda images: losses(net(images)), attack_bn)
        return mean(losses(net(x_adv)))

    def after_step(self):
        self.steps += 1
        for old, new in zip(self.average.state_dict().values(), self.net.state_dict().values(), strict=True):
            if old.is_floating_point():
                old.copy_(0.995 * old + 0.005 * new)


# With a robust teacher.


def ard(
    net,
    teacher,
    x,
    y,
    noise,
    epoch,
    *,
    iad_alpha=1.0,
    temp=30.0,
    kl_weight=None,
    attack_bn="train",
    teacher_weight=None,
    label_weight=None,
    self_weight=0.0,
):
    x_adv = label_attack(net, x, y, x + noise, attack_bn)
    t = no_grad(teacher, x)
    s_ = net(x_adv)
    s = net(x)
    kl_weight = 1 / t.shape[1] if kl_weight is None else kl_weight  # the official mean is over images and classes
    teacher_weight = iad_alpha if teacher_weight is None else teacher_weight
    label_weight = 1 - iad_alpha if label_weight is None else label_weight

    def loss(i):
        distillation = temp**2 * kl_weight * kl(t[i], s_[i], temp)
        own = self_weight * kl(s[i], s_[i])  # IAD, table 12
        return teacher_weight * distillation + own + label_weight * cross_entropy(s[i], y[i])

    return mean(loss(i) for i in range(len(x)))


def igdm_term(net, teacher, x, x_adv, s_, igdm, epoch, epochs=200):
    """The term of IGDM with its weight, one value per image; 0 without ``igdm``."""
    if igdm is None:
        return [0.0] * len(x)
    x_minus = x - (x_adv - x)
    s_minus, t_minus, t_ = net(x_minus), no_grad(teacher, x_minus), no_grad(teacher, x_adv)
    return [igdm * (epoch + 1) / epochs * kl(t_[i] - t_minus[i], s_[i] - s_minus[i]) for i in range(len(x))]


def introspective(
    teacher_images,
    net,
    teacher,
    x,
    x_adv,
    y,
    epoch,
    alpha,
    beta,
    begin,
    temp,
    iad_coefficient=None,
    iad_down=False,
    teacher_weight=None,
    label_weight=None,
    self_weight=None,
    igdm=None,
):
    """IAD-I and AdaIAD after the attack; they differ in the teacher's images in the first term."""
    t = no_grad(teacher, teacher_images)
    t_ = no_grad(teacher, x_adv)
    teacher_weight = alpha if teacher_weight is None else teacher_weight
    label_weight = 1 - alpha if label_weight is None else label_weight
    self_weight = alpha if self_weight is None else self_weight
    s_ = net(x_adv)
    target = net(x) if epoch >= begin else None
    s = net(x)

    def loss(i):
        distillation = temp**2 * kl(t[i], s_[i], temp)
        hard = label_weight * cross_entropy(s[i], y[i])
        if epoch < begin:
            return teacher_weight * distillation + hard + terms[i]
        reliability = softmax(t_[i])[y[i]] ** beta
        if iad_down:
            distillation = reliability * distillation
        coefficient = 1 - reliability if iad_coefficient is None else iad_coefficient
        return teacher_weight * distillation + self_weight * coefficient * kl(target[i], s_[i]) + hard + terms[i]

    terms = igdm_term(net, teacher, x, x_adv, s_, igdm, epoch)
    return mean(loss(i) for i in range(len(x)))


def iad1(
    net,
    teacher,
    x,
    y,
    noise,
    epoch,
    *,
    iad_alpha=1.0,
    iad_beta=0.1,
    iad_begin=60,
    temp=1.0,
    attack_bn="train",
    **variant,
):
    x_adv = label_attack(net, x, y, x + noise, attack_bn)
    return introspective(x, net, teacher, x, x_adv, y, epoch, iad_alpha, iad_beta, iad_begin, temp, **variant)


def adaiad(
    net,
    teacher,
    x,
    y,
    noise,
    epoch,
    *,
    iad_alpha=1.0,
    iad_beta=0.1,
    iad_begin=60,
    temp=30.0,
    igdm=None,
    attack_bn="eval",
):
    x_adv = adaad_attack(net, teacher, x, noise, attack_bn)
    return introspective(x_adv, net, teacher, x, x_adv, y, epoch, iad_alpha, iad_beta, iad_begin, temp, igdm=igdm)


def rslad(net, teacher, x, y, noise, epoch, *, kl_weight=0.1, igdm=None, attack_bn="eval"):
    x_adv = rslad_attack(net, teacher, x, noise, attack_bn)
    t = no_grad(teacher, x)
    s_ = net(x_adv)
    s = net(x)
    terms = igdm_term(net, teacher, x, x_adv, s_, igdm, epoch)
    return kl_weight * mean(5 / 6 * kl(t[i], s_[i]) + 1 / 6 * kl(t[i], s[i]) for i in range(len(x))) + mean(terms)


def adaad(net, teacher, x, y, noise, epoch, *, adaad_alpha=1.0, kl_weight=None, dataset="CIFAR10", attack_bn="eval"):
    x_adv = adaad_attack(net, teacher, x, noise, attack_bn)
    s = net(x)
    s_ = net(x_adv)
    t, t_ = no_grad(teacher, x), no_grad(teacher, x_adv)
    if kl_weight is None:
        kl_weight = 0.1 if dataset == "CIFAR10" else 1.0

    def loss(i):
        return adaad_alpha * kl(t_[i], s_[i]) + (1 - adaad_alpha) * kl(t[i], s[i])

    return kl_weight * mean(loss(i) for i in range(len(x)))


def dgad(
    net,
    teacher,
    x,
    y,
    noise,
    epoch,
    *,
    map=True,
    els=True,
    alp="on",
    alp_beta=1.0,
    distill_weight=1.0,
    iad_beta=0.1,
    iad_begin=None,
    igdm=None,
    attack_bn="eval",
):
    x_adv = adaad_attack(net, teacher, x, noise, attack_bn)
    s = net(x)
    s_ = net(x_adv)
    t, t_ = no_grad(teacher, x), no_grad(teacher, x_adv)

    def distillation(i):
        predicted = t[i].argmax()
        if map and predicted != y[i]:  # misclassification-aware partitioning: the clean image
            return kl(swapped(t[i], y[i], predicted) if els else t[i], s[i])
        other = largest_other(t_[i], y[i])
        target = swapped(t_[i], y[i], other) if els and t_[i][y[i]] < t_[i][other] else t_[i]
        value = kl(target, s_[i])
        if iad_begin is not None and epoch >= iad_begin:  # DGAD-IAD
            value = value + (1 - softmax(target)[y[i]] ** iad_beta) * kl(s[i], s_[i])
        return value

    loss = distill_weight * mean(distillation(i) for i in range(len(x)))
    if alp == "on":  # predictive consistency, mean over images and classes
        differences = [softmax(s_[i]) - softmax(s[i]) for i in range(len(x))]
        loss = loss + alp_beta * mean(difference[c] ** 2 for difference in differences for c in range(len(difference)))
    return loss + mean(igdm_term(net, teacher, x, x_adv, s_, igdm, epoch))


def dgad_iad(net, teacher, x, y, noise, epoch, *, iad_begin=60, **options):
    return dgad(net, teacher, x, y, noise, epoch, iad_begin=iad_begin, **options)


def igdm(net, teacher, x, y, noise, epoch, *, igdm=1.0, attack_bn="eval"):
    x_adv = adaad_attack(net, teacher, x, noise, attack_bn)
    t_, s_ = no_grad(teacher, x_adv), net(x_adv)
    terms = igdm_term(net, teacher, x, x_adv, s_, igdm, epoch)
    return mean(kl(t_[i], s_[i]) + terms[i] for i in range(len(x)))


def saad(net, teacher, x, y, noise, epoch, *, igdm=1.0, saad_beta=0.0, saad_gamma=1.0, attack_bn="eval"):
    images = x.clone().requires_grad_()
    t = teacher(images)
    (gradient,) = torch.autograd.grad(sum(t[i][y[i]] for i in range(len(x))), images)
    t = t.detach()

    def losses(z):  # the teacher's logit of the label moves along its gradient at x
        moved = [t[i] + torch.eye(t.shape[1])[y[i]] * (gradient[i] * (z[i] - x[i])).sum() for i in range(len(x))]
        return map(kl, moved, net(z))

    def entropy(p):
        if saad_gamma == 1:
            return -sum(c * torch.log(c + 1e-12) for c in p)
        return torch.log(sum(c**saad_gamma for c in p) + 1e-12) / (1 - saad_gamma)

    x_adv = pgd(net, x, x + noise, losses, attack_bn)
    t_, s_ = no_grad(teacher, x_adv), net(x_adv)
    terms = igdm_term(net, teacher, x, x_adv, s_, igdm, epoch)
    s = net(x)
    entropies = [entropy(softmax(t_[i])) for i in range(len(x))]
    w = [5 * (h - min(entropies)) for h in entropies]
    v = [(each - min(w)) / (max(w) - min(w) + 1e-8) for each in w]
    return mean(w[i] * (kl(t_[i], s_[i]) + terms[i]) + saad_beta * (1 - v[i]) * kl(t[i], s[i]) for i in range(len(x)))


# With a robust and a standard teacher.


class MTARD:
    temp_rate = 0.0

    def __init__(self, net, peer):
        self.weight, self.first, self.temps = 0.5, None, [1.0, 1.0]  # weight of the clean term; robust, standard

    def __call__(self, net, teacher, std_teacher, x, y, noise, epoch, *, kl_weight=0.1, attack_bn="eval", **schedule):
        drops = sum(epoch >= milestone for milestone in schedule.get("milestones", ()))
        x_adv = label_attack(net, x, y, x + noise, attack_bn)
        s_, s = net(x_adv), net(x)
        pairs = (no_grad(teacher, x_adv), s_), (no_grad(std_teacher, x), s)

        def term(t, s, temp):
            q, p = softmax(t, temp), softmax(s)
            return sum(q[c] * (torch.log(q[c] + 1e-5) - torch.log(p[c])) for c in range(len(q)))

        terms = [
            kl_weight * mean(term(t[i], s[i], temp) for i in range(len(x)))
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

    def after_step(self):
        pass


class BMTARD(MTARD):
    temp_rate = 0.001


def akd2(
    net,
    teacher,
    std_teacher,
    x,
    y,
    noise,
    epoch,
    *,
    robust_weight=0.5,
    std_weight=0.25,
    temp=1.0,
    attack_bn="train",
    akd2_partial=False,
    iad_beta=0.1,
):
    x_adv = label_attack(net, x, y, x + noise, attack_bn)
    t_, u_ = no_grad(teacher, x_adv), no_grad(std_teacher, x_adv)
    s_ = net(x_adv)

    def loss(i):
        hard = (1 - robust_weight - std_weight) * cross_entropy(s_[i], y[i])
        trust = softmax(t_[i])[y[i]] ** iad_beta if akd2_partial else 1
        return hard + temp**2 * (robust_weight * trust * kl(t_[i], s_[i], temp) + std_weight * kl(u_[i], s_[i], temp))

    return mean(loss(i) for i in range(len(x)))


def iad2(net, teacher, std_teacher, x, y, noise, epoch, *, iad_beta=0.1, iad_begin=40, iad_coefficient=None, **options):
    if epoch < iad_begin:
        return akd2(net, teacher, std_teacher, x, y, noise, epoch, **options)
    defaults = {"robust_weight": 0.5, "std_weight": 0.25, "temp": 1.0, "attack_bn": "train"}
    robust_weight, std_weight, temp, attack_bn = (defaults | options).values()
    x_adv = label_attack(net, x, y, x + noise, attack_bn)
    t_, u_ = no_grad(teacher, x_adv), no_grad(std_teacher, x_adv)
    s_ = net(x_adv)
    s = net(x)

    def loss(i):
        reliability = softmax(t_[i])[y[i]] ** iad_beta
        coefficient = 1 - reliability if iad_coefficient is None else iad_coefficient
        robust = reliability * kl(t_[i], s_[i], temp) + coefficient * kl(s[i], s_[i])  # temperature 1
        hard = (1 - robust_weight - std_weight) * cross_entropy(s_[i], y[i])
        return hard + temp**2 * (robust_weight * robust + std_weight * kl(u_[i], s_[i], temp))

    return mean(loss(i) for i in range(len(x)))


METHODS = {
    **{"Natural": natural, "AT": at, "TRADES": trades, "MART": mart},
    **{"ARD": ard, "IAD-I": iad1, "RSLAD": rslad, "AdaAD": adaad, "AdaIAD": adaiad, "DGAD": dgad, "DGAD-IAD": dgad_iad},
    **{"AKD2": akd2, "IAD-II": iad2, "IGDM": igdm, "SAAD": saad, "MTARD": MTARD, "B-MTARD": BMTARD},
    **{"PeerAiD": PeerAiD, "ADR": ADR},
}

# Methods whose attack starts uniformly in the ball; the others add 0.001 times standard normal noise.
UNIFORM_START = ("ARD", "IAD-I", "AKD2", "IAD-II", "ADR")


def sgd(parameters, gradients, velocities):
    """One step of SGD with momentum and with weight decay on every parameter; ``velocities`` start at 0."""
    for parameter, gradient, velocity in zip(parameters, gradients, velocities, strict=True):
        velocity.copy_(MOMENTUM * velocity + gradient + WEIGHT_DECAY * parameter.detach())
        parameter.detach().sub_(LEARNING_RATE * velocity)
