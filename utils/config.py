"""The configuration of each entry script: one frozen dataclass, from whose fields its command line is generated.

Flags keep the spelling and the default of the official codes; a field is the flag in lower case.
"""

from dataclasses import dataclass
from typing import Literal

from utils.flags import above, at_least, between, check_values, flag, increasing, of_1, of_255, within

NETWORKS, METHOD, ATTACK, TRAINING, DATA, RUN = (
    "networks",
    "method",
    "inner attack (units of /255)",
    "training",
    "data",
    "run",
)


@dataclass(frozen=True)
class TrainConfig:
    """Training on CIFAR-10, CIFAR-100 and small data sets (``main.py``)."""

    dataset: str = flag("CIFAR10", "data set: the field's first benchmark", group=DATA)
    data_root: str | None = flag(None, "folder of the data (datasets/ when not given)", group=DATA, place=True)
    image_size: int | None = flag(
        None, "side of the images; Folder and Digits scale to it", group=DATA, check=between(16, 1024)
    )
    limit_train: int | None = flag(
        None,
        "train on N images, classes in their proportions (all of them when not given)",
        group=DATA,
        check=at_least(1),
    )
    limit_test: int | None = flag(
        None,
        "test on N images, classes in their proportions (all of them when not given)",
        group=DATA,
        check=at_least(1),
    )
    val_size: int = flag(
        0,
        "hold out N training images and choose the best checkpoint on them; 0 chooses on the test set,\n"
        "as the papers do, which flatters the best checkpoint",
        group=DATA,
        check=at_least(0),
    )
    workers: int = flag(
        4,
        "threads that decode image files, once; training itself reads from memory",
        group=DATA,
        check=at_least(1),
        place=True,
    )

    model: str = flag(
        "resnet18", "student: the papers' first network; robustbench:NAME starts from a published one", group=NETWORKS
    )
    model_path: str = flag("", "start the student from this checkpoint", group=NETWORKS)
    teacher_model: str = flag("wideresnet34_10", "teacher: the one of the official CIFAR-10 command", group=NETWORKS)
    teacher_path: str | None = flag(
        None,
        "the teacher's checkpoint (teacher_models/... of the official codes when not given)",
        group=NETWORKS,
        place=True,
    )

    no_teacher_check: bool = flag(
        False, "go on with a teacher whose accuracy on 256 clean test images is less than twice chance", group=NETWORKS
    )
    std_teacher_model: str = flag(
        "resnet18", "second teacher, trained naturally, of AKD2 and IAD-II (official: always resnet18)", group=NETWORKS
    )
    std_teacher_path: str | None = flag(
        None, "the second teacher's checkpoint; AKD2 and IAD-II need it", group=NETWORKS, place=True
    )

    method: str = flag("AT", "training method: adversarial training needs no teacher", group=METHOD)
    alp_beta: float = flag(
        1.0,
        "DGAD: weight of the consistency term (paper: 5 on CIFAR, 15 on Tiny-ImageNet)",
        name="ALP_beta",
        group=METHOD,
        check=at_least(0),
    )
    alp: Literal["on", "off"] = flag("on", "DGAD: consistency term (PCR)", group=METHOD)
    map: bool = flag(True, "DGAD: clean guidance where the teacher errs (MAP)", group=METHOD)
    els: bool = flag(True, "DGAD: correct the teacher's labels by exchange (ELS)", group=METHOD)
    distill_weight: float = flag(
        1.0, "DGAD: factor of the guided terms (the official MobileNetV2 branch has 0.5)", group=METHOD, check=above(0)
    )
    adaad_alpha: float = flag(
        1.0,
        "AdaAD: share of the adversarial term (official: all of it)",
        name="AdaAD_alpha",
        group=METHOD,
        check=at_least(0),
    )
    kl_weight: float | None = flag(
        None,
        "factor of the batch-mean KL\n"
        "(official when not given: ARD 1/classes, RSLAD 0.1, AdaAD 0.1 on CIFAR10 and 1 elsewhere)",
        group=METHOD,
        check=above(0),
    )
    temp: float | None = flag(
        None,
        "temperature (official when not given: 30 for ARD and AdaIAD, 1 for AKD2, IAD-I, IAD-II)",
        group=METHOD,
        check=within(0, 1e6),
    )
    iad_alpha: float = flag(
        1.0,
        "ARD, IAD-I, AdaIAD: share of the distilled terms, the rest is cross entropy (official: all of it)",
        name="IAD_alpha",
        group=METHOD,
        check=at_least(0),
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
        "the same: first epoch with introspection (official when not given: 60, IAD-II 40)",
        name="IAD_begin",
        group=METHOD,
        check=at_least(0),
    )
    robust_weight: float = flag(
        0.5, "AKD2, IAD-II: weight of the robust teacher (IAD code)", group=METHOD, check=at_least(0)
    )
    std_weight: float = flag(
        0.25, "AKD2, IAD-II: weight of the standard teacher (IAD code)", group=METHOD, check=at_least(0)
    )
    trades_beta: float = flag(6.0, "TRADES: weight of the robust term (paper)", group=METHOD, check=at_least(0))
    mart_beta: float = flag(5.0, "MART: weight of the robust term (paper's lambda)", group=METHOD, check=at_least(0))

    epsilon: float = flag(
        8.0,
        "radius of the L-infinity ball, in units of 1/255; the field's standard",
        group=ATTACK,
        check=of_255(least=0.1),
    )
    step_size: float = flag(
        2.0, "length of one step (papers: a quarter of epsilon)", group=ATTACK, check=of_255(least=0.02)
    )
    num_steps: int = flag(10, "steps: PGD-10 as in the papers", group=ATTACK, check=at_least(1))
    attack_bn: Literal["eval", "train"] | None = flag(
        None, "mode of the student's BatchNorm in the attack (each method's official one when not given)", group=ATTACK
    )

    recipe: Literal["fair", "paper"] = flag(
        "fair",
        "what a flag left out takes: fair, the defaults listed here, one setting for all methods;\n"
        "paper, the method's own published training",
        group=TRAINING,
    )
    epochs: int = flag(200, "passes over the training set (papers)", group=TRAINING, check=at_least(1))
    bs: int = flag(128, "images in a batch (papers)", group=TRAINING, check=at_least(1))
    optim: Literal["SGD", "Adam"] = flag("SGD", "optimizer (papers)", group=TRAINING)
    lr_max: float = flag(
        0.1, "largest learning rate (papers: 0.1; DGAD: 0.05 for MobileNetV2)", group=TRAINING, check=above(0)
    )
    lr_schedule: Literal["piecewise", "cosine", "constant"] = flag(
        "piecewise", "learning rate over the epochs (papers)", group=TRAINING
    )
    milestones: tuple[int, ...] | None = flag(
        None,
        "epochs at which piecewise divides the rate by 10 (1/2 and 3/4 of the run when not given: 100 150 of 200)",
        group=TRAINING,
        check=increasing,
    )
    momentum: float = flag(0.9, "SGD momentum (papers)", group=TRAINING, check=at_least(0))
    weight_decay: float = flag(5e-4, "weight decay (official DGAD)", group=TRAINING, check=at_least(0))
    warmup_lr: bool = flag(False, "raise the rate linearly from 0.001 in the first epochs", group=TRAINING)
    warmup_lr_epochs: int = flag(15, "how many epochs --warmup_lr takes (official)", group=TRAINING, check=at_least(1))

    seed: int = flag(
        42,
        "seed of weights, data order, augmentation and attack starts (official)",
        group=RUN,
        check=between(0, 2**31 - 1),
    )
    device: str = flag(
        "auto", "auto, cpu, cuda or cuda:N; auto takes --gpu_id where there is a GPU", group=RUN, place=True
    )
    gpu_id: int = flag(0, "which GPU, when there are several", group=RUN, check=at_least(0), place=True)
    threads: int | None = flag(
        None, "threads of the CPU (PyTorch's choice when not given)", group=RUN, check=between(1, 4096), place=True
    )
    precision: Literal["auto", "fp32", "tf32", "bf16"] = flag(
        "auto",
        "arithmetic of networks, the weights stay fp32; auto: bf16 where the device multiplies it, else fp32;\n"
        "fp32 is the reference",
        group=RUN,
    )
    compile: Literal["auto", "off", "on"] = flag(
        "auto", "torch.compile what the attack climbs; auto: on a GPU with Triton", group=RUN, place=True
    )
    root_path: str = flag("tuned_models", "folder of all runs (official name)", group=RUN, place=True)
    desc_str: str = flag("", "a word of yours at the end of the run's folder name", group=RUN, place=True)
    resume: bool = flag(
        False, "continue this run where its last checkpoint left it, or start it", group=RUN, place=True, short="-r"
    )
    save_minutes: float = flag(
        10.0,
        "longest time between checkpoints, so the most that an interruption costs; every epoch ends with one too",
        group=RUN,
        check=at_least(0),
        place=True,
    )
    log_reliability: bool = flag(
        False,
        "distillation: write how often the teacher is right on clean and on the student's adversarial images, and how\n"
        "sure of the label, to reliability.csv, an epoch a row",
        group=RUN,
        place=True,
    )
    tensorboard: bool = flag(
        False,
        "write each epoch's row for TensorBoard too, in the run's folder; pip install tensorboard",
        group=RUN,
        place=True,
    )
    wandb: bool = flag(
        False,
        "send each epoch's row to Weights & Biases too, heeding WANDB_MODE; pip install wandb",
        group=RUN,
        place=True,
    )
    sync_bn: bool = flag(
        True, "under torchrun: BatchNorm over the whole batch, so that results do not depend on processes", group=RUN
    )

    def __post_init__(self):
        check_values(self)


@dataclass(frozen=True)
class TinyTrainConfig(TrainConfig):
    """Training on Tiny-ImageNet (``main_tiny.py``)."""

    dataset: str = flag("Tiny_Image", "data set: Tiny-ImageNet, 200 classes of 64x64 images", group=DATA)
    teacher_model: str = flag("presnet18", "teacher: the one of the official Tiny-ImageNet command", group=NETWORKS)


EVALUATION = "evaluation"


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation of a saved checkpoint (``main_eval.py``)."""

    model_path: tuple[str, ...] = flag(
        (), "checkpoints, or folders of them: of a run's folder its best PGD-10 and its last one", group=NETWORKS
    )
    model: str | None = flag(
        None,
        "network of the checkpoint; needed only where the file does not tell, or robustbench:NAME without a file",
        group=NETWORKS,
    )
    surrogate_path: str = flag(
        "", "blackbox: checkpoint of the network on which transferred attacks are found", group=NETWORKS
    )
    surrogate_model: str | None = flag(
        None, "blackbox: network of --surrogate_path, where the file does not tell", group=NETWORKS
    )
    natural_path: str = flag(
        "", "checkpoint of a naturally trained network, drawn beside in attacks.png", group=NETWORKS
    )

    dataset: str | None = flag(
        None,
        "data set (when not given: what the checkpoint was trained on, CIFAR10 where it does not tell)",
        group=DATA,
    )
    data_root: str | None = flag(None, "folder of the data (datasets/ when not given)", group=DATA)
    image_size: int | None = flag(
        None, "side of the images; Folder and Digits scale to it", group=DATA, check=between(16, 1024)
    )
    limit_test: int | None = flag(
        None,
        "test on N images, classes in their proportions (all of them when not given)",
        group=DATA,
        check=at_least(1),
    )
    workers: int = flag(4, "threads that decode image files, once", group=DATA, check=at_least(1))

    protocol: Literal["paper", "official", "blackbox"] = flag(
        "paper",
        "paper: Clean, FGSM, PGD-20, PGD-TRADES-20, C&W-inf-30, AutoAttack, as the papers report;\n"
        "official: the official DGAD script: FGSM, PGD-10, C&W L2 of advertorch, AutoAttack;\n"
        "blackbox: PGD-20 and C&W-inf-30 transferred from --surrogate_path, Square of 5,000 queries",
        group=EVALUATION,
    )
    attacks: str = flag(
        "",
        "only these, separated by commas, of: clean fgsm pgd pgd_trades cw aa;\n"
        "blackbox: clean transfer_pgd transfer_cw square",
        group=EVALUATION,
    )
    limit_aa: int | None = flag(
        None,
        "AutoAttack on N of the test images only, for it is the slowest attack by far (all of them when not given)",
        group=EVALUATION,
        check=at_least(1),
    )
    eps: float = flag(
        8 / 255, "radius of the L-infinity ball, in [0, 1], as 8/255 or 0.031", group=EVALUATION, check=of_1
    )
    steps: int | None = flag(
        None,
        "steps of the attack pgd (the protocol's when not given: 20, official 10)",
        group=EVALUATION,
        check=at_least(1),
    )
    judge: Literal["every", "last"] = flag(
        "every",
        "every: an image is fooled once PGD finds one adversarial example, as AutoAttack counts;\n"
        "last: only where the last step is one, as the papers' codes count (protocol official always)",
        group=EVALUATION,
    )
    restarts: int = flag(
        1, "random starts of the attacks that have one; the papers take 1", group=EVALUATION, check=between(1, 1000)
    )
    bs: int = flag(200, "images in a batch (official)", group=EVALUATION, check=at_least(1))

    seed: int = flag(
        42, "seed of subsets and attack starts (official training seed)", group=RUN, check=between(0, 2**31 - 1)
    )
    device: str = flag("auto", "auto, cpu, cuda or cuda:N; auto takes --gpu_id where there is a GPU", group=RUN)
    gpu_id: int = flag(0, "which GPU, when there are several", group=RUN, check=at_least(0))
    threads: int | None = flag(
        None, "threads of the CPU (PyTorch's choice when not given)", group=RUN, check=between(1, 4096)
    )
    state: str = flag(
        "", "folder that keeps every finished piece of this evaluation; the same command continues from it", group=RUN
    )
    out: str = flag("", "folder of figures and pictures (beside each checkpoint when not given)", group=RUN)
    pictures: bool = flag(
        True, "draw attacks.png, examples.png and confusion.png where PGD is among the attacks", group=RUN
    )

    def __post_init__(self):
        check_values(self)


@dataclass(frozen=True)
class TinyEvalConfig(EvalConfig):
    """Evaluation on Tiny-ImageNet (``main_eval_tinyimagenet.py``)."""

    dataset: str = flag("Tiny_Image", "data set: Tiny-ImageNet, 200 classes of 64x64 images", group=DATA)
