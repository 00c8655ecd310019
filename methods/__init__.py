"""The methods by name: each entry takes the run's config and returns the function of one training step.

A step is ``method(student, *teachers, attack, x, y, epoch) -> Step``. ``attack(objective, x, noise=, clamp=, bn=)``
returns adversarial images; ``objective(student, *teachers)`` receives the networks as the attack sees them and
returns a function from images to losses (B,). Add a method: one file beside this one, one line below.
"""

from functools import partial

from methods.adaad import KL_WEIGHT as ADAAD_KL_WEIGHT
from methods.adaad import adaad
from methods.at import at
from methods.dgad import dgad
from methods.natural import natural
from methods.rslad import KL_WEIGHT as RSLAD_KL_WEIGHT
from methods.rslad import rslad
from methods.trades import trades

# Trained from labels alone.
WITHOUT_TEACHER = {
    "Natural": lambda c: natural,
    "AT": lambda c: at,
    "TRADES": lambda c: partial(trades, beta=c.trades_beta),
}

# Distilled from one robust teacher.
WITH_TEACHER = {
    "RSLAD": lambda c: partial(rslad, kl_weight=given(c.kl_weight, RSLAD_KL_WEIGHT)),
    "AdaAD": lambda c: partial(
        adaad, alpha=c.adaad_alpha, kl_weight=given(c.kl_weight, ADAAD_KL_WEIGHT.get(c.dataset, 1.0))
    ),
    "DGAD": lambda c: partial(
        dgad,
        alp_beta=c.alp_beta,
        use_map=c.map,
        use_els=c.els,
        use_pcr=c.alp == "on",
        distill_weight=c.distill_weight,
    ),
}

METHODS = WITHOUT_TEACHER | WITH_TEACHER

ALIASES = {"Plain_Clean": "Natural", "Plain_Madry": "AT"}


def given(value, default):
    """``value`` unless the command line left it open (None)."""
    return default if value is None else value
