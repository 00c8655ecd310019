"""Command-line flags generated from the fields of a frozen dataclass."""

import argparse
import difflib
import math
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import Field, field, fields
from typing import Any, Literal, NamedTuple

from utils.errors import UserError

_METAVAR = {int: "N", float: "X"}

Check = Callable[[Any], str | None]  # value -> what is wrong with it, or None


def flag(
    default: Any,
    help: str,
    *,
    group: str,
    name: str | None = None,
    check: Check | None = None,
    affects_result: bool = True,
    short: str | None = None,
) -> Any:
    """Declare one field: its help (with the reason for the default), heading, and spelling where it differs.

    ``place`` marks what says where or how a run is carried out, never what it computes.
    """
    metadata = {
        "help": help,
        "group": group,
        "name": name,
        "check": check,
        "affects_result": affects_result,
        "short": short,
    }
    return field(default=default, metadata=metadata)


def above(bound: float) -> Check:
    """A finite number greater than ``bound``."""
    return lambda value: None if bound < value < math.inf else f"must be a number above {bound:g}"


def at_least(bound: float) -> Check:
    """A finite number not below ``bound``."""
    return lambda value: None if bound <= value < math.inf else f"must be a number of at least {bound:g}"


def within(low: float, high: float) -> Check:
    """A number greater than ``low`` and at most ``high``."""
    return lambda value: None if low < value <= high else f"must be above {low:g} and at most {high:g}"


def between(low: float, high: float) -> Check:
    """A number of at least ``low`` and at most ``high``."""
    return lambda value: None if low <= value <= high else f"must be between {low} and {high}"


def unit_255(least: float) -> Check:
    """A length in units of 1/255, of at most 255; what is below ``least`` was meant in [0, 1]."""

    def check(value: float) -> str | None:
        if 0 < value < least:
            return f"is in units of 1/255: {value:g} in [0, 1] is {255 * value:.4g} here"
        return within(0, 255)(value)

    return check


def unit_interval(value: float) -> str | None:
    """A length in [0, 1]; what is above was meant in units of 1/255."""
    wrong = between(0, 1)(value)
    return f"{wrong}, as {value:g}/255" if wrong and value > 1 else wrong


def increasing(values: Sequence[int]) -> str | None:
    """Positive whole numbers, each greater than the one before."""
    ordered = all(a < b for a, b in zip([0, *values], values, strict=False))
    return None if ordered else "must be positive and increasing"


def spelling(spec: Field) -> str:
    """``--flag`` as the command line spells the field."""
    return f"--{spec.metadata['name'] or spec.name}"


def check_values(config: Any) -> None:
    """Raise UserError for the first field whose value fails its check; None (left open) always passes."""
    for spec in fields(config):
        value, check = getattr(config, spec.name), spec.metadata["check"]
        wrong = check(value) if check and value is not None else None
        if wrong:
            raise UserError(f"{spelling(spec)} {_plain(value)}: {wrong}")


class Parsed(NamedTuple):
    """A config, and the names of the fields that the command line set."""

    config: Any
    given: frozenset[str]


def parse(
    config_class: type, argv: Sequence[str] | None = None, *, description: str, choices: dict[str, str]
) -> Parsed:
    """Read the command line into a ``config_class``.

    Args:
        config_class: FrozenModel dataclass whose fields were made by :func:`flag`.
        argv: Words of the command line; None takes the process's own.
        description: First lines of ``--help``.
        choices: Field name -> text of the names it takes, added to that field's help.

    Raises:
        UserError: A word that is no flag, or a value of the wrong kind or range.
    """
    values = vars(_parser_of(config_class, description, choices).parse_args(argv))
    for spec in fields(config_class):
        if values.get(spec.name) == []:  # what argparse makes of --flag=--
            raise UserError(f"{spelling(spec)}: -- is no value; name one")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Parsed(config_class(**given), frozenset(given))


def _parser_of(config_class: type, description: str, choices: dict[str, str]) -> argparse.ArgumentParser:
    parser = parser_for(description)
    hints = typing.get_type_hints(config_class)
    groups = {}
    for spec in fields(config_class):
        heading = spec.metadata["group"]
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        names = [name for name in (spec.metadata["short"], spelling(spec)) if name]
        text = "\n".join(filter(None, [_help(spec), choices.get(spec.name)])).replace("%", "%%")
        kind = _kind(hints[spec.name], spec.default)
        # Suppressed: what the command line leaves out is absent, so that a recipe can fill it.
        groups[heading].add_argument(*names, dest=spec.name, default=argparse.SUPPRESS, help=text, **kind)
    return parser


def parser_for(description: str) -> argparse.ArgumentParser:
    """A parser without flags yet; its errors are UserErrors that name the nearest flag."""
    return _Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            try:
                word.encode()
            except UnicodeEncodeError as error:  # no log and no table could hold it
                raise UserError(f"{word!a}: holds bytes that are not UTF-8; rename the file") from error
        return super().parse_known_args(args, namespace)

    def error(self, message):
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        unknown = [word for word in message.split() if word.startswith("--") and word.rstrip(":") not in known]
        near = [flag for word in unknown for flag in difflib.get_close_matches(word, known, n=1)]
        hint = f"did you mean {near[0]}?" if near else "--help lists the flags"
        raise UserError(f"{message.removeprefix('argument ')} ({hint})")


def _help(spec: Field) -> str:
    default = "" if spec.default in (None, "", False, ()) else f" [default: {_plain(spec.default)}]"
    return spec.metadata["help"] + default


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _kind(hint: Any, default: Any) -> dict[str, Any]:
    """Arguments of ``add_argument`` for one type annotation."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        # X | None: None says that the flag was left open.
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction if default else "store_true"}
    if typing.get_origin(hint) is Literal:
        allowed = {choice.lower(): choice for choice in typing.get_args(hint)}
        return {"type": _one_of(allowed), "metavar": "|".join(allowed.values())}
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        return {"type": kind, "nargs": "+", "metavar": _METAVAR.get(kind, "NAME")}
    return {"type": _fraction if hint is float else hint, "metavar": _METAVAR.get(hint, "NAME")}


def _fraction(word: str) -> float:
    """A number, or two with a slash: the field writes its radii as 8/255."""
    above, slash, below = word.partition("/")
    try:
        return float(above) / float(below) if slash else float(word)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"invalid float value: {word!r}") from None


def _one_of(allowed: dict[str, str]) -> Callable[[str], str]:
    def convert(word: str) -> str:
        if word.lower() not in allowed:
            raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(allowed.values())}")
        return allowed[word.lower()]

    return convert
