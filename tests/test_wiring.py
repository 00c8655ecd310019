"""Flags reach the code that uses them: in training, in the named attacks, in an evaluation."""

import gc
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from commands import SMALL, Killed
from run_files import folder_of, rows_of, state_of
from small_sets import save_network
from tiny import tiny_problem

import data
import engine.training.build
from attacks import suite
from attacks.objectives import cross_entropy, margin
from attacks.pgd import uniform
from data import Split, Splits
from data.loader import Batches
from engine.accuracy import Score
from engine.device import set_tf32
from engine.training.loop import TrainingLoop
from engine.training.validation import Validator
from methods import METHODS
from models import build
from models.weights import Checkpoint, load_network
from utils.config import TrainConfig

DIGITS = "--dataset Digits --image_size 16 --no-pictures"


def recording(calls):
    """A fake PGD that records its arguments and returns the start."""

    def pgd(objective, x, start, *, epsilon, step_size, steps):
        calls.append(SimpleNamespace(losses=objective(x), x=x, start=start, ball=(epsilon, step_size, steps)))
        return start

    return pgd


@pytest.fixture
def attacks(monkeypatch):
    """All PGD calls of named attacks."""
    calls = []
    monkeypatch.setattr(suite, "pgd", recording(calls))
    return calls


def record_steps(monkeypatch, name):
    """Make the method ``name`` record the teachers and the images of every step."""
    calls, make = [], METHODS[name]

    def recording(config):
        method = make(config)

        def step(student, *rest):
            *teachers, _, x, _, _ = rest
            calls.append(SimpleNamespace(teachers=teachers, x=x))
            return method(student, *rest)

        return step

    monkeypatch.setitem(METHODS, name, recording)
    return calls


# Training.


OPTIMIZERS = {
    "": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False},
    "--nesterov --momentum 0.5 --weight_decay 0.01": {"momentum": 0.5, "weight_decay": 0.01, "nesterov": True},
    "--optim Adam --weight_decay 0.02": {"betas": [0.9, 0.999], "weight_decay": 0.02},
    "--epochs 4 --warmup_lr --warmup_lr_epochs 2 --milestones 3": {"lr": 0.01},
    "--no_bn_decay": {"weight_decay": 5e-4, "lr": 0.1},
}


def test_the_optimizer_has_its_flags_for_every_parameter(train, tmp_path):
    network = build("small_resnet", 10, 16)
    for args, expected in OPTIMIZERS.items():
        root = tmp_path / f"runs{args.replace(' ', '')}"
        train(f"{SMALL} --method Natural --epochs 1 --root_path {root} {args}")
        group, *norms = state_of(root)["optimizer"]["param_groups"]
        assert {key: group.get(key) for key in expected} == expected
        assert sum(len(each["params"]) for each in (group, *norms)) == len([*network.parameters()])
        if "warmup" in args:
            assert [float(row["lr"]) for row in rows_of(root)] == pytest.approx([0.001, 0.0505, 0.1, 0.01])
    (norms,) = norms
    assert (norms["weight_decay"], norms["lr"]) == (0, 0.1)
    assert len(norms["params"]) == 2 * sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


def test_the_inner_attack_and_the_validation_have_the_runs_epsilon(train, monkeypatch):
    training, validation, starts = [], [], []
    monkeypatch.setattr("engine.training.trainer.pgd", recording(training))

    def recorded(*args):
        starts.append(uniform(*args))
        return starts[-1]

    monkeypatch.setattr("engine.training.validation.uniform", recorded)

    def until_fooled(model, objective, x, y, start, **ball):
        return recording(validation)(lambda z: objective(model(z), y), x, start, **ball)

    monkeypatch.setattr(suite, "pgd_until_fooled", until_fooled)
    args = "--method AT --epochs 2 --limit_test 16 --epsilon 4 --step_size 3 --num_steps 5 --precision fp32"
    train(f"{SMALL} {args} --epsilon_ramp 2")  # half of them in the first epoch of 3 batches
    assert [call.ball for call in training] == [(2 / 255, 1.5 / 255, 5)] * 3 + [(4 / 255, 3 / 255, 5)] * 3
    assert [call.ball for call in validation] == [(4 / 255, 4 / 255 / 4, 10)] * 2
    assert torch.equal(*starts)  # epochs differ by the network only


@pytest.mark.parametrize(("args", "forwards"), [("", 1), ("--attack_bn train", 1 + 2)])
def test_attack_bn_decides_whether_the_attack_updates_batchnorm(train, tmp_path, args, forwards):
    train(f"{SMALL} --method AT --epochs 1 {args}")  # 3 batches, an attack of 2 steps on each
    assert state_of(tmp_path)["net"]["bn1.num_batches_tracked"] == 3 * forwards


def dataset_of(monkeypatch, images, flip=False):
    """Replace Digits by a dataset of these images (N, 3, 16, 16)."""
    split = Split(images, torch.arange(len(images)) % 10)
    splits = Splits(split, split, tuple("0123456789"), flip)
    monkeypatch.setitem(data.DATASETS, "Digits", lambda root, image_size, workers: splits)


@pytest.mark.parametrize(("may_flip", "flag"), [(True, ""), (True, "--no-flip"), (False, "")])
def test_training_images_are_shifted_and_mirrored_if_that_keeps_the_class(train, monkeypatch, may_flip, flag):
    # The value of a pixel is its position: its column in red, its row in green.
    ramp = torch.arange(16, dtype=torch.uint8) * 10 + 20
    image = torch.stack([ramp.expand(16, 16), ramp[:, None].expand(16, 16), torch.zeros(16, 16, dtype=torch.uint8)])
    dataset_of(monkeypatch, image.repeat(240, 1, 1, 1), may_flip)
    calls = record_steps(monkeypatch, "Natural")
    log = train(f"--dataset Digits --model small_resnet --method Natural --limit_test 10 --epochs 1 {flag}")
    x = ((torch.cat([call.x for call in calls]) * 255 - 20) / 10).round()
    mirrored = x[:, 0, 8, 8] > x[:, 0, 8, 9]
    right = x[:, 0, 8, 8] - torch.where(mirrored, 7, 8)  # mirrored, column 7 of 0..15 is at 8
    down = x[:, 1, 8, 8] - 8
    assert set(mirrored.tolist()) == ({False, True} if may_flip and not flag else {False})
    assert ("mirrored with probability 1/2" in log) == (may_flip and not flag)
    # 240 draws of 9 values: one is missing with probability 5e-12.
    assert set(right.tolist()) == set(down.tolist()) == set(range(-4, 5))


def test_validation_images_are_the_same_for_every_seed_and_in_batches_of_eval_bs(train, monkeypatch):
    dataset_of(monkeypatch, torch.arange(200, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 16, 16))
    calls = []

    def validator(network, batches, *_):
        calls.append(([round(255 * float(x[0, 0, 0])) for images, _ in batches for x in images], batches.batch_size))
        return lambda after_batch=None: (Score(1.0, 50.0, 1), Score(1.0, 50.0, 1))

    monkeypatch.setattr(engine.training.build, "Validator", validator)
    args = "--dataset Digits --model small_resnet --method Natural --limit_train 20 --limit_test 30 --bs 10 --epochs 1"
    for more in ("--seed 1", "--seed 2 --eval_bs 7", "--seed 3 --val_size 20"):  # the last: validation, then test
        train(f"{args} {more}")
    images, sizes = zip(*calls, strict=True)
    assert images[0] == images[1] == images[3] != images[2] and sizes == (10, 7, 10, 10)


@pytest.mark.parametrize(
    ("args", "best", "validated"),
    [("", {"PGD10": 1, "clean": 2}, [1, 2, 3, 4, 5]), ("--eval_every 2", {"PGD10": 2, "clean": 4}, [2, 4, 5])],
)
def test_the_best_checkpoint_is_the_first_of_the_highest_accuracy(train, tmp_path, monkeypatch, args, best, validated):
    clean, robust = iter([50.0, 60.0, 60.0, 60.0, 60.0]), iter([30.0, 30.0, 20.0, 30.0, 30.0])
    scores = lambda after_batch: (Score(1.0, next(clean), 40), Score(1.0, next(robust), 40))  # noqa: E731
    monkeypatch.setattr(engine.training.build, "Validator", lambda *_: scores)
    log = train(f"{SMALL} --method Natural --epochs 5 {args}")
    saved = {name: torch.load(folder_of(tmp_path) / f"best_{name}_acc_model.pth") for name in best}
    assert {name: checkpoint["epoch"] + 1 for name, checkpoint in saved.items()} == best  # official: from 0
    assert f"best PGD-10 accuracy: 30.00 %, epoch {best['PGD10']}" in log
    assert f"best clean accuracy: 60.00 %, epoch {best['clean']}" in log
    rows = rows_of(tmp_path)
    assert [int(row["epoch"]) for row in rows if row["clean_acc"] and row["PGD10_loss"]] == validated
    assert [row["epoch"] for row in rows] == list("12345") and all(row["train_loss"] for row in rows)


def test_a_method_of_two_teachers_receives_the_robust_one_first(train, tmp_path, monkeypatch):
    paths = [save_network(tmp_path / name, seed) for seed, name in enumerate(("robust.pth", "standard.pth"))]
    calls = record_steps(monkeypatch, "AKD2")
    args = f"{SMALL} --method AKD2 --epochs 1 --no_teacher_check --teacher_model small_resnet --precision fp32"
    train(f"{args} --std_teacher_model small_resnet --teacher_path robust.pth --std_teacher_path standard.pth")
    for teacher, path in zip(calls[0].teachers, paths, strict=True):
        x, network = calls[0].x, load_network("small_resnet", 10, path)
        # float32 with folded BatchNorm sums in another order; the logits of the two networks differ in the first digit.
        torch.testing.assert_close(teacher(x), network.eval().to(x.device)(x), rtol=1e-4, atol=1e-4)


def test_a_run_frees_the_files_of_its_networks(distill, tmp_path, monkeypatch):
    kept = []

    def run(*_):
        kept.extend(value for value in gc.get_objects() if isinstance(value, Checkpoint))
        raise Killed

    monkeypatch.setattr(TrainingLoop, "run", run)
    with pytest.raises(Killed):
        distill("ARD", f"--epochs 1 --model_path {save_network(tmp_path / 'start.pth')}")
    assert kept == []


SWITCHES = (torch.backends.cudnn, torch.backends.cuda.matmul)


def test_fp32_disables_tf32_in_training_and_in_evaluation(train, run, tmp_path):
    set_tf32(True)
    train(f"{SMALL} --method Natural --epochs 1 --precision fp32")
    assert not any(switch.allow_tf32 for switch in SWITCHES)
    set_tf32(True)
    run("main_eval.py", f"{DIGITS} --attacks clean --model_path {save_network(tmp_path / 'net.pth')}")
    assert not any(switch.allow_tf32 for switch in SWITCHES)


def test_validation_is_in_full_precision():
    set_tf32(True)
    allowed, network = [], torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    network.register_forward_pre_hook(lambda *_: allowed.extend(switch.allow_tf32 for switch in SWITCHES))
    images = Split(torch.randint(256, (4, 3, 2, 2), dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    Validator(network, Batches(images, 4, device="cpu"), 0.1, seed=0)()
    assert allowed and not any(allowed)
    assert all(switch.allow_tf32 for switch in SWITCHES)  # for the next epoch
    set_tf32(False)  # PyTorch raises an error if its older and newer switches disagree
    assert torch.get_float32_matmul_precision() == "highest"


# The named attacks.


# Protocol and attack -> its objective, its step size as a function of epsilon, its number of steps.
NAMED = {
    ("paper", "fgsm"): (cross_entropy, lambda epsilon: epsilon, 1),
    ("paper", "pgd"): (cross_entropy, lambda epsilon: epsilon / 4, 20),
    ("paper", "pgd_trades"): (cross_entropy, lambda epsilon: 0.003, 20),
    ("paper", "cw"): (margin, lambda epsilon: epsilon / 4, 30),
    ("official", "fgsm"): (cross_entropy, lambda epsilon: epsilon, 1),
    ("official", "pgd"): (cross_entropy, lambda epsilon: epsilon / 4, 10),
}


def protocol_of(name, epsilon=8 / 255, **setting):
    """The attacks of a protocol, by default in the form that takes every step."""
    return suite.PROTOCOLS[name](suite.Setting(epsilon, seed=3, **{"judge": "last", **setting}))


def launch(attack, net, x, y):
    """Run all stages of an attack on all images; return the images of the last."""
    for perturb in attack.stages.values():
        x_adv = perturb(net.eval(), x, y, 2 * torch.rand_like(x) - 1)
    return x_adv


@pytest.mark.parametrize("epsilon", [8 / 255, 0.05])
@pytest.mark.parametrize(("protocol", "key"), NAMED)
def test_a_named_attack_has_its_objective_and_steps(attacks, protocol, key, epsilon):
    objective, step_size, steps = NAMED[protocol, key]
    net, _, x, y = tiny_problem()
    attack = protocol_of(protocol, epsilon)[key]
    launch(attack, net, x, y)
    (call,) = attacks
    assert call.ball == (epsilon, step_size(epsilon), steps)
    torch.testing.assert_close(call.losses, objective(net(x), y))
    assert attack.parameters["epsilon"] == epsilon and attack.parameters["steps"] == steps
    if key == "fgsm":
        assert torch.equal(call.start, x)
    launch(protocol_of(protocol, steps=7)[key], net, x, y)  # the flag applies to PGD only
    assert attacks[1].ball[2] == (7 if key == "pgd" else steps)


def test_transfer_attacks_use_the_surrogate(attacks):
    net, surrogate, x, y = tiny_problem()
    protocol = protocol_of("blackbox", surrogate=surrogate.eval(), surrogate_name="other.pth")
    for key, objective, steps in (("transfer_pgd", cross_entropy, 20), ("transfer_cw", margin, 30)):
        launch(protocol[key], net, x, y)
        assert attacks[-1].ball == (8 / 255, 2 / 255, steps)
        torch.testing.assert_close(attacks[-1].losses, objective(surrogate(x), y))
        assert "from other.pth" in protocol[key].settings


def autoattack_module(monkeypatch, name, answer):
    """Replace the package of AutoAttack by a fake one; return its objects."""
    made = []

    class AutoAttack:
        def __init__(self, model, **settings):
            self.settings = settings
            self.apgd_targeted, self.fab = SimpleNamespace(n_target_classes=9), SimpleNamespace(n_target_classes=9)
            made.append(self)

        def run_standard_evaluation(self, x, y, **options):
            self.options = options
            return answer(x / 2, y)

    module = ModuleType(name)
    module.AutoAttack = AutoAttack
    monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.mark.parametrize(
    ("package", "batch", "more"), [("pyautoattack", "batch_size", {}), ("autoattack", "bs", {"verbose": False})]
)
@pytest.mark.parametrize(("epsilon", "classes", "targets"), [(8 / 255, 100, 9), (0.05, 5, 4)])
def test_autoattack_runs_its_four_attacks_with_our_epsilon_seed_and_device(
    monkeypatch, package, batch, more, epsilon, classes, targets
):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)  # either package of its authors is used
    made = autoattack_module(monkeypatch, package, lambda x_adv, y: x_adv if more else (x_adv, y))
    x, y = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    stages = protocol_of("paper", epsilon)["aa"].stages.values()
    x_adv = [perturb(lambda x: torch.zeros(len(x), classes), x, y, x) for perturb in stages]
    assert [attack.attacks_to_run for attack in made] == [["apgd-ce"], ["apgd-t"], ["fab-t"], ["square"]]
    for attack in made:
        assert attack.settings == {"norm": "Linf", "eps": epsilon, "seed": 3, "device": torch.device("cpu")} | more
        assert attack.options == {batch: 3}
        assert attack.apgd_targeted.n_target_classes == attack.fab.n_target_classes == targets
    assert torch.equal(x_adv[0], x / 2)


@pytest.mark.slow
def test_autoattack_in_stages_is_autoattack():
    from pyautoattack import AutoAttack

    net, _, x, y = tiny_problem(n=40, dtype=torch.float32)
    net.eval().requires_grad_(False)
    y = net(x).argmax(1)
    whole = AutoAttack(net, eps=0.01, seed=3)
    whole.square.n_queries = 5000
    x_adv, _ = whole.run_standard_evaluation(x, y, batch_size=40)
    robust = net(x_adv).argmax(1) == y
    assert 0 < robust.sum() < 40
    left = torch.arange(40)
    for perturb in suite.PROTOCOLS["paper"](suite.Setting(0.01, seed=3))["aa"].stages.values():
        left = left[net(perturb(net, x[left], y[left], None)).argmax(1) == y[left]]
    assert torch.equal(left, robust.nonzero()[:, 0])


def test_the_flags_of_an_evaluation_reach_its_attacks(run, tmp_path, attacks, monkeypatch):
    made = autoattack_module(monkeypatch, "pyautoattack", lambda halved, y: (2 * halved, y))
    args = f"{DIGITS} --limit_test 20 --eps 0.05 --judge last --steps 3 --bs 20 --seed 5 --limit_aa 4"
    run("main_eval.py", f"{args} --attacks pgd,aa --model_path {save_network(tmp_path / 'net.pth')}")
    assert (attacks[0].ball, len(attacks[0].x)) == ((0.05, 0.05 / 4, 3), 20)
    assert {(attack.settings["eps"], attack.settings["seed"]) for attack in made} <= {(0.05, 5)}
    assert all(attack.options["batch_size"] <= 4 for attack in made)


def test_every_step_has_its_own_attack_noise():
    split = Split(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.arange(6))
    batches = Batches(split, 2, device="cpu", shuffle=True, generator=torch.Generator())
    trainer, folder = SimpleNamespace(generator=torch.Generator()), SimpleNamespace(config=TrainConfig(epochs=2))
    loop = TrainingLoop(trainer, batches, None, folder, {})
    seeds = [trainer.generator.initial_seed() for epoch in range(2) for _ in loop._training_batches(epoch, 0)]
    assert len(set(seeds)) == 6
