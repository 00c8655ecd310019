"""The command line of a config, generated from its fields, and configs read from a JSON file."""

import argparse
import difflib
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError, torchrun_rank
from utils.fields import literals, shown, spelling
from utils.files import read_json
from utils.versions import project_version

PATHS = ("FILE", "DIR", "RUNS", "FOLDER")  # metavars of paths, in which ~ is expanded
SKIPPED = "skipped_images"  # in a run's config.json: the number of images that --skip_damaged skipped
NOT_READ = {SKIPPED, "resume"}  # keys of config.json that --config does not read


class Parsed(NamedTuple):
    """A config, and the source of each field that was set: "flag" or "config file"."""

    config: Any
    given: dict[str, str]


def parse(
    config_class: type,
    argv: Sequence[str] | None = None,
    *,
    description: str = "",
    choices: Mapping[str, str] | None = None,
) -> Parsed:
    """Read the command line into a ``config_class``; ``--config FILE`` sets the fields that no flag sets.

    Args:
        config_class: Frozen dataclass whose fields were made by :func:`utils.fields.flag`.
        argv: Arguments; None takes those of the process.
        description: First lines of ``--help``.
        choices: Field name -> the names that the flag accepts, added to its help.

    Raises:
        UserError: An unknown flag or key, or a value of the wrong type or range.
    """
    parser = _parser_of(config_class, description, choices)
    text = "read flags from a JSON object of names and values; flags of the command line override it"
    if any(spec.name in NOT_READ for spec in fields(config_class)):
        text += ";\nfor example config.json of a run, with its paths and --desc_str, but without --resume"
    parser.add_argument("--config", metavar="FILE", help=text)
    try:
        flags = _read(parser, argv)
        path = flags.pop("config", None)
        from_file = {} if path is None else read_config(config_class, path)
        given = dict.fromkeys(from_file, "config file") | dict.fromkeys(flags, "flag")
        return Parsed(config_class(**from_file | flags), given)
    except UserError as error:  # of the command line that all processes of a torchrun share
        error.printed = not torchrun_rank("LOCAL_RANK")
        raise


def read_config(config_class: type, path: str) -> dict[str, Any]:
    """Read values of fields from a JSON file, such as a run's config.json, as the command line would read them.

    Raises UserError if the file cannot be read or has an unknown key or a value of the wrong type.
    """
    try:
        content = read_json(Path(path))
        if not isinstance(content, dict):
            raise ValueError
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a JSON object of flags and values"
        raise UserError(f"--config {path}: {reason}") from error
    specs = {spec.name: spec for spec in fields(config_class)}
    content = {key: value for key, value in content.items() if key not in NOT_READ}
    unknown = [key for key in content if key not in specs]
    if unknown:
        names = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise UserError(f"--config {path}: unknown key {names} ({_hint([key.lower() for key in unknown[:3]], specs)})")
    defaults = {key: specs[key].default for key in content}
    try:
        changed = (_as_args(spelling(specs[key]), value) for key, value in content.items() if value != defaults[key])
        return defaults | _read(_parser_of(config_class), [arg for args in changed for arg in args])
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error


def parser_for(description: str) -> argparse.ArgumentParser:
    """Return a parser with ``--help`` and ``--version``; its errors are UserErrors that name the nearest flag."""
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--version", action="version", version=project_version())
    return parser


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args=None, namespace=None):
        for arg in sys.argv[1:] if args is None else args:
            if arg.startswith("--") and arg.endswith("=--"):  # argparse would read an empty list
                raise UserError(f"{arg}: -- is not a value; give one")
            if "\0" in arg or any("\ud800" <= char <= "\udfff" for char in arg):  # a log or a table could not hold it
                raise UserError(f"{arg!a}: has bytes that are not UTF-8; rename the file")
        return super().parse_known_args(args, namespace)

    def _get_value(self, action, arg_string):
        """Convert one value; the shell does not expand ``~`` in --flag=~/x."""
        value = super()._get_value(action, arg_string)
        if action.metavar not in PATHS:
            return value
        name, path = (action.option_strings or [action.metavar])[0], os.path.expanduser(value)
        if path.isspace():
            raise UserError(f"{name}: is empty; give a path")
        if path.startswith("~") and not os.path.exists(path):
            raise UserError(f"{name} {path}: there is no such user; write the full path")
        return path

    def error(self, message):
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        flags = [part.partition("=")[0].rstrip(":") for part in message.split() if part.startswith("--")]
        unknown = [flag for flag in flags if flag != "--" and flag not in known]
        raise UserError(f"{message.removeprefix('argument ')} ({_hint(unknown, known)})")


def _hint(unknown: Iterable[str], known: Iterable[str]) -> str:
    near = []
    for part in dict.fromkeys(unknown):
        begun = [name for name in known if name.lower().startswith(part.lower())]
        near += (begun or difflib.get_close_matches(part, known, 1, 0.75))[:1]
    return f"did you mean {', '.join(near)}?" if near else "--help lists the flags"


def _parser_of(config_class: type, description: str = "", choices: Mapping[str, str] | None = None) -> _Parser:
    """Return a parser of the flags of all fields. A flag that is not given is absent from its result."""
    parser = parser_for(description)
    hints = typing.get_type_hints(config_class)
    groups = {}
    for spec in fields(config_class):
        title = spec.metadata["group"]
        group = groups[title] = groups.get(title) or parser.add_argument_group(title)
        names = [name for name in (spec.metadata["short"], spelling(spec)) if name]
        default = "" if spec.default is None or spec.default is False else shown(spec.default)
        text = spec.metadata["help"] + (f" [default: {default.removesuffix('.0')}]" if default else "")
        text = "\n".join(filter(None, [text, (choices or {}).get(spec.name)])).replace("%", "%%")
        options = _options(spec, hints[spec.name])
        group.add_argument(*names, dest=spec.name, default=argparse.SUPPRESS, help=text, **options)
    return parser


def _read(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    values = vars(parser.parse_args(argv))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _as_args(name: str, value: Any) -> list[str]:
    """Return a JSON value as arguments of the command line."""
    if isinstance(value, bool):
        return [name if value else f"--no-{name[2:]}"]
    if isinstance(value, list) and not any(str(item).startswith("-") for item in value):
        return [name, *map(str, value)]
    if value is None or isinstance(value, dict | list):
        raise UserError(f"{name}: {str(value)[:60]} is not a value")
    return [f"{name}={value}"]


def _options(spec: Field, hint: Any) -> dict[str, Any]:
    """Return the arguments of ``add_argument`` for the type annotation of a field."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # X | None, where None means: not given
        hint = typing.get_args(hint)[0]
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction if spec.default else "store_true"}
    if names := literals(hint):
        allowed = {name.lower(): name for name in names}
        return {"type": lambda text: allowed.get(text.lower(), text), "choices": names, "metavar": "|".join(names)}
    several = {}
    if typing.get_origin(hint) is tuple:
        hint, several = typing.get_args(hint)[0], {"nargs": "+"}
    metavar = {int: "N", float: "X"}.get(hint) or _metavar(spec.name)
    return {"type": str if hint is str else partial(_number, hint), "metavar": metavar, **several}


def _metavar(name: str) -> str:
    """Return DIR or FILE for a field whose name says that it is a path."""
    if name.endswith(("_root", "_dir")) or name in ("root_path", "state", "out"):
        return "DIR"
    if name.endswith("_path") or name in ("extra_data", "json", "profile"):
        return "FILE"
    return "DEVICE" if name == "device" else "NAME"


def _number(kind: type, text: str) -> int | float:
    try:
        if kind is float and "/" in text:
            numerator, denominator = text.split("/", 1)
            return float(numerator) / float(denominator)
        return kind(text)
    except (ValueError, ZeroDivisionError):
        expected = "a number or a fraction such as 8/255" if kind is float else "a whole number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from None
