"""Fields of a config: how one is declared, what its values must be, and how the command line spells both."""

import math
from collections.abc import Callable, Sequence
from dataclasses import Field, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from utils.errors import UserError

OFFICIAL = {"alp_": "ALP_", "adaad_": "AdaAD_", "iad_": "IAD_"}  # first part of a field -> that of its flag

Check = Callable[[Any], str | None]  # value -> error message, or None if the value is valid


def flag(
    default: Any,
    help: str,
    check: Check | None = None,
    *,
    group: str,
    affects_result: bool = True,
    short: str | None = None,
) -> Any:
    """Declare a field and its flag; ``short`` is another spelling, and ``group`` the heading in ``--help``.

    ``affects_result`` is False for settings of where or how a run is carried out, not of what it computes.
    """
    metadata = {"help": help, "group": group, "check": check, "short": short}
    return field(default=default, metadata=metadata | {"affects_result": affects_result})


def above(bound: float) -> Check:
    """A finite number greater than ``bound``."""
    return lambda value: None if bound < value < math.inf else f"must be a number above {bound:g}"


def at_least(bound: float) -> Check:
    """A finite number of at least ``bound``."""
    return lambda value: None if bound <= value < math.inf else f"must be a number of at least {bound:g}"


def within(low: float, high: float) -> Check:
    """A number greater than ``low`` and at most ``high``."""
    return lambda value: None if low < value <= high else f"must be above {low:g} and at most {high:g}"


def between(low: float, high: float) -> Check:
    """A number of at least ``low`` and at most ``high``."""
    return lambda value: None if low <= value <= high else f"must be between {low} and {high}"


def unit_255(least: float) -> Check:
    """A length in units of 1/255, at most 255; a value below ``least`` was probably meant in [0, 1] and is rejected."""

    def check(value: float) -> str | None:
        if 0 < value < least:
            return f"is in units of 1/255; write {255 * value:.4g}"
        return within(0, 255)(value)

    return check


def unit_interval(value: float) -> str | None:
    """A length in [0, 1]; the message for a larger value suggests that it was meant in units of 1/255."""
    error = between(0, 1)(value)
    return f"{error}, for example {value:g}/255" if error and value > 1 else error


def increasing(values: Sequence[int]) -> str | None:
    """Positive integers in increasing order."""
    ordered = all(a < b for a, b in zip([0, *values], values, strict=False))
    return None if ordered else "must be positive and increasing"


def spelling(spec: Field) -> str:
    """Return the field's flag as the command line spells it, ``--flag``."""
    prefix, line, rest = spec.name.partition("_")
    return f"--{OFFICIAL.get(prefix + line, prefix + line)}{rest}"


def shown(value: Any) -> str:
    """Return a value as the command line spells it: a fraction rather than a long decimal."""
    if isinstance(value, tuple):
        return " ".join(map(shown, value))
    if isinstance(value, float) and len(str(value)) > 10:
        fractions = ((round(value * denominator, 6), denominator) for denominator in (255, 3, 7, 9))
        return next((f"{n:g}/{d}" for n, d in fractions if n / d == value), f"{value:.10g}")
    return str(value)


def literals(hint: Any) -> tuple[str, ...]:
    """Return the values of a type ``Literal[...]`` or ``Literal[...] | None``; () for other types."""
    return next((get_args(part) for part in (hint, *get_args(hint)) if get_origin(part) is Literal), ())


def check_values(config: Any) -> None:
    """Raise UserError for the first field whose value fails its check or is no value of its Literal; None passes."""
    hints = get_type_hints(type(config))
    for spec in fields(config):
        value, check, allowed = getattr(config, spec.name), spec.metadata["check"], literals(hints[spec.name])
        if value is None:
            continue
        error = check(value) if check else None
        if allowed and value not in allowed:
            error = f"must be one of {', '.join(allowed)}"
        if error:
            raise UserError(f"{spelling(spec)} {shown(value)}: {error}")
