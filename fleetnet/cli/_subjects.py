"""What `fleetnet bench` times: the forms of models in torch and their files in runtimes, each ready to be called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ExportError, ModelError, UsageError, choose
from ._show import say

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from ..deploy.trained import Trained
    from ..measure.flops import Counts

FORMS = ("multi-branch", "deploy")  # that torch runs
Accuracy = tuple[str, float]  # of what, and percent


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


def threads_of(text: str | None) -> list[int]:
    """Numbers of threads from "1,2"; none from None."""
    parts = text.split(",") if text is not None else []
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    if (
        len(numbers) != len(parts)
        or min(numbers, default=1) < 1
        or len(set(numbers)) != len(numbers)
    ):
        raise UsageError(
            f"threads is {text!r}; allowed: one number of at least 1, or several such as 1,2"
        )
    return numbers


def accuracies(texts: Sequence[str], models: Sequence[str]) -> dict[str, Accuracy]:
    """By model, from texts such as "repvit_m0_9=78.7"."""
    found: dict[str, Accuracy] = {}
    for text in texts:
        name, equal, value = text.rpartition("=")
        try:
            found[name] = ("accuracy", float(value))
        except ValueError:
            equal = ""
        if not equal:
            raise UsageError(f"accuracy is {text!r}; allowed: NAME=VALUE, such as repvit_m0_9=78.7")
        if name not in models:
            raise UsageError(f"accuracy of {name!r}, which is not measured: {choose(name, models)}")
    return found


def eager(module: "nn.Module", example: "Tensor") -> Callable[[], Any]:
    import torch

    @torch.inference_mode()
    def call() -> Any:
        return module(example)

    return call


def calling(runner: Callable[["np.ndarray"], object], image: "np.ndarray") -> Callable[[], object]:
    return lambda: runner(image)


def subjects(
    given: Mapping[str, Any], threads: Sequence[int], folder: Path
) -> tuple[list[Subject], list[str]]:
    """All that the flags ask for, files exported into `folder`, and a line for each that could not be had."""
    from ..runtimes import by_suffix, choice

    to, forms = (
        [] if text == "none" else text.split(",")
        for text in (given.get("to") or "onnx", given.get("forms") or ",".join(FORMS))
    )
    for form in forms:
        if form not in FORMS:
            raise UsageError(f"no form {form!r}: {choose(form, [*FORMS, 'none'])}")
    runtimes = [choice(text) for text in to]
    suffixes = by_suffix()
    told = accuracies(given.get("accuracy") or (), given["model"])
    found: list[Subject] = []
    skipped: list[str] = []
    for i, model in enumerate(dict.fromkeys(given["model"])):
        say(f"preparing {model}")
        path = Path(model)
        if path.exists() and path.suffix in suffixes:
            found += of_file(path, threads, told.get(model), trust=bool(given.get("trust")))
        else:
            size, accuracy = given.get("size"), told.get(model)
            found += _of_model(
                model, runtimes, forms, size, threads, accuracy, folder / str(i), skipped
            )
    skipped += one_pool(found, threads)
    if not found:
        raise (
            ExportError(skipped[0])
            if skipped
            else UsageError("nothing to measure: --forms and --to are none")
        )
    return found, skipped


def possible(runtime: str, threads: Sequence[int]) -> Sequence[int]:
    """The numbers of threads that a runtime can be timed with in one process: all, or the first."""
    from .. import runtimes

    alone = runtime != "torch" and runtimes.find(runtime).one_pool
    return threads[:1] if alone else threads


def one_pool(found: Sequence[Subject], threads: Sequence[int]) -> list[str]:
    """A line for each runtime that was left out with all but the first number of threads; it is said too."""
    runtimes = {s.runtime for s in found if len(possible(s.runtime, threads)) < len(threads)}
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
    from ..deploy.export import facts_of
    from ..deploy.predictor import load
    from ..runtimes import label, size_of
    from ..runtimes import load as load_file

    predictor = load(path, trust=trust)
    runtime, size = runtimes.find(predictor.runtime), predictor.preprocess.size
    facts = facts_of(path)[1] if path.with_suffix(".json").exists() else predictor.facts
    precision = facts.precision or next(iter(runtime.tolerances))
    known = precision in runtime.tolerances
    title = label(predictor.runtime, precision) if known else f"{predictor.runtime}-{precision}"
    names = tuple(facts.output_names)
    image = torch.randn(1, 3, *size).numpy()

    def call(count: int) -> Callable[[], object]:
        return calling(load_file(predictor.runtime, path, count, trust=trust), image)

    of_int8 = None if facts.file is None or facts.file.int8 is None else facts.file.int8.figures
    measured = decisive(of_int8 or facts.metrics)  # those of the facts are the checkpoint's
    return [
        Subject(
            str(path), "", predictor.runtime, title, count, size, call(count),
            accuracy or measured, file=path, precision=precision, outputs=names,
            file_bytes=size_of(path),
        )
        for count in possible(predictor.runtime, threads)
    ]  # fmt: skip


def _of_model(
    model: str,
    to: Sequence[tuple[str, str]],
    forms: Sequence[str],
    size: str | None,
    threads: Sequence[int],
    accuracy: Accuracy | None,
    folder: Path,
    skipped: list[str],
) -> list[Subject]:
    """Forms in torch and exported files; one that cannot be had adds a line to `skipped`."""
    from .. import runtimes
    from ..deploy.export import export
    from ..deploy.package import deliver
    from ..measure.flops import count
    from ..runtimes import label, size_of
    from ..runtimes import load as load_file
    from ..tasks import named

    net, deploy, example, form, known, trained = _networks(model, size)
    pixels, accuracy = (example.shape[-2], example.shape[-1]), accuracy or known
    counts = count(deploy, example)
    found: list[Subject] = []
    if "multi-branch" in forms and form == "multi-branch":
        many, call = count(net, example), eager(net, example)
        found += [
            Subject(model, form, "torch", "torch", n, pixels, call, accuracy, many) for n in threads
        ]
    if "deploy" in forms:
        call = eager(deploy, example)
        found += [
            Subject(model, "deploy", "torch", "torch", n, pixels, call, accuracy, counts)
            for n in threads
        ]
    outputs = tuple(named(eager(deploy, example)())) if to else ()
    for name, precision in to:
        runtime, title = runtimes.find(name), label(name, precision)
        file = folder / title / f"model{runtime.suffix}"
        try:
            if trained is not None:  # proven as `fleetnet export` does, by what it finds too
                delivered = export(trained, name, file, precision=precision)
            else:
                # A peer of timm is compared with what timm's own collapsing made of it.
                source = deploy if model.startswith("timm/") else net
                delivered = deliver(source, example, file, name, None, precision=precision)
            lost = delivered.unverified
        except ExportError as error:
            lost = str(error)
        if lost:
            skipped.append(f"{model} in {title}: {lost}")
            say(f"skipped {skipped[-1]}")
            continue
        found += [
            Subject(
                model, "deploy", name, title, n, pixels,
                calling(load_file(name, file, n, trust=True), example.numpy()),
                accuracy, counts, file, precision, outputs, size_of(file),
            )
            for n in possible(name, threads)
        ]  # fmt: skip
    return found


def _networks(
    model: str, size: str | None
) -> tuple["nn.Module", "nn.Module", "Tensor", str, Accuracy | None, "Trained | None"]:
    """A model as it is, its deploy form, an image, the form it is in, its accuracy where that is known.

    And the checkpoint, where it is one: a model given by name has random weights.
    """
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
        example = torch.randn(1, 3, *trained.preprocess.size)
        deploy = reparameterize(trained.model, example)
        form, accuracy = trained.facts.form, decisive(trained.facts.metrics)
        return trained.model, deploy, example, form, accuracy, trained
    if model.startswith("timm/"):
        return (
            *_peer(model.removeprefix("timm/")),
            torch.randn(1, 3, *parse_size(size or 224)),
            FORMS[0],
            None,
            None,
        )
    net = create_model(model).eval()
    example = torch.randn(1, 3, *parse_size(size or tasks.find(split_name(model)[0]).SIZE))
    published = pretrained(model) if net.task == "classification" else None
    accuracy = ("ImageNet top-1", published.top1) if published else None
    return net, reparameterize(net, example), example, FORMS[0], accuracy, None


def _peer(name: str) -> tuple["nn.Module", "nn.Module"]:
    """A whole classifier of timm, its own head included, and what timm's own `reparameterize_model` makes of it."""
    try:
        import timm
        from timm.utils.model import reparameterize_model
    except ImportError as error:
        raise ModelError(f"timm/{name} needs timm: pip install timm") from error
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}: {choose(name, timm.list_models())}")
    model = timm.create_model(name).eval()
    return model, reparameterize_model(model).eval()


def decisive(metrics: Mapping[str, Any] | None) -> Accuracy | None:
    """The first metric of a task is the one that decides; None where there is none."""
    name, value = next(iter((metrics or {}).items()), ("", None))
    return None if value is None else (name, float(value))
