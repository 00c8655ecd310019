"""The table of methods: each entry takes the run's config and returns the function of one training step.

A step is ``method(student, *teachers, attack, x, y, epoch) -> Step``, with ``epoch`` counted from 0.
``attack(objective, x, noise=, clamp=, bn=)`` returns adversarial images; ``objective(student, *teachers)`` receives the
networks that the attack uses and returns a function from images to losses (B,). To add a method, add one file to this
folder and one line below.

A method with state is an object with this ``__call__`` and any of: ``setup(setup)``, called once with a
:class:`~methods.losses.Setup`; ``parameters()`` for the optimizer; ``after_step()``, called after the optimizer's step;
``after_epoch(epoch)``, called after an epoch's last step, and again if the run resumes there; ``state_dict()`` and
``load_state_dict(state)``, with which a step with AWP undoes the first of its two calls. Its attribute ``keywords`` is
logged.
"""

from functools import partial

from methods import adaad, adr, akd2, ard, at, dgad, iad, igdm, ikl, mart, mtard, natural, peeraid, rslad, saad, trades

# Trained from labels only.
WITHOUT_TEACHER = {
    "Natural": lambda c: partial(natural.natural, label_smoothing=c.label_smoothing),
    "AT": lambda c: partial(at.at, label_smoothing=c.label_smoothing),
    "TRADES": lambda c: partial(
        trades.trades, beta=c.trades_beta, temp=given(c.temp, 1.0), label_smoothing=c.label_smoothing
    ),
    "MART": lambda c: partial(mart.mart, beta=c.mart_beta),
    "ADR": lambda c: adr.ADR(epochs=c.epochs, **_official(adr.SCHEDULE, c)),
    "PeerAiD": lambda c: peeraid.PeerAiD(**_official(peeraid.OFFICIAL, c)),
    "IKL": lambda c: ikl.IKL(**_ikl(c, "IKL"), gamma=1.0),
    "GKL": lambda c: ikl.IKL(**_ikl(c, "GKL"), gamma=given(c.gkl_gamma, ikl.GAMMA.get(c.dataset, 0.2))),
}

# Distilled from one robust teacher.
WITH_TEACHER = {
    "ARD": lambda c: partial(
        ard.ard, alpha=c.iad_alpha, temp=given(c.temp, ard.TEMPERATURE), kl_weight=c.kl_weight, **_term_weights(c)
    ),
    "IAD-I": lambda c: partial(
        iad.iad1,
        **_introspection(c, iad.TEMPERATURE),
        coefficient=c.iad_coefficient,
        down=c.iad_down,
        **_term_weights(c),
    ),
    "RSLAD": lambda c: _with_igdm(c, partial(rslad.rslad, kl_weight=given(c.kl_weight, rslad.KL_WEIGHT))),
    "AdaAD": lambda c: partial(
        adaad.adaad, alpha=c.adaad_alpha, kl_weight=given(c.kl_weight, adaad.KL_WEIGHT.get(c.dataset, 1.0))
    ),
    "AdaIAD": lambda c: _with_igdm(c, partial(adaad.adaiad, **_introspection(c, adaad.ADAIAD_TEMPERATURE))),
    "DGAD": lambda c: _with_igdm(c, partial(dgad.dgad, **_dgad(c))),
    "DGAD-IAD": lambda c: partial(dgad.dgad_iad, beta=c.iad_beta, begin=given(c.iad_begin, iad.BEGIN_I), **_dgad(c)),
    "IGDM": lambda c: partial(igdm.igdm, **_igdm(c)),
    "SAAD": lambda c: saad.SAAD(**_igdm(c), beta=c.saad_beta, gamma=c.saad_gamma),
}

# Distilled from a robust teacher and a standard one.
WITH_TWO_TEACHERS = {
    "AKD2": lambda c: partial(akd2.akd2, **_two_teachers(c), beta=c.iad_beta if c.akd2_partial else None),
    "IAD-II": lambda c: partial(
        iad.iad2,
        **_two_teachers(c),
        beta=c.iad_beta,
        begin=given(c.iad_begin, iad.BEGIN_II),
        coefficient=c.iad_coefficient,
    ),
    "MTARD": lambda c: mtard.MTARD(**_balance(c)),
    "B-MTARD": lambda c: mtard.MTARD(**_balance(c), temp_rate=mtard.TEMP_RATE),
}

METHODS = WITHOUT_TEACHER | WITH_TEACHER | WITH_TWO_TEACHERS

# Trained on clean images only.
WITHOUT_ATTACK = {"Natural"}

# Accept labels as probabilities y (B, classes), of CutMix, besides classes (B,). Losses of others may compute with
# them too, but no source defines or trains them so.
WITH_SOFT_LABELS = {"AT", "TRADES", "ADR", "RSLAD", "AdaAD", "IGDM", "SAAD"}

# Not with torchrun, like methods with ``parameters()``: their weights depend on the whole batch or epoch.
SINGLE_PROCESS_ONLY = {"SAAD", "MTARD", "B-MTARD", "IKL", "GKL"}

# Names of the official codes.
ALIASES = {
    "Plain_Clean": "Natural",
    "Plain_Madry": "AT",
    "IAD": "IAD-I",
    "AdaAD_with_IAD1": "AdaIAD",
    "DGAD_IAD1": "DGAD-IAD",
}


def count_teachers(method: str) -> int:
    """Return the number of teachers of a method: 0, 1 or 2."""
    return 0 if method in WITHOUT_TEACHER else 2 if method in WITH_TWO_TEACHERS else 1


def given(value, default):
    """Return ``value``, or ``default`` if the value is None: the flag was not given."""
    return default if value is None else value


def fields_read(method: str, config) -> set[str]:
    """Return the names of the config's fields that the entry of ``method`` in METHODS reads."""
    names = set()

    class Recorder:
        def __getattr__(self, name: str):
            names.add(name)
            return getattr(config, name)

    METHODS[method](Recorder())
    return names


def _introspection(c, temp: float) -> dict:
    weights = {"alpha": c.iad_alpha, "beta": c.iad_beta}
    return {**weights, "temp": given(c.temp, temp), "begin": given(c.iad_begin, iad.BEGIN_I)}


def _term_weights(c) -> dict:
    return {"label_weight": c.label_weight, "self_weight": c.self_weight, "teacher_weight": c.teacher_weight}


def _dgad(c) -> dict:
    switches = {"use_map": c.map, "use_els": c.els, "use_pcr": c.alp == "on"}
    return {"alp_beta": c.alp_beta, "distill_weight": c.distill_weight, **switches}


def _two_teachers(c) -> dict:
    return {"robust_weight": c.robust_weight, "std_weight": c.std_weight, "temp": given(c.temp, iad.TEMPERATURE)}


def _igdm(c) -> dict:
    return {"igdm": given(c.igdm, igdm.ALPHA.get(c.dataset, 10.0)), "epochs": c.epochs}


def _with_igdm(c, method: partial) -> partial:
    """Add the term of IGDM if ``--igdm`` is given."""
    if c.igdm is None:
        return method
    return partial(igdm.with_igdm, method.func, **method.keywords, igdm=c.igdm, epochs=c.epochs)


def _ikl(c, method: str) -> dict:
    temp, attack_beta = given(c.temp, ikl.TEMPERATURES[method]), ikl.ATTACK_BETA.get(c.dataset, 0.0)
    return {"alpha": c.ikl_alpha, "beta": c.ikl_beta, "temp": temp, "attack_beta": attack_beta}


def _balance(c) -> dict:
    milestones = c.milestones if c.lr_schedule == "piecewise" and c.milestones else ()
    return {"kl_weight": given(c.kl_weight, mtard.KL_WEIGHT), "milestones": milestones}


def _official(table: dict[str, dict], c) -> dict:
    """Values of a table for the config's dataset, CIFAR10's for others; given flags of the same names replace them."""
    return {key: given(getattr(c, key), value) for key, value in table.get(c.dataset, table["CIFAR10"]).items()}
