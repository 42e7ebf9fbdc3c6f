"""A verb is a frozen dataclass of settings and `run(settings)`: what flags and help are made of."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fleetnet import cli
from fleetnet.cli import VERBS
from fleetnet.cli._arguments import Setting, new_parser, settings_in, settings_of
from fleetnet.errors import UsageError
from fleetnet.find import names
from fleetnet.inputs import loader
from fleetnet.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "fleetnet" / "cli"


SETTINGS = [
    (verb, setting) for verb in VERBS for setting in settings_in(settings_of(cli.find(verb)))
]


def required_of(settings: type) -> list[str]:
    return [s.name for s in settings_in(settings) if s.default is dataclasses.MISSING]


@pytest.mark.parametrize(
    ("verb", "setting"), SETTINGS, ids=lambda value: getattr(value, "name", value)
)
def test_help_shows_the_default_that_the_field_has(verb: str, setting: Setting):
    parser = new_parser(verb, "", cli.find(verb))
    (action,) = [action for action in parser._actions if action.dest == setting.name]
    shown = re.search(r"\(default: (.*)\)$", action.help)
    default = setting.default
    if "usual" in setting.about:
        assert default is None, "the words of a default are for one that is decided later"
        assert shown[1] == setting.about["usual"]
    elif default in (dataclasses.MISSING, None, "") or setting.about.get("switch"):
        assert shown is None
        assert default is not True
    elif default == TrainConfig.size:
        assert shown[1].startswith("224; ")
    else:
        typed = {True: "true", False: "false"} if isinstance(default, bool) else {}
        assert shown[1] == (typed[default] if typed else str(default))


@pytest.mark.parametrize("verb", VERBS)
def test_settings_are_built_with_what_is_required(verb: str):
    settings = settings_of(cli.find(verb))
    built = settings(**dict.fromkeys(required_of(settings), "x"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.model = "y"
    for name in required_of(settings):
        with pytest.raises(TypeError, match=name):
            settings(**{key: "x" for key in required_of(settings) if key != name})


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_required_is_asked_for_with_an_example(verb: str, capsys):
    module = cli.find(verb)
    required = required_of(settings_of(module))
    assert cli.main(verb.split()) == UsageError.exit_code if required else True
    said = capsys.readouterr().err
    if required:
        assert f"is missing; example: {module.EXAMPLE}" in said or "no image given" in said


@pytest.mark.parametrize(
    "file",
    sorted(FOLDER.glob("*.py")),
    ids=lambda file: file.stem,
)
def test_no_verb_imports_a_verb(file: Path):
    """What verbs share is in files whose names begin with an underscore."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            imported = {node.module} if node.module else {alias.name for alias in node.names}
            assert imported.isdisjoint(names("cli")), imported


def test_defaults_of_int8_are_those_of_the_library():
    from fleetnet.cli.quantize import Quantize
    from fleetnet.int8 import _prepared, _search

    defaults = {setting.name: setting.default for setting in settings_in(Quantize)}
    of_quantize = inspect.signature(_search.quantize).parameters
    assert defaults["most"] == of_quantize["most"].default
    assert defaults["max_drop"] == of_quantize["max_drop"].default
    assert (
        defaults["pictures"] == inspect.signature(_prepared.calibration).parameters["count"].default
    )
    assert defaults["timeout"] == loader.MINUTES


# What is changed in a copy of a verb -> what mypy has to say of it.
DRIFTS = [
    ("reparam", "def run(settings: Reparam)", "def run(settings: str)", "run"),
    ("flops", "-> dict[str, object]:\n    check_outputs", "-> int:\n    check_outputs", "run"),
    ("models", "EXAMPLE = ", "EXAMPLES = ", "EXAMPLE"),
    ("verify", "settings.explain", "settings.explained", '"Verify" has no attribute "explained"'),
    ("reparam", "default=None,", "default=0,", "int"),
]


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What mypy says of every verb and of the copies with a fault, each line with the name of its file."""
    folder = tmp_path_factory.mktemp("verbs")
    lines = ["from fleetnet.cli import Verb"]
    for verb in VERBS:
        module = cli.find(verb)
        lines.append(f"import {module.__name__}")
        settings = f"{module.__name__}.{settings_of(module).__name__}"
        lines.append(
            f"of_{module.__name__.rpartition('.')[2]}: Verb[{settings}] = {module.__name__}"
        )
    for number, (verb, before, after, _) in enumerate(DRIFTS):
        text = (FOLDER / f"{verb}.py").read_text(encoding="utf-8")
        assert before in text
        text = re.sub(
            r"^( *from )\.\.(?=[\w ])", r"\1fleetnet.", text.replace(before, after, 1), flags=re.M
        )
        text = text.replace("from fleetnet. import", "from fleetnet import")
        text = re.sub(r"^( *from )\.(?=\w)", r"\1fleetnet.cli.", text, flags=re.M)
        (folder / f"copy_{number}.py").write_text(text, encoding="utf-8")
        settings = settings_of(cli.find(verb)).__name__
        lines.append(f"import copy_{number}")
        lines.append(f"drift_{number}: Verb[copy_{number}.{settings}] = copy_{number}")
    (folder / "checks.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", str(folder / "checks.py")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return "\n".join(
        f"{Path(line.partition(':')[0]).name} {lines[int(number) - 1] if 'checks.py' in line else ''} {line}"
        for line in done.stdout.splitlines()
        for number in re.findall(r"\.py:(\d+):", line)[:1]
    )


def test_every_verb_fits_the_contract(verdict: str):
    assert "of_" not in verdict
    assert "fleetnet/cli/" not in verdict


@pytest.mark.parametrize("number", range(len(DRIFTS)), ids=lambda i: f"{DRIFTS[i][0]}-{i}")
def test_a_verb_that_drifts_is_refused(number: int, verdict: str):
    of_it = [
        line
        for line in verdict.splitlines()
        if f"copy_{number}" in line or f"drift_{number}" in line
    ]
    assert any(DRIFTS[number][3] in line for line in of_it), verdict
