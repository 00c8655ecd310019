"""The training step: everything that changes the weights. It never waits for the device."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attacks.pgd import Noise, gaussian, pgd
from engine.distributed import SINGLE_PROCESS, Processes, Shard
from engine.fast.frozen import AutocastModel, FoldedModel, FrozenModel
from engine.fast.graphs import GraphedPGD
from engine.fast.precision import PLAIN, Arithmetic
from engine.sync_batchnorm import convert_sync_batchnorm
from engine.training.averaging import WeightAverage
from engine.training.weight_perturbation import WeightPerturbation
from methods.losses import Recording, Setup, Step, concatenate, set_up
from utils.errors import UserError, first_line


class Trainer:
    """Trains ``student`` with a method of :mod:`methods` and any number of frozen teachers.

    Args:
        student: Any network from images (B, C, H, W) in [0, 1] to logits (B, K); trained in place.
        teachers: Networks in eval mode that the method receives after the student. Only folded copies are kept.
        method: ``method(student, *teachers, attack, x, y, epoch) -> Step``.
        optimizer: Optimizer of the student's parameters.
        epsilon: Radius of the inner attack's ball, in [0, 1].
        step_size: Step size of the inner attack, in [0, 1].
        steps: Number of steps of the inner attack.
        attack_bn: "eval" or "train" overrides the BatchNorm mode that the method requests for its attack.
        generator: Source of the start noise, on the images' device; None uses PyTorch's global generator.
        arithmetic: How forward and backward passes compute; weights, losses and the optimizer keep their precision.
        processes: Ranks that share each batch. Each draws the noise of the whole batch, so results do not depend on
            their number.
        sync_bn: In train mode, normalize over the whole batch instead of each rank's share.
        average: An average of the student's weights, which is validated and saved instead of them.
        perturbation: Perturbs the weights at which the gradient is computed; the method is then called twice, and the
            second call receives the adversarial images of the first.
        clip_grad: Maximum norm of the gradient over all of the student's parameters.
        parts: Into how many parts a batch is split; their gradients are added, BatchNorm normalizes over a part.
        make_network: Creates the second network of a method that trains one; None copies the student.
        steps_per_epoch: For methods whose schedule advances with every step.
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
        average: WeightAverage | None = None,
        perturbation: WeightPerturbation | None = None,
        clip_grad: float | None = None,
        parts: int = 1,
        make_network: Callable[[], nn.Module] | None = None,
        steps_per_epoch: int = 1,
    ):
        self.student, self.method, self.optimizer, self.processes = student, method, optimizer, processes
        self.average, self.perturbation = average, perturbation
        self.eval_network = average.network if average else student
        layout = torch.channels_last if arithmetic.channels_last else torch.preserve_format
        for network in {student, self.eval_network}:
            network.to(memory_format=layout)
        make_network = make_network or partial(deepcopy, student)
        forward = partial(AutocastModel, arithmetic=arithmetic)
        setup = Setup(student, lambda: make_network().to(memory_format=layout), forward, steps_per_epoch)
        set_up(method, optimizer, setup)
        distributed = processes.count > 1
        self.sync_switch = convert_sync_batchnorm(student) if distributed and sync_bn else None
        self.autocast_student = AutocastModel(_data_parallel(student) if distributed else student, arithmetic)
        self.frozen_student = FrozenModel(student, arithmetic)
        self.student_eval = FoldedModel(student, arithmetic)  # refreshed before each attack
        self.teachers = tuple(FoldedModel(teacher, arithmetic).detach_source() for teacher in teachers)
        loop = GraphedPGD() if arithmetic.graphs else pgd
        self.pgd = partial(loop, steps=steps)
        self.epsilon, self.step_size, self.epsilon_scale = epsilon, step_size, 1.0
        self.attack_bn, self.generator = attack_bn, generator
        self.clip_grad, self.parts = clip_grad, parts

    def step(self, x: Tensor, y: Tensor, epoch: int = 0, start_noise: Tensor | None = None) -> Step:
        """Perform one optimizer step on images (B, C, H, W) and labels (B,); ``epoch`` counts from 0.

        ``start_noise`` (B, C, H, W) replaces the attack's random start. All ranks receive the same batch and process
        their shares; the result covers this rank's share and is detached.
        """
        self.student.train()
        shards = self.processes.shards(len(y), self.parts)
        attacks = [partial(self.attack, shard=shard, start_noise=start_noise) for shard in shards]
        self.optimizer.zero_grad()  # before the forward pass, so that its activations can use the gradients' memory
        perturbed = self.perturbation is not None and epoch >= self.perturbation.start
        if perturbed:
            attacks = self._perturb_weights(attacks, shards, x, y, epoch)
        result = self._backward(self.autocast_student, attacks, shards, x, y, epoch)
        if self.clip_grad:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.clip_grad)
        self.optimizer.step()
        if perturbed:
            self.perturbation.restore()
        if self.processes.count > 1 and not self.sync_switch:
            self.processes.broadcast(self.student.buffers())  # otherwise each rank would attack its own statistics
        if hasattr(self.method, "after_step"):
            self.method.after_step()
        if self.average:
            self.average.after_step()
        return result

    def _perturb_weights(self, attacks: list, shards: list[Shard], x: Tensor, y: Tensor, epoch: int) -> list:
        """Perturb the weights by the gradient of the batch; return attacks that repeat the images of ``attacks``."""
        recordings = [Recording(attack) for attack in attacks]
        method_state = deepcopy(self.method.state_dict()) if hasattr(self.method, "state_dict") else None
        student = self.perturbation.untracked(self.autocast_student)
        self._backward(student, [each.record for each in recordings], shards, x, y, epoch)
        if method_state is not None:
            self.method.load_state_dict(method_state)
        self.perturbation.perturb()
        self.optimizer.zero_grad()
        return [each.replay for each in recordings]

    def _backward(self, student, attacks: list, shards: list[Shard], x: Tensor, y: Tensor, epoch: int) -> Step:
        """Accumulate the gradients of this rank's share of a batch; return its result, detached."""
        results = []
        for attack, shard in zip(attacks, shards, strict=True):
            if self.sync_switch:
                self.sync_switch.on = not shard.replicated
            result = self.method(student, *self.teachers, attack, x[shard.rows], y[shard.rows], epoch)
            weight = shard.weight * self.processes.count  # DistributedDataParallel averages over ranks
            (result.loss * weight).backward()
            # Detached: logits that the loss does not use would keep their graph in memory until the next step.
            results.append(Step(*(None if value is None else value.detach() for value in result)))
        return concatenate(results, [shard.weight for shard in shards])

    def attack(
        self,
        objective,
        x: Tensor,
        *,
        noise: Noise = gaussian,
        clamp: bool = False,
        bn: str = "eval",
        shard: Shard | None = None,
        start_noise: Tensor | None = None,
    ) -> Tensor:
        """Return adversarial images (B, C, H, W) that maximize ``objective(student, *teachers)``.

        Args:
            objective: Receives copies of the networks with constant parameters, the student's BatchNorm in ``bn``
                mode; returns a function from images (B, C, H, W) to losses (B,).
            x: Clean images (B, C, H, W) in [0, 1].
            noise: Draws the random start.
            clamp: Clamp the start to [0, 1].
            bn: "eval" or "train".
            shard: Share of the batch that ``x`` is; None if it is the whole batch.
            start_noise: Noise of the whole batch that replaces the draw from ``noise``.
        """
        attack_model = self.frozen_student
        if (self.attack_bn or bn) == "eval":
            self.student_eval.refresh()
            attack_model = self.student_eval
        epsilon, step_size = self.epsilon_scale * self.epsilon, self.epsilon_scale * self.step_size
        shard = shard or Shard(slice(None), len(x), weight=1.0)
        if start_noise is None:
            start_noise = noise(x.new_empty(shard.batch_size, *x.shape[1:]), epsilon, self.generator)
        start = x + start_noise[shard.rows]
        if clamp:
            start = start.clamp(0, 1)
        return self.pgd(objective(attack_model, *self.teachers), x, start, epsilon=epsilon, step_size=step_size)

    def after_epoch(self, epoch: int, images: Iterable[Tensor]) -> None:
        """Finish an epoch, counted from 0; ``images`` yields batches (B, C, H, W), which only some averages read."""
        if hasattr(self.method, "after_epoch"):
            self.method.after_epoch(epoch)
        if self.average:
            self.average.after_epoch(epoch, images)

    def weights(self) -> dict:
        """Return the weights in a checkpoint: ``net``, ``method_state``, and ``net_raw`` if weights are averaged."""
        weights = {"net": self.eval_network.state_dict()}
        if hasattr(self.method, "state_dict"):
            weights["method_state"] = self.method.state_dict()
        if self.average:
            weights["net_raw"] = self.student.state_dict()
        return weights

    def state(self) -> dict:
        """Return the trainer's part of a resume state."""
        state = {**self.weights(), "optimizer": self.optimizer.state_dict()}
        if self.average:
            state["averaged"] = self.average.count
        return state

    def restore(self, state: dict) -> None:
        """Load what :meth:`state` returned; raises UserError if it belongs to another network."""
        try:
            self.eval_network.load_state_dict(state["net"])
            if self.average:
                self.student.load_state_dict(state["net_raw"])
                self.average.count = state["averaged"]
            if hasattr(self.method, "load_state_dict"):
                self.method.load_state_dict(state["method_state"])
            self.optimizer.load_state_dict(state["optimizer"])
            _match_memory_format(self.optimizer)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"--resume: the state in resume/ belongs to another network or optimizer ({first_line(error)}); "
                "--desc_str NAME starts another run"
            ) from error


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Convert every optimizer buffer to the memory format of its parameter.

    A resume state has the memory format of the device and precision that wrote it, and fused optimizers pair elements
    by their position in memory.
    """
    for parameter, buffers in optimizer.state.items():
        for key, value in buffers.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                buffers[key] = torch.empty_like(parameter).copy_(value)


def _data_parallel(student: nn.Module) -> nn.Module:
    # Buffers are not broadcast: this would modify tensors that an earlier forward pass saved for backward.
    with warnings.catch_warnings():  # newer releases of PyTorch rename the option
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(student, broadcast_buffers=False)
