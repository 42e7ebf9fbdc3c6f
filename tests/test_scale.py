"""docs/scale.md: its commands have flags that there are, and its table is by the formula above it."""

import math
import re
from pathlib import Path

from fleetnet import recipes
from fleetnet.cli import VERBS, find
from fleetnet.cli._arguments import _flags, new_parser

PAGE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()


def test_commands_have_flags_and_recipes_that_there_are():
    blocks = "".join(re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    commands = re.findall(r"fleetnet ((?:train|data \w+) .*)", blocks.replace("\\\n", " "))
    assert len(commands) == 5
    for command in commands:
        verb = next(verb for verb in VERBS if command.startswith(f"{verb} "))
        flags = _flags(new_parser(verb, "", find(verb)))
        assert set(re.findall(r"--[a-z-]+", command)) <= set(flags), command
        assert set(re.findall(r"--recipe (\w+)", command)) <= set(recipes.names())
    launched = re.findall(r"(?:torchrun|accelerate launch) .*", blocks.replace("\\\n", " "))
    assert len(launched) == 3
    for command in launched:
        assert " -m fleetnet " in command or " -m -- fleetnet " in command
        # torchrun's own flags may be shortened, --run to --run-path
        assert command.startswith("accelerate") or " -m -- " in command
    train = _flags(new_parser("train", "", find("train")))
    prose = re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    # docker's, a benchmark's, torchrun's
    others = {"--shm-size", "--build-arg", "--rounds", "--large", "--max-restarts"}
    assert set(re.findall(r"(?<=[` ])--[a-z][a-z-]+", prose)) <= {*train, *others}


def test_the_table_is_by_the_formula():
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ")]
    head, *measured = rows
    speeds = [float(cell.replace("G =", "")) for cell in head[2:]]
    assert len(measured) == 5
    for _, rate, *cores in measured:
        assert [int(cell) for cell in cores] == [math.ceil(g / float(rate)) + 1 for g in speeds]
