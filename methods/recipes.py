"""The published training of each method, for ``--recipe paper``: field of the config -> value.

A field that a recipe does not name keeps its default, which is the official DGAD training. A milestone is the number of
epochs after which the learning rate drops.
"""

TWO_DROPS = {"epochs": 200, "milestones": (100, 150)}
IAD = {**TWO_DROPS, "weight_decay": 2e-4, "temp": 1.0}  # papers: two drops; the official code misses the second
DGAD = {**TWO_DROPS, "weight_decay": 5e-4}
THREE_DROPS = {"epochs": 300, "milestones": (215, 260, 285), "weight_decay": 2e-4}
EPSILON_031 = {"epsilon": 0.031 * 255, "step_size": 0.007 * 255}  # TRADES and MART: 0.031 and 0.007 in [0, 1]
# The official code averages the checkpoints of all epochs after training, with decay 0.9.
IKL = {"epochs": 200, "lr_max": 0.2, "lr_schedule": "cosine", "weight_decay": 5e-4, "awp": 0.005, "awp_warmup": 10}
IKL |= {"num_steps": 5, "step_size": 4.0, "epsilon_ramp": 200}

RECIPES = {
    "Natural": DGAD,  # of the AdaAD code
    "AT": DGAD,  # of the AdaAD code
    "TRADES": {**EPSILON_031, "epochs": 76, "milestones": (74,), "weight_decay": 2e-4, "trades_beta": 6.0},
    "MART": {**EPSILON_031, "epochs": 120, "milestones": (74, 89, 99), "lr_max": 0.01, "weight_decay": 3.5e-3},
    "ARD": {**TWO_DROPS, "weight_decay": 2e-4, "temp": 30.0},
    "AKD2": IAD,
    "IAD-I": {**IAD, "iad_begin": 60},
    "IAD-II": {**IAD, "iad_begin": 40},
    "RSLAD": THREE_DROPS,
    "AdaAD": DGAD,
    "AdaIAD": {**DGAD, "temp": 30.0, "iad_begin": 60},
    "DGAD": DGAD,
    "IGDM": {**TWO_DROPS, "weight_decay": 2e-4},
    "SAAD": {**TWO_DROPS, "weight_decay": 2e-4, "swa_start": 95},
    "MTARD": THREE_DROPS,
    "B-MTARD": THREE_DROPS,
    "PeerAiD": {**THREE_DROPS, "milestones": (214, 259, 284), "swa_start": 215},
    "ADR": {**DGAD, "nesterov": True},
    "IKL": IKL,
    "GKL": IKL,
    "DGAD-IAD": {**DGAD, "iad_begin": 60},
}

# For --recipe strong, with any method: the pieces of the best published trainings of a ResNet-18.
STRONG = {
    "ema": 0.995,  # Rebuffi et al. (2021), Wang et al. (ICML 2023), ADR (ICLR 2024)
    "awp": 0.005,  # TRADES-AWP and ADR with AWP
    "awp_warmup": 10,  # TRADES-AWP
    "lr_schedule": "cosine",  # Rebuffi et al. (2021)
    "augment": "idbh-weak",  # Li & Spratling (ICLR 2023), with AWP and SWA
}

TINY_IMAGENET = {
    "PeerAiD": {"epochs": 200, "milestones": (99, 149), "swa_start": 100},
    "ADR": {"epochs": 80, "milestones": (40, 60)},
}
ALP_BETA = {"CIFAR10": 5.0, "CIFAR100": 5.0, "Tiny_Image": 15.0}  # DGAD's project page


def recipe(method: str, dataset: str, model: str) -> dict:
    """Return the published training of ``method`` for this dataset and student; {} if there is none."""
    values = dict(RECIPES.get(method, {}))
    if method == "ARD" and dataset == "CIFAR100":
        values["bs"] = 256
    if dataset == "Tiny_Image":
        values |= TINY_IMAGENET.get(method, {})
    if method.startswith("DGAD"):
        values |= {"alp_beta": ALP_BETA[dataset]} if dataset in ALP_BETA else {}
        if model == "mobilenetV2":
            values["lr_max"] = 0.05
            values |= {"distill_weight": 0.5} if dataset.startswith("CIFAR") else {}
    return values
