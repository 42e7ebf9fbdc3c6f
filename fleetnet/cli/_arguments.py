"""Parsing the arguments of a verb with jsonargparse; mistakes are answered in plain words.

Whoever comes from another tool types its flags first. Each such mistake is answered with what to
type here.
"""

import contextlib
import dataclasses
import io
import math
import re
import shlex
from argparse import Action, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from ..errors import UsageError, suggest
from ..find import constant, names
from ..synonyms import SETTINGS, keys, plain
from . import Verb
from ._settings import About

EXAMPLES: dict[object, str] = {
    int: "a whole number, such as 8",
    float: "a number, such as 0.001",
    bool: "true or false",
    str: "a text",
}
RESTRICTED = {  # the types of jsonargparse that have bounds
    "PositiveInt": "a whole number of at least 1",
    "NonNegativeInt": "a whole number of at least 0",
    "NonNegativeFloat": "a number of at least 0",
    "PositiveFloat": "a number above 0",
    "ClosedUnitInterval": "a number from 0 to 1",
    "OpenUnitInterval": "a number between 0 and 1",
}

TIMEOUT = "minutes that these may take for a batch before it is an error"
OF_OPEN_SIZE = "height and width, as 192x256, for a file that was exported with --dynamic size"
TRUST = (
    "the file is from somebody you trust like a program: .pt2 can hide code, and is opened only "
    "then"
)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def usual_sizes() -> str:
    """The size in pixels that each task is usually trained at, for help texts."""
    sides = [f"{task} {_side(task)}" for task in _heads()]
    return "; ".join([str(_side("classification")), *sides])


def usual_classes() -> str:
    """How many classes each task usually has, for help texts."""
    classes = [f"{task} {constant('tasks', task, 'CLASSES')}" for task in _heads()]
    return "; ".join([str(constant("tasks", "classification", "CLASSES")), *classes])


def _side(task: str) -> int:
    """The height in pixels, and with these tasks the width, read without importing torch."""
    height, _ = cast(tuple[int, int], constant("tasks", task, "SIZE"))
    return height


def _heads() -> list[str]:
    """The tasks that stand before the backbone in the name of a model."""
    return [task for task in names("tasks") if task != "classification"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of a dataclass of settings, of which a flag is made."""

    name: str
    hint: object  # the type of the field
    default: object  # MISSING of a setting that has to be given
    about: About

    @property
    def shown_default(self) -> str | None:
        """The default as the help shows it; None where it shows none.

        That is where there is none, and where it is None, empty or that of a switch: these go
        without saying.
        """
        if "usual" in self.about:
            return self.about["usual"]
        if isinstance(self.default, tuple):  # the size of a training, which its task decides
            return usual_sizes()
        if self.default in (dataclasses.MISSING, None, "") or self.about.get("switch"):
            return None
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)

    @property
    def help(self) -> str:
        default = self.shown_default
        text = self.about["help"]
        return text if default is None else f"{text} (default: {default})".strip()


def settings_in(settings: type) -> Iterator[Setting]:
    """The settings of a dataclass, those of dataclasses that are fields of it among them."""
    hints = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        about = cast(About, field.metadata)
        nested = about.get("given_of", hints[field.name])
        if dataclasses.is_dataclass(nested):
            otherwise = about.get("otherwise", {})
            for setting in settings_in(cast(type, nested)):
                changed = cast(About, {**setting.about, **otherwise.get(setting.name, {})})
                yield dataclasses.replace(setting, about=changed)
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield Setting(field.name, hints[field.name], default, about)


def add_settings(parser: ArgumentParser, settings: type) -> None:
    """A flag for every field of a dataclass of settings, with its type, default and help."""
    for setting in settings_in(settings):
        _add_flag(parser, setting)


def _add_flag(parser: ArgumentParser, setting: Setting) -> None:
    about, text = setting.about, setting.help
    option = setting.name if about.get("positional") else flag(setting.name)
    if about.get("switch"):
        parser.add_argument(option, action="store_true", help=text)
        return
    if about.get("repeated"):
        parser.add_argument(option, action="append", metavar=about.get("metavar"), help=text)
        return
    kind = _of_a_value(setting.hint, about)
    shape: dict[str, Any] = {
        key: value for key, value in about.items() if key in ("nargs", "const", "metavar")
    }
    parser.add_argument(option, type=kind, default=None, help=text, **shape)


def _of_a_value(hint: object, about: About) -> object:
    """The type of one value of a flag: int of a field that is `int | None`, str of `list[str]`."""
    if "kind" in about:
        return about["kind"]
    if get_origin(hint) is tuple:  # height and width, which are typed as 192x256
        return str
    if about.get("null"):
        return hint
    (kind,) = _members(hint)
    return get_args(kind)[0] if get_origin(kind) is list else kind


def settings_of(module: Verb[object]) -> type:
    """The dataclass of settings that a verb's `run` takes."""
    settings = get_type_hints(module.run)["settings"]
    return cast(type, settings)


def new_parser(verb: str, text: str, module: Verb[object]) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"fleetnet {verb}",
        description=text,
        epilog=f"example:\n  {module.EXAMPLE}",
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_settings(parser, settings_of(module))
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document as the last line"
    )
    return parser


def parse(verb: str, text: str, module: Verb[object], words: list[str]) -> object | None:
    """The settings of a verb from the words behind it; None where help was asked for."""
    parser = new_parser(verb, text, module)
    if "-h" in words or "--help" in words:
        parser.print_help()
        return None
    _check_words(verb, parser, words)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            values = dict(parser.parse_args(words, defaults=False).as_dict())
    except (ArgumentError, SystemExit) as error:
        raise UsageError(_in_plain_words(parser, str(error), words)) from error
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{flag(name)} is {value}; allowed: a finite number")
    values = {name: _of_python(value) for name, value in values.items()}
    return _built(settings_of(module), values, module.EXAMPLE)


def _of_python(value: object) -> object:
    """A number as int or float: those of flags with bounds are of classes that no file may hold."""
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value


def _built(settings: type, values: Mapping[str, object], example: str) -> object:
    """The dataclass of settings with what was given; `UsageError` where something is missing."""
    hints = get_type_hints(settings)
    arguments: dict[str, object] = {}
    for field in dataclasses.fields(settings):
        given_of = cast(About, field.metadata).get("given_of")
        nested = given_of or hints[field.name]
        if dataclasses.is_dataclass(nested):
            keys = [setting.name for setting in settings_in(cast(type, nested))]
            part = {key: values[key] for key in keys if key in values}
            arguments[field.name] = part if given_of else _built(cast(type, nested), part, example)
        elif field.name in values:
            arguments[field.name] = values[field.name]
    _check_given(settings, arguments, example)
    return settings(**arguments)


def _check_given(settings: type, arguments: Mapping[str, object], example: str) -> None:
    """`UsageError` for a value that a field refuses, and where a setting has to be given."""
    for setting in settings_in(settings):
        value, check = arguments.get(setting.name), setting.about.get("check")
        if check is not None and isinstance(value, str):
            check(value)
    for setting in settings_in(settings):
        if setting.default is dataclasses.MISSING and not arguments.get(setting.name):
            missing = setting.about.get("missing", f"{flag(setting.name)} is missing")
            raise UsageError(f"{missing}; example: {example}")


def check_types(settings: type, values: Mapping[str, object], where: str) -> dict[str, Any]:
    """Values of a recipe with the types of the settings; else `UsageError` with key and file."""
    parser = ArgumentParser(exit_on_error=False)
    add_settings(parser, settings)
    of_recipe = {key: value for key, value in values.items() if key != "size"}
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            typed = parser.parse_object(of_recipe, defaults=False).as_dict()
    except (ArgumentError, SystemExit) as error:
        raise UsageError(f"{where}: {_in_plain_words(parser, str(error))}") from error
    return {**values, **typed}


def check_outputs(
    folders: Mapping[str, str | None] | None = None, files: Mapping[str, str | None] | None = None
) -> None:
    """`WriteError` unless what these flags name can be written; asked before the work."""
    from ..files import check_writable

    for option, path in (folders or {}).items():
        if path:
            check_writable(path, option, folder=True)
    for option, path in (files or {}).items():
        if path:
            check_writable(path, option)


def output_folder(checkpoint: Path, out: str | None) -> Path:
    """The folder for exported files: `out`, else export/ beside the checkpoint.

    Raises `ModelError` where that leads out of the run folder, `WriteError` where it cannot be
    written to.
    """
    from ..files import check_writable
    from ..weights.read import check_inside

    folder = Path(out or checkpoint.parent / "export")
    if not out:
        for place in (folder, *folder.glob("*")):
            check_inside(place, checkpoint.parent, "give --out a folder of yours")
    check_writable(folder, "--out", folder=True)
    return folder


def _check_words(verb: str, parser: ArgumentParser, words: list[str]) -> None:
    """`UsageError` for flags of other tools, and for settings that are written without dashes."""
    flags = _flags(parser)
    mappings = [flag(action.dest) for action in parser._actions if _is_mapping(_kind(action))]
    for i, word in enumerate(words):
        name = word.split("=")[0]
        if name.split(".")[0] in mappings:  # --options.mixing
            continue
        if name.startswith("--") and len(name) > 2 and name not in flags:
            known = suggest(name, flags, "flag", f"fleetnet {verb} --help")
            raise UsageError(f"{verb} has no flag {name}: {known}")
        if re.fullmatch("-[a-zA-Z]+", name) and name not in ("-h",):
            raise UsageError(f"{verb} has no flag {name}: {_for_short(verb, words[i:], flags)}")
        alone = not word.startswith("-") and (i == 0 or not words[i - 1].startswith("-"))
        if alone and not Path(word).exists():
            settings = _as_flags(words[i:], flags, _positional(parser))
            if settings:
                raise UsageError(f"{verb} takes its settings as flags: write {settings}")


def _for_short(verb: str, words: Sequence[str], flags: Sequence[str]) -> str:
    """What to type for words that begin with a flag such as -o, behind which settings may stand."""
    listed_by = f"fleetnet {verb} --help"
    following = _as_flags(words[1:], flags)
    if following:
        return f"write {following}"
    if len(words) > 1 and re.match(r"[\w.]+=", words[1]):
        key = words[1].partition("=")[0]
        return f"of {key}, {suggest(key, flags, 'flag', listed_by)}"
    return suggest(words[0], flags, "flag", listed_by)


def _flags(parser: ArgumentParser) -> list[str]:
    return [
        option
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


def _positional(parser: ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if not action.option_strings]


def _as_flags(words: Sequence[str], flags: Sequence[str], positional: Sequence[str] = ()) -> str:
    """Leading words such as "model=x", "Global.epochs=3" as flags; empty if the first is none."""
    written: list[str] = []
    for word in words:
        if word == "-o" and written:  # as PaddleClas has it before each
            continue
        key, equal, value = word.partition("=")
        name = _flag_of(key, flags)
        if not equal or (name is None and key not in positional):
            break
        written += ([] if name is None else [name]) + [shlex.quote(value)]
    return " ".join(written)


def _flag_of(key: str, flags: Sequence[str]) -> str | None:
    """The flag of a key such as "epochs", "Global.epochs" or "lr0"; None where there is none."""
    by_plain = {plain(name): name for name in flags}
    for word in keys(key):
        candidates = [word, *(meaning.partition("=")[0] for meaning in SETTINGS.get(word, ()))]
        if flag_here := next(
            (by_plain[plain(c)] for c in candidates if plain(c) in by_plain), None
        ):
            return flag_here
    return None


def _in_plain_words(parser: ArgumentParser, error: str, words: Sequence[str] | None = None) -> str:
    """What jsonargparse says, with what may be typed instead; of a recipe there are no `words`."""
    said = " ".join(error.split())
    wrong = re.search(r'(?:Parser key|key) "([^"]+)"', said)
    if wrong and (action := _action(parser, wrong[1])):
        value = re.search(
            r"[Vv]alue: (.*?)$|literal for int\(\) with base 10: (.*)$|: (\S+) does not conform",
            said,
        )
        given = next(filter(None, value.groups()), "").strip("'") if value else ""
        return _wrong_value(action, given, "key" if words is None else "flag")
    if wanting := re.search(r"argument (--\S+): expected (?:one|at least one) argument", said):
        action = _action(parser, wanting[1].removeprefix("--"))
        allowed = _allowed(_kind(action))
        if allowed == EXAMPLES[str]:
            allowed = re.sub(r" \(default.*", "", action.help or allowed)
        return f"{wanting[1]} needs a value: {allowed}"
    if extra := re.search(r"unrecognized arguments: (.*)", said, re.IGNORECASE):
        return f"{extra[1]!r} belongs to no flag: {_flag_for(extra[1], parser, words or ())}"
    return said


def _flag_for(stray: str, parser: ArgumentParser, words: Sequence[str]) -> str:
    """What may have been meant by a word that no flag stands before."""
    given = {word.split("=")[0] for word in words}
    for name in ("--model", "--data"):
        if name in _flags(parser) and name not in given:
            return f"write {name} {shlex.quote(stray)}"
    return "a value with spaces is written in quotes, and several values follow their flag"


def _kind(action: Action) -> object:
    return getattr(action, "_typehint", None) or action.type or str


def _action(parser: ArgumentParser, key: str) -> Any:
    name = key.split(".")[0].replace("-", "_")
    return next((action for action in parser._actions if action.dest == name), None)


def _wrong_value(action: Action, given: str, kind: str) -> str:
    """A value of the wrong type: what it is, and what is allowed."""
    name = flag(action.dest) if kind == "flag" else action.dest
    wanted = _kind(action)
    choices = _choices(wanted)
    allowed = _allowed(wanted)
    if choices and allowed == ", ".join(choices):
        return f"{name} is {given!r}: {suggest(given, choices)}"
    pointed = given.replace(",", ".")
    if re.fullmatch(r"-?\d*,\d+", given) and "number" in allowed:
        allowed = f"{allowed}; with a point, as {_example(name, pointed, kind)}"
    elif _is_mapping(wanted):
        key, _, value = given.partition("=")
        allowed = f"one setting each, as --{action.dest}.{key} {value or 'VALUE'}"
    return f"{name} is {given!r}; allowed: {allowed}"


def _example(name: str, value: str, kind: str) -> str:
    return f"{name} {value}" if kind == "flag" else f"{name}: {value}"


def _members(kind: object) -> list[object]:
    """The kinds that a value may have, without None."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return [member for member in members if member is not NoneType]


def _choices(kind: object) -> list[str]:
    return [
        str(value)
        for member in _members(kind)
        if get_origin(member) is Literal
        for value in get_args(member)
    ]


def _is_mapping(kind: object) -> bool:
    return any(member is dict or get_origin(member) is dict for member in _members(kind))


def _allowed(kind: object) -> str:
    """What a value of a type looks like, in words."""
    kinds = []
    for member in _members(kind):
        if get_origin(member) is Literal:
            kinds.append(", ".join(map(str, get_args(member))))
        elif _is_mapping(member):
            kinds.append("one setting each, as --options.mixing conv")
        else:
            name = getattr(member, "__name__", str(member))
            kinds.append(RESTRICTED.get(name) or EXAMPLES.get(member) or name)
    return " or ".join(dict.fromkeys(kinds))
