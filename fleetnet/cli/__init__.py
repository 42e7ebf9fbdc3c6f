"""The command line: one file is one verb; only here is printed, parsed and an exit code decided.

A verb may be two words, as `data check`, whose file is `data_check.py`: the first word alone lists
what it does.

A verb's file has a frozen dataclass of its settings, of which its flags are made, and `run`, which
prints its tables to standard output: `Verb` says it all. Progress and messages go to standard
error. Importing this module loads neither torch nor a verb, so that `fleetnet --help` answers at
once.
"""

import contextlib
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar, cast

from ..errors import FleetnetError, SlowerWarning, UsageError, suggest
from ..find import find as find_module
from ..launched import launched
from ..reading import to_json
from ._process import keep_freed_memory, wait_without_spinning
from ._show import complain, is_follower, say

VERBS = {  # in the order of use
    "demo": "train, collapse, export, verify and measure a network on generated images (about two "
    "minutes)",
    "train": "train a network on your images, or continue with --resume",
    "sweep": "several endings of a training, or several settings, from the state of one run",
    "replay": "any step of a run once more: what the network saw, and the first module that was not "
    "finite",
    "eval": "accuracy, AP or IoU of a checkpoint or an exported file on your images",
    "predict": "names, boxes, masks or label maps for image files",
    "reparam": "collapse to the deploy form and prove that nothing changed",
    "export": "write the file for a runtime, verified before it is handed over",
    "verify": "check an exported file against its checkpoint, and name the first layer that "
    "differs",
    "quantize": "int8 for onnxruntime, OpenVINO or LiteRT, handed over only if accuracy stays",
    "bench": "latency of models, forms, runtimes and threads in turn; --tune finds the fastest; "
    "phones and boards",
    "flops": "parameters, MACs, FLOPs, activations and bytes, by module",
    "models": "the networks, their size and published accuracy",
    "recipes": "the settings of published runs, and of ours, for train --recipe",
    "data check": "what your images and annotations are, and all that would make a training wrong",
    "data show": "a sheet of samples as the network will see them, with their annotations",
    "data convert": "any data set as coco, yolo, voc, masks, folder, list or shards, read back and compared",
    "data reinforce": "a larger network's answers to all that a training will see, for training "
    "without it",
    "doctor": "which runtimes, converters and devices work here, and what would add the others",
}


COMMAND: list[str] = []  # the words that were given, for a verb that starts itself several times

Settings_contra = TypeVar("Settings_contra", contravariant=True)


class Verb(Protocol[Settings_contra]):
    """What the file of a verb holds, beside the dataclass of its settings."""

    EXAMPLE: str  # a command to copy

    def run(self, settings: Settings_contra) -> dict[str, object]:
        """Do the work, print its tables, and return all that they show: `--json` prints it.

        The verb's flags are made of the fields of `settings`, a frozen dataclass. An `exit_code` in
        what is returned is that of the command: that of a verb that could do a part of the work.
        """


def find(verb: str) -> Verb[object]:
    """The file of a verb. Its `run` takes settings of its own, and no others are given to it."""
    return cast(Verb[object], find_module("cli", verb.replace(" ", "_")))


def _is_of(group: str, verb: str) -> bool:
    """Whether a verb is of two words, of which `group` is the first."""
    return verb.startswith(f"{group} ")


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a system sends it before it shuts down."""


def _help(group: str = "") -> str:
    """The verbs and what is common to them; of a `group`, those whose first word it is."""
    verbs = {verb: text for verb, text in VERBS.items() if not group or _is_of(group, verb)}
    width = max(map(len, verbs))
    listed = "\n".join(f"  {verb:{width}}  {text}" for verb, text in verbs.items())
    usage = f"{group} ACTION" if group else "VERB"
    return (
        f"usage: fleetnet {usage} [options]     (fleetnet {usage} --help shows the options, their "
        f"defaults and an example)\n\n{listed}\n\nEvery verb takes --json (the last line of output "
        "is one JSON document) and --debug (show tracebacks).\nExit codes: 0 done, 1 failure, 2 "
        "usage, 3 data, 4 model or weights, 5 export or proof, 130 interrupted\n(Ctrl-C or SIGTERM): "
        "training finishes its step and keeps its state for --resume."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        wait_without_spinning()
        if words[:1] == ["train"]:
            keep_freed_memory()
    COMMAND[:] = words
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with _termination(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", SlowerWarning)  # of each file, not of the first
            return _dispatch(words)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        sys.stderr.close()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug and not isinstance(error, Terminated):
            raise
        return _answer(error, as_json="--json" in words)


def _answer(error: Exception | KeyboardInterrupt, *, as_json: bool) -> int:
    """Say what ended a command, and return the exit code for it."""
    if is_follower() and isinstance(error, Exception):
        _complain_as_follower(error)
        return error.exit_code if isinstance(error, FleetnetError) else 1
    if isinstance(error, FleetnetError):
        say(f"fleetnet: {error}")
        if as_json:  # whoever reads the last line of the output finds the reason there
            print(to_json({"error": str(error), "exit_code": error.exit_code}))
        return error.exit_code
    if isinstance(error, Terminated):
        say("fleetnet: terminated (SIGTERM)")
        return 130
    if isinstance(error, KeyboardInterrupt):
        say("fleetnet: interrupted")
        return 130
    say(f"fleetnet: {_in_words(error)}")
    return 1


def _complain_as_follower(error: Exception) -> None:
    """Say what only this process knows: not the first one's errors, nor how a command is used."""
    from ..processes import SaidElsewhere

    if not isinstance(error, SaidElsewhere | UsageError):
        how = launched()
        complain(f"fleetnet: process {how.rank} of {how.world}: {_in_words(error)}")


@contextlib.contextmanager
def _termination() -> Iterator[None]:
    """Let SIGTERM stop a command as Ctrl-C does, so that nothing half written stays behind."""

    def stop(number: int, frame: object) -> None:
        raise Terminated

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_words(error: Exception) -> str:
    """What ended a command: our errors are sentences, others are named."""
    if isinstance(error, FleetnetError):
        return str(error)
    if isinstance(error, OSError):
        return _of_the_system(error)
    return f"{type(error).__name__}: {error} (--debug shows where)"


def _of_the_system(error: OSError) -> str:
    """What the system refused, in words: of which file, and why."""
    from ..files import reason

    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{': '.join([*names[:1], reason(error)])} (--debug shows where)"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """Ours in one line, without the place in the code; others as Python shows them."""
    said = warnings.formatwarning(message, category, filename, lineno, line)
    if issubclass(category, SlowerWarning):
        said = f"fleetnet: warning: {message}"
    say(said.rstrip("\n"))


def _dispatch(words: list[str]) -> int:
    group = words[0] if words and any(_is_of(words[0], verb) for verb in VERBS) else ""
    following = words[1:] if group else words
    if not following or following[0] in ("-h", "--help", "help"):
        print(_help(group))
        return 0 if following else UsageError.exit_code
    if words[0] in ("-V", "--version"):
        from .. import __version__

        print(__version__)
        return 0
    verb, rest = _split_verb(group, words)
    from ._arguments import parse

    module = find(verb)
    as_json = "--json" in rest
    settings = parse(verb, VERBS[verb], module, [word for word in rest if word != "--json"])
    if settings is None:  # --help
        return 0
    document = module.run(settings)
    exit_code = cast(int, document.pop("exit_code", 0))
    if as_json and not is_follower():
        print(to_json(document))
    return exit_code


def _split_verb(group: str, words: list[str]) -> tuple[str, list[str]]:
    """The verb that a command begins with, and the words behind it."""
    if not group:
        verb, *rest = words
        if verb not in VERBS:
            first_words = list(dict.fromkeys(verb.split()[0] for verb in VERBS))
            raise UsageError(f"no verb {verb!r}: {suggest(verb, first_words, 'verb')}")
        return verb, rest
    _, action, *rest = words
    actions = [verb.removeprefix(f"{group} ") for verb in VERBS if _is_of(group, verb)]
    if action not in actions:
        raise UsageError(f"{group} has no action {action!r}: {suggest(action, actions)}")
    return f"{group} {action}", rest
