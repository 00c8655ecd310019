"""BatchNorm over the images of all processes: a batch shared among them is normalized as one batch."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.fast.precision import at_least_float32


class SyncSwitch:
    """``on`` is True while each process has its part of the batch, and False while each has the whole batch."""

    on = True


class _Replacement:
    """Takes over the parameters and buffers of the BatchNorm2d ``norm`` that it replaces."""

    def __init__(self, norm: nn.BatchNorm2d, sync_switch: SyncSwitch):
        super().__init__(norm.num_features)
        vars(self).update(vars(norm), sync_switch=sync_switch)


class SyncedBatchNorm2d(_Replacement, nn.BatchNorm2d):
    """BatchNorm2d that in train mode normalizes over the batch of all processes, on any device.

    ``nn.SyncBatchNorm`` supports GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W), this process's part of the batch."""
        if not (self.training and self.sync_switch.on):
            return super().forward(x)
        x_precise = at_least_float32(x)
        local_count = x_precise.new_full((1,), x.numel() // x.shape[1])
        sums = _AllReduce.apply(torch.cat([x_precise.sum((0, 2, 3)), local_count]))
        count = sums[-1]
        mean = sums[:-1] / count
        # A second sum, because E[x^2] - E[x]^2 cancels where a mean is large compared to its standard deviation.
        centered = x_precise - mean[:, None, None]
        variance = _AllReduce.apply(centered.square().sum((0, 2, 3))) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
                self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), weight)
        y = centered * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            y = torch.addcmul(self.bias[:, None, None], y, self.weight[:, None, None])
        return y.to(x.dtype)


class CudaSyncedBatchNorm2d(_Replacement, nn.SyncBatchNorm):
    """The same on GPUs, with PyTorch's kernels."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W), this process's part of the batch."""
        # With synchronization, a replicated batch would count once per process. This does not change mean and variance,
        # but the running variance is multiplied by n / (n - 1), and n would be too large.
        return super().forward(x) if self.sync_switch.on else nn.BatchNorm2d.forward(self, x)


SYNCED = (SyncedBatchNorm2d, CudaSyncedBatchNorm2d)


def convert_sync_batchnorm(network: nn.Module) -> SyncSwitch:
    """Replace every BatchNorm2d of the network by a synchronized one; return the switch that they share."""
    synced_class = CudaSyncedBatchNorm2d if next(network.parameters()).is_cuda else SyncedBatchNorm2d
    sync_switch, synced = SyncSwitch(), {}
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if type(module) is nn.BatchNorm2d:
            synced.setdefault(module, synced_class(module, sync_switch))
            network.set_submodule(path, synced[module])
    return sync_switch


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; its gradient is summed over all processes too."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _AllReduce.apply(gradient)
