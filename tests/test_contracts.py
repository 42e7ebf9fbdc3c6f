"""The tables' contracts are code: mypy compares every file of a folder with its Protocol.

A file is written that gives each module of each table to a variable of the Protocol's type, and
beside it copies of modules in which one thing was changed. mypy runs once over all of it: it must
accept every module, and refuse every copy.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from fleetnet.find import constant, find, names

ROOT = Path(__file__).parents[1]
# A folder of the package -> the Protocol in its __init__.py.
CONTRACTS = {
    "tasks": "Task",
    "runtimes": "Runtime",
    "data": "Format",
    "data.writing": "Writer",
    "backbones": "Family",
    "int8": "Quantizer",
}
ENTRIES = [(folder, name) for folder in CONTRACTS for name in names(folder)]
# Those that tests/test_one_file.py adds.
ADDED_FROM = ROOT / "tests" / "entries"
ADDED = [(file.parent.name, file.stem) for file in sorted(ADDED_FROM.glob("*/*.py"))]


class Drift(NamedTuple):
    """A fault that is planted in a copy of a module."""

    folder: str
    name: str
    before: str  # a part of the text
    after: str
    member: str  # of the contract, that mypy has to name


DRIFTS = [
    Drift(
        "tasks", "ssd", "def metric(classes: Sequence[str])", "def metric(classes: int)", "metric"
    ),
    Drift("tasks", "ssd", "limit, from_file = None, None", "limit = None", "from_file"),
    Drift("tasks", "ssd", ") -> list[Detections]:", ") -> list[Limits]:", "decode"),
    Drift("tasks", "yolo", "PREDICTION = Detections", "PREDICTION = Limits", "PREDICTION"),
    Drift("tasks", "deeplabv3", "from ._defaults import prepare as prepare\n", "", "prepare"),
    Drift("tasks", "maskrcnn", "def limit(head: nn.Module,", "def limit(head: str,", "limit"),
    Drift("tasks", "yolo", "SIZE = (640, 640)", "SIZE = 640", "SIZE"),
    Drift("tasks", "classification", 'MODE: Mode = "crop"', 'MODE = "squash"', "MODE"),
    Drift("runtimes", "onnx", "def missing() -> str | None", "def missing() -> int", "missing"),
    Drift("runtimes", "coreml", "def inspect(", "def look_at(", "inspect"),
    Drift("runtimes", "pt2", "def export(request: Request)", "def export(request: str)", "export"),
    Drift("runtimes", "litert", "-> Traced:", "-> Run:", "trace"),
    Drift("runtimes", "executorch", 'calls: Calls = "process"', 'calls = "one"', "calls"),
    Drift("runtimes", "mnn", "from ._defaults import cannot_run as cannot_run\n", "", "cannot_run"),
    Drift("data", "coco", "def detect(root: str, target", "def detect(root: int, target", "detect"),
    Drift(
        "data",
        "voc",
        'split: str | None, target: str = "boxes"',
        "split: str | None, target: int = 0",
        "load",
    ),
    Drift("data", "listfile", "FALLBACK = False\n", "", "FALLBACK"),
    Drift("backbones", "parcnet", "def convert(state", "def to_ours(state", "convert"),
    Drift("backbones", "repvit", "VERSIONS = (to_current, to_v1)", "VERSIONS = to_v1", "VERSIONS"),
    Drift("backbones", "fasternet", "def classifier(", "def head(", "VARIANTS"),
    Drift(
        "backbones",
        "mobileone",
        "def recognize(state: State)",
        "def known(state: State)",
        "recognize",
    ),
    Drift("tasks", "yolo", "-> Recognized | None:", "-> bool | None:", "recognize"),
    Drift("data.writing", "coco", "album: Album) -> None:", "album: str) -> None:", "write"),
    Drift("data.writing", "list", 'HOLDS: tuple[str, ...] = ("order", "unused")\n', "", "HOLDS"),
    Drift("int8", "onnx", "images: np.ndarray) -> Write:", "images: str) -> Write:", "writer"),
    Drift("int8", "openvino", 'package = "nncf"', "package = None", "package"),
]


def copy_of(drift: Drift) -> str:
    """The text of the module with its fault."""
    path = ROOT.joinpath("fleetnet", *drift.folder.split("."), f"{drift.name}.py")
    text = path.read_text(encoding="utf-8")
    assert text.count(drift.before) == 1, f"{path} no longer has {drift.before!r} once"
    return outside(text.replace(drift.before, drift.after), drift.folder)


def outside(text: str, folder: str) -> str:
    """The text of a module of a table, for another place: it imports by whole names."""
    names_above = ["fleetnet", *folder.split(".")]
    for count in range(len(names_above), 0, -1):
        dots = r"\." * count
        parent = ".".join(names_above[: len(names_above) - count + 1])
        text = re.sub(rf"^( *from ){dots}(?=\w)", rf"\g<1>{parent}.", text, flags=re.MULTILINE)
        text = re.sub(rf"^( *from ){dots}(?= )", rf"\g<1>{parent}", text, flags=re.MULTILINE)
    return text


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What mypy says of each module and copy: nothing where it fits the contract.

    Its cache is that of `make lint`, so that this takes seconds.
    """
    folder = tmp_path_factory.mktemp("contracts")
    subjects: dict[str, str] = {}  # the name of a variable -> its line
    imports = ["import fleetnet"]
    for table, contract in CONTRACTS.items():
        imports.append(f"from fleetnet.{table} import {contract}")
    for table, name in ENTRIES:
        imports.append(f"import fleetnet.{table}.{name}")
        subject = f"{table}_{name}".replace(".", "_")
        subjects[subject] = f"{subject}: {CONTRACTS[table]} = fleetnet.{table}.{name}"
    for table, name in ADDED:
        text = (ADDED_FROM / table / f"{name}.py").read_text(encoding="utf-8")
        (folder / f"added_{name}.py").write_text(outside(text, table), encoding="utf-8")
        imports.append(f"import added_{name}")
        subjects[f"{table}_{name}"] = f"{table}_{name}: {CONTRACTS[table]} = added_{name}"
    for number, drift in enumerate(DRIFTS):
        (folder / f"copy_{number}.py").write_text(copy_of(drift), encoding="utf-8")
        imports.append(f"import copy_{number}")
        subjects[f"drift_{number}"] = f"drift_{number}: {CONTRACTS[drift.folder]} = copy_{number}"
    checks = folder / "checks.py"
    checks.write_text("\n".join([*imports, *subjects.values()]) + "\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", str(checks)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    said: dict[str, str] = dict.fromkeys(subjects, "")
    variables = list(subjects)
    for line in done.stdout.splitlines():
        found = re.match(r".*checks\.py:(\d+): (.*)", line)
        if found:
            said[variables[int(found[1]) - len(imports) - 1]] += found[2] + "\n"
    return said


@pytest.mark.parametrize(("folder", "name"), [*ENTRIES, *ADDED])
def test_every_module_fits_the_contract_of_its_table(
    folder: str, name: str, verdicts: dict[str, str]
):
    assert not verdicts[f"{folder}_{name}".replace(".", "_")]


@pytest.mark.parametrize(
    "number", range(len(DRIFTS)), ids=lambda i: f"{DRIFTS[i].name}-{DRIFTS[i].member}"
)
def test_a_module_that_drifts_is_refused(number: int, verdicts: dict[str, str]):
    said = verdicts[f"drift_{number}"]
    assert "expression has type Module" in said
    assert DRIFTS[number].member in said


@pytest.mark.parametrize("folder", CONTRACTS)
def test_no_entry_is_called_as_something_of_its_table(folder: str):
    """Python puts an imported module into its package under its name, in place of what was there."""
    file = ROOT.joinpath("fleetnet", *folder.split("."), "__init__.py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    taken: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            taken |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            taken.add(node.name)
        elif isinstance(node, ast.Assign):
            taken |= {
                name.id
                for target in node.targets
                for name in ast.walk(target)
                if isinstance(name, ast.Name)
            }
    assert "find" in taken
    assert taken.isdisjoint(names(folder))


@pytest.mark.parametrize("task", names("tasks"))
@pytest.mark.parametrize("key", ["SIZE", "CLASSES"])
def test_what_help_reads_without_importing_is_what_the_task_says(task: str, key: str):
    assert constant("tasks", task, key) == getattr(find("tasks", task), key)
