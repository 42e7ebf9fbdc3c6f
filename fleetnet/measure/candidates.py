"""What can be timed: forms of models in torch and their files in runtimes, ready to be called.

`subjects` makes those of models, `of_file` those of an exported file. `say` gets a line of what is
being done, and one for each that could not be had.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..channels import RGB
from ..errors import ExportError, ModelError, UsageError, suggest

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from ..deploy.trained import Trained
    from .flops import Counts
    from .latency import Row

FORMS = ("multi-branch", "deploy")  # that torch runs
Accuracy = tuple[str, float]  # of what, and percent
Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A form of a model in torch, or its file in a runtime, with some number of threads."""

    model: str
    form: str  # "multi-branch" or "deploy"; "" of a file
    runtime: str  # "torch", or one of runtimes/
    title: str  # of the runtime with its precision
    threads: int
    size: tuple[int, int]  # height, width of the image
    call: Callable[[], object]
    accuracy: Accuracy | None = None
    counts: "Counts | None" = None
    file: Path | None = None
    precision: str = ""
    outputs: tuple[str, ...] = ()
    file_bytes: int | None = None  # of the file with all its parts
    channels: int = RGB  # of the image
    trust: bool = False  # as of `deploy.predictor.load`, of the file

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a batch of one image: (1, C, H, W)."""
        return (1, self.channels, *self.size)

    @property
    def waits(self) -> bool:
        """Whether the time that this process does not compute is time that it waits for a core."""
        from .. import runtimes

        return self.runtime == "torch" or runtimes.find(self.runtime).inspect is None

    def name(self, several: bool) -> str:
        """For tables; with the number of threads where there are `several` such numbers."""
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if several else ""
        how = f"{self.title}{threads}"
        return " ".join(filter(None, (self.model, self.form, f"({how})"))) if self.model else how


@dataclass(frozen=True)
class Wanted:
    """What is to be timed of each model, and where its files are written meanwhile."""

    folder: Path
    runtimes: Sequence[tuple[str, str]]  # with the precision
    forms: Sequence[str]  # in torch
    threads: Sequence[int]
    size: str | None = None  # of models given by name
    trust: bool = False  # as of `deploy.predictor.load`


def eager(module: "nn.Module", example: "Tensor") -> Callable[[], "Tensor | Mapping[str, Tensor]"]:
    import torch

    @torch.inference_mode()
    def call() -> "Tensor | Mapping[str, Tensor]":
        return module(example)

    return call


def calling(runner: Callable[["np.ndarray"], object], image: "np.ndarray") -> Callable[[], object]:
    return lambda: runner(image)


def subjects(
    models: Sequence[str], wanted: Wanted, accuracies: Mapping[str, Accuracy], say: Say
) -> tuple[list[Subject], list[str]]:
    """All that is wanted of models, files and names, and a line for each that could not be had.

    `accuracies` of models stand in place of those that are known of them.
    """
    from ..runtimes import by_suffix

    suffixes = by_suffix()
    timed: list[Subject] = []
    skipped: list[str] = []
    for number, model in enumerate(dict.fromkeys(models)):
        say(f"preparing {model}")
        path, accuracy = Path(model), accuracies.get(model)
        if path.exists() and path.suffix in suffixes:
            timed += of_file(path, wanted.threads, accuracy, trust=wanted.trust)
        else:
            folder = wanted.folder / str(number)
            timed += _of_model(model, wanted, accuracy, folder, skipped, say)
    skipped += one_pool(timed, wanted.threads, say)
    if not timed:
        raise (
            ExportError(skipped[0])
            if skipped
            else UsageError("nothing to measure: --forms and --to are none")
        )
    return timed, skipped


def timed(
    calls: Mapping[str, Callable[[], object]],
    of: Mapping[str, Subject],
    runs: int,
    warmup: int,
) -> "list[Row]":
    """Time calls in turn, each while torch has the number of threads of its subject, by the same name."""
    import torch

    from . import latency

    def prepare(name: str) -> None:
        if torch.get_num_threads() != of[name].threads:
            torch.set_num_threads(of[name].threads)

    before = torch.get_num_threads()
    try:
        return latency.measure(
            calls,
            runs,
            warmup,
            threads={name: s.threads if s.waits else 0 for name, s in of.items()},
            prepare=prepare,
        )
    finally:
        torch.set_num_threads(before)


def possible(runtime: str, threads: Sequence[int]) -> Sequence[int]:
    """The numbers of threads that a runtime can be timed with in one process: all, or the first."""
    from .. import runtimes

    alone = runtime != "torch" and runtimes.find(runtime).one_pool
    return threads[:1] if alone else threads


def one_pool(timed: Sequence[Subject], threads: Sequence[int], say: Say) -> list[str]:
    """A line, which is said too, for each runtime that is timed with one number of threads only."""
    runtimes = {s.runtime for s in timed if len(possible(s.runtime, threads)) < len(threads)}
    lines = [
        f"{runtime} with {', '.join(map(str, threads[1:]))} threads: all its files in a process "
        f"share one number of threads, so it is timed with {threads[0]}; for another number run it "
        "with that --threads alone"
        for runtime in sorted(runtimes)
    ]
    for line in lines:
        say(f"skipped {line}")
    return lines


def of_file(
    path: Path, threads: Sequence[int], accuracy: Accuracy | None = None, *, trust: bool = False
) -> list[Subject]:
    """An exported file with each number of threads; `trust` is that of `deploy.predictor.load`."""
    import torch

    from .. import runtimes
    from ..deploy.predictor import load
    from ..runtimes import load as load_file
    from ..runtimes import size_of, title_of

    predictor = load(path, trust=trust)
    runtime, size = runtimes.find(predictor.runtime), predictor.preprocess.size
    facts = predictor.facts
    precision = facts.precision or next(iter(runtime.tolerances))
    can_be = precision in runtime.tolerances
    title = title_of(predictor.runtime, precision) if can_be else f"{predictor.runtime}-{precision}"
    names = tuple(facts.output_names)
    image = torch.randn(1, facts.channels, *size).numpy()

    def call(count: int) -> Callable[[], object]:
        return calling(load_file(predictor.runtime, path, count, trust=trust), image)

    of_int8 = None if facts.file is None or facts.file.int8 is None else facts.file.int8.figures
    measured = decisive(of_int8 or facts.metrics)  # those of the facts are the checkpoint's
    return [
        Subject(
            str(path),
            "",
            predictor.runtime,
            title,
            count,
            size,
            call(count),
            accuracy or measured,
            file=path,
            precision=precision,
            outputs=names,
            file_bytes=size_of(path),
            channels=facts.channels,
            trust=trust,
        )
        for count in possible(predictor.runtime, threads)
    ]


@dataclass(frozen=True)
class _Networks:
    """A model as it is and in its deploy form, with an image (1, C, H, W) to run them on."""

    model: str
    network: "nn.Module"
    deploy: "nn.Module"
    example: "Tensor"
    form: str  # of the network
    accuracy: Accuracy | None
    trained: "Trained | None" = None  # the checkpoint; a model given by name has random weights

    @property
    def size(self) -> tuple[int, int]:
        return self.example.shape[-2], self.example.shape[-1]


def _of_model(
    model: str,
    wanted: Wanted,
    accuracy: Accuracy | None,
    folder: Path,
    skipped: list[str],
    say: Say,
) -> list[Subject]:
    """Forms in torch and exported files; one that cannot be had adds a line to `skipped`."""
    from ..runtimes import title_of
    from ..tasks import named
    from .flops import count

    networks = _networks(model, wanted.size)
    networks = replace(networks, accuracy=accuracy or networks.accuracy)
    timed = list(_in_torch(networks, wanted))
    counts = count(networks.deploy, networks.example)
    outputs: tuple[str, ...] = ()
    if wanted.runtimes:
        outputs = tuple(named(eager(networks.deploy, networks.example)()))
    for runtime, precision in wanted.runtimes:
        try:
            file = _exported(networks, runtime, precision, folder)
        except ExportError as error:
            skipped.append(f"{model} in {title_of(runtime, precision)}: {error}")
            say(f"skipped {skipped[-1]}")
            continue
        timed += [
            replace(subject, counts=counts, outputs=outputs)
            for subject in _of_exported(networks, runtime, precision, file, wanted.threads)
        ]
    return timed


def _in_torch(networks: _Networks, wanted: Wanted) -> Iterator[Subject]:
    from .flops import count

    by_form = {networks.form: networks.network, "deploy": networks.deploy}
    for form in FORMS:
        if form not in wanted.forms or form not in by_form:
            continue
        counts = count(by_form[form], networks.example)
        call = eager(by_form[form], networks.example)
        for threads in wanted.threads:
            yield Subject(
                networks.model,
                form,
                "torch",
                "torch",
                threads,
                networks.size,
                call,
                networks.accuracy,
                counts,
            )


def _exported(networks: _Networks, runtime: str, precision: str, folder: Path) -> Path:
    """The proven file of a model; `ExportError` where it cannot be had, or cannot be run here."""
    from .. import runtimes
    from ..deploy.export import export
    from ..deploy.package import deliver
    from ..runtimes import title_of

    file = folder / title_of(runtime, precision) / f"model{runtimes.find(runtime).suffix}"
    if networks.trained is not None:  # proven as `fleetnet export` does, by what it finds too
        delivered = export(networks.trained, runtime, file, precision=precision)
    else:
        # A peer of timm is compared with what timm's own collapsing made of it.
        of_timm = networks.model.startswith("timm/")
        source = networks.deploy if of_timm else networks.network
        delivered = deliver(source, networks.example, file, runtime, None, precision=precision)
    if delivered.unverified:
        raise ExportError(delivered.unverified)
    return file


def _of_exported(
    networks: _Networks, runtime: str, precision: str, file: Path, threads: Sequence[int]
) -> Iterator[Subject]:
    from ..runtimes import load, size_of, title_of

    for number in possible(runtime, threads):
        yield Subject(
            networks.model,
            "deploy",
            runtime,
            title_of(runtime, precision),
            number,
            networks.size,
            calling(load(runtime, file, number, trust=True), networks.example.numpy()),
            networks.accuracy,
            file=file,
            precision=precision,
            file_bytes=size_of(file),
            channels=networks.example.shape[1],
            trust=True,
        )


def _networks(model: str, size: str | None) -> _Networks:
    """Of a checkpoint, of a peer of timm, or of a name, at the `size` or its task's own."""
    import torch

    from .. import tasks
    from ..backbones import pretrained
    from ..deploy.trained import Trained
    from ..reparam import reparameterize
    from ..sizes import parse_size
    from ..tasks import split_name
    from ..weights import create_model

    if Path(model).exists():
        trained = Trained.read(model)
        preprocess = trained.preprocess
        example = torch.randn(1, preprocess.channels, *preprocess.size)
        deploy = reparameterize(trained.model, example)
        form, accuracy = trained.facts.form, decisive(trained.facts.metrics)
        return _Networks(model, trained.model, deploy, example, form, accuracy, trained)
    if model.startswith("timm/"):
        peer, deploy = _peer(model.removeprefix("timm/"))
        example = torch.randn(1, 3, *parse_size(size or 224))
        return _Networks(model, peer, deploy, example, FORMS[0], None)
    network = create_model(model).eval()
    example = torch.randn(1, 3, *parse_size(size or tasks.find(split_name(model)[0]).SIZE))
    published = pretrained(model) if network.task == "classification" else None
    accuracy = ("ImageNet top-1", published.top1) if published else None
    deploy = reparameterize(network, example)
    return _Networks(model, network, deploy, example, FORMS[0], accuracy)


def _peer(name: str) -> tuple["nn.Module", "nn.Module"]:
    """A whole classifier of timm, and what timm's own `reparameterize_model` makes of it."""
    try:
        import timm
        from timm.utils.model import reparameterize_model
    except ImportError as error:
        raise ModelError(f"timm/{name} needs timm: pip install timm") from error
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}: {suggest(name, timm.list_models())}")
    model = timm.create_model(name).eval()
    return model, reparameterize_model(model).eval()


def decisive(metrics: Mapping[str, Any] | None) -> Accuracy | None:
    """The first metric of a task is the one that decides; None where there is none."""
    name, value = next(iter((metrics or {}).items()), ("", None))
    return None if value is None else (name, float(value))
