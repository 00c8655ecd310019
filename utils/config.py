"""The configuration of each entry script: a frozen dataclass whose fields generate the command line.

Flags have the spelling and the default of the official codes; a field is named after its flag, in lower case.
"""

from dataclasses import dataclass
from typing import Literal

from utils.flags import above, at_least, between, check_values, flag, increasing, unit_255, unit_interval, within

DATA, RUN, NETWORKS, METHOD, ATTACK, TRAINING, EVALUATION = (
    "data",
    "run",
    "networks",
    "method",
    "inner attack (units of /255)",
    "training",
    "evaluation",
)


@dataclass(frozen=True)
class CommonConfig:
    """Settings that training and evaluation share."""

    data_root: str | None = flag(None, "folder of the dataset; default: datasets/", group=DATA, affects_result=False)
    image_size: int | None = flag(
        None,
        "height and width of the images in pixels; Folder and Digits are resized and center-cropped to it",
        group=DATA,
        check=between(16, 1024),
    )
    limit_test: int | None = flag(
        None,
        "use N test images, the same for every seed, stratified by class; default: all",
        group=DATA,
        check=at_least(1),
    )
    workers: int = flag(
        4,
        "threads that decode image files; decoded images are cached",
        group=DATA,
        check=between(1, 256),
        affects_result=False,
    )
    cache_dir: str | None = flag(
        None, "folder of the decoded images; default: .decoded/ in --data_root", group=DATA, affects_result=False
    )
    skip_damaged: bool = flag(False, "leave out image files that cannot be read", group=DATA, affects_result=False)
    max_pixels: int | None = flag(
        None,
        "refuse image files of more than N pixels (decompression bombs); default: Pillow's limit, 178956970",
        group=DATA,
        check=at_least(1),
        affects_result=False,
    )

    weights: Literal["raw", "ema"] | None = flag(
        None,
        "load the raw weights or their average from checkpoints that hold both; default: the average",
        group=NETWORKS,
        affects_result=False,
    )
    normalize: str = flag(
        "",
        "normalize images for checkpoints that were trained on normalized images but hold no mean and std (teachers\n"
        "too): cifar10, cifar100, imagenet, or mean and std of the channels, a,b,c,d,e,f",
        group=NETWORKS,
        affects_result=False,
    )

    device: str = flag(
        "auto",
        "auto, cpu, cuda or cuda:N; auto uses GPU --gpu_id if there is one",
        group=RUN,
        affects_result=False,
    )
    gpu_id: int = flag(0, "index of the GPU", group=RUN, check=at_least(0), affects_result=False)
    threads: int | None = flag(
        None, "CPU threads; default: PyTorch's choice", group=RUN, check=between(1, 4096), affects_result=False
    )

    def __post_init__(self):
        check_values(self)


@dataclass(frozen=True)
class TrainConfig(CommonConfig):
    """Training on CIFAR-10, CIFAR-100 and small datasets (``main.py``)."""

    dataset: str = flag("CIFAR10", "training and test dataset", group=DATA)
    limit_train: int | None = flag(
        None, "train on N images, stratified by class; default: all", group=DATA, check=at_least(1)
    )
    val_size: int = flag(
        0,
        "hold out N training images and select the best checkpoint on them; 0 selects it on the test set,\n"
        "as the papers do, which makes its accuracy optimistic",
        group=DATA,
        check=at_least(0),
    )

    augment: Literal["crop", "cutout", "cutmix", "idbh-weak", "idbh-strong"] = flag(
        "crop",
        "random changes of training images besides mirroring; crop: zero-padding by 4 pixels and a crop (papers);\n"
        "cutout: crop and a black square; cutmix: crop and a box of another image; idbh: crop and shift, one change\n"
        "of color or shape, and a rectangle erased from half (weak) or all (strong) of the images",
        group=DATA,
    )
    flip: bool = flag(True, "mirror training images at random, unless their class would change (Digits)", group=DATA)
    extra_data: str = flag(
        "", "uncompressed .npz file of more training images: image (N, H, W, 3) uint8, label (N,)", group=DATA
    )
    extra_fraction: float = flag(
        0.7, "share of --extra_data in each batch (Gowal et al., 2021)", group=DATA, check=within(0, 1)
    )
    extra_labels: Literal["given", "teacher"] = flag(
        "given", "labels of --extra_data; teacher: the class that the robust teacher predicts", group=DATA
    )

    model: str = flag("resnet18", "student; robustbench:NAME starts from a published network", group=NETWORKS)
    model_path: str = flag("", "initialize the student from this checkpoint", group=NETWORKS, affects_result=False)
    teacher_model: str = flag("wideresnet34_10", "teacher (official CIFAR-10 command)", group=NETWORKS)
    teacher_path: str | None = flag(
        None,
        "checkpoint of the teacher; default: its path in the official codes, teacher_models/...",
        group=NETWORKS,
        affects_result=False,
    )
    no_teacher_check: bool = flag(
        False,
        "accept a teacher whose clean accuracy on 256 test images is below twice the chance level",
        group=NETWORKS,
        affects_result=False,
    )
    std_teacher_model: str = flag(
        "resnet18",
        "naturally trained second teacher of AKD2, IAD-II, MTARD, B-MTARD (IAD code: always resnet18)",
        group=NETWORKS,
    )
    std_teacher_path: str | None = flag(
        None,
        "checkpoint of the second teacher; required by AKD2, IAD-II, MTARD and B-MTARD",
        group=NETWORKS,
        affects_result=False,
    )

    method: str = flag("AT", "training method", group=METHOD)
    alp_beta: float = flag(
        1.0,
        "DGAD: weight of the consistency term (paper: 5 on CIFAR, 15 on Tiny-ImageNet)",
        name="ALP_beta",
        group=METHOD,
        check=at_least(0),
    )
    alp: Literal["on", "off"] = flag("on", "DGAD: consistency term (PCR)", group=METHOD)
    map: bool = flag(True, "DGAD: misclassification-aware partitioning (MAP)", group=METHOD)
    els: bool = flag(True, "DGAD: error-corrective label swapping (ELS)", group=METHOD)
    distill_weight: float = flag(
        1.0, "DGAD: weight of the distillation terms (official: 0.5 for MobileNetV2)", group=METHOD, check=above(0)
    )
    adaad_alpha: float = flag(
        1.0,
        "AdaAD: weight of the adversarial term, 1 - X of the clean one (official)",
        name="AdaAD_alpha",
        group=METHOD,
        check=between(0, 1),
    )
    kl_weight: float | None = flag(
        None,
        "ARD, RSLAD, AdaAD, MTARD, B-MTARD: weight of the batch-mean KL divergence\n"
        "(official defaults: ARD 1/classes, RSLAD and MTARD 0.1, AdaAD 0.1 on CIFAR10 and 1 elsewhere)",
        group=METHOD,
        check=above(0),
    )
    temp: float | None = flag(
        None,
        "distillation temperature (official defaults: 30 for ARD and AdaIAD, 1 for AKD2, IAD-I, IAD-II, TRADES,\n"
        "5 for PeerAiD, on Tiny_Image 1)",
        group=METHOD,
        check=within(0, 1e6),
    )
    iad_alpha: float = flag(
        1.0,
        "ARD, IAD-I, AdaIAD: weight of the distillation terms, 1 - X of the cross entropy (official)",
        name="IAD_alpha",
        group=METHOD,
        check=between(0, 1),
    )
    iad_beta: float = flag(
        0.1,
        "IAD-I, IAD-II, AdaIAD, DGAD-IAD: exponent of the teacher's reliability (papers)",
        name="IAD_beta",
        group=METHOD,
        check=at_least(0),
    )
    iad_begin: int | None = flag(
        None,
        "IAD-I, IAD-II, AdaIAD, DGAD-IAD: train N epochs without introspection; it starts in epoch N + 1\n"
        "(official defaults: 60, IAD-II 40)",
        name="IAD_begin",
        group=METHOD,
        check=at_least(0),
    )
    iad_coefficient: float | None = flag(
        None,
        "IAD-I, IAD-II: weight of the introspection; default: 1 minus the teacher's reliability (paper)",
        name="IAD_coefficient",
        group=METHOD,
        check=at_least(0),
    )
    iad_down: bool = flag(
        False, "IAD-I: weight the teacher's term by its reliability (paper: IAD-I-Down)", name="IAD_down", group=METHOD
    )
    akd2_partial: bool = flag(False, "AKD2: weight the robust term by the teacher's reliability (IAD)", group=METHOD)
    label_weight: float | None = flag(
        None, "ARD, IAD-I: weight of the cross entropy; default: 1 - --IAD_alpha", group=METHOD, check=at_least(0)
    )
    self_weight: float | None = flag(
        None,
        "ARD, IAD-I: weight of the KL divergence between the student's predictions on clean and adversarial images;\n"
        "default: 0 for ARD, --IAD_alpha for IAD-I",
        group=METHOD,
        check=at_least(0),
    )
    teacher_weight: float | None = flag(
        None, "ARD, IAD-I: weight of the teacher's term; default: --IAD_alpha", group=METHOD, check=at_least(0)
    )
    robust_weight: float = flag(
        0.5, "AKD2, IAD-II: weight of the robust teacher (IAD code)", group=METHOD, check=between(0, 1)
    )
    std_weight: float = flag(
        0.25, "AKD2, IAD-II: weight of the standard teacher (IAD code)", group=METHOD, check=between(0, 1)
    )
    trades_beta: float = flag(6.0, "TRADES: weight of the robust term (paper)", group=METHOD, check=at_least(0))
    mart_beta: float = flag(5.0, "MART: weight of the robust term (paper: lambda)", group=METHOD, check=at_least(0))

    igdm: float | None = flag(
        None,
        "RSLAD, AdaIAD, DGAD: add the term of IGDM; its weight grows linearly to X in the last epoch.\n"
        "IGDM, SAAD: this weight (official defaults: 1 on CIFAR10, 10 elsewhere)",
        group=METHOD,
        check=at_least(0),
    )
    saad_beta: float = flag(0.0, "SAAD: weight of the clean term (official)", group=METHOD, check=at_least(0))
    saad_gamma: float = flag(
        1.0, "SAAD: order of the Renyi entropy that weights the images (official)", group=METHOD, check=above(0)
    )
    gamma2: float | None = flag(
        None,
        "PeerAiD: weight of the peer's KL (official: 0.1; CIFAR100 1, Tiny_Image 100)",
        group=METHOD,
        check=at_least(0),
    )
    lambda1: float | None = flag(
        None, "PeerAiD: weight of the student's CE (official: 0; Tiny_Image 0.035)", group=METHOD, check=at_least(0)
    )
    lambda2: float | None = flag(
        None, "PeerAiD: weight of the KL from the peer (official: 1; Tiny_Image 35)", group=METHOD, check=at_least(0)
    )
    lambda3: float | None = flag(
        None,
        "PeerAiD: weight of the KL from clean images (official: 1; Tiny_Image 20)",
        group=METHOD,
        check=at_least(0),
    )
    temp_high: float | None = flag(
        None, "ADR: first temperature (official: 2.5; CIFAR100 1.5, Tiny_Image 2)", group=METHOD, check=within(0, 1e6)
    )
    temp_low: float | None = flag(
        None, "ADR: last temperature (official: 2; CIFAR100 1, Tiny_Image 1.5)", group=METHOD, check=within(0, 1e6)
    )
    lambda_low: float | None = flag(
        None, "ADR: first lambda (official: 0.7; Tiny_Image 0.5)", group=METHOD, check=at_least(0)
    )
    lambda_high: float | None = flag(
        None, "ADR: last lambda (official: 0.95; Tiny_Image 0.9)", group=METHOD, check=at_least(0)
    )
    label_smoothing: float = flag(
        0.0,
        "Natural, AT, TRADES: share of each label that is spread over all classes in the cross entropy of the loss\n"
        "(Wang et al.: 0.1 with TRADES)",
        group=METHOD,
        check=between(0, 0.99),
    )

    epsilon: float = flag(
        8.0,
        "radius of the L-infinity ball in units of 1/255 (papers)",
        group=ATTACK,
        check=unit_255(least=0.1),
    )
    step_size: float = flag(
        2.0, "step size in units of 1/255 (papers: epsilon / 4)", group=ATTACK, check=unit_255(least=0.02)
    )
    num_steps: int = flag(10, "PGD steps (papers)", group=ATTACK, check=at_least(1))
    attack_bn: Literal["eval", "train"] | None = flag(
        None, "BatchNorm mode of the student during the attack; default: official mode of the method", group=ATTACK
    )

    epsilon_ramp: int = flag(
        0,
        "increase radius and step size linearly over the first N epochs, reaching their values in epoch N",
        group=ATTACK,
        check=at_least(0),
    )

    recipe: Literal["fair", "paper", "strong"] = flag(
        "fair",
        "values of flags that are not given; fair: the defaults listed here, the same for all methods;\n"
        "paper: the training that the method's paper published; strong: --ema, --awp, --augment idbh-weak, cosine,\n"
        "as in the best published trainings of ResNet-18",
        group=TRAINING,
    )
    epochs: int = flag(200, "training epochs (papers)", group=TRAINING, check=at_least(1))
    bs: int = flag(128, "batch size (papers)", group=TRAINING, check=at_least(1))
    optim: Literal["SGD", "Adam"] = flag("SGD", "optimizer (papers)", group=TRAINING)
    lr_max: float = flag(
        0.1, "maximum learning rate (papers: 0.1; DGAD: 0.05 for MobileNetV2)", group=TRAINING, check=above(0)
    )
    lr_schedule: Literal["piecewise", "cosine", "constant", "onecycle", "cyclic"] = flag(
        "piecewise",
        "learning rate schedule (papers: piecewise); onecycle: a short warm-up, then a cosine (Wang et al.);\n"
        "cyclic: up over 2/5 of the run and down to 0, step by step (Rice et al.)",
        group=TRAINING,
    )
    milestones: tuple[int, ...] | None = flag(
        None,
        "piecewise: divide the learning rate by 10 after each of these epochs\n"
        "(default: 1/2 and 3/4 of the run, 100 150 of 200)",
        group=TRAINING,
        check=increasing,
    )
    momentum: float = flag(0.9, "SGD momentum (papers)", group=TRAINING, check=between(0, 0.999))
    nesterov: bool = flag(False, "SGD with Nesterov momentum", group=TRAINING)
    weight_decay: float = flag(5e-4, "weight decay (official DGAD)", group=TRAINING, check=at_least(0))
    no_bn_decay: bool = flag(False, "no weight decay of BatchNorm's weights and biases", group=TRAINING)
    clip_grad: float | None = flag(
        None, "scale the gradient of all weights down to the norm X if it is larger", group=TRAINING, check=above(0)
    )
    accumulate: int = flag(
        1,
        "process each batch in N parts and step with the sum of their gradients, which needs less memory;\n"
        "BatchNorm normalizes over a part, not over the batch",
        group=TRAINING,
        check=at_least(1),
    )
    warmup_lr: bool = flag(False, "increase the learning rate linearly from 0.001 in the first epochs", group=TRAINING)
    warmup_lr_epochs: int = flag(15, "epochs of --warmup_lr (official)", group=TRAINING, check=at_least(1))
    ema: float | None = flag(
        None,
        "average the weights with decay X after every step, and validate, save and evaluate the average;\n"
        "checkpoints keep the raw weights beside it, as net_raw (Rebuffi et al.: 0.995)",
        group=TRAINING,
        check=within(0, 0.99999),
    )
    swa_start: int | None = flag(
        None,
        "average the weights at the ends of the epochs from N on, and estimate BatchNorm's statistics anew on the\n"
        "training images; validate, save and evaluate the average, as with --ema (SAAD: 95 of 200)",
        group=TRAINING,
        check=at_least(1),
    )
    awp: float | None = flag(
        None,
        "adversarial weight perturbation: take each gradient at weights moved by X of their layer's norm\n"
        "(Wu et al.: 0.01 with AT, 0.005 with TRADES)",
        group=TRAINING,
        check=within(0, 0.1),
    )
    awp_warmup: int = flag(
        1, "first epoch with --awp (Wu et al.: 1 with AT, 10 with TRADES)", group=TRAINING, check=at_least(1)
    )
    eval_every: int = flag(
        1, "validate every N epochs and after the last one (papers: every epoch)", group=TRAINING, check=at_least(1)
    )
    eval_bs: int | None = flag(None, "batch size of the validation; default: --bs", group=TRAINING, check=at_least(1))

    seed: int = flag(
        42,
        "random seed of weights, data order, augmentation and attack starts (official)",
        group=RUN,
        check=between(0, 2**31 - 1),
    )
    precision: Literal["auto", "fp32", "tf32", "bf16"] = flag(
        "auto",
        "precision of forward and backward passes; weights stay fp32; auto: bf16 if the device supports it natively,\n"
        "else fp32",
        group=RUN,
    )
    compile: Literal["auto", "off", "on", "graphs"] = flag(
        "auto",
        "how the attack runs its networks; on: torch.compile; graphs: the PGD loop as one CUDA graph of compiled\n"
        "networks; auto: graphs on a GPU, else off",
        group=RUN,
        affects_result=False,
    )
    root_path: str = flag("tuned_models", "folder of all runs (official)", group=RUN, affects_result=False)
    desc_str: str = flag("", "suffix of the run's folder name (official)", group=RUN, affects_result=False)
    resume: bool = flag(
        False,
        "continue this run from its newest state, or start it",
        group=RUN,
        affects_result=False,
        short="-r",
        in_file=False,
    )
    save_minutes: float = flag(
        10.0,
        "save a state every X minutes, besides that at the end of each epoch",
        group=RUN,
        check=at_least(0),
        affects_result=False,
    )
    log_reliability: bool = flag(
        False,
        "distillation: log the accuracy of the teacher on clean and on the student's adversarial images, and a\n"
        "histogram of its probability of the label, to reliability.csv, one row per epoch",
        group=RUN,
        affects_result=False,
    )
    tensorboard: bool = flag(
        False, "log each epoch to TensorBoard (pip install tensorboard)", group=RUN, affects_result=False
    )
    wandb: bool = flag(False, "log each epoch to Weights & Biases (pip install wandb)", group=RUN, affects_result=False)
    sync_bn: bool = flag(
        True, "torchrun: synchronize BatchNorm, so that results do not depend on the number of processes", group=RUN
    )


@dataclass(frozen=True)
class TinyTrainConfig(TrainConfig):
    """Training on Tiny-ImageNet (``main_tiny.py``)."""

    dataset: str = flag("Tiny_Image", "training and test dataset: 200 classes of 64x64 images", group=DATA)
    teacher_model: str = flag("presnet18", "teacher (official Tiny-ImageNet command)", group=NETWORKS)


@dataclass(frozen=True)
class EvalConfig(CommonConfig):
    """Evaluation of a saved checkpoint (``main_eval.py``)."""

    model_path: tuple[str, ...] = flag(
        (), "checkpoints or folders; of a run's folder its best and its last checkpoint", group=NETWORKS
    )
    model: str | None = flag(
        None,
        "network of the checkpoint, if the file does not name it; or robustbench:NAME without a file",
        group=NETWORKS,
    )
    surrogate_path: str = flag("", "blackbox: checkpoint of the surrogate for transfer attacks", group=NETWORKS)
    surrogate_model: str | None = flag(
        None, "blackbox: network of --surrogate_path, if the file does not name it", group=NETWORKS
    )
    natural_path: str = flag(
        "", "checkpoint of a naturally trained network to compare with in attacks.png", group=NETWORKS
    )

    dataset: str | None = flag(
        None, "test dataset; default: the training dataset named in the checkpoint, else CIFAR10", group=DATA
    )

    protocol: Literal["paper", "official", "blackbox"] = flag(
        "paper",
        "paper: Clean, FGSM, PGD-20, PGD-TRADES-20, C&W-inf-30, AutoAttack, as the papers report;\n"
        "official: FGSM, PGD-10, C&W L2 of advertorch, AutoAttack, as the official DGAD script;\n"
        "blackbox: PGD-20 and C&W-inf-30 transferred from --surrogate_path, Square with 5,000 queries",
        group=EVALUATION,
    )
    attacks: str = flag(
        "",
        "run only these attacks of the protocol, separated by commas: clean fgsm pgd pgd_trades cw aa;\n"
        "blackbox: clean transfer_pgd transfer_cw square",
        group=EVALUATION,
    )
    limit_aa: int | None = flag(
        None,
        "run AutoAttack, the slowest attack, on N of the test images; default: all",
        group=EVALUATION,
        check=at_least(1),
    )
    eps: float = flag(
        8 / 255,
        "radius of the L-infinity ball in [0, 1], for example 8/255 or 0.031",
        group=EVALUATION,
        check=unit_interval,
    )
    steps: int | None = flag(
        None,
        "steps of the attack pgd (default: 20, protocol official 10)",
        group=EVALUATION,
        check=at_least(1),
    )
    judge: Literal["every", "last"] = flag(
        "every",
        "when an image counts as fooled; every: if any PGD step fools the network, as AutoAttack counts;\n"
        "last: if the last step does, as the papers' codes count (always with protocol official)",
        group=EVALUATION,
    )
    restarts: int = flag(1, "random restarts of PGD and C&W-inf (papers: 1)", group=EVALUATION, check=between(1, 1000))
    bs: int = flag(200, "batch size (official)", group=EVALUATION, check=at_least(1))

    seed: int = flag(42, "random seed of attack starts", group=RUN, check=between(0, 2**31 - 1))
    precision: Literal["auto", "fp32", "tf32", "bf16"] = flag(
        "auto",
        "precision of the attacks' copy of the network; predictions are always verified in fp32;\n"
        "auto: TF32 on a GPU, PyTorch's default for convolutions, else fp32",
        group=RUN,
    )
    state: str = flag(
        "", "folder for finished parts of this evaluation; the same command continues from them", group=RUN
    )
    out: str = flag("", "folder for results and plots; default: beside each checkpoint", group=RUN)
    pictures: bool = flag(
        True, "draw attacks.png, examples.png and confusion.png if pgd is among the attacks", group=RUN
    )


@dataclass(frozen=True)
class TinyEvalConfig(EvalConfig):
    """Evaluation on Tiny-ImageNet (``main_eval_tinyimagenet.py``)."""

    dataset: str = flag("Tiny_Image", "test dataset: 200 classes of 64x64 images", group=DATA)
