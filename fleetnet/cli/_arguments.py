"""Parsing the arguments of a verb with jsonargparse: kebab-case flags, types checked, the nearest flag named."""

import contextlib
import dataclasses
import io
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from types import ModuleType
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser

from ..errors import UsageError, choose


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_settings(parser: ArgumentParser, settings: type, required: Sequence[str] = ()) -> None:
    """A flag for every field of a dataclass of settings, with its type, default and help."""
    hints = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        default = None if field.default is dataclasses.MISSING else field.default
        shown = "x".join(map(str, default)) if isinstance(default, tuple) else default
        kind = str if field.name == "size" else hints[field.name]
        help = field.metadata["help"] + ("" if field.name in required else f" (default: {shown})")
        parser.add_argument(flag(field.name), type=kind, default=None, help=help)


def new_parser(verb: str, text: str, module: ModuleType | None) -> ArgumentParser:
    example = f"example:\n  {module.EXAMPLE}" if module is not None else None
    parser = ArgumentParser(
        prog=f"fleetnet {verb}", description=text, epilog=example, exit_on_error=False, allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    if module is not None:
        module.arguments(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document as the last line")
    return parser


def parse(verb: str, text: str, module: ModuleType, words: list[str]) -> dict[str, Any] | None:
    """The arguments by name, only those given; None where help was asked for (and printed)."""
    parser = new_parser(verb, text, module)
    if "-h" in words or "--help" in words:
        parser.print_help()
        return None
    flags = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    for word in words:
        name = word.split("=")[0].split(".")[0]
        if name.startswith("--") and len(name) > 2 and name not in flags:
            raise UsageError(f"fleetnet {verb} has no flag {name}: {choose(name, flags)}")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return dict(parser.parse_args(words, defaults=False).as_dict())
    except (ArgumentError, SystemExit) as error:
        raise UsageError(f"fleetnet {verb}: {' '.join(str(error).split())}") from error


def check_types(settings: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Values of a recipe with the types of the settings; `UsageError` naming the key and the file otherwise."""
    parser = ArgumentParser(exit_on_error=False)
    add_settings(parser, settings)
    plain = {key: value for key, value in values.items() if key != "size"}
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            typed = parser.parse_object(plain, defaults=False).as_dict()
    except (ArgumentError, SystemExit) as error:
        raise UsageError(f"{where}: {' '.join(str(error).split())}") from error
    return {**values, **typed}
