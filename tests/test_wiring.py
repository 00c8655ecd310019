"""What a command line asks for reaches the code that does it: training, named attacks, resuming."""

import csv
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from commands import SMALL, run_here
from PIL import Image
from tiny import tiny_problem

import data
from attacks import suite
from attacks.pgd import uniform
from data import Split, Splits
from data.loader import Batches
from engine.accuracy import Score
from engine.training.validation import Validator
from methods import METHODS
from models import build


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run an entry script inside an empty folder and see that it ends with the status that it should."""
    monkeypatch.chdir(tmp_path)

    def start(words, script="main.py", status=0):
        ended = run_here(monkeypatch, capsys, script, words)
        assert ended.status == status, ended.err
        return ended

    return start


def noting(seen):
    """Stands for the attack loop: notes what it is asked for and gives the images back as they started."""

    def pgd(objective, x, start, *, epsilon, step_size, steps):
        seen.append(SimpleNamespace(losses=objective(x), x=x, start=start, ball=(epsilon, step_size, steps)))
        return start

    return pgd


@pytest.fixture
def climbs(monkeypatch):
    """Every call of the attack loop by a named attack."""
    seen = []
    monkeypatch.setattr(suite, "pgd", noting(seen))
    return seen


def spy_on(monkeypatch, name):
    """Make the method ``name`` note the teachers and the images of every step."""
    seen, make = [], METHODS[name]

    def making(config):
        method = make(config)

        def step(student, *rest):
            *teachers, _, x, _, _ = rest
            seen.append(SimpleNamespace(teachers=teachers, x=x))
            return method(student, *rest)

        return step

    monkeypatch.setitem(METHODS, name, making)
    return seen


def results_folder(root):
    (last,) = (root / "tuned_models").rglob("last_epoch_model.pth")
    return last.parent


def last_of(root):
    return torch.load(results_folder(root) / "last_epoch_model.pth", weights_only=True)


def state_of(root):
    return torch.load(max((results_folder(root) / "resume").iterdir()), weights_only=True)


def rows_of(root):
    with open(results_folder(root) / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def rates_of(root):
    return [float(row["lr"]) for row in rows_of(root)]


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def save_network(path, seed=0, num_classes=10):
    """Write a small network of weights drawn from ``seed``."""
    torch.manual_seed(seed)
    network = build("small_resnet", num_classes, 16)
    torch.save({"net": network.state_dict()}, path)
    return network


# A run.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {"momentum": 0.9, "weight_decay": 5e-4}),
        ("--momentum 0.5 --weight_decay 0.01", {"momentum": 0.5, "weight_decay": 0.01}),
        ("--optim Adam --weight_decay 0.02", {"betas": [0.9, 0.999], "weight_decay": 0.02}),
    ],
)
def test_the_optimizer_takes_its_flags_for_every_parameter(run, tmp_path, words, expected):
    run(f"{SMALL} --method Natural --epochs 1 {words}")
    (group,) = state_of(tmp_path)["optimizer"]["param_groups"]
    assert {key: group.get(key) for key in expected} == expected
    assert len(group["params"]) == len(list(build("small_resnet", 10, 16).parameters()))


def test_the_inner_attack_and_the_epochs_pgd10_have_the_runs_epsilon(run, monkeypatch):
    trained, climbs, starts = [], [], []
    monkeypatch.setattr("engine.training.trainer.pgd", noting(trained))

    def noted(*about):
        starts.append(uniform(*about))
        return starts[-1]

    monkeypatch.setattr("engine.training.validation.uniform", noted)

    def judged(model, objective, x, y, start, **ball):
        return noting(climbs)(lambda z: objective(model(z), y), x, start, **ball)

    monkeypatch.setattr(suite, "pgd_until_fooled", judged)
    run(f"{SMALL} --method AT --epochs 2 --limit_test 16 --epsilon 4 --step_size 3 --num_steps 5")
    assert {climb.ball for climb in trained} == {(4 / 255, 3 / 255, 5)}
    assert [climb.ball for climb in climbs] == [(4 / 255, 4 / 255 / 4, 10)] * 2
    assert torch.equal(*starts)  # epochs differ by their network alone


@pytest.mark.parametrize(("words", "forwards"), [("", 1), ("--attack_bn eval", 1), ("--attack_bn train", 1 + 2)])
def test_attack_bn_decides_whether_the_attacks_steps_move_batchnorm(run, tmp_path, words, forwards):
    run(f"{SMALL} --method AT --epochs 1 {words}")  # 3 batches, 2 steps in the attack on each
    assert last_of(tmp_path)["net"]["bn1.num_batches_tracked"] == 3 * forwards


@pytest.mark.parametrize("flip", [True, False])
def test_training_images_are_shifted_by_up_to_four_pixels_and_mirrored_where_that_keeps_the_class(
    run, monkeypatch, flip
):
    # An image that tells the place of each pixel: its column in red, its row in green.
    place = torch.arange(16, dtype=torch.uint8) * 10 + 20
    image = torch.stack([place.expand(16, 16), place[:, None].expand(16, 16), torch.zeros(16, 16, dtype=torch.uint8)])
    split = Split(image.repeat(240, 1, 1, 1), torch.arange(240) % 10)
    splits = Splits(split, split, tuple("0123456789"), flip)
    monkeypatch.setitem(data.DATASETS, "Digits", lambda root, image_size, workers: splits)
    seen = spy_on(monkeypatch, "Natural")
    run("--dataset Digits --model small_resnet --method Natural --limit_test 10 --epochs 1")
    x = ((torch.cat([step.x for step in seen]) * 255 - 20) / 10).round()
    mirrored = x[:, 0, 8, 8] > x[:, 0, 8, 9]
    right = x[:, 0, 8, 8] - torch.where(mirrored, 7, 8)  # mirrored, column 7 of 0..15 lies at 8
    down = x[:, 1, 8, 8] - 8
    assert set(mirrored.tolist()) == ({False, True} if flip else {False})
    # 240 draws of 9 values: that one is missing has a chance of 5e-12.
    assert set(right.tolist()) == set(down.tolist()) == set(range(-4, 5))


def test_the_learning_rate_warms_up_and_drops_at_the_given_milestones(run, tmp_path):
    run(f"{SMALL} --method Natural --epochs 4 --warmup_lr --warmup_lr_epochs 2 --milestones 3 --lr_max 0.1")
    assert rates_of(tmp_path) == pytest.approx([0.001, 0.0505, 0.1, 0.01])
    (group,) = state_of(tmp_path)["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(0.01)


def test_of_epochs_with_the_same_accuracy_the_first_is_the_best(run, tmp_path, monkeypatch):
    clean, robust = iter([50.0, 60.0, 60.0, 60.0]), iter([30.0, 30.0, 20.0, 30.0])
    judge = lambda *about: lambda between: (Score(1.0, next(clean), 40), Score(1.0, next(robust), 40))  # noqa: E731
    monkeypatch.setattr("engine.training.run.Validator", judge)
    ended = run(f"{SMALL} --method Natural --epochs 4")
    best = {name: torch.load(results_folder(tmp_path) / f"best_{name}_acc_model.pth") for name in ("PGD10", "clean")}
    assert {name: checkpoint["epoch"] for name, checkpoint in best.items()} == {"PGD10": 0, "clean": 1}
    assert "best PGD-10 accuracy: 30.00 %, epoch 1" in ended.out
    assert "best clean accuracy: 60.00 %, epoch 2" in ended.out


@pytest.mark.parametrize("method", ["AKD2", "IAD-II"])
def test_a_method_of_two_teachers_receives_the_robust_one_first(run, tmp_path, monkeypatch, method):
    saved = [save_network(tmp_path / name, seed) for seed, name in enumerate(("robust.pth", "standard.pth"))]
    seen = spy_on(monkeypatch, method)
    words = f"{SMALL} --method {method} --epochs 1 --no_teacher_check --teacher_model small_resnet --precision fp32"
    words += " --std_teacher_model small_resnet --teacher_path robust.pth --std_teacher_path standard.pth"
    run(words)
    for teacher, network in zip(seen[0].teachers, saved, strict=True):
        x = seen[0].x
        # float32, BatchNorm folded or not: sums in another order. The two networks' logits differ in the first digit.
        torch.testing.assert_close(teacher(x), network.eval().to(x.device)(x), rtol=1e-4, atol=1e-4)


@pytest.fixture
def tf32_allowed():
    """The two places where PyTorch allows TF32, both set to allow it."""
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = True
    yield places
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("main.py", f"{SMALL} --method Natural --epochs 1 --precision fp32"),
        ("main_eval.py", "--dataset Digits --image_size 16 --model small_resnet --model_path net.pth --attacks clean"),
    ],
)
def test_fp32_means_fp32_in_training_and_in_evaluation(run, tmp_path, tf32_allowed, script, words):
    save_network(tmp_path / "net.pth")
    run(words, script)
    assert not any(place.allow_tf32 for place in tf32_allowed)


def test_an_epoch_is_judged_in_full_precision_whatever_it_was_trained_in(tf32_allowed):
    seen = []

    class Noting(torch.nn.Linear):
        def forward(self, x):
            seen.extend(place.allow_tf32 for place in tf32_allowed)
            return super().forward(x.flatten(1))

    images = Split(torch.randint(256, (4, 3, 2, 2), dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    judge = Validator(Noting(12, 2), Batches(images, 4, device=torch.device("cpu")), 0.1, seed=0)
    seen.clear()  # making it tries the network out
    judge()
    assert seen and not any(seen)
    assert all(place.allow_tf32 for place in tf32_allowed)  # the next epoch's


# The named attacks.


def cross_entropy(logits, y):
    return logits.logsumexp(1) - logits[torch.arange(len(y)), y]


def margin(logits, y):
    rival = logits.clone()
    rival[torch.arange(len(y)), y] = -torch.inf
    return rival.amax(1) - logits[torch.arange(len(y)), y] - 50


# Protocol and attack -> what it climbs, the length of a step as a function of epsilon, how many steps.
NAMED = {
    ("paper", "fgsm"): (cross_entropy, lambda epsilon: epsilon, 1),
    ("paper", "pgd"): (cross_entropy, lambda epsilon: epsilon / 4, 20),
    ("paper", "pgd_trades"): (cross_entropy, lambda epsilon: 0.003, 20),
    ("paper", "cw"): (margin, lambda epsilon: epsilon / 4, 30),
    ("official", "fgsm"): (cross_entropy, lambda epsilon: epsilon, 1),
    ("official", "pgd"): (cross_entropy, lambda epsilon: epsilon / 4, 10),
}


def protocol_of(name, epsilon=8 / 255, **setting):
    """A protocol's attacks; of those that are judged at every step the form that takes every step."""
    return suite.PROTOCOLS[name](suite.Setting(epsilon, seed=3, **{"judge": "last", **setting}))


def launch(attack, net, x, y):
    """All stages of an attack on all images; returns what the last made of them."""
    for perturb in attack.stages.values():
        x_adv = perturb(net.eval(), x, y, 2 * torch.rand_like(x) - 1)
    return x_adv


@pytest.mark.parametrize("epsilon", [8 / 255, 0.05])
@pytest.mark.parametrize(("protocol", "key"), NAMED)
def test_a_named_attack_climbs_what_its_name_says_with_its_own_steps(climbs, protocol, key, epsilon):
    objective, step_size, steps = NAMED[protocol, key]
    net, _, x, y = tiny_problem()
    attack = protocol_of(protocol, epsilon)[key]
    launch(attack, net, x, y)
    (climb,) = climbs
    assert climb.ball == (epsilon, step_size(epsilon), steps)
    torch.testing.assert_close(climb.losses, objective(net(x), y))
    assert attack.parameters["epsilon"] == epsilon and attack.parameters["steps"] == steps
    if key == "fgsm":
        assert torch.equal(climb.start, x)


@pytest.mark.parametrize("key", ["pgd", "pgd_trades", "cw"])
def test_judged_at_every_step_or_at_the_last_an_attack_has_the_same_parameters(monkeypatch, key):
    seen = []
    monkeypatch.setattr(suite, "pgd_until_fooled", lambda *where, **ball: seen.append((where[1], ball)) or where[2])
    monkeypatch.setattr(suite, "pgd", noting(last := []))
    net, _, x, y = tiny_problem()
    for judge in ("every", "last"):
        launch(protocol_of("paper", judge=judge)[key], net, x, y)
    ((objective, ball),) = seen
    assert tuple(ball.values()) == last[0].ball
    torch.testing.assert_close(objective(net(x), y), last[0].losses)


@pytest.mark.parametrize("protocol", ["paper", "official"])
def test_steps_are_those_of_pgd_alone(climbs, protocol):
    net, _, x, y = tiny_problem()
    for key in ("fgsm", "pgd", *(["pgd_trades", "cw"] if protocol == "paper" else [])):
        launch(protocol_of(protocol, steps=7)[key], net, x, y)
    assert [climb.ball[2] for climb in climbs] == [1, 7, *([20, 30] if protocol == "paper" else [])]


def test_transferred_attacks_climb_the_surrogate(climbs):
    net, surrogate, x, y = tiny_problem()
    protocol = protocol_of("blackbox", surrogate=surrogate.eval(), surrogate_name="other.pth")
    for key, objective, steps in (("transfer_pgd", cross_entropy, 20), ("transfer_cw", margin, 30)):
        launch(protocol[key], net, x, y)
        assert climbs[-1].ball == (8 / 255, 2 / 255, steps)
        torch.testing.assert_close(climbs[-1].losses, objective(surrogate(x), y))
        assert "from other.pth" in protocol[key].settings


def test_restarts_are_stages_with_draws_of_their_own(run, tmp_path, climbs):
    save_network(tmp_path / "net.pth")
    words = "--dataset Digits --image_size 16 --model_path net.pth --limit_test 20 --judge last --no-pictures"
    run(f"{words} --restarts 3 --attacks pgd,fgsm", "main_eval.py")
    starts = [climb.start for climb in climbs[:3]]
    # FGSM has no start to draw; two more look for gradient masking in a network that has more than one answer.
    assert len(climbs) in (3 + 1, 3 + 1 + 2)
    assert not torch.equal(starts[0][:1], starts[1][:1])


def autoattack_module(monkeypatch, name, answer):
    """Put a stand-in for AutoAttack's package in place; returns what becomes of its objects."""
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


def classifier(classes):
    return lambda x: torch.zeros(len(x), classes)


STAGES = ["apgd-ce", "apgd-t", "fab-t", "square"]


@pytest.mark.parametrize("protocol", ["paper", "official"])
@pytest.mark.parametrize(("epsilon", "classes", "aimed_at"), [(8 / 255, 100, 9), (0.05, 10, 9), (0.05, 5, 4)])
def test_autoattack_runs_its_four_attacks_with_our_epsilon_seed_and_device(
    monkeypatch, protocol, epsilon, classes, aimed_at
):
    made = autoattack_module(monkeypatch, "pyautoattack", lambda x_adv, y: (x_adv, y))
    x, y = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    x_adv = [perturb(classifier(classes), x, y, x) for perturb in protocol_of(protocol, epsilon)["aa"].stages.values()]
    assert [attack.attacks_to_run for attack in made] == [[name] for name in STAGES]
    for attack in made:
        assert attack.settings == {"norm": "Linf", "eps": epsilon, "seed": 3, "device": torch.device("cpu")}
        assert attack.options == {"batch_size": 3}
        assert attack.apgd_targeted.n_target_classes == attack.fab.n_target_classes == aimed_at
    assert torch.equal(x_adv[0], x / 2)


def test_the_authors_own_package_serves_where_pyautoattack_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    made = autoattack_module(monkeypatch, "autoattack", lambda x_adv, y: x_adv)  # this one returns the images alone
    x, y = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    x_adv = protocol_of("paper", 0.05)["aa"].stages["FAB-T"](classifier(5), x, y, x)
    (attack,) = made
    settings = {"norm": "Linf", "eps": 0.05, "seed": 3, "device": torch.device("cpu"), "verbose": False}
    assert (attack.settings, attack.options) == (settings, {"bs": 3})
    assert attack.attacks_to_run == ["fab-t"]
    assert attack.apgd_targeted.n_target_classes == attack.fab.n_target_classes == 4
    assert torch.equal(x_adv, x / 2)


def test_autoattack_in_stages_is_autoattack():
    from pyautoattack import AutoAttack

    net, _, x, y = tiny_problem(n=40, dtype=torch.float32)
    net.eval().requires_grad_(False)
    y = net(x).argmax(1)
    whole = AutoAttack(net, eps=0.01, seed=3)
    whole.square.n_queries = 5000
    x_adv, _ = whole.run_standard_evaluation(x, y, batch_size=40)
    stands = net(x_adv).argmax(1) == y
    assert 0 < stands.sum() < 40
    left = torch.arange(40)
    for perturb in suite.PROTOCOLS["paper"](suite.Setting(0.01, seed=3))["aa"].stages.values():
        left = left[net(perturb(net, x[left], y[left], None)).argmax(1) == y[left]]
    assert torch.equal(left, stands.nonzero()[:, 0])


def test_an_evaluations_flags_reach_its_attacks(run, tmp_path, climbs, monkeypatch):
    made = autoattack_module(monkeypatch, "pyautoattack", lambda halved, y: (2 * halved, y))
    save_network(tmp_path / "net.pth")
    words = (
        "--dataset Digits --image_size 16 --model_path net.pth --limit_test 20 --eps 0.05 --judge last --no-pictures"
    )
    run(f"{words} --steps 3 --bs 20 --seed 5 --limit_aa 4 --attacks pgd,aa", "main_eval.py")
    assert (climbs[0].ball, len(climbs[0].x)) == ((0.05, 0.05 / 4, 3), 20)
    assert {(attack.settings["eps"], attack.settings["seed"]) for attack in made} <= {(0.05, 5)}
    assert all(attack.options["batch_size"] <= 4 for attack in made)


# Resuming.


def image_folder(root):
    """Write 16x16 images of noise, of two classes."""
    noise = np.random.default_rng(0)
    for part, n in (("train", 4), ("test", 2)):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for k in range(n):
                pixels = noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{k}.png")


def other_training_image(root):
    Image.new("RGB", (16, 16)).save(root / "train" / "a" / "0.png")


def other_test_image(root):
    Image.new("RGB", (16, 16)).save(root / "test" / "b" / "1.png")


def other_class(root):
    for part in ("train", "test"):
        (root / part / "b").rename(root / part / "c")


def refused(run, words, folder, line):
    """A command ends with one line that holds ``line``, and the run folder stays as it is."""
    before = bytes_of(folder)
    ended = run(words, status=2)
    assert ended.err.count("\n") == 1 and line in ended.err
    assert bytes_of(folder) == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (other_training_image, "was trained with other images; --desc_str NAME starts another run"),
        (other_test_image, "was trained with other images; --desc_str NAME starts another run"),
        (other_class, "was trained with other classes; --desc_str NAME starts another run"),
    ],
)
def test_a_run_is_not_resumed_on_other_data(run, tmp_path, change, line):
    image_folder(tmp_path / "images")
    words = "--dataset Folder --data_root images --model small_resnet --method Natural --bs 4"
    run(f"{words} --epochs 1")
    change(tmp_path / "images")
    refused(run, f"{words} --epochs 2 --resume", results_folder(tmp_path), line)


TWO_TEACHERS = (
    f"{SMALL} --method AKD2 --no_teacher_check --teacher_model small_resnet --std_teacher_model small_resnet "
    "--std_teacher_path standard.pth --epochs"
)


@pytest.mark.parametrize("changed", ["robust.pth", "standard.pth"])
def test_a_run_is_not_resumed_with_a_teacher_file_of_other_content(run, tmp_path, changed):
    for seed, name in enumerate(("robust.pth", "standard.pth")):
        save_network(tmp_path / name, seed)
    run(f"{TWO_TEACHERS} 1 --teacher_path robust.pth")
    save_network(tmp_path / changed, 2)
    words = f"{TWO_TEACHERS} 2 --teacher_path robust.pth --resume"
    refused(run, words, results_folder(tmp_path), "was trained with other teachers; --desc_str NAME starts another run")


def test_a_run_is_resumed_with_its_teacher_at_another_path(run, tmp_path):
    for seed, name in enumerate(("robust.pth", "standard.pth")):
        save_network(tmp_path / name, seed)
    run(f"{TWO_TEACHERS} 1 --teacher_path robust.pth")
    (tmp_path / "robust.pth").rename(tmp_path / "moved.pth")
    run(f"{TWO_TEACHERS} 2 --teacher_path moved.pth --resume")
    assert [row["epoch"] for row in rows_of(tmp_path)] == ["0", "1"]


def test_more_epochs_keep_the_milestones_of_the_first_start(run, tmp_path):
    run(f"{SMALL} --method Natural --epochs 2")
    ended = run(f"{SMALL} --method Natural --epochs 4 --resume")
    told = "the milestones stay those of the first start, 1 2; a run of --epochs 4 begun anew has 2 3"
    assert told in ended.out
    assert rates_of(tmp_path) == pytest.approx([0.1, 0.01, 0.001, 0.001])
    assert json.loads((results_folder(tmp_path) / "config.json").read_text())["milestones"] == [1, 2]


def test_fewer_epochs_than_are_done_change_nothing(run, tmp_path):
    run(f"{SMALL} --method Natural --epochs 2")
    before = bytes_of(results_folder(tmp_path))
    ended = run(f"{SMALL} --method Natural --epochs 1 --resume")
    assert "all 2 epochs are done" in ended.out
    assert bytes_of(results_folder(tmp_path)) == before


def test_a_deleted_table_of_results_comes_back_complete(run, tmp_path):
    run(f"{SMALL} --method Natural --epochs 2")
    table = results_folder(tmp_path) / "results.csv"
    before = table.read_text().splitlines()
    table.unlink()
    run(f"{SMALL} --method Natural --epochs 3 --resume")
    after = table.read_text().splitlines()
    assert after[:3] == before and len(after) == 4
