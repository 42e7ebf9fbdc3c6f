"""What a training takes from outside, and its run folder.

An objective, hooks, an order of the samples, an augmentation.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import benchmark
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import fleetnet
from fleetnet import checkpoint, tasks
from fleetnet.cli import main
from fleetnet.data import Split, load
from fleetnet.errors import UsageError
from fleetnet.geometry import Place
from fleetnet.inputs.augment import Augmentation, InTurn
from fleetnet.inputs.decode import AnnotatedPicture
from fleetnet.inputs.layouts import Part, move
from fleetnet.preprocess import Preprocess
from fleetnet.tasks import Model, build
from fleetnet.training.config import TrainConfig
from fleetnet.training.folder import BEST, CONFIG, ENVIRONMENT, LAST, LOG
from fleetnet.training.hooks import Hook, Progress
from fleetnet.training.objective import TaskObjective, task_objective
from fleetnet.training.run import Run
from fleetnet.training.setup import augmentation_of, preprocess_of

Weights = dict[str, Tensor]
equal = benchmark("kills").equal  # of nested values, tensors to the bit


def settings(**changes: Any) -> TrainConfig:
    usual = {
        "size": 32,
        "batch_size": 8,
        "epochs": 2,
        "optimizer": "sgd",
        "lr": 0.05,
        "device": "cpu",
    }
    return TrainConfig(**{**usual, "ema": None, **changes})


def splits(photos: Path) -> tuple[Split, Split]:
    return load(str(photos), "train"), load(str(photos), "val")


def network(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return build("fasternet_t0", 3)


def trained(photos: Path, run: Path, **options: Any) -> Weights:
    """The weights after a training that differs from the usual one by `options` of `fit`."""
    model = options.pop("model", None) or network()
    config = options.pop("config", settings())
    fleetnet.fit(
        model, *splits(photos), config, run, report=options.pop("report", False), **options
    )
    return model.state_dict()


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / LOG).read_text().splitlines()]


@pytest.fixture(scope="module")
def usual(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return trained(photos, tmp_path_factory.mktemp("usual") / "run")


# An objective


class Distilled:
    """The usual loss, and how far the model is from what a teacher says."""

    def __init__(self, usual: TaskObjective, teacher: nn.Module, weight: float):
        self.usual = usual
        self.teacher = teacher.eval()
        self.weight = weight

    def losses(
        self, network: nn.Module, images: Tensor, targets: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        logits = network(images)  # (N, classes)
        with torch.no_grad():
            taught = self.teacher(images)
        distance = F.cross_entropy(logits, taught.softmax(1))
        return {**self.usual.of_outputs(logits, targets), "teacher": self.weight * distance}


def test_a_teacher_beside_the_model(photos: Path, tmp_path: Path, usual: Weights):
    train, _ = splits(photos)
    model, teacher = network(), network(seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    objective = Distilled(task_objective(model, settings(), train), teacher, 2.0)
    weights = trained(photos, tmp_path, model=model, objective=objective)
    assert not same(weights, usual)
    assert same(before, teacher.state_dict())
    for line in lines_of(tmp_path):
        losses = line["train"]
        assert losses["loss"] == pytest.approx(losses["cross_entropy"] + losses["teacher"])
        assert losses["teacher"] > 0


def test_an_objective_that_adds_nothing_changes_nothing(
    photos: Path, tmp_path: Path, usual: Weights
):
    train, _ = splits(photos)
    model = network()
    objective = Distilled(task_objective(model, settings(), train), network(seed=1), 0.0)
    assert same(trained(photos, tmp_path, model=model, objective=objective), usual)


# Hooks


@dataclass(eq=False)
class Logger(Hook):
    """Keeps what it is called with."""

    folder: Path | None = None
    config: TrainConfig | None = None
    # epochs that the run was trained for at its start
    before: list[int] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)

    def start(self, run: Run, config: TrainConfig) -> None:
        self.folder, self.config = run.folder, config
        self.before.append(run.epochs)

    def batch(self, images: Tensor, targets: Mapping[str, Any], preprocess: Any) -> None:
        self.shapes.append(tuple(images.shape))

    def step(self, progress: Progress) -> None:
        self.steps.append((progress.epoch, progress.step))

    def epoch(self, line: dict[str, Any]) -> None:
        assert (self.folder / LAST).exists()
        self.lines.append(line)

    def end(self, result: dict[str, Any]) -> None:
        self.results.append(result)


def test_a_logger_sees_the_whole_run(photos: Path, tmp_path: Path, usual: Weights):
    logger = Logger()
    assert same(trained(photos, tmp_path, hooks=[logger]), usual)
    assert logger.folder == tmp_path
    assert logger.config.model == "fasternet_t0"  # decided by the model
    assert logger.shapes == [(8, 3, 32, 32)] * 6
    assert logger.steps == [(epoch, step) for epoch in (1, 2) for step in (1, 2, 3)]
    assert logger.lines == lines_of(tmp_path)
    assert logger.results[0]["epoch"] in (1, 2)
    trained(photos, tmp_path, hooks=[logger], resume=True, config=settings(epochs=3))
    assert logger.before == [0, 2]
    assert [line["epoch"] for line in logger.lines] == [1, 2, 3]
    assert len(logger.results) == 2


class Server(Hook):
    """A logger whose server is away."""

    def __init__(self) -> None:
        self.calls = 0

    def epoch(self, line: dict[str, Any]) -> None:
        self.calls += 1
        raise ConnectionError("no answer")

    start = batch = step = end = lambda self, *_: self.epoch({})


def test_a_logger_that_fails_does_not_stop_the_run_and_is_named_once(
    photos: Path, tmp_path: Path, usual: Weights
):
    said: list[str] = []
    servers = [Server(), Server()]
    weights = trained(photos, tmp_path / "a", hooks=servers, on_wait=said.append)
    assert same(weights, usual)
    assert len(lines_of(tmp_path / "a")) == 2
    assert [server.calls for server in servers] == [1 + 6 + 6 + 2 + 1] * 2
    assert said == ["Server failed (ConnectionError: no answer); the training goes on"] * 2
    with pytest.warns(RuntimeWarning, match="Server failed") as warned:
        trained(photos, tmp_path / "b", hooks=[Server()])
    assert len(warned) == 1


def test_a_hook_that_may_stop_the_run_does(photos: Path, tmp_path: Path):
    class Strict(Server):
        may_stop = True

        start = batch = step = end = lambda self, *_: None

    with pytest.raises(ConnectionError, match="no answer"):
        trained(photos, tmp_path, hooks=[Strict()])
    assert len(lines_of(tmp_path)) == 1


# An order of the samples


class SmallestLast:
    """Samples by label, falling; another half of them in every second epoch."""

    epoch = 0

    def __init__(self, labels: list[int]):
        self.indices = sorted(range(len(labels)), key=lambda index: -labels[index])

    def __len__(self) -> int:
        return len(self.indices) // 2

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices[self.epoch % 2 :: 2])


def test_an_order_of_the_samples(photos: Path, tmp_path: Path):
    train, _ = splits(photos)
    order = SmallestLast([sample.label for sample in train.samples])
    seen: list[int] = []
    trained(
        photos,
        tmp_path,
        order=order,
        config=settings(batch_size=6),
        on_batch=lambda images, targets, _: seen.extend(targets["label"].tolist()),
    )
    assert seen == [
        train.samples[index].label for epoch in (0, 1) for index in order.indices[epoch::2]
    ]
    assert [line["train"]["images"] for line in lines_of(tmp_path)] == [12, 12]


# An augmentation


class Darker(Augmentation):
    """The left half of a picture, darker, with what is annotated in it; the same for every task."""

    def __init__(self, seen: list[dict[str, Tensor]] | None = None):
        self.seen = [] if seen is None else seen

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        picture, targets = pictures[0]
        factor = float(torch.rand((), generator=generator))
        _, height, width = picture.shape
        half = Place(height, width // 2)
        shown = move(targets, Part(half), (half.height, half.width))
        self.seen.append(shown)
        darker = (picture[..., : half.width] * factor).byte()
        return AnnotatedPicture(darker, shown)


SMALL_MASKRCNN = {"channels": 16, "hidden": 32, "samples": 16, "proposals": 40, "anchor": 8}
TASKS = {
    "fasternet_t0": "label",
    "ssd/fasternet_t0": "boxes",
    "maskrcnn/fasternet_t0": "masks",
    "deeplabv3/fasternet_t0": "semantic",
}


@pytest.mark.parametrize("name", TASKS)
def test_one_augmentation_serves_every_task(name: str, tmp_path: Path):
    target = TASKS[name]
    drawn = load("shapes:8", "train", target=target)
    some = Split(drawn.samples[:4], drawn.classes)
    augment = Darker()
    images: list[Tensor] = []
    learned: list[Mapping[str, Any]] = []

    places: list[Place] = []

    def keep(batch: Tensor, targets: Mapping[str, Any], preprocess: Preprocess) -> None:
        images.append(batch)
        learned.append(targets)
        places.append(preprocess.place(96, 48))  # of the half picture in the input

    config = settings(size=64, batch_size=4, epochs=1, lr=1e-4)
    options = SMALL_MASKRCNN if name.startswith("maskrcnn") else {}
    model = build(name, len(some.classes), options=options)
    fleetnet.fit(model, some, some, config, tmp_path, augment=augment, on_batch=keep, report=False)
    assert len(augment.seen) == 4
    assert images[0].shape == (4, 3, 64, 64)
    if target == "label":
        assert learned[0]["label"].tolist() == [int(shown["label"]) for shown in augment.seen]
    elif target == "semantic":  # each class has the share of the input that it had of the half
        for semantic, shown in zip(learned[0]["semantic"], augment.seen, strict=True):
            assert semantic.shape == (64, 64)
            assert set(semantic.unique().tolist()) >= set(shown["semantic"].unique().tolist())
    else:
        for boxes, shown in zip(learned[0]["boxes"], augment.seen, strict=True):
            torch.testing.assert_close(boxes, places[0].into(shown["boxes"]), atol=1.5, rtol=0)
    assert sum(len(shown.get("boxes", [0])) for shown in augment.seen) > 0


def test_an_augmentation_of_several_steps(photos: Path, tmp_path: Path, usual: Weights):
    """The usual one and one more; and steps that change nothing change no weight."""
    train, _ = splits(photos)
    config = settings()
    preprocess = preprocess_of(network(), train, config)
    task = tasks.find("classification")
    usual_one = augmentation_of(task, preprocess, config)
    weights = trained(photos, tmp_path / "same", augment=InTurn(usual_one, InTurn()))
    assert same(weights, usual)
    weights = trained(photos, tmp_path / "darker", augment=InTurn(Darker(), usual_one))
    assert not same(weights, usual)


def test_an_augmentation_that_is_none_is_refused(photos: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"write class function\(Augmentation\)"):
        trained(photos, tmp_path / "run", augment=lambda pictures, generator: pictures[0])

    class Large(Darker):
        at_input_size = True

    with pytest.raises(UsageError, match=r"gave a picture of .*the input's size, 32x32"):
        trained(photos, tmp_path / "run", augment=Large())


# The run folder of `fit` is that of the command


@pytest.fixture(scope="module")
def two_runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One by the command line, one by the same settings from Python."""
    folders = tmp_path_factory.mktemp("both")
    command, python = folders / "command" / "run", folders / "python" / "run"
    words = f"--model fasternet_t0 --data {photos} --size 32 --batch-size 8 --epochs 2 --lr 0.002 --device cpu"
    assert main(["train", *words.split(), "--run", str(command)]) == 0
    config = TrainConfig(
        model="fasternet_t0",
        data=str(photos),
        size=(32, 32),
        batch_size=8,
        epochs=2,
        lr=0.002,
        device="cpu",
    )
    train, val = splits(photos)
    torch.manual_seed(config.seed)
    model = fleetnet.create_model(config.model, train.classes)
    fleetnet.fit(model, train, val, config, python)
    return command, python


def contents(path: Path) -> Any:
    """What a file of a run folder says, without the time at which it was written."""
    if path.suffix == ".pt":
        state = checkpoint.load_state(path.parent)
        state["log"] = [{**line, "seconds": 0} for line in state["log"]]
        return state
    if path.suffix == ".safetensors":  # whose header has no order
        return {"facts": checkpoint.read_facts(path), **load_file(path)}
    if path.name == LOG:
        return [{**line, "seconds": 0} for line in lines_of(path.parent)]
    if path.name == ENVIRONMENT:  # which says that the second began in Python
        environment = json.loads(path.read_text())
        assert environment.pop("from_python", None) == (
            ["model"] if "python" in path.parts else None
        )
        return environment
    if path.name == "report.html":
        return [
            part
            for part in path.read_text().split("<d")
            if not part.startswith(("d>20", "t>written"))
        ]
    return path.read_bytes()


def test_fit_leaves_the_folder_that_the_command_leaves(two_runs: tuple[Path, Path]):
    of_command, of_python = (
        {str(path.relative_to(run)): contents(path) for path in run.rglob("*") if path.is_file()}
        for run in two_runs
    )
    assert set(of_command) == set(of_python)
    assert set(of_command) >= {
        BEST,
        CONFIG,
        ENVIRONMENT,
        LOG,
        "report.html",
        "results.csv",
        "plots/samples.jpg",
    }
    assert [name for name in of_command if not equal(of_command[name], of_python[name])] == []


def test_the_command_goes_on_with_a_run_from_python(two_runs: tuple[Path, Path], tmp_path: Path):
    """Also where the settings name neither model nor data."""
    for run in two_runs:
        shutil.copytree(run, tmp_path / run.parent.name)
        assert main(["train", "--resume", str(tmp_path / run.parent.name), "--epochs", "3"]) == 0
    states = [
        checkpoint.load(tmp_path / run.parent.name / LAST).model.state_dict() for run in two_runs
    ]
    assert same(*states)


def test_settings_that_were_left_open_are_in_the_folder(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    trained(photos, tmp_path / "run", report=True, config=settings(epochs=1))
    assert main(["train", "--resume", str(tmp_path / "run"), "--epochs", "2"]) == 0
    train, val = splits(photos)
    own = Split(train.samples, train.classes), Split(val.samples, val.classes)
    fleetnet.fit(network(), *own, settings(epochs=1), tmp_path / "own")
    assert main(["train", "--resume", str(tmp_path / "own")]) == 2
    assert "own was trained from Python, on data that no setting names" in capsys.readouterr().err
    assert (
        main(["train", "--resume", str(tmp_path / "own"), "--epochs", "2", "--data", str(photos)])
        == 0
    )


def test_a_start_that_fails_leaves_nothing(photos: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="no module or parameter fits"):
        trained(photos, tmp_path / "new", report=True, config=settings(freeze="nothing"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="no module or parameter fits"):
        trained(photos, tmp_path / "old", report=True, config=settings(freeze="nothing"))
    assert os.listdir(tmp_path / "old") == ["notes.txt"]


# What goes wrong


def test_a_start_that_fails_leaves_the_earlier_run(photos: Path, tmp_path: Path):
    trained(photos, tmp_path / "run", report=True)

    def files() -> dict[str, bytes]:
        return {
            path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()
        }

    before = files()
    with pytest.raises(UsageError, match="bakbone"):
        trained(photos, tmp_path / "run", report=True, config=settings(freeze="bakbone.*"))
    assert files() == before
    trained(photos, tmp_path / "run", model=network(), config=settings(epochs=3), resume=True)


class Forgetful:
    """A logger that forgot to inherit from `Hook`."""

    def epoch(self, line: dict[str, Any]) -> None:
        pass


def test_a_logger_that_is_no_hook_is_refused(photos: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"write class Forgetful\(Hook\)"):
        trained(photos, tmp_path / "run", hooks=[Forgetful()])


@dataclass
class Few:
    """Twelve samples of 24, though it says that there are `length`."""

    length: int
    epoch: int = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(12))


def test_an_order_of_fewer_samples_than_a_batch_has(photos: Path, tmp_path: Path):
    trained(photos, tmp_path / "run", order=Few(12), config=settings(batch_size=16))
    assert [line["train"]["images"] for line in lines_of(tmp_path / "run")] == [12, 12]


def test_an_order_that_ends_early_leaves_no_gradients(photos: Path, tmp_path: Path):
    """Three batches where six were announced, in groups of two: the third is a group of its own."""
    model = network()
    trained(
        photos,
        tmp_path / "run",
        model=model,
        order=Few(24),
        config=settings(batch_size=4, accumulate=2),
    )
    assert [line["train"]["images"] for line in lines_of(tmp_path / "run")] == [12, 12]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_command_does_not_go_on_without_the_parts_that_python_gave(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def stop(line: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    config = settings(data=str(photos), model="fasternet_t0")
    objective = task_objective(network(), config, splits(photos)[0])
    with pytest.raises(KeyboardInterrupt):
        trained(
            photos, tmp_path / "run", config=config, report=True, objective=objective, on_epoch=stop
        )
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert "was trained from Python with its own objective" in capsys.readouterr().err

    def stop_at_once(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(photos, tmp_path / "first", config=config, report=True, on_batch=stop_at_once)
    assert main(["train", "--resume", str(tmp_path / "first")]) == 2
    assert "begin it there again" in capsys.readouterr().err
