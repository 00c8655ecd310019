"""Command-line flags generated from the fields of a frozen dataclass, and configs read from a JSON file."""

import argparse
import difflib
import json
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from utils.errors import UserError, torchrun_rank
from utils.files import read_json
from utils.versions import project_version

_METAVAR = {int: "N", float: "X", "device": "DEVICE"}  # by type or name of the field
_KINDS = {int: "a whole number", float: "a number or a fraction such as 8/255"}
PATHS = ("PATH", "FILE", "DIR", "RUNS", "FOLDER")  # metavars of paths

SKIPPED = "skipped_images"  # in a run's config.json: the number of images that --skip_damaged left out

Check = Callable[[Any], str | None]  # value -> error message, or None if the value is valid


def flag(
    default: Any,
    help: str,
    *,
    group: str,
    name: str | None = None,
    check: Check | None = None,
    affects_result: bool = True,
    short: str | None = None,
    in_file: bool = True,
) -> Any:
    """Declare a field and its flag, spelled ``name`` if that differs from the field's name, and also ``short``.

    ``group`` is its heading in ``--help``. ``affects_result`` is False for settings of where or how a run is carried
    out, not of what it computes; ``in_file`` is False if ``--config`` ignores the field.
    """
    metadata = {"help": help, "group": group, "name": name, "check": check, "short": short}
    return field(default=default, metadata=metadata | {"affects_result": affects_result, "in_file": in_file})


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
    """A length in units of 1/255, at most 255; a value below ``least`` is taken for one in [0, 1] and refused."""

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
    return f"--{spec.metadata['name'] or spec.name}"


def check_values(config: Any) -> None:
    """Raise UserError for the first field whose value fails its check; None always passes."""
    for spec in fields(config):
        value, check = getattr(config, spec.name), spec.metadata["check"]
        error = check(value) if check and value is not None else None
        if error:
            raise UserError(f"{spelling(spec)} {shown(value)}: {error}")


class Parsed(NamedTuple):
    """A config, and the source of each field that was set: "flag" or "config file"."""

    config: Any
    given: dict[str, str]


def parse(
    config_class: type, argv: Sequence[str] | None = None, *, description: str, choices: dict[str, str]
) -> Parsed:
    """Read the command line into a ``config_class``; ``--config FILE`` sets the fields that no flag sets.

    Args:
        config_class: Frozen dataclass whose fields were made by :func:`flag`.
        argv: Arguments; None takes those of the process.
        description: First lines of ``--help``.
        choices: Field name -> the names that the flag accepts, added to its help.

    Raises:
        UserError: An unknown flag or key, or a value of the wrong type or range.
    """
    try:
        return _parse(config_class, _config_parser(config_class, description, choices), argv)
    except UserError as error:  # of the command line that all processes of a torchrun share
        error.printed = not torchrun_rank("LOCAL_RANK")
        raise


def _parse(config_class: type, parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Parsed:
    values = vars(parser.parse_args(argv))
    path = values.pop("config", None)
    for spec in fields(config_class):
        if values.get(spec.name) == []:  # what argparse makes of --flag=--
            raise UserError(f"{spelling(spec)}: -- is not a value; give one")
    flags = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    from_file = read_config(config_class, path) if path is not None else {}
    given = dict.fromkeys(from_file, "config file") | dict.fromkeys(flags, "flag")
    return Parsed(config_class(**from_file | flags), given)


def read_config(config_class: type, path: str) -> dict[str, Any]:
    """Read values of fields from a JSON file, such as a run's config.json.

    Raises UserError if the file cannot be read or has an unknown key or a value of the wrong type.
    """
    try:
        content = read_json(Path(path))
        if not isinstance(content, dict):
            raise ValueError
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a JSON object of flags and values"
        raise UserError(f"--config {path}: {reason}") from error
    content.pop(SKIPPED, None)
    hints, values = typing.get_type_hints(config_class), {}
    specs = {spec.name: spec for spec in fields(config_class)}
    if unknown := [key for key in content if key not in specs]:
        nearest = [name for key in unknown[:3] for name in difflib.get_close_matches(key.lower(), specs, n=1)]
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "--help lists the flags"
        names = ", ".join(unknown[:3]) + ", ..." * (len(unknown) > 3)
        raise UserError(f"--config {path}: unknown key {names} ({hint})")
    for key, value in content.items():
        try:
            values[key] = _from_json(value, hints[key])
            if _path_metavar(key) and isinstance(values[key], str):
                values[key] = os.path.expanduser(values[key])
        except (TypeError, OverflowError) as error:
            kind = str(hints[key]).replace("typing.", "") if typing.get_args(hints[key]) else hints[key].__name__
            raise UserError(f"--config {path}: {key}: {json.dumps(value)[:60]} is not {kind}") from error
    return {key: value for key, value in values.items() if specs[key].metadata["in_file"]}


def _from_json(value: Any, hint: Any) -> Any:
    """Convert a JSON value to the type of its field; raises TypeError or OverflowError."""
    kind = _without_none(hint)
    if value is None and kind is not hint:
        return None
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_from_json(item, typing.get_args(kind)[0]) for item in value)
    if typing.get_origin(kind) is Literal and value in typing.get_args(kind):
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if type(value) is not kind or (kind is str and not _is_text(value)):
        raise TypeError
    return value


def _is_text(value: str) -> bool:
    """Whether a string could be a command-line argument in UTF-8."""
    return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def _config_parser(config_class: type, description: str, choices: dict[str, str]) -> argparse.ArgumentParser:
    parser = parser_for(description)
    text = "read flags from a JSON object of names and values; flags of the command line override it"
    if any(not spec.metadata["in_file"] for spec in fields(config_class)):
        text += ";\nfor example config.json of a run, with its paths and --desc_str, but without --resume"
    parser.add_argument("--config", default=argparse.SUPPRESS, metavar="FILE", help=text)
    hints = typing.get_type_hints(config_class)
    groups = {}
    for spec in fields(config_class):
        heading = spec.metadata["group"]
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        names = [name for name in (spec.metadata["short"], spelling(spec)) if name]
        text = "\n".join(filter(None, [_help(spec), choices.get(spec.name)])).replace("%", "%%")
        kind = _kind(hints[spec.name], spec.default, _METAVAR.get(spec.name) or _path_metavar(spec.name))
        # SUPPRESS: a flag that is not given is absent, so that a recipe or a config file can set it.
        groups[heading].add_argument(*names, dest=spec.name, default=argparse.SUPPRESS, help=text, **kind)
    return parser


def parser_for(description: str) -> argparse.ArgumentParser:
    """Return a parser with ``--help`` and ``--version``; its errors are UserErrors that name the nearest flag."""
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--version", action="version", version=project_version())
    return parser


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args=None, namespace=None):
        for arg in sys.argv[1:] if args is None else args:
            if not _is_text(arg):  # a log or a table could not hold it
                hint = "rename the file"
                if sys.getfilesystemencoding() != "utf-8":
                    hint = f"the locale's encoding is {sys.getfilesystemencoding()}: set PYTHONUTF8=1 or LC_ALL=C.UTF-8"
                raise UserError(f"{arg!a}: has bytes that are not UTF-8; {hint}")
        return super().parse_known_args(args, namespace)

    def _get_value(self, action, arg_string):
        """Convert one value; the shell does not expand ``~`` in --flag=~/x."""
        value = super()._get_value(action, arg_string)
        return os.path.expanduser(value) if isinstance(value, str) and action.metavar in PATHS else value

    def error(self, message):
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        unknown = [part for part in message.split() if part.startswith("--") and part.rstrip(":") not in known]
        near = [flag for part in unknown for flag in known if flag.startswith(part) or part.startswith(flag)]
        near += [flag for part in unknown for flag in difflib.get_close_matches(part, known, n=1, cutoff=0.75)]
        hint = f"did you mean {near[0]}?" if near else "--help lists the flags"
        raise UserError(f"{message.removeprefix('argument ')} ({hint})")


def _help(spec: Field) -> str:
    default = "" if spec.default in (None, "", False, ()) else f" [default: {shown(spec.default).removesuffix('.0')}]"
    return spec.metadata["help"] + default


def shown(value: Any) -> str:
    """Return a value as the command line spells it: a fraction rather than a long decimal."""
    if isinstance(value, tuple):
        return " ".join(map(shown, value))
    if isinstance(value, float) and len(str(value)) > 10:
        fractions = ((round(value * denominator, 6), denominator) for denominator in (255, 3, 7, 9))
        return next((f"{n:g}/{d}" for n, d in fractions if n / d == value), f"{value:.10g}")
    return str(value)


def _without_none(hint: Any) -> Any:
    """Return X of ``X | None``, where None means that the flag was not given."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _path_metavar(name: str) -> str | None:
    """Return DIR or FILE for a field whose name says that it is a path, in which ``~`` is expanded."""
    if name.endswith(("_root", "_dir")) or name in ("root_path", "state", "out"):
        return "DIR"
    return "FILE" if name.endswith("_path") or name == "extra_data" else None


def _kind(hint: Any, default: Any, metavar: str | None) -> dict[str, Any]:
    """Return the arguments of ``add_argument`` for a type annotation."""
    hint = _without_none(hint)
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction if default else "store_true"}
    if typing.get_origin(hint) is Literal:
        allowed = {choice.lower(): choice for choice in typing.get_args(hint)}
        return {"type": _one_of(allowed), "metavar": "|".join(allowed.values())}
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        return {"type": _reader(kind), "nargs": "+", "metavar": metavar or _METAVAR.get(kind, "NAME")}
    return {"type": _reader(hint), "metavar": metavar or _METAVAR.get(hint, "NAME")}


def _reader(kind: type) -> Callable[[str], Any]:
    """Return a function that reads a value of ``kind``; a float may be a fraction such as 8/255."""

    def read(text: str) -> Any:
        try:
            numerator, slash, denominator = text.partition("/") if kind is float else (text, "", "")
            return float(numerator) / float(denominator) if slash else kind(text)
        except (ValueError, ZeroDivisionError):
            raise argparse.ArgumentTypeError(f"{text!r} is not {_KINDS[kind]}") from None

    return read if kind in _KINDS else kind


def _one_of(allowed: dict[str, str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text.lower() not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(allowed.values())}")
        return allowed[text.lower()]

    return convert
