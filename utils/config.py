"""The configuration of each entry script: a frozen dataclass whose fields generate the command line.

Flags have the spelling and the default of the official codes; a field is named after its flag, in lower case.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from utils.fields import above, at_least, between, check_values, flag, increasing, unit_255, unit_interval, within

NETWORKS, METHOD, ATTACK = "networks", "method", "inner attack (units of /255)"
data = partial(flag, group="data")
data_files = partial(data, affects_result=False)  # where data is and how it is read
network = partial(flag, group=NETWORKS)
network_files = partial(network, affects_result=False)
loss = partial(flag, group=METHOD)
weight = partial(loss, None, check=at_least(0))  # None: the method's own default
temperature = partial(loss, None, check=within(0, 1e6))
attack = partial(flag, group=ATTACK)
training = partial(flag, group="training")
evaluation = partial(flag, group="evaluation")
run = partial(flag, group="run", affects_result=False)


@dataclass(frozen=True)
class CommonConfig:
    """Settings that training and evaluation share."""

    data_root: str | None = data_files(None, "folder of the dataset; default: datasets/")
    image_size: int | None = data(
        None, "height and width in pixels; resize and center-crop images of Folder and Digits to it", between(16, 1024)
    )
    limit_test: int | None = data(None, "use N test images, stratified by class; default: all", at_least(1))
    workers: int = data_files(4, "threads that decode image files; decoded images are cached", between(1, 256))
    cache_dir: str | None = data_files(None, "folder of the decoded images; default: .decoded/ in --data_root")
    skip_damaged: bool = data_files(False, "skip image files that cannot be read")
    max_pixels: int | None = data_files(None, "reject images above N pixels; default: Pillow's 178956970", at_least(1))

    weights: Literal["raw", "ema"] | None = network_files(
        None, "load the raw weights or their average from checkpoints that contain both; default: the average"
    )
    normalize: str = network_files(
        "",
        "normalize images for checkpoints that were trained on normalized images but contain no mean and std (also\n"
        "teachers): cifar10, cifar100, imagenet, or mean and std of the channels, a,b,c,d,e,f",
    )

    device: str = run("auto", "device to compute on: auto (a GPU if there is one), cpu, cuda or cuda:N")
    gpu_id: int = run(0, "index of the GPU that --device auto and cuda use", at_least(0))
    threads: int | None = run(None, "CPU threads; default: PyTorch's choice", between(1, 4096))

    def __post_init__(self):
        check_values(self)


@dataclass(frozen=True)
class TrainConfig(CommonConfig):
    """Training on CIFAR-10, CIFAR-100 and small datasets (``main.py``)."""

    dataset: str = data("CIFAR10", "training and test dataset")
    limit_train: int | None = data(None, "train on N images, stratified by class; default: all", at_least(1))
    val_size: int = data(
        0,
        "hold out N further training images and select the best checkpoint on them; 0 selects it on the test set,\n"
        "as the papers do, which makes its accuracy optimistic",
        at_least(0),
    )

    augment: Literal["crop", "cutout", "cutmix", "idbh-weak", "idbh-strong"] = data(
        "crop",
        "random changes of training images, besides mirroring; crop: zero-padding by 4 pixels and a crop (papers);\n"
        "cutout: crop and a black square; cutmix: crop and a box of another image; idbh: crop and shift, one change\n"
        "of color or shape, and a rectangle erased from half (weak) or all (strong) of the images",
    )
    flip: bool = data(True, "mirror training images at random, unless their class would change (Digits)")
    extra_data: str = data("", "uncompressed .npz file of extra training images: image (N, H, W, 3) uint8, label (N,)")
    extra_fraction: float = data(0.7, "share of --extra_data in each batch (Gowal et al., 2021)", within(0, 1))
    extra_labels: Literal["given", "teacher"] = data("given", "labels of --extra_data; teacher: its predicted classes")

    model: str = network("resnet18", "student; robustbench:NAME starts from a published network")
    model_path: str = network_files("", "initialize the student from this checkpoint")
    teacher_model: str = network("wideresnet34_10", "teacher (official CIFAR-10 command)")
    teacher_path: str | None = network_files(None, "checkpoint of the teacher; default: in teacher_models/ (official)")
    no_teacher_check: bool = network_files(False, "accept a teacher of other classes or below twice chance level")
    std_teacher_model: str = network(
        "resnet18", "naturally trained second teacher of AKD2, IAD-II, MTARD, B-MTARD (IAD code: always resnet18)"
    )
    std_teacher_path: str | None = network_files(None, "checkpoint of the second teacher, which has no default")

    method: str = loss("AT", "training method")
    alp_beta: float = loss(1.0, "DGAD: weight of the consistency term (paper: 5; Tiny-ImageNet 15)", at_least(0))
    alp: Literal["on", "off"] = loss("on", "DGAD: consistency term (PCR)")
    map: bool = loss(True, "DGAD: misclassification-aware partitioning (MAP)")
    els: bool = loss(True, "DGAD: error-corrective label swapping (ELS)")
    distill_weight: float = loss(1.0, "DGAD: weight of the distillation (official: 0.5 for MobileNetV2)", above(0))
    adaad_alpha: float = loss(1.0, "AdaAD: weight of the adversarial term; clean term: 1 - X (official)", between(0, 1))
    kl_weight: float | None = loss(
        None,
        "ARD, RSLAD, AdaAD, MTARD, B-MTARD: weight of the batch-mean KL divergence\n"
        "(official defaults: ARD 1/classes, RSLAD and MTARD 0.1, AdaAD 0.1 on CIFAR10 and 1 elsewhere)",
        above(0),
    )
    temp: float | None = temperature(
        "distillation temperature (official defaults: 30 for ARD and AdaIAD, 1 for AKD2, IAD-I, IAD-II, TRADES,\n"
        "5 for PeerAiD, on Tiny_Image 1; of the class weights 4 for IKL, 1 for GKL)"
    )
    iad_alpha: float = loss(
        1.0, "ARD, IAD-I, AdaIAD: weight of the distillation terms; cross entropy: 1 - X (official)", between(0, 1)
    )
    iad_beta: float = loss(0.1, "IAD-I/II, AdaIAD, DGAD-IAD: exponent of the reliability (papers)", at_least(0))
    iad_begin: int | None = loss(
        None,
        "IAD-I, IAD-II, AdaIAD, DGAD-IAD: train N epochs without introspection; it starts in epoch N + 1\n"
        "(official defaults: 60, IAD-II 40)",
        at_least(0),
    )
    iad_coefficient: float | None = weight(
        "IAD-I, IAD-II: weight of introspection; default: 1 minus the teacher's reliability (paper)"
    )
    iad_down: bool = loss(False, "IAD-I: weight the teacher's term by its reliability (paper: IAD-I-Down)")
    akd2_partial: bool = loss(False, "AKD2: weight the robust term by the teacher's reliability (IAD)")
    label_weight: float | None = weight("ARD, IAD-I: cross entropy's weight; default: 1 - --IAD_alpha")
    self_weight: float | None = weight(
        "ARD, IAD-I: weight of the KL divergence between the student's predictions on clean and adversarial images;\n"
        "default: 0 for ARD, --IAD_alpha for IAD-I"
    )
    teacher_weight: float | None = weight("ARD, IAD-I: teacher term's weight; default: --IAD_alpha")
    robust_weight: float = loss(0.5, "AKD2, IAD-II: weight of the robust teacher (IAD code)", between(0, 1))
    std_weight: float = loss(0.25, "AKD2, IAD-II: weight of the standard teacher (IAD code)", between(0, 1))
    trades_beta: float = loss(6.0, "TRADES: weight of the robust term (paper)", at_least(0))
    mart_beta: float = loss(5.0, "MART: weight of the robust term (paper: lambda)", at_least(0))

    igdm: float | None = weight(
        "weight of the term of IGDM, which increases linearly to X in the last epoch;\n"
        "IGDM, SAAD (official defaults: 1 on CIFAR10, 10 elsewhere); RSLAD, AdaIAD, DGAD (default: no such term)"
    )
    saad_beta: float = loss(0.0, "SAAD: weight of the clean term (official)", at_least(0))
    saad_gamma: float = loss(1.0, "SAAD: order of the Renyi entropy that weights images (official)", above(0))
    gamma2: float | None = weight("PeerAiD: weight of the peer's KL (official: 0.1; CIFAR100 1, Tiny_Image 100)")
    lambda1: float | None = weight("PeerAiD: weight of the student's CE (official: 0; Tiny_Image 0.035)")
    lambda2: float | None = weight("PeerAiD: weight of the KL from the peer (official: 1; Tiny_Image 35)")
    lambda3: float | None = weight("PeerAiD: weight of the KL from clean images (official: 1; Tiny_Image 20)")
    temp_high: float | None = temperature("ADR: first temperature (official: 2.5; CIFAR100 1.5, Tiny_Image 2)")
    temp_low: float | None = temperature("ADR: last temperature (official: 2; CIFAR100 1, Tiny_Image 1.5)")
    lambda_low: float | None = weight("ADR: first lambda (official: 0.7; Tiny_Image 0.5)")
    lambda_high: float | None = weight("ADR: last lambda (official: 0.95; Tiny_Image 0.9)")
    ikl_alpha: float = loss(4.0, "IKL, GKL: weight of the cross entropy with soft labels (official)", at_least(0))
    ikl_beta: float = loss(20.0, "IKL, GKL: weight of the weighted squared differences (official)", at_least(0))
    gkl_gamma: float | None = weight("GKL: exponent of the class weights (official: 0.2; CIFAR100 0.4)")
    label_smoothing: float = loss(
        0.0,
        "Natural, AT, TRADES: share of each label that is spread over all classes in the cross entropy of the loss\n"
        "(Wang et al.: 0.1 with TRADES)",
        between(0, 0.99),
    )

    epsilon: float = attack(8.0, "radius of the L-infinity ball in units of 1/255 (papers)", unit_255(least=0.1))
    step_size: float = attack(2.0, "step size in units of 1/255 (papers: epsilon / 4)", unit_255(least=0.02))
    num_steps: int = attack(10, "PGD steps (papers)", at_least(1))
    attack_bn: Literal["eval", "train"] | None = attack(
        None, "BatchNorm mode of the student during the attack; default: official mode of the method"
    )

    epsilon_ramp: int = attack(0, "increase radius and step size linearly to their full values in epoch N", at_least(0))

    recipe: Literal["fair", "paper", "strong"] = training(
        "fair",
        "values of the flags that are not given; fair: the defaults listed here, the same for all methods;\n"
        "paper: the method's published training; strong: --ema or a given --swa_start, --awp, --augment\n"
        "idbh-weak and a cosine schedule, as in the best published trainings of ResNet-18",
    )
    epochs: int = training(200, "training epochs (papers)", at_least(1))
    bs: int = training(128, "batch size (papers)", at_least(1))
    optim: Literal["SGD", "Adam"] = training("SGD", "optimizer (papers)")
    lr_max: float = training(0.1, "maximum learning rate (papers: 0.1; DGAD: 0.05 for MobileNetV2)", above(0))
    lr_schedule: Literal["piecewise", "cosine", "constant", "onecycle", "cyclic"] = training(
        "piecewise",
        "learning rate schedule (papers: piecewise); onecycle: a short warm-up, then a cosine (Wang et al.);\n"
        "cyclic: linear up over 2/5 of the run, then linear down to 0, updated every step (Rice et al.)",
    )
    milestones: tuple[int, ...] | None = training(
        None,
        "piecewise: divide the learning rate by 10 after each of these epochs\n"
        "(default: 1/2 and 3/4 of the run, 100 150 of 200)",
        increasing,
    )
    momentum: float = training(0.9, "SGD momentum (papers)", between(0, 0.999))
    nesterov: bool = training(False, "SGD with Nesterov momentum")
    weight_decay: float = training(5e-4, "weight decay (official DGAD)", at_least(0))
    no_bn_decay: bool = training(False, "no weight decay on BatchNorm's weights and biases")
    clip_grad: float | None = training(None, "clip the norm of the gradient to X", above(0))
    accumulate: int = training(
        1,
        "split each batch into N parts and add their gradients, which needs less memory;\n"
        "BatchNorm normalizes over a part, not over the batch",
        at_least(1),
    )
    warmup_lr: bool = training(False, "increase the learning rate linearly from 0.001 in the first epochs")
    warmup_lr_epochs: int = training(15, "epochs of --warmup_lr (official)", at_least(1))
    ema: float | None = training(
        None,
        "exponential moving average of the weights with decay X, which is validated, saved and evaluated;\n"
        "checkpoints also contain the raw weights, as net_raw (Rebuffi et al.: 0.995)",
        within(0, 0.99999),
    )
    swa_start: int | None = training(
        None,
        "average the weights at the ends of the epochs from N on, and recompute BatchNorm's statistics on the\n"
        "training images; the average is validated, saved and evaluated, as with --ema (SAAD: 95 of 200)",
        at_least(1),
    )
    awp: float | None = training(
        None,
        "adversarial weight perturbation: compute gradients at weights perturbed by X times their layer's norm\n"
        "(Wu et al.: 0.01 with AT, 0.005 with TRADES)",
        within(0, 0.1),
    )
    awp_warmup: int = training(1, "first epoch with --awp (Wu et al.: 1 with AT, 10 with TRADES)", at_least(1))
    eval_every: int = training(1, "validate every N epochs and after the last (papers: every epoch)", at_least(1))
    eval_bs: int | None = training(None, "batch size of the validation; default: --bs", at_least(1))

    seed: int = run(
        42,
        "random seed of weights, data order, augmentation and attack starts (official)",
        between(0, 2**31 - 1),
        affects_result=True,
    )
    precision: Literal["auto", "fp32", "tf32", "bf16"] = run(
        "auto",
        "precision of forward and backward passes; weights stay fp32; auto: bf16 if the device supports it natively,\n"
        "else fp32",
        affects_result=True,
    )
    compile: Literal["auto", "off", "on", "graphs"] = run(
        "auto",
        "how the attack runs its networks; on: torch.compile; graphs: the PGD loop as one CUDA graph of compiled\n"
        "networks; auto: graphs on a GPU, else off",
    )
    root_path: str = run("tuned_models", "folder of all runs (official)")
    desc_str: str = run("", "suffix of the run's folder name (official)")
    resume: bool = run(False, "continue this run from its newest state, or start it", short="-r")
    save_minutes: float = run(10.0, "save a state at least every X minutes and after each epoch", at_least(0))
    log_reliability: bool = run(
        False,
        "distillation: log the accuracy of the teacher on clean and on the student's adversarial images, and a\n"
        "histogram of its probability of the label, to reliability.csv, one row per epoch",
    )
    tensorboard: bool = run(False, "log each epoch to TensorBoard (pip install tensorboard)")
    wandb: bool = run(False, "log each epoch to Weights & Biases (pip install wandb)")
    sync_bn: bool = run(
        True, "torchrun: synchronize BatchNorm, so results do not depend on the process count", affects_result=True
    )


@dataclass(frozen=True)
class TinyTrainConfig(TrainConfig):
    """Training on Tiny-ImageNet (``main_tiny.py``)."""

    dataset: str = data("Tiny_Image", "training and test dataset: 200 classes of 64x64 images")
    teacher_model: str = network("presnet18", "teacher (official Tiny-ImageNet command)")


@dataclass(frozen=True)
class EvalConfig(CommonConfig):
    """Evaluation of a saved checkpoint (``main_eval.py``)."""

    model_path: tuple[str, ...] = network((), "checkpoints or folders; of a run's folder, its best and last checkpoint")
    model: str | None = network(None, "network, if the file does not name it; or robustbench:NAME without a file")
    surrogate_path: str = network("", "blackbox: checkpoint of the surrogate for transfer attacks")
    surrogate_model: str | None = network(None, "blackbox: network of --surrogate_path if the file does not name it")
    natural_path: str = network("", "checkpoint of a naturally trained network to compare with in attacks.png")

    dataset: str | None = data(None, "test dataset; default: the one named in the checkpoint, else CIFAR10")

    protocol: Literal["paper", "official", "blackbox"] = evaluation(
        "paper",
        "attacks to run; paper: Clean, FGSM, PGD-20, PGD-TRADES-20, C&W-inf-30, AutoAttack, as papers report;\n"
        "official: FGSM, PGD-10, C&W L2 of advertorch, AutoAttack, as the official DGAD script;\n"
        "blackbox: PGD-20 and C&W-inf-30 transferred from --surrogate_path, Square with 5,000 queries",
    )
    attacks: str = evaluation(
        "",
        "run only these attacks of the protocol, separated by commas: clean fgsm pgd pgd_trades cw aa;\n"
        "blackbox: clean transfer_pgd transfer_cw square",
    )
    limit_aa: int | None = evaluation(None, "run AutoAttack, the slowest, on N test images; default: all", at_least(1))
    eps: float = evaluation(8 / 255, "radius of the L-infinity ball in [0, 1], such as 8/255 or 0.031", unit_interval)
    steps: int | None = evaluation(None, "steps of pgd, transfer_pgd; default: 20, protocol official 10", at_least(1))
    judge: Literal["every", "last"] = evaluation(
        "every",
        "when an image counts as fooled; every: if any PGD step fools the network, as AutoAttack counts;\n"
        "last: if the last step does, as the papers' codes count (always with protocol official)",
    )
    restarts: int = evaluation(1, "random restarts of PGD and C&W-inf (papers: 1)", between(1, 1000))
    bs: int = evaluation(200, "batch size (official)", at_least(1))

    seed: int = run(42, "random seed of attack starts", between(0, 2**31 - 1))
    precision: Literal["auto", "fp32", "tf32", "bf16"] = run(
        "auto",
        "precision of the attacks' copy of the network; predictions are always verified in fp32;\n"
        "auto: TF32 on a GPU, PyTorch's default for convolutions, else fp32",
    )
    state: str = run("", "folder for finished parts of this evaluation, from which the same command continues")
    out: str = run("", "folder for results and plots; default: next to each checkpoint")
    pictures: bool = run(True, "draw attacks.png, examples.png and confusion.png if pgd is among the attacks")


@dataclass(frozen=True)
class TinyEvalConfig(EvalConfig):
    """Evaluation on Tiny-ImageNet (``main_eval_tinyimagenet.py``)."""

    dataset: str = data("Tiny_Image", "test dataset: 200 classes of 64x64 images")
