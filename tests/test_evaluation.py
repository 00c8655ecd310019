"""Evaluation: how images are counted, what an interruption keeps, warnings, reports, one line per bad input."""

import csv
import hashlib
import json
import zlib
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from commands import fail_at
from conftest import user_error
from small_sets import image_folder, save_network
from tiny import Function, trained_on_stripes
from torch import nn
from tqdm import tqdm

from attacks.pgd import pgd_until_fooled, uniform
from attacks.suite import Attack
from data import Split, load_configured
from data.loader import Batches
from engine.accuracy import Score, predict, warn_of_input_scale
from engine.checkpoint import BEST_CLEAN, BEST_PGD10, LAST
from engine.distributed import EVALUATION_TIMEOUT, Processes, init
from engine.evaluation.attack import AttackResult, make_noise, run_attack
from engine.evaluation.evaluate import InParts, make_result
from engine.evaluation.figures import confusion, draw_examples, radius_curve
from engine.evaluation.records import CONDITIONS, Record, read_evaluations, results_folder, results_path, worst_case
from engine.evaluation.run import Evaluation, make_conditions, warn_of_unused
from engine.evaluation.sanity import is_constant, sanity_check, warn_of_masking
from engine.evaluation.state import State
from engine.evaluation.targets import EvalTarget, load_other_network
from engine.fast.frozen import FoldedModel, make_attack_model
from models import build
from models.weights import Checkpoint
from utils.config import EvalConfig

DIGITS = "--dataset Digits --image_size 16 --no-pictures"


@pytest.fixture
def evaluate(run):
    """``evaluate(flags)`` starts main_eval.py."""
    return partial(run, "main_eval.py")


class FirstPixel(nn.Module):
    """Predicts the first pixel's value modulo ten."""

    def forward(self, x):
        return nn.functional.one_hot((255 * x[:, 0, 0, 0]).round().long() % 10, 10).float()


def some_images(n=30):
    """Images (n, 3, 8, 8) and labels of which FirstPixel predicts all but every fifth."""
    images = torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = FirstPixel()(images / 255).argmax(1)
    labels[::5] = (labels[::5] + 1) % 10
    return Split(images, labels)


def attacked(attack, images, net=None, batch_size=10, **options):
    """Result of an attack on FirstPixel."""
    net = net or FirstPixel()
    batches = Batches(images, batch_size, device="cpu")
    return run_attack(net, batches, predict(net, batches), attack, **{"seed": 3} | options)


def recording(seen, function=lambda x: x):
    """An attack's function that keeps its arguments."""
    return lambda model, x, y, noise: seen.append((model, len(x), noise)) or function(x)


def shifted(x):
    return (x + 1 / 255) % 1


# Counting.


def test_an_attack_on_every_image_counts_only_the_final_prediction():
    images = some_images()
    first = {"": lambda model, x, y, noise: x[:1].expand_as(x)}  # replaces each image by the first of its batch
    result = attacked(Attack("any", {"epsilon": 1.0}, first, every_image=True), images)
    clean = FirstPixel()(images.images / 255).argmax(1)
    assert torch.equal(result.predicted, clean[torch.arange(30) // 10 * 10])
    assert torch.equal(result.fooled_at == 2, result.predicted == images.labels)
    with pytest.raises(RuntimeError, match="any: adversarial images are outside"):  # of their ball
        attacked(Attack("any", {"epsilon": 0.1}, first, every_image=True), images)


def test_a_prediction_from_nan_under_attack_is_not_counted_as_robust():
    net = Function(lambda x: FirstPixel()(x) if len(x) == 10 else x.new_full((len(x), 10), torch.nan))  # argmax is 0
    with user_error("any: the network's logits or gradients are nan or inf under this attack"):
        attacked(Attack("any", {"epsilon": 1.0}, {"": recording([])}), some_images(10), net)


def test_a_stage_attacks_only_correct_images_that_earlier_stages_did_not_fool():
    seen = []

    def fooling(*numbers):
        def change(x):
            x = x.clone()
            x[list(numbers)] = shifted(x[list(numbers)])
            return x

        return recording(seen, change)

    stages = {"a": fooling(0, 1), "b": fooling(0), "c": fooling()}
    result = attacked(Attack("any", {"epsilon": 1.0}, stages), some_images(10))
    assert [n for _, n, _ in seen] == [8, 6, 5]
    assert result.fooled_at.tolist() == [0, 1, 1, 2, 4, 0, 4, 4, 4, 4]


def test_the_noise_of_an_image_depends_on_no_other_image_attack_or_process():
    images, seen = some_images(40), []
    attack = Attack("any", {"epsilon": 1.0}, {"": recording(seen)})
    attacked(attack, images)
    whole = make_noise(torch.zeros(10, 3, 8, 8), 3, "any", "", 0)
    assert torch.equal(seen[0][2], whole[[1, 2, 3, 4, 6, 7, 8, 9]])  # images 0 and 5 are misclassified clean

    class OneOfTwo(Processes):
        def all_reduce_sum(self, values):
            return values

    for rank in range(2):
        attacked(attack, images, processes=OneOfTwo(rank, 2))
    assert len(seen) == 8
    assert all(torch.equal(seen[k][2], seen[4 + position][2]) for position, k in enumerate([0, 2, 1, 3]))


def test_noise_differs_by_seed_attack_stage_and_image_and_not_by_batch():
    x = torch.zeros(250, 3, 4, 4)
    same = {"seed": 1, "title": "PGD-20", "stage": "start 1", "start": 0}
    noise = make_noise(x, **same)
    for change in ({"seed": 2}, {"title": "C&W-inf-30"}, {"stage": "start 2"}):
        assert not torch.equal(noise, make_noise(x, **same | change))
    assert len({image.sum().item() for image in noise}) == 250
    assert -1 <= noise.min() < -0.9 and 0.9 < noise.max() <= 1
    parts = [make_noise(part, **same | {"start": 7 * k}) for k, part in enumerate(x.split(7))]
    assert torch.equal(torch.cat(parts), noise)
    generator = torch.Generator().manual_seed(zlib.crc32(b"1 PGD-20 start 1 1"))  # as in every version
    assert torch.equal(noise[200:], uniform(x[200:], 1, generator))


@pytest.mark.parametrize("tf32", [False, True])
def test_the_network_verifies_what_its_copy_finds(tf32):
    net, seen = FirstPixel(), []
    copy = Function(lambda x: net(x).roll(1, 1))  # misclassifies everything

    def until_fooled(model, x, y, noise):
        seen.append((model, len(x), torch.backends.cudnn.allow_tf32))
        correct = model(x).argmax(1) == y
        return torch.where(correct[:, None, None, None], shifted(x), x)

    attack = Attack("any", {"epsilon": 1.0}, {"": until_fooled})
    result = attacked(attack, some_images(10), net, attack_model=copy, tf32=tf32)
    # On the copy the attack stopped at once; it is repeated on the network itself, in strict float32.
    assert seen == [(copy, 8, tf32), (net, 8, False)]
    assert result.fooled_at.tolist() == [0, 1, 1, 1, 1] * 2


def test_a_copy_that_computes_something_else_is_not_used(monkeypatch, caplog):
    net, x, _ = trained_on_stripes(n=20)
    assert type(make_attack_model(net, x)) is FoldedModel
    bf16 = make_attack_model(net, x, "bf16")
    assert bf16.dtype == torch.bfloat16 and 0 < (bf16(x) - net(x)).abs().max() < 0.05 * net(x).abs().max()

    class Wrong(FoldedModel):
        def forward(self, x):
            return super().forward(x) * 1.01

    monkeypatch.setattr("engine.fast.frozen.FoldedModel", Wrong)
    assert make_attack_model(net, x) is net and make_attack_model(net, x, "bf16") is net
    assert "attacks cannot use a folded copy (its logits differ)" in caplog.text


def test_accuracy_after_each_stage_and_per_class_and_confusion():
    result = AttackResult(torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 3, 1, 2, 0]))
    attack, labels = Attack("any", {}, {"a": None, "b": None}), torch.tensor([0, 1, 1, 1, 1])
    chosen = torch.tensor([True, True, False, True, True, True])
    entry = make_result(attack, result, labels, chosen, 1.0, ["cat", "dog", "frog"])
    assert entry["stages"] == {"a": 60.0, "b": 40.0}
    assert (entry["accuracy"], entry["n"], entry["correct"]) == (40.0, 5, "11-000")
    assert entry["per_class"] == {"cat": 100.0, "dog": 25.0}
    predicted = torch.tensor([0, 0, 1, 1, 1])
    assert confusion(predicted, labels, 3).tolist() == [[1, 0, 0], [1, 3, 0], [0, 0, 0]]  # rows are true classes


def target_of(path, **options):
    return EvalTarget(path, "small_resnet", Checkpoint(path, **options))


CHANGES = [{"judge": "last"}, {"restarts": 2}, {"eps": 0.1}, {"steps": 3}, {"seed": 1}]
CHANGES += [{"protocol": "official"}, {"precision": "bf16"}, {"weights": "raw"}, {"normalize": "cifar10"}]


def test_results_under_other_conditions_are_kept_apart(tmp_path):
    target, images = target_of(save_network(tmp_path / "net.pth")), some_images()
    conditions = make_conditions(target, images, EvalConfig())
    assert conditions == make_conditions(target, images, EvalConfig())
    for change in CHANGES:
        assert conditions != make_conditions(target, images, EvalConfig(**change)), change
    assert conditions != make_conditions(target, Split(255 - images.images, images.labels), EvalConfig())
    surrogates = [str(save_network(tmp_path / f"{seed}.pth", seed)) for seed in (1, 2)]
    blackbox = [EvalConfig(protocol="blackbox", surrogate_path=path) for path in surrogates]
    assert make_conditions(target, images, blackbox[0]) != make_conditions(target, images, blackbox[1])


def test_results_without_a_precision_are_of_float32(tmp_path):
    conditions = dict.fromkeys(CONDITIONS) | {"checkpoint": "net.pth", "eps": 0.1}
    entry = {"accuracy": 50.0, "n": 2, "bounded": True, "correct": "10", "parameters": {}, "settings": ""}
    evaluation = {"conditions": conditions, "figures": {"PGD-20": entry}}
    (tmp_path / "eval.json").write_text(json.dumps({"evaluations": [evaluation]}))
    assert Record(tmp_path, conditions | {"precision": "fp32"}).results == {"PGD-20": entry}
    assert Record(tmp_path, conditions | {"precision": "bf16"}).results == {}


def test_the_worst_case_is_over_images_that_every_bounded_attack_attacked():
    results = {
        "a": {"correct": "11110", "bounded": True},
        "b": {"correct": "01111", "bounded": True},
        "c": {"correct": "--101", "bounded": True},
        "unbounded": {"correct": "00000", "bounded": False},
    }
    worst = worst_case(results)["worst case"]
    assert (worst["accuracy"], worst["n"]) == (pytest.approx(100 / 3), 3)
    assert worst["settings"] == "over a, b, c"


# Interruptions, several processes, several checkpoints.


def results_in(path):
    (evaluation,) = read_evaluations(path)
    return {title: (result["accuracy"], result.get("correct")) for title, result in evaluation["figures"].items()}


def test_an_interrupted_evaluation_continues_to_the_same_results_with_any_batch_size(evaluate, tmp_path, monkeypatch):
    for name in ("whole", "parts"):
        save_network(tmp_path / name / "net.pth")
    flags = f"{DIGITS} --limit_test 60 --eps 0.02 --restarts 2 --attacks fgsm,pgd --bs"
    evaluate(f"{flags} 20 --model_path whole/net.pth")
    with monkeypatch.context() as patch:
        fail_at(patch, tqdm, "update", 7, KeyboardInterrupt)  # after FGSM and the first of three batches of PGD
        ended = evaluate(f"{flags} 20 --model_path parts/net.pth --state state", status=130)
    assert "the same command continues from --state" in ended.err
    assert "FGSM" in read_evaluations(results_path("parts/net.pth"))[-1]["figures"]
    monkeypatch.setattr("attacks.suite.pgd_until_fooled", pgd := Mock(side_effect=pgd_until_fooled))
    evaluate(f"{flags} 7 --model_path parts/net.pth --state state")
    assert results_in(results_path("parts/net.pth")) == results_in(results_path("whole/net.pth"))
    assert max(len(call.args[2]) for call in pgd.call_args_list) <= 7
    repeated = pgd.call_count
    evaluate(f"{flags} 60 --model_path parts/net.pth --state state")
    assert pgd.call_count == repeated  # all stages of all images were saved
    assert results_in(results_path("parts/net.pth")) == results_in(results_path("whole/net.pth"))


def test_attacks_of_other_libraries_get_whole_batches_and_the_network_parts_of_them():
    net, x, y = trained_on_stripes(n=30)
    seen = []
    model = Function(lambda x: seen.append(len(x)) or net(x))
    parts, whole = (InParts(model, size).eval() for size in (8, 30))
    z = x.clone().requires_grad_()
    gradients = [torch.autograd.grad(nn.functional.cross_entropy(one(z), y), z)[0] for one in (parts, whole)]
    torch.testing.assert_close(*gradients)
    assert sorted(seen) == sorted([8, 8, 8, 6] * 2 + [30])  # forward, and again for the gradient


def test_a_state_is_of_one_evaluation_and_checkpoint_under_any_name(evaluate, tmp_path):
    save_network(tmp_path / "net.pth")
    flags = f"{DIGITS} --limit_test 20 --attacks fgsm --state state --model_path"
    evaluate(f"{flags} net.pth")
    before = results_in(results_path("net.pth"))
    for change, message in (("--eps 0.1", "eps 8/255 -> 0.1"), ("--precision bf16", "precision fp32 -> bf16")):
        ended = evaluate(f"{flags} net.pth {change}", status=2)
        assert f"belongs to another evaluation ({message}" in ended.err and ended.err.count("\n") == 1
    State(tmp_path / "raw", {"weights": "raw", "eps": 0.1}).save("FGSM", 1, 0, *torch.zeros(2, 1).long())
    with user_error("weights raw -> None"):
        State(tmp_path / "raw", {"eps": 0.1})
    zoo = (EvalTarget(Path(name), name) for name in ("robustbench-Doe2020A", "robustbench-Doe2020B"))
    states = {Evaluation(target, {}, None, some_images(), EvalConfig(state="zoo")).state.folder for target in zoo}
    assert len(states) == 2
    (stage,) = Path("state").rglob("FGSM*")
    stage.write_text("{")
    conditions = stage.with_name("conditions.json")
    saved = conditions.read_bytes()
    for damage in (NESTED, "null"):
        conditions.write_text(damage)
        assert str(conditions.parent) in evaluate(f"{flags} net.pth", status=2).err
    conditions.write_bytes(saved)
    (tmp_path / "net.pth").rename(tmp_path / "moved.pth")
    assert f"{stage} is damaged; this stage runs again" in evaluate(f"{flags} moved.pth").out
    assert results_in(results_path("moved.pth")) == before and len(stage.read_text()) > 1


def test_a_checkpoint_of_nan_does_not_stop_the_evaluation_of_the_others(evaluate, tmp_path):
    paths = [save_network(tmp_path / f"{name}.pth") for name in "abc"]
    content = torch.load(paths[1], weights_only=True)
    content["net"]["linear.bias"].fill_(torch.nan)
    torch.save(content, paths[1])
    error = evaluate(f"{DIGITS} --limit_test 20 --attacks clean --model_path a.pth b.pth c.pth", status=2).err
    assert error.startswith("error: --model_path b.pth: the network's logits are nan") and error.count("\n") == 1
    assert [path.parent.name for path in sorted(tmp_path.rglob("eval.json"))] == ["a_eval", "c_eval"]


NESTED = "[" * 300 + "]" * 300
EDITED = {"conditions": dict.fromkeys(CONDITIONS, "") | {"eps": 0.1}, "figures": {"FGSM": {"accuracy": 1, "n": 1}}}

WHOLE = {"accuracy": "ACCURACY", "n": 1, "bounded": True, "correct": "1", "parameters": {}, "settings": ""}
WHOLE = json.dumps({"evaluations": [EDITED | {"figures": {"FGSM": WHOLE}}]})
DAMAGED = ['{"evaluations": [{', '{"evaluations": [{}]}', "[]", json.dumps({"evaluations": [EDITED]}), "null"]
DAMAGED += ["[" * 100_000, '{"evaluations": [' + "0," * 300_000 + "0]}", '{"evaluations": ' + "1" * 10_000 + "}"]
DAMAGED += ["\ufeff\0", *(WHOLE.replace('"ACCURACY"', text) for text in ("NaN", "1e999", '"half"', "null", NESTED))]


@pytest.mark.parametrize("damage", DAMAGED, ids=lambda text: text[:30])
def test_a_damaged_file_of_results_is_one_error_and_not_overwritten(tmp_path, damage):
    (tmp_path / "eval.json").write_text(damage)
    with user_error("eval.json: damaged"):
        Record(tmp_path, {})
    assert (tmp_path / "eval.json").read_text() == damage
    (tmp_path / "eval.json").write_text(WHOLE.replace('"ACCURACY"', "50.0"))
    Record(tmp_path, {})  # is valid


def test_processes_wait_for_the_longest_attack(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert init(EVALUATION_TIMEOUT) == Processes(0, 1)  # Slurm sets WORLD_SIZE without torchrun
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("torch.distributed.init_process_group", group := Mock())
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    assert init(EVALUATION_TIMEOUT) == Processes(1, 2)
    assert group.call_args.kwargs["timeout"].days >= 7


def test_a_folder_gives_best_and_last_of_its_runs(evaluate, tmp_path):
    metadata = {"model": "small_resnet", "dataset": "Digits", "image_size": 16}
    for seed, name in enumerate((BEST_PGD10, LAST, BEST_CLEAN)):
        save_network(tmp_path / "runs/AT/net" / name, seed, **metadata)
        save_network(tmp_path / "runs/Natural/net" / name, seed, **metadata)
    (tmp_path / "runs/Natural/net/config.json").write_text('{"method": "Natural", "epsilon": 8}')
    save_network(tmp_path / "runs/DGAD/net" / LAST, 3, **metadata)
    ended = evaluate("--dataset Digits --model_path runs --limit_test 20 --attacks clean,fgsm --no-pictures")
    names = [f"AT/net/{BEST_PGD10}", f"AT/net/{LAST}", f"DGAD/net/{LAST}"]
    names += [f"Natural/net/{BEST_CLEAN}", f"Natural/net/{LAST}"]
    assert [line.split()[0] for line in ended.out.splitlines()[-5:]] == names
    for name in names:
        (entry,) = read_evaluations(results_path(Path("runs", name)))
        assert entry["conditions"]["checkpoint"] == Path(name).name


def test_a_test_set_of_some_classes_is_labeled_as_the_checkpoint_labels_them(evaluate, tmp_path):
    save_network(tmp_path / "net.pth", num_classes=4, dataset="Folder", classes=list("abcd"))
    image_folder(tmp_path / "images", "bd", ["test"], (16, 16))
    out = evaluate("--model_path net.pth --data_root images --attacks clean").out
    assert "WARNING: 2 of the checkpoint's 4 classes have test images" in out
    (entry,) = read_evaluations(results_path("net.pth"))
    assert list(entry["figures"]["Clean"]["per_class"]) == ["b", "d"]


def test_other_files_in_a_folder_are_named_and_passed_over(evaluate, tmp_path):
    for name in ("a.pth.tar", "a.pth", "a.ckpt"):  # each has its own results
        save_network(tmp_path / "files" / name)
    torch.save({"state": {}, "param_groups": []}, tmp_path / "files/optimizer.pt")
    (tmp_path / "files/page.pth").write_text("<html>")
    ended = evaluate(f"{DIGITS} --model_path files --limit_test 20 --attacks clean")
    assert "skipped: files/optimizer.pt: no weights; give a checkpoint; files/page.pth: a web page" in ended.out
    assert {path.name for path in Path("files").glob("*_eval")} == {"a.pth.tar_eval", "a_eval", "a.ckpt_eval"}


def test_a_checkpoint_that_is_replaced_meanwhile_is_evaluated_as_it_was_read(evaluate, tmp_path, monkeypatch):
    path = save_network(tmp_path / "net.pth")
    flags, before = f"{DIGITS} --limit_test 40 --attacks clean,fgsm", hashlib.sha256(path.read_bytes()).hexdigest()
    evaluate(f"{flags} --model_path net.pth --out first")
    expected = [results_in(file) for file in Path("first").rglob("eval.json")]

    def replaced(config, read=load_configured):
        save_network(path, seed=5)
        return read(config)

    monkeypatch.setattr("engine.evaluation.run.load_configured", replaced)
    evaluate(f"{flags} --model_path net.pth --out second --state state")
    (file,) = Path("second").rglob("eval.json")
    assert hashlib.sha256(path.read_bytes()).hexdigest() != before
    assert read_evaluations(file)[0]["conditions"]["sha256"] == before and [results_in(file)] == expected


def test_results_below_out_are_in_one_folder_per_checkpoint(evaluate, tmp_path, monkeypatch):
    for name in ("a/net.pth", "here/a/net.pth"):
        save_network(tmp_path / name)
    monkeypatch.chdir(tmp_path / "here")
    for path in ("a/net.pth", "../a/net.pth", "../here/a/net.pth"):
        evaluate(f"{DIGITS} --limit_test 20 --attacks clean --model_path {path} --out kept")
    monkeypatch.chdir("a")
    Path("config.json").write_text("{}")  # that of a run
    evaluate(f"{DIGITS} --limit_test 20 --attacks clean --model_path net.pth --out ../kept")
    outside = tmp_path.relative_to(tmp_path.anchor)
    expected = {Path(f"../kept/{folder}/net_eval/eval.json") for folder in ("a", outside / "a", outside / "here/a")}
    assert {*Path("../kept").rglob("eval.json")} == expected


# Warnings.

STEPS = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 20}


def record_of(tmp_path, results, **conditions):
    same = {"sha256": "0", "model": "m", "dataset": "d", "images": 1, "eps": 8 / 255, "restarts": 1, "seed": 0}
    same = dict.fromkeys(CONDITIONS) | {"checkpoint": "net.pth"} | same
    record = Record(tmp_path / "net_eval", same | {"precision": "fp32"} | conditions)
    for title, result in results.items():
        record.add(title, {"n": 500, "bounded": False, "stages": {}, "parameters": STEPS, "settings": ""} | result)
    return record


def test_a_network_whose_gradients_vanish_is_reported_and_another_is_not(tmp_path):
    net, x, y = trained_on_stripes()
    images, record = Split((255 * x).round().byte(), y), record_of(tmp_path, {})
    saturated = Function(lambda x: 1e4 * net(x))  # its cross entropy has no gradient in float32
    warnings = [
        warn_of_masking(record, 8 / 255, sanity_check(network, images, 8 / 255, "cpu", batch_size=50))
        for network in (net, saturated)
    ]
    assert warnings[0] == []
    assert len(warnings[1]) == 2 and "expected 0 %" in warnings[1][0] and "does not increase" in warnings[1][1]


def test_a_constant_prediction_is_reported_as_untrained_and_not_as_masking(evaluate, tmp_path):
    net = build("small_resnet", 10, 16)
    with torch.no_grad():
        net.linear.weight.zero_()
        net.linear.bias.copy_(torch.eye(10)[3])
    torch.save({"net": net.state_dict()}, tmp_path / "net.pth")
    ended = evaluate(f"{DIGITS} --model_path net.pth --limit_test 40 --attacks clean,fgsm,pgd")
    assert "WARNING: predicts class '3' for every image" in ended.out and "masking" not in ended.out


def test_an_accuracy_near_chance_level_is_reported_with_its_causes(caplog):
    labels, classes = torch.arange(100) % 10, list("abcdefghij")
    assert not is_constant(labels, labels, classes)
    assert not is_constant(labels * 0, labels * 0, classes) and not caplog.text  # of a test set of one class
    assert not is_constant((labels + 1) % 10, labels, classes)
    assert "near chance level (10.0 %)" in caplog.text and "another order of classes" in caplog.text


@pytest.mark.parametrize("std", [0.25, 0.5])
def test_a_normalization_outside_the_network_is_recognized(caplog, std):
    torch.manual_seed(0)
    x, net = torch.rand(100, 3, 16, 16) * 0.9, build("small_resnet", 10)
    net.train()((x - 0.5) / std)
    warn_of_input_scale(net, x, "net.pth")  # untrained
    for _ in range(50):
        net.train()((x - 0.5) / std)
    warn_of_input_scale(net, (x - 0.5) / std, "net.pth")
    assert not caplog.text
    warn_of_input_scale(net, x, "net.pth")
    assert "net.pth: its training images had" in caplog.text and "--normalize cifar10" in caplog.text
    caplog.clear()
    warn_of_input_scale(net, (x - 0.5) / std**2, "net.pth")
    assert "as if they had not been normalized; check --normalize" in caplog.text


AA_STAGES = {"accuracy": 30.0, "stages": {"FAB-T": 32.0, "Square": 30.0}}
TWO_STEPS = {"accuracy": 40.0, "parameters": STEPS | {"steps": 2}}  # they cannot cross the ball
WINS = [
    ({"FGSM": 30.0, "PGD-20": 40.0}, "is stronger than PGD-20 (30.00 < 40.00 %)"),
    ({"Square": 30.0, "PGD-20": 40.0}, "Square, which uses no gradient, is stronger than"),
    # Another gradient attack finds the adversarial examples, so gradients are not masked.
    ({"Square": 30.0, "PGD-20": 40.0, "C&W-inf-30": 29.0}, None),
    ({"AutoAttack": AA_STAGES}, "Square, which uses no gradient, is stronger than AutoAttack's gradient-based attacks"),
    ({"FGSM": 30.0, "PGD-2": TWO_STEPS}, None),
    ({"FGSM": {"accuracy": 30.0, "n": 100}, "PGD-20": 40.0}, None),  # not the same images
    ({"FGSM": {"accuracy": 39.0, "n": 100}, "PGD-20": {"accuracy": 40.0, "n": 100}}, None),  # one image
    ({"FGSM": 39.8, "PGD-20": 40.0}, None),
    ({"FGSM": 50.0, "PGD-20": 40.0}, None),
]


@pytest.mark.parametrize(("results", "line"), WINS)
def test_a_weaker_attack_that_wins_is_reported(tmp_path, results, line):
    results = {name: {"accuracy": each} if isinstance(each, float) else each for name, each in results.items()}
    warnings = warn_of_masking(record_of(tmp_path, results), 8 / 255, None)
    assert [line in warning for warning in warnings] == [True] * (line is not None)


def test_attacks_of_different_protocols_on_the_same_images_are_compared(tmp_path):
    record_of(tmp_path, {"PGD-20": {"accuracy": 40.0}}, protocol="paper")
    for other, warnings in (({}, 1), ({"images": 2}, 0), ({"weights": "raw"}, 0), ({"normalize": "cifar10"}, 0)):
        record = record_of(tmp_path, {"Square": {"accuracy": 30.0}}, protocol="blackbox", **other)
        assert len(warn_of_masking(record, 8 / 255, None)) == warnings
    for loss, warnings in ((1.005, 1), (2.0, 0)):
        assert len(warn_of_masking(record, 8 / 255, (Score(1.0, 0.0, 9), Score(loss, 0.0, 9)))) == warnings


# Reports.


def test_reports_contain_all_that_a_result_depends_on(evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.evaluation.figures.RADII", (0, 4))
    path = save_network(tmp_path / "net.pth")
    flags = "--dataset Digits --image_size 16 --model_path net.pth --natural_path net.pth --limit_test 40"
    out = evaluate(f"{flags} --attacks clean,fgsm,pgd --eps 0.02 --restarts 2").out
    folder = results_folder(path)
    assert {file.name for file in folder.iterdir()} == {
        *("eval.json", "eval.csv", "attacks.png", "examples.png"),
        *("confusion.png", "confusion_clean.csv", "confusion_PGD-20.csv"),
    }
    (evaluation,) = read_evaluations(folder / "eval.json")
    assert evaluation["conditions"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert evaluation["conditions"]["precision"] == "fp32"
    result = evaluation["figures"]["PGD-20"]
    settings = "n 40; epsilon 5.1/255, 20 steps, step size 1.275/255, uniform start, 2 restarts"
    assert f"PGD-20              {result['accuracy']:6.2f} %  ({settings}" in out
    assert result["versions"]["torch"] == torch.__version__ and "git" in result["versions"]
    expected = {"epsilon": 0.02, "steps": 20, "step_size": 0.005, "start": "uniform", "restarts": 2}
    assert result["parameters"] == expected | {"judged": "at every step"}
    assert result["accuracy"] == pytest.approx(100 * result["correct"].count("1") / 40) and result["n"] == 40
    with open(folder / "eval.csv", newline="") as file:
        rows = {row["attack"]: row for row in csv.DictReader(file)}
    assert float(rows["PGD-20"]["accuracy"]) == result["accuracy"] and rows["PGD-20"]["restarts"] == "2"
    assert (rows["PGD-20"]["precision"], rows["PGD-20"]["weights"]) == ("fp32", "")
    for name in ("attacks.png", "examples.png", "confusion.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    with open(folder / "confusion_PGD-20.csv", newline="") as file:
        counts = [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    assert sum(map(sum, counts)) == 40
    assert sum(counts[k][k] for k in range(10)) == result["correct"].count("1")


def test_an_image_fooled_at_one_radius_is_fooled_at_every_larger_one(monkeypatch):
    def only_at_four(setting):
        change = shifted if abs(255 * setting.epsilon - 4) < 0.1 else lambda x: x
        return Attack("PGD-20", {"epsilon": 1.0}, {"": recording([], change)})

    monkeypatch.setattr("engine.evaluation.figures.pgd20", only_at_four)
    curve = radius_curve(FirstPixel(), some_images(), 30, 0, "cpu")
    assert curve[:4] == [80.0] * 4 and curve[4:] == [0.0] * len(curve[4:])  # 80 % are correct without attack


def test_examples_need_the_memory_of_a_batch_and_an_unperturbed_image_has_a_grey_perturbation(monkeypatch, tmp_path):
    drawn, sizes = [], []
    net = Function(lambda x: sizes.append(len(x)) or FirstPixel()(x))
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda self, pixels, **_: drawn.append(pixels))
    attack = Attack("any", {"epsilon": 0.0}, {"": recording([])})
    batches = Batches(some_images(), 8, device="cpu")
    draw_examples(net, attack, batches, list("abcdefghij"), 0, tmp_path / "examples.png")
    assert max(sizes) == 8 and len(drawn) == 24 and all((pixels == 0.5).all() for pixels in drawn[8:16])


def test_blackbox_protocol(evaluate, tmp_path, monkeypatch):
    loaded = []
    load = lambda *arguments: loaded.append(load_other_network(*arguments)) or loaded[-1]  # noqa: E731
    monkeypatch.setattr("engine.evaluation.run.load_other_network", load)
    save_network(tmp_path / "net.pth")
    save_network(tmp_path / "other.pth", seed=1)
    flags = "--limit_test 10 --eps 0.4 --protocol blackbox --surrogate_path other.pth"
    out = evaluate(f"{DIGITS} --model_path net.pth {flags}").out
    results = results_in(results_path("net.pth"))
    assert list(results) == ["Clean", "transfer PGD-20", "transfer C&W-inf-30", "Square", "worst case"]
    assert results["Square"][0] <= results["Clean"][0]
    assert "transferred from other.pth, epsilon 102/255, 20 steps" in out and "5000 queries" in out
    natural, surrogate = loaded
    assert natural is None and not surrogate.training and not any(p.requires_grad for p in surrogate.parameters())


# Bad input.


def test_flags_that_no_chosen_attack_uses_are_reported(evaluate, tmp_path, caplog):
    warn_of_unused(EvalConfig(protocol="official", restarts=2), ["cw"])
    assert "the attacks cw ignore --restarts" in caplog.text
    save_network(tmp_path / "both.pth", net_raw=build("small_resnet", 10, 16).state_dict())
    flags = "--limit_aa 3 --surrogate_path both.pth --natural_path both.pth --steps 5 --restarts 2"
    out = evaluate(f"{DIGITS} --model_path both.pth --attacks clean,fgsm --limit_test 10 {flags}").out
    names = "--limit_aa, --surrogate_path, --natural_path, --steps, --restarts"
    assert f"WARNING: the attacks clean,fgsm ignore {names}" in out
    assert out.count("both.pth: using the average") == 2  # as the network, and as the natural one
    used = evaluate(f"{DIGITS} --model_path both.pth --attacks pgd --limit_test 10 --steps 1 --restarts 2").out
    assert "ignore" not in used and used.count("using the average") == 1


BAD = {
    "net7.pth": "net7.pth: has 7 classes, not 10",
    "net.pth --attacks ,": "--attacks ,: names no attack",
    "net.pth --attacks pgdd": "--attacks pgdd: unknown name; nearest: pgd",
    "net.pth --eps 1.5": "--eps 1.5: must be between 0 and 1",
    "net.pth --eps -0.1": "--eps -0.1: must be between 0 and 1",
    "net.pth --precision tf32": "--precision tf32: requires a GPU",
    "net.pth --limit_test 0": "--limit_test 0: must be a number of at least 1",
    "''": "--model_path: is empty",
    "empty": "--model_path empty: contains no checkpoint",
    "none": "none: cannot be read",
    "strange.pth": "--model: ",
    "named.pth --model vgg16": "--model vgg16: named.pth contains a small_resnet",
    "net.pth --protocol blackbox": "--surrogate_path: required by transfer_pgd, transfer_cw",
    "net.pth --protocol blackbox --surrogate_path net7.pth": "net7.pth: has 7 classes, not 10",
    "net.pth --natural_path ' '": "--natural_path: is empty",
    "net.pth --natural_path net7.pth": "net7.pth: has 7 classes, not 10",
    "net.pth --out /proc/none": "/proc/none/net_eval: cannot be written to",
    "net.pth --out net.pth": "net.pth/net_eval: cannot be written to",
    "net.pth --state net.pth": "--state net.pth/",
    "net.pth --restarts 0": "--restarts 0: must be between 1 and 1000",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(refused, tmp_path, flags):
    save_network(tmp_path / "net.pth")
    save_network(tmp_path / "net7.pth", num_classes=7)
    save_network(tmp_path / "named.pth", model="small_resnet")
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).state_dict(), tmp_path / "strange.pth")
    (tmp_path / "empty").mkdir()
    refused("main_eval.py", f"{DIGITS} --model_path {flags}", BAD[flags])
