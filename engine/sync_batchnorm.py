"""BatchNorm over the images of all processes, so that a batch shared among them is normalised as one."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncSwitch:
    """Whether the processes' parts are parts of one batch (``on``), or each has the whole batch for itself."""

    on = True


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch in train mode is that of all processes; in eval mode there is no difference.

    PyTorch's own SyncBatchNorm is for GPUs alone. Parameters and buffers are those of the module it takes the place of.
    """

    def __init__(self, norm: nn.BatchNorm2d, sync_switch: SyncSwitch):
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters, self._buffers, self.training = norm._parameters, norm._buffers, norm.training
        self.sync_switch = sync_switch

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, H, W), this process's part of the batch."""
        if not (self.training and self.sync_switch.on):
            return super().forward(x)
        y, mean, variance, count = _Normalise.apply(x, self.eps)
        if self.track_running_stats:
            self._track(mean, variance * (count / (count - 1)))
        if self.affine:
            y = torch.addcmul(self.bias[:, None, None], y, self.weight[:, None, None])
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)


def convert_sync_batchnorm(network: nn.Module) -> SyncSwitch:
    """Make every BatchNorm2d of the network a :class:`SyncedBatchNorm2d`; return what switches them."""
    sync_switch, synced = SyncSwitch(), {}
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if type(module) is nn.BatchNorm2d:
            synced.setdefault(module, SyncedBatchNorm2d(module, sync_switch))
            network.set_submodule(path, synced[module])
    return sync_switch


class _Normalise(torch.autograd.Function):
    """(x - mean) / deviation over the images of all processes, in float32 at least."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        own = wide.new_full((1,), x.numel() // x.shape[1])
        parts = _gathered(torch.cat([own, *torch.var_mean(wide, (0, 2, 3), correction=0)[::-1]]))
        counts, means, variances = parts[:, :1], *parts[:, 1:].chunk(2, dim=1)
        # Of means and variances, not of sums of squares: those cancel where a mean is large beside its deviation.
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / count
        scale = (variance + eps).rsqrt()
        y = (wide - mean[:, None, None]) * scale[:, None, None]
        ctx.save_for_backward(y, scale, count)
        ctx.dtype = x.dtype
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx, gradient: Tensor, *_) -> tuple[Tensor, None]:
        y, scale, count = ctx.saved_tensors
        sums = torch.stack([gradient.sum((0, 2, 3)), (gradient * y).sum((0, 2, 3))])
        dist.all_reduce(sums)
        along_mean, along_y = (sums / count)[:, :, None, None]
        return ((gradient - along_mean - y * along_y) * scale[:, None, None]).to(ctx.dtype), None


def _gathered(values: Tensor) -> Tensor:
    """(processes, n) of every process's values (n,)."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)
