"""The training loop: one step reads like the papers' algorithm boxes, one epoch never waits for the device."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attacks.pgd import Noise, gaussian, pgd
from engine.distributed import ALONE, Processes
from engine.precision import PLAIN, Arithmetic
from engine.sync_bn import synchronise
from engine.tally import Tally
from engine.views import Frozen, Live, View
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
        processes: Processes = ALONE,
        sync_bn: bool = True,
    ):
        self.student, self.method, self.optimizer = student, method, optimizer
        self.processes, self.part = processes, None
        if arithmetic.channels_last:
            student.to(memory_format=torch.channels_last)
        shared = processes.count > 1
        self.meeting = synchronise(student) if shared and sync_bn else None
        network = _wrapped(student) if shared else student
        self.live, self.frozen = Live(network, arithmetic), Frozen(student, arithmetic)
        self.still = View(student, arithmetic)  # the student with BatchNorm in eval mode, refreshed for each attack
        self.guides = tuple(View(teacher, arithmetic).let_go() for teacher in teachers)
        self.climb = partial(pgd, epsilon=epsilon, step_size=step_size, steps=steps)
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
        climbed = self.frozen
        if (self.attack_bn or bn) == "eval":
            self.still.refresh()
            climbed = self.still
        delta = self._draw(noise, x) if start_noise is None else start_noise
        start = (x + delta).clamp(0, 1) if clamp else x + delta
        return self.climb(objective(climbed, *self.guides), x, start)

    def step(self, x: Tensor, y: Tensor, epoch: int = 0, start_noise: Tensor | None = None) -> Step:
        """One optimizer step on images (B, C, H, W) and labels (B,); ``start_noise`` replaces the attack's own draw.

        All processes are given the same batch, of which each takes its part; the result is that part's.
        """
        self.student.train()
        self.part = part = self.processes.part(len(y))
        if self.meeting:
            self.meeting.on = not part.all_alike
        attack = partial(self.attack, start_noise=None if start_noise is None else start_noise[part.rows])
        self.optimizer.zero_grad()  # before the forward, beside whose features the old gradients would lie
        outcome = self.method(self.live, *self.guides, attack, x[part.rows], y[part.rows], epoch)
        weight = part.share * self.processes.count  # DistributedDataParallel takes the plain mean over processes
        (outcome.loss * weight).backward()
        self.optimizer.step()
        self.part = None
        if self.processes.count > 1 and not self.meeting:
            self.processes.spread(self.student.buffers())  # else each would attack with statistics of its own
        # Detached: logits that the loss leaves out would keep their whole forward alive through the next attack.
        return Step(*(None if value is None else value.detach() for value in outcome))

    def restore(self, state: dict) -> None:
        """Put student and optimizer back as a state holds them; raises UserError where it is another network's."""
        try:
            self.student.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            _lay_out(self.optimizer)
        except (
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:  # all PyTorch's
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--resume: the state in resume/ is of another network or optimizer ({reason}); "
                "--desc_str NAME starts another run"
            ) from error

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]], epoch: int, lr: float, tally: Tally) -> Iterator[Tally]:
        """Train on ``batches`` at learning rate ``lr``; yield ``tally`` after each, with that batch counted in."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for x, y in batches:
            outcome, part = self.step(x, y, epoch), self.processes.part(len(y))
            tally.add(outcome, y[part.rows], part)
            yield tally

    def _draw(self, noise: Noise, x: Tensor) -> Tensor:
        """Start noise of this process's images x (B, C, H, W), cut from that of the whole batch."""
        if self.part is None:
            return noise(x, self.epsilon, self.generator)
        whole = x.new_empty(self.part.whole, *x.shape[1:])
        return noise(whole, self.epsilon, self.generator)[self.part.rows]


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Let what an optimizer remembers of each parameter lie in memory as that parameter does.

    A state keeps the layout of the device and precision that made it, and fused steps pair values by their address.
    """
    for parameter, memory in optimizer.state.items():
        for key, value in memory.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                memory[key] = torch.empty_like(parameter).copy_(value)


def _wrapped(student: nn.Module) -> nn.Module:
    # Buffers are not broadcast: that would change what the first of several forwards saved for the backward.
    with warnings.catch_warnings():  # the option's new name is unknown to older releases of PyTorch
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(student, broadcast_buffers=False)
