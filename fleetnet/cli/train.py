"""`fleetnet train`: data, model and run folder from the arguments, then `fit`."""

import contextlib
import dataclasses
import itertools
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from ..errors import FleetnetError, UsageError, WriteError
from ..launched import launched
from ..training.config import TrainConfig
from ..training.folder import BEST, CONFIG, STATE
from . import COMMAND, Terminated
from ._launching import check_devices, launch
from ._resuming import resumed, splits_to_continue, starting_weights
from ._settings import About
from ._show import is_follower, say
from ._starting import counted_contents, model_of, splits_of, training_settings

if TYPE_CHECKING:
    from ..data import Split
    from ..data._contents import Contents
    from ..tasks import Model
    from ..training.claims import Claim

FIGURES = 3.0  # seconds for those of a run that was interrupted: it is to end within ten
EXAMPLE = "fleetnet train --model fasternet_t0 --data photos/ --size 128 --epochs 30"


@dataclass(frozen=True, kw_only=True)
class Train:
    # Only what was given: the rest is the recipe's, or that of the run which is continued.
    training: Mapping[str, object] = field(
        default_factory=dict,
        metadata=About(help="settings of the training", given_of=TrainConfig),
    )
    recipe: str | None = field(
        default=None,
        metadata=About(
            help="settings by name (fleetnet recipes), or a YAML file of them; flags win over it"
        ),
    )
    run: str | None = field(
        default=None, metadata=About(help="run folder", usual="runs/TASK/MODEL-DATA")
    )
    devices: int = field(
        default=1,
        metadata=About(
            help="processes that train together on this machine, one a GPU or a part of the CPU; "
            "torchrun and accelerate launch start them too, also on many machines",
            kind=PositiveInt,
        ),
    )
    resume: str | None = field(
        default=None,
        metadata=About(
            help="continue the run in this folder exactly where it stopped; with --data if its "
            "data moved or changed"
        ),
    )


@dataclass(frozen=True)
class Start:
    """What a training begins or goes on with."""

    config: TrainConfig
    folder: Path | None  # of the run; None: the usual one, or one beside it
    flags: Mapping[str, object]  # settings that were given now
    resumes: bool  # whether the run was begun before

    @property
    def has_state(self) -> bool:
        return self.folder is not None and (self.folder / STATE).is_file()


def run(settings: Train) -> dict[str, object]:
    start = _as_asked(settings)
    if settings.devices > 1:
        check_devices(settings.devices)
        if not launched().is_one_of_several:
            raise SystemExit(launch(settings.devices, COMMAND))

    from ..processes import by_first
    from ..tasks import split_name
    from ..training.checks import check_device, check_settings
    from ..training.distributed import held_by_first, join

    task = split_name(start.config.model)[0]
    if not start.resumes:
        check_settings(start.config, task, start.flags, processes=launched().world)
    check_device(start.config)
    join(start.config)
    usual = _usual_folder(start.config, task)
    start = _or_as_begun(start, usual)
    folder, config = start.folder, start.config
    begun = by_first(lambda: start.has_state)
    if start.resumes and folder is not None:
        train, val = splits_to_continue(config, task, folder, start.flags)
    else:
        train, val = splits_of(config, task)
    contents = counted_contents(train, val, config, task)
    weights = None if begun else starting_weights(config, folder if start.resumes else None)
    model = model_of(config, train.classes, weights)
    # the weights decide these too
    config = dataclasses.replace(
        config,
        options=model.options,
        output_stride=model.output_stride,
        channels=model.channels,
    )
    with held_by_first(lambda: _claimed(start, usual, begun=begun)) as mine:
        return _train(
            mine,
            model,
            train,
            val,
            contents,
            config,
            resume=begun,
            restart=start.resumes and not begun,
            other_data="data" in start.flags,
        )


def _as_asked(settings: Train) -> Start:
    """What the flags say, looked at as far as it can be before the data are read."""
    if settings.resume is not None:
        if settings.recipe or settings.run:
            raise UsageError(
                "--resume takes its settings from the run; --recipe and --run do not go with it"
            )
        path = Path(settings.resume)
        config = resumed(path, settings.training)
        return Start(config, path, settings.training, resumes=True)
    folder = Path(settings.run) if settings.run else None
    config = training_settings(settings.training, settings.recipe, EXAMPLE)
    if not is_follower():  # the first process may have claimed the folder by then
        _check_start(config, folder)
    return Start(config, folder, settings.training, resumes=False)


def _or_as_begun(start: Start, usual: Path) -> Start:
    """The same start, unless torchrun has started these processes before: then the run goes on."""
    from ..processes import by_first
    from ..training.distributed import begun_by_launcher

    if start.resumes or not launched().by_torchrun:
        return start
    folders = _folders_of(usual) if start.folder is None else [start.folder]
    folder = begun_by_launcher(folders)
    if folder is None:
        return start
    say(f"started again by torchrun: the run in {folder} goes on")
    return Start(by_first(lambda: resumed(folder, {})), folder, {}, resumes=True)


def _usual_folder(config: TrainConfig, task: str) -> Path:
    model, data = config.model.replace("/", "-"), Path(config.data).name or "data"
    return Path("runs") / task / f"{model}-{data}"


@contextlib.contextmanager
def _claimed(start: Start, usual: Path, *, begun: bool) -> "Iterator[Claim]":
    """The run folder for ourselves alone: that of the start, or the usual one or one beside it.

    `begun`: whether there was a state in it.
    """
    from ..training.claims import claim

    path = start.folder
    with _tidied(path or usual), _claim_free(usual) if path is None else claim(path) as mine:
        if not start.resumes:
            _check_unused(mine.folder, claimed=True)
        elif begun != (mine.folder / STATE).is_file():
            raise UsageError(f"another run trained in {mine.folder} in the meantime: try again")
        yield mine


def _train(
    mine: "Claim",
    model: "Model",
    train: "Split",
    val: "Split",
    contents: "tuple[Contents, Contents]",
    config: TrainConfig,
    *,
    resume: bool,
    restart: bool,
    other_data: bool,
) -> dict[str, Any]:
    """Train in a claimed folder, and say how it went.

    `resume` goes on with the state that is there; `restart` begins a run again that had come to
    none.
    """
    from ..data._record import describe
    from ..training.distributed import leave
    from ..training.fit import fit
    from ..training.log import read_log
    from ..training.setup import with_values
    from ._training import Terminal, say_result, skipped_in

    path = mine.folder
    if not resume:
        config, why = with_values(config, train)
        if why:
            say(why)
    terminal = Terminal()
    try:
        best = fit(
            model,
            train,
            val,
            config,
            path,
            resume=resume,
            restart=restart,
            contents=contents,
            hooks=[terminal],
            on_wait=say,
            claimed=mine,
            other_data=other_data,
        )
    except (Exception, KeyboardInterrupt) as error:
        terminal.close()
        if terminal.progress is not None:  # of the first process
            _say_what_is_kept(path, error, train.classes)
        raise
    terminal.close()
    leave()
    if is_follower():
        return {}
    log = read_log(path)
    say_result(path, config, log, best)
    # without curves of 101 points a class: see plots/
    figures = {name: value for name, value in best.items() if name not in ("pr", "mask_pr")}
    read = {"train": describe(train, contents[0]), "val": describe(val, contents[1])}
    return {
        "run": str(path),
        "best": figures,
        "epochs": len(log),
        "skipped": skipped_in(log),
        "data": read,
    }


def _say_what_is_kept(path: Path, error: BaseException, classes: list[str]) -> None:
    """After a run that stopped early: how to continue it, and its figures so far unless there is no time."""
    if not (path / CONFIG).is_file() or (
        not (path / STATE).is_file() and isinstance(error, Exception)
    ):
        return
    if (path / STATE).is_file():
        from ..training.run import best_of, settled

        state = settled(path)
        so_far = state.get("so_far")
        within = "" if so_far is None else f" and {so_far['step']} steps of the next one"
        say(f"kept: {state['epochs']} epochs{within}")
        # whoever sent SIGTERM may kill soon, and so may what started several processes of which one
        # has failed; resuming writes the figures
        is_in_haste = isinstance(error, Terminated) or launched().is_one_of_several
        if state["log"] and not is_in_haste:
            from ..training.overview import write_overview

            is_interrupted = isinstance(error, KeyboardInterrupt)
            try:
                with _at_most(FIGURES) if is_interrupted else contextlib.nullcontext():
                    write_overview(path, classes, state["log"], best_of(path, state["best"] or {}))
            except (FleetnetError, TimeoutError) as other:
                say(f"no figures: {other}")
    say(f"to continue: fleetnet train --resume {shlex.quote(str(path))}")


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """`TimeoutError` for what takes longer, where the system has such an alarm."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"drawing took more than {seconds:g} s; --resume draws them")

    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _check_start(config: TrainConfig, folder: Path | None) -> None:
    """What can be known to be wrong before the data are read and a folder is made."""
    from ..files import check_writable
    from ..tasks import check_options
    from ..weights.read import locate

    check_options(config.model, config.options)
    weights = config.weights or "default"
    if weights != "default" and not weights.startswith(("hf-hub:", "http://", "https://")):
        locate(Path(weights))
    check_writable(folder or Path("runs"), "--run", folder=True)
    if folder is not None and not launched().by_torchrun:  # it may go on in the folder
        _check_unused(folder)


def _check_unused(run: Path, claimed: bool = False) -> None:
    """`UsageError` if a folder holds a run, or if one is going on in it and we have not claimed it."""
    from ..training.claims import refuse_if_claimed

    if not claimed:
        refuse_if_claimed(run)
    if (run / STATE).is_file() or (run / BEST).is_file():
        continued = (
            f"continue it with --resume {shlex.quote(str(run))}, or "
            if (run / STATE).is_file()
            else ""
        )
        raise UsageError(f"{run} holds a run already: {continued}give another --run")


def _claim_free(path: Path) -> "Claim":
    """The claim of the path, or of the first of path-2, path-3, ... that does not exist."""
    from ..files import writing
    from ..training.claims import claim

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    for free in _numbered(path):
        try:
            with writing(free):
                free.mkdir()
        except WriteError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
            continue
        break
    return dataclasses.replace(claim(free), made=True)


def _numbered(path: Path) -> Iterator[Path]:
    """The path, then path-2, path-3 and so on."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}-{number}")


def _folders_of(path: Path) -> Iterator[Path]:
    """Of path, path-2, path-3, ... those up to the first that does not exist."""
    return itertools.takewhile(Path.exists, _numbered(path))


@contextlib.contextmanager
def _tidied(run: Path) -> Iterator[None]:
    """Folders above a run that were made for it go again where nothing is in them at the end."""
    made = [folder for folder in run.parents if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()
