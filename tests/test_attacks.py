"""Attacks: equality with the official ones and with other libraries, ball and box."""

import contextlib
import sys

import pytest
import torch
from conftest import golden_arrays, golden_rows
from tiny import make_trainer, part, tiny_from, tiny_problem, trained_on_stripes

from attacks.libraries import carlini_wagner_l2
from attacks.objectives import cross_entropy, margin
from attacks.pgd import pgd, uniform
from attacks.suite import linf
from data import Split, Splits
from engine.training.trainer import Trainer
from methods import METHODS, WITH_TEACHER
from methods.losses import kl
from scripts import compare_autoattack
from utils.config import TrainConfig
from utils.errors import UserError

EPSILON = 8 / 255


def test_margin_of_three_images():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [100.0, 0.0, 0.0]])
    assert margin(logits, torch.tensor([0, 0, 1])).tolist() == [-51.0, -45.0, -0.0]


# Recording -> our method with this attack, the epsilon and step size of the recording.
TRAINING_ATTACKS = {
    "madry_ce": ("AT", EPSILON, 2 / 255),
    "adaad": ("AdaAD", EPSILON, 2 / 255),
    "adaad_dgad": ("DGAD", EPSILON, 2 / 255),
    "mtad_dgad": ("DGAD", EPSILON, 2 / 255),
    "adaad_eps16": ("AdaAD", 16 / 255, 4 / 255),
    "rslad": ("RSLAD", EPSILON, 2 / 255),
    "rslad_dgad": ("RSLAD", EPSILON, 2 / 255),
    "rslad_dgad_default_eps": ("RSLAD", 0.031, 0.003),
    "uniform_ce_ard_trainmode": ("ARD", EPSILON, 2 / 255),
    "uniform_ce_iad_trainmode": ("IAD-I", EPSILON, 2 / 255),
    "trades": ("TRADES", EPSILON, 2 / 255),
    "trades_dgad": ("TRADES", EPSILON, 2 / 255),
    "trades_default_eps": ("TRADES", 0.031, 0.007),
}


class Stop(Exception):
    """Ends a step where the recording ends: after the attack, or after some forwards in train mode."""


def stop_after(student, forwards):
    """Raise Stop at the student's train-mode forward after the first ``forwards``."""
    seen = []

    def hook(module, images):
        seen.extend([images] * module.training)
        if len(seen) > forwards:
            raise Stop

    student.register_forward_pre_hook(hook)


def attack_rows(*names):
    rows = [row for name in names for row in golden_rows(attack=name, dtype="float64", status="ok")]
    return [pytest.param(row, id=row["attack"]) for row in rows]


@pytest.mark.recorded
@pytest.mark.parametrize("row", attack_rows(*TRAINING_ATTACKS))
def test_training_attack_equals_the_official_one_with_its_batchnorm(row):
    name, epsilon, step_size = TRAINING_ATTACKS[row["attack"]]
    arrays, config, results = golden_arrays(row), TrainConfig(dataset="CIFAR10"), []
    student = tiny_from(part(arrays, "student0"))
    teachers = [tiny_from(part(arrays, "teacher")).eval()] if name in WITH_TEACHER else []

    def method(student, *rest):
        *teachers, attack, x, y, epoch = rest

        def attack_and_keep(*args, **options):
            results.append(attack(*args, **options))
            return results[0]

        return METHODS[name](config)(student, *teachers, attack_and_keep, x, y, epoch)

    optimizer = torch.optim.SGD(student.parameters(), lr=0)
    trainer = Trainer(student, teachers, method, optimizer, epsilon=epsilon, step_size=step_size, steps=10)
    # Forwards of the attack in eval mode; official TRADES also forwards the clean images at every step.
    in_eval = 0 if row["student_modes"] == ["train"] else 20 if name == "TRADES" else 10
    stop_after(student, row["student_calls"] - in_eval)
    noise = arrays["noise"] * (0.001 if "randn" in row["start"] else 1)
    with contextlib.suppress(Stop):
        trainer.step(arrays["x"], arrays["y"], start_noise=noise)
    assert torch.equal(results[0], arrays["x_adv"])
    assert_state(student, part(arrays, "student1"))


def assert_state(student, expected):
    for key, value in student.state_dict().items():
        # The order of the sums in batch statistics differs between machines.
        torch.testing.assert_close(value, expected[key], rtol=1e-14, atol=1e-15, msg=key)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"Natural"}))
@pytest.mark.parametrize("confident", ["student", "teacher"])
def test_a_softmax_that_underflows_keeps_no_image_at_its_start_and_the_step_finite(name, confident):
    student, teacher, x, y = tiny_problem(dtype=torch.float32)
    {"student": student, "teacher": teacher}[confident].linear.weight.data.mul_(1e3)
    trainer, results = make_trainer(name, student, [teacher] * 2, config={"iad_begin": 0}), []
    trainer.pgd = lambda *args, pgd=trainer.pgd, **options: results.append(pgd(*args, **options)) or results[-1]
    loss = trainer.step(x, y).loss
    assert ((results[0] - x).abs().amax((1, 2, 3)) > 7.9 / 255).all()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in student.parameters())


# Recordings of codes whose methods are not ours -> factor of the recorded noise, options of our attack.
OTHER_ATTACKS = {
    "uniform_ce_dgad": (1, {}),
    "uniform_ce_iad_evalmode": (1, {}),
    "mtard_ce": (0.001, {}),
    "peeraid_kl": (0.001, {}),
    "akd2_vita_trainmode": (EPSILON, {"clamp": True, "bn": "train"}),
}


@pytest.mark.recorded
@pytest.mark.parametrize("row", attack_rows(*OTHER_ATTACKS))
def test_attack_of_another_code_equals_the_official_one_with_its_batchnorm(row):
    scale, options = OTHER_ATTACKS[row["attack"]]
    arrays, seen = golden_arrays(row), []
    student, teacher = tiny_from(part(arrays, "student0")), tiny_from(part(arrays, "teacher")).eval()
    x, y, soft = arrays["x"], arrays["y"], teacher(arrays["x"]).detach()

    def objective(student, teacher):
        if row["attack"] == "peeraid_kl":
            return lambda z: kl(soft, student(z))
        return lambda z: cross_entropy(student(z), y)

    student.register_forward_pre_hook(lambda module, images: seen.append((module.training, images[0].detach())))
    trainer = Trainer(student, [teacher], None, None, epsilon=EPSILON, step_size=2 / 255, steps=10)
    x_adv = trainer.attack(objective, x, start_noise=scale * arrays["noise"], **options)
    assert [training for training, _ in seen] == [options.get("bn") == "train"] * 10
    assert torch.equal(seen[0][1], arrays["x_start"])
    assert torch.equal(x_adv, arrays["x_adv"])
    if row["attack"] == "mtard_ce":  # recorded with the forward of the loss, in train mode
        student(x_adv)
    assert_state(student, part(arrays, "student1"))


# Recording -> objective, step size, steps, epsilon.
EVALUATION_ATTACKS = {
    "eval_advertorch_pgd10": (cross_entropy, 2 / 255, 10, EPSILON),
    "eval_iad_pgd20": (cross_entropy, 2 / 255, 20, EPSILON),
    "eval_iad_cw30": (margin, 2 / 255, 30, EPSILON),
    "eval_iad_fgsm": (cross_entropy, 8 / 255, 1, EPSILON),
    "eval_rslad_pgd20": (cross_entropy, 0.003, 20, EPSILON),
    "eval_trades_pgd20": (cross_entropy, 0.003, 20, 0.031),
    "eval_advertorch_fgsm": (cross_entropy, 8 / 255, 1, EPSILON),  # this and the next start from the image
    "madry_ce_noinit": (cross_entropy, 2 / 255, 10, EPSILON),
}


@pytest.mark.recorded
@pytest.mark.parametrize("row", attack_rows(*EVALUATION_ATTACKS))
def test_evaluation_attack_equals_the_official_one(row):
    objective, step_size, steps, epsilon = EVALUATION_ATTACKS[row["attack"]]
    arrays = golden_arrays(row)
    student, x, y = tiny_from(part(arrays, "student0")).eval(), arrays["x"], arrays["y"]
    ball = {"epsilon": epsilon, "step_size": step_size, "steps": steps}
    x_adv = pgd(lambda z: objective(student(z), y), x, arrays.get("x_start", x), **ball)
    assert torch.equal(x_adv, arrays["x_adv"])


@pytest.mark.parametrize("objective", [cross_entropy, margin])
def test_stopping_at_the_first_success_fools_the_same_images_as_remembering_every_success(objective):
    net, x, y = trained_on_stripes(200)
    net, x = net.double(), x.double()
    noise = uniform(x, 1, torch.Generator().manual_seed(1))
    x_adv = linf(objective, EPSILON, EPSILON / 4, 20, until_fooled=True)(net, x, y, noise)
    assert (x_adv - x).abs().max() <= EPSILON + 1e-15 and x_adv.min() >= 0 and x_adv.max() <= 1
    iterates = [linf(objective, EPSILON, EPSILON / 4, k)(net, x, y, noise) for k in range(21)]
    correct = torch.stack([net(iterate).argmax(1) == y for iterate in iterates])
    assert torch.equal(net(x_adv).argmax(1) == y, correct.all(0))
    assert 0.2 < correct.all(0).double().mean() < 0.9
    # Each fooled image is its first misclassified iterate, each robust one its last iterate.
    first = torch.where(correct.all(0), 20, (~correct).double().argmax(0))
    assert torch.equal(x_adv, torch.stack(iterates)[first, torch.arange(len(x))])


@pytest.mark.recorded
@pytest.mark.parametrize("row", golden_rows(attack="eval_advertorch_cwl2", status="ok"), ids=lambda row: row["dtype"])
def test_carlini_wagner_l2_equals_the_official_one(row):
    arrays = golden_arrays(row)
    student = tiny_from(part(arrays, "student0")).eval()
    x_adv = carlini_wagner_l2(student, arrays["x"], arrays["y"])
    # Up to 1000 Adam steps in float32, whose rounding differs between PyTorch releases.
    torch.testing.assert_close(x_adv, arrays["x_adv"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("until_fooled", [False, True])
def test_the_start_is_the_image_plus_epsilon_times_the_noise_in_the_box(until_fooled):
    student, _, x, y = tiny_problem()
    noise = uniform(x, 1)
    x_adv = linf(cross_entropy, EPSILON, 0.0, 1, until_fooled=until_fooled)(student.eval(), x, y, noise)
    torch.testing.assert_close(x_adv, (x + EPSILON * noise).clamp(0, 1), rtol=0, atol=1e-15)


FAKE_PACKAGE = """
from pyautoattack import AutoAttack as Base

class AutoAttack(Base):
    def __init__(self, model, norm="Linf", eps=0.3, seed=None, verbose=True, version="standard", device="cuda"):
        super().__init__(model, norm=norm, eps=eps, seed=seed, version=version, device=device)
        self.attacks_to_run = ["apgd-ce", "apgd-t"]

    def run_standard_evaluation(self, x, y, bs=250):
        return {answer}
"""


@pytest.mark.parametrize(
    ("answer", "equal"), [("super().run_standard_evaluation(x, y, batch_size=bs)[0]", True), ("x", False)]
)
def test_autoattack_is_compared_with_the_authors_code_image_by_image(monkeypatch, caplog, tmp_path, answer, equal):
    caplog.set_level("INFO")
    (tmp_path / "autoattack").mkdir()
    (tmp_path / "autoattack" / "__init__.py").write_text(FAKE_PACKAGE.replace("{answer}", answer))
    net, x, y = trained_on_stripes()
    test = Split((255 * x[:12]).round().byte(), y[:12])
    monkeypatch.setattr(compare_autoattack, "load_model", lambda path: net)
    monkeypatch.setattr("attacks.libraries.STANDARD", {"APGD-CE": "apgd-ce", "APGD-T": "apgd-t"})  # the others are slow
    monkeypatch.setattr(compare_autoattack, "load", lambda *_: Splits(test, test, tuple("abcdefghij"), True))
    monkeypatch.setattr(compare_autoattack, "BATCH_SIZE", 7)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "autoattack", raising=False)
    with pytest.raises(SystemExit, match="0" if equal else "1"):
        compare_autoattack.compare([str(tmp_path), "--device", "cpu"])
    sys.modules.pop("autoattack")
    assert ("12 of 12 images equal" in caplog.text) == equal and " of 12 images equal; ours took" in caplog.text


def test_a_folder_without_autoattack_and_no_images_are_one_line(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}: no package autoattack in it"):
        compare_autoattack.compare([str(tmp_path)])
    (tmp_path / "autoattack").mkdir()
    (tmp_path / "autoattack" / "__init__.py").touch()
    with pytest.raises(UserError, match=r"^--limit 0: must be at least 1"):
        compare_autoattack.compare([str(tmp_path), "--limit", "0"])
