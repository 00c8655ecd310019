"""The algorithm boxes of the papers, one image at a time, with every softmax and logarithm written out.

The reference for ``test_steps.py``; it imports nothing from the packages under test. A method is
``name(net, *teachers, x, y, noise, epoch, **options) -> loss``. Its options are flags with the official defaults; the
number, order and BatchNorm mode of its calls of ``net`` are the official ones. The attack starts at ``x + noise``.
s, t, u are logits of the student, the robust and the standard teacher on the images, s_, t_, u_ on x_adv.
"""

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
            return teacher_weight * distillation + hard
        reliability = softmax(t_[i])[y[i]] ** beta
        if iad_down:
            distillation = reliability * distillation
        coefficient = 1 - reliability if iad_coefficient is None else iad_coefficient
        return teacher_weight * distillation + self_weight * coefficient * kl(target[i], s_[i]) + hard

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


def adaiad(net, teacher, x, y, noise, epoch, *, iad_alpha=1.0, iad_beta=0.1, iad_begin=60, temp=30.0, attack_bn="eval"):
    x_adv = adaad_attack(net, teacher, x, noise, attack_bn)
    return introspective(x_adv, net, teacher, x, x_adv, y, epoch, iad_alpha, iad_beta, iad_begin, temp)


def rslad(net, teacher, x, y, noise, epoch, *, kl_weight=0.1, attack_bn="eval"):
    x_adv = rslad_attack(net, teacher, x, noise, attack_bn)
    t = no_grad(teacher, x)
    s_ = net(x_adv)
    s = net(x)
    return kl_weight * mean(5 / 6 * kl(t[i], s_[i]) + 1 / 6 * kl(t[i], s[i]) for i in range(len(x)))


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
    return loss


def dgad_iad(net, teacher, x, y, noise, epoch, *, iad_begin=60, **options):
    return dgad(net, teacher, x, y, noise, epoch, iad_begin=iad_begin, **options)


# With a robust and a standard teacher.


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
    **{"AKD2": akd2, "IAD-II": iad2},
}

# Methods whose attack starts uniformly in the ball; the others add 0.001 times standard normal noise.
UNIFORM_START = ("ARD", "IAD-I", "AKD2", "IAD-II")


def sgd(parameters, gradients, velocities):
    """One step of SGD with momentum and with weight decay on every parameter; ``velocities`` start at 0."""
    for parameter, gradient, velocity in zip(parameters, gradients, velocities, strict=True):
        velocity.copy_(MOMENTUM * velocity + gradient + WEIGHT_DECAY * parameter.detach())
        parameter.detach().sub_(LEARNING_RATE * velocity)
