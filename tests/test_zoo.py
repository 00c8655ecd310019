"""RobustBench's CIFAR L-infinity networks: each architecture builds, and its folded copy computes the same logits."""

import sys
from importlib.metadata import distributions

import pytest
import torch

from engine.fast.frozen import ROUNDING, FoldedModel
from models.robustbench import build, zoo

INSTALLED = any(each.name == "robustbench" for each in distributions())  # torchattacks has an old copy of its modules
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason="pip install -r requirements-zoo.txt")]
LARGEST = 60e6  # parameters; larger networks have the architectures of smaller ones


@pytest.mark.parametrize("dataset", ["CIFAR10", "CIFAR100"])
def test_folded_copies_of_the_zoo_compute_its_logits(dataset, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "robustbench"]:  # stand-ins of other tests
        monkeypatch.delitem(sys.modules, name)
    seen, checked = set(), []
    for name in sorted(zoo(dataset)):
        torch.manual_seed(0)
        try:
            network = build(name, dataset).eval()
        except RuntimeError as error:
            if "NVIDIA" in str(error):  # some networks move to a GPU when they are built
                continue
            raise
        key = tuple((key, tuple(value.shape)) for key, value in network.state_dict().items())
        if key in seen or sum(value.numel() for value in network.parameters()) > LARGEST:
            continue
        seen.add(key)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # otherwise folding would multiply by one
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            expected, logits = network(x), FoldedModel(network)(x)
        assert (logits - expected).abs().max() <= ROUNDING * expected.abs().max(), name
        checked.append(name)
    assert len(checked) >= 5
