"""The training loop: one step reads like the papers' algorithm boxes, one epoch never waits for the device."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attacks.pgd import Noise, gaussian, pgd
from engine.distributed import SINGLE_PROCESS, Processes
from engine.fast.frozen import AutocastModel, FoldedModel, FrozenModel
from engine.fast.graphs import GraphedPGD
from engine.fast.precision import PLAIN, Arithmetic
from engine.sync_batchnorm import convert_sync_batchnorm
from engine.training.metrics import EpochMetrics
from methods.losses import Step
from utils.errors import UserError


class Trainer:
    """Trains ``student`` with a method of :mod:`methods`, from any number of frozen teachers.

    Args:
        student: Any network from images (B, C, H, W) in [0, 1] to logits (B, K); trained in place.
        teachers: Networks in eval mode that the method receives after the student. Views of them are kept, not they.
        method: ``method(student, *teachers, attack, x, y, epoch) -> Step``.
        optimizer: Optimizer of the student's parameters.
        epsilon: Radius of the inner attack's ball, in [0, 1].
        step_size: Length of its steps, in [0, 1].
        steps: Number of its steps.
        attack_bn: "eval" or "train" overrides the BatchNorm mode that the method asks for in its attack.
        generator: Source of the start noise, on the images' device; None takes PyTorch's own.
        arithmetic: Of every forward and backward pass; weights, losses and the optimizer stay as they are.
        processes: Those that share each batch. Every one draws the noise of the whole batch, so that a step does not
            depend on how many they are; the gradients' mean goes through DistributedDataParallel, attacks do not.
        sync_bn: Normalise over the whole batch in train mode, not over each process's part of it.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        method,
        optimizer: torch.optim.Optimizer,
        *,
        epsilon: float,
        step_size: float,
        steps: int,
        attack_bn: str | None = None,
        generator: torch.Generator | None = None,
        arithmetic: Arithmetic = PLAIN,
        processes: Processes = SINGLE_PROCESS,
        sync_bn: bool = True,
    ):
        self.student, self.method, self.optimizer = student, method, optimizer
        self.processes, self.shard = processes, None
        if arithmetic.channels_last:
            student.to(memory_format=torch.channels_last)
        shared = processes.count > 1
        self.sync_switch = convert_sync_batchnorm(student) if shared and sync_bn else None
        network = _distributed(student) if shared else student
        self.autocast_student = AutocastModel(network, arithmetic)
        self.frozen_student = FrozenModel(student, arithmetic)
        self.student_eval = FoldedModel(student, arithmetic)  # refreshed before each attack
        self.teachers = tuple(FoldedModel(teacher, arithmetic).detach_source() for teacher in teachers)
        loop = GraphedPGD() if arithmetic.graphs else pgd
        self.pgd = partial(loop, epsilon=epsilon, step_size=step_size, steps=steps)
        self.epsilon, self.attack_bn, self.generator = epsilon, attack_bn, generator

    def attack(
        self,
        objective,
        x: Tensor,
        *,
        noise: Noise = gaussian,
        clamp: bool = False,
        bn: str = "eval",
        start_noise: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W) that climb ``objective(student, *teachers)``, a function of images.

        ``objective`` is handed views of the networks: constant parameters, the student's BatchNorm in ``bn`` mode.
        ``start_noise`` is added to the images in place of a draw from ``noise``; ``clamp`` puts the start back into
        [0, 1].
        """
        attack_model = self.frozen_student
        if (self.attack_bn or bn) == "eval":
            self.student_eval.refresh()
            attack_model = self.student_eval
        delta = self._draw(noise, x) if start_noise is None else start_noise
        start = (x + delta).clamp(0, 1) if clamp else x + delta
        return self.pgd(objective(attack_model, *self.teachers), x, start)

    def step(self, x: Tensor, y: Tensor, epoch: int = 0, start_noise: Tensor | None = None) -> Step:
        """One optimizer step on images (B, C, H, W) and labels (B,); ``start_noise`` replaces the attack's own draw.

        All processes are given the same batch, of which each takes its part; the result is that part's.
        """
        self.student.train()
        self.shard = shard = self.processes.shard(len(y))
        if self.sync_switch:
            self.sync_switch.on = not shard.replicated
        attack = partial(self.attack, start_noise=None if start_noise is None else start_noise[shard.rows])
        self.optimizer.zero_grad()  # before the forward, beside whose features the old gradients would lie
        outcome = self.method(self.autocast_student, *self.teachers, attack, x[shard.rows], y[shard.rows], epoch)
        weight = shard.weight * self.processes.count  # DistributedDataParallel takes the plain mean over processes
        (outcome.loss * weight).backward()
        self.optimizer.step()
        self.shard = None
        if self.processes.count > 1 and not self.sync_switch:
            self.processes.broadcast(self.student.buffers())  # else each would attack with statistics of its own
        # Detached: logits that the loss leaves out would keep their whole forward alive through the next attack.
        return Step(*(None if value is None else value.detach() for value in outcome))

    def restore(self, state: dict) -> None:
        """Put student and optimizer back as a state holds them; raises UserError where it is another network's."""
        try:
            self.student.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            _match_memory_format(self.optimizer)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--resume: the state in resume/ is of another network or optimizer ({reason}); "
                "--desc_str NAME starts another run"
            ) from error

    def epoch(
        self, batches: Iterable[tuple[Tensor, Tensor]], epoch: int, lr: float, metrics: EpochMetrics
    ) -> Iterator[EpochMetrics]:
        """Train on ``batches`` at learning rate ``lr``; yield ``metrics`` after each, with that batch counted in."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for x, y in batches:
            outcome, shard = self.step(x, y, epoch), self.processes.shard(len(y))
            metrics.add(outcome, y[shard.rows], shard)
            yield metrics

    def _draw(self, noise: Noise, x: Tensor) -> Tensor:
        """Start noise of this process's images x (B, C, H, W), cut from that of the whole batch."""
        if self.shard is None:
            return noise(x, self.epsilon, self.generator)
        whole = x.new_empty(self.shard.batch_size, *x.shape[1:])
        return noise(whole, self.epsilon, self.generator)[self.shard.rows]


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Let what an optimizer remembers of each parameter lie in memory as that parameter does.

    A state keeps the layout of the device and precision that made it, and fused steps pair values by their address.
    """
    for parameter, memory in optimizer.state.items():
        for key, value in memory.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                memory[key] = torch.empty_like(parameter).copy_(value)


def _distributed(student: nn.Module) -> nn.Module:
    # Buffers are not broadcast: that would change what the first of several forwards saved for the backward.
    with warnings.catch_warnings():  # the option's new name is unknown to older releases of PyTorch
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(student, broadcast_buffers=False)
