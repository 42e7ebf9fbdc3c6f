"""The Dockerfile, its context and benchmarks/container.py, which builds it without a daemon, agree."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from conftest import benchmark

from fleetnet.cli import VERBS, find
from fleetnet.cli._arguments import _flags, new_parser

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = ["ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"]


def steps() -> list[tuple[str, str]]:
    """(instruction, what follows) of each step, continued lines as one."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines()]


STEPS = steps()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("container")


def test_every_step_parses():
    assert {instruction for instruction, _ in STEPS} == set(INSTRUCTIONS)
    for instruction, text in STEPS:
        if instruction == "RUN":
            assert shlex.split(text), text
            assert text.count("${") == text.count("}")
        if instruction in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(text), list)
    names = [text.partition("=")[0] for instruction, text in STEPS if instruction == "ARG"]
    assert names == ["BASE", "TORCH", "EXTRAS"]
    for name in names:
        assert f"${{{name}" in DOCKERFILE  # each is read


def test_what_changes_least_comes_first_and_nothing_runs_as_root():
    order = [f"{instruction} {text}" for instruction, text in STEPS]

    def place(words: str) -> int:
        return next(i for i, step in enumerate(order) if words in step)

    assert "rm -r fleetnet build *.egg-info" in order[place("touch fleetnet/__init__.py")]
    with_stub = place("touch fleetnet/__init__.py")  # the packages that fleetnet needs
    assert place("install -c constraints.txt torch") < with_stub < place("COPY fleetnet fleetnet")
    after_user = STEPS[place("USER fleetnet") :]
    assert {instruction for instruction, _ in after_user} == {
        "USER",
        "WORKDIR",
        "ENTRYPOINT",
        "CMD",
    }
    assert "useradd --create-home --uid 1000 fleetnet" in DOCKERFILE


def test_the_context_holds_what_is_copied_and_no_more():
    copied = {
        word for instruction, text in STEPS if instruction == "COPY" for word in text.split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / path).exists() for path in copied)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {needed["readme"], *needed["license-files"]} <= copied
    (extras,) = re.findall(r"ARG EXTRAS=\[(.*)\]", DOCKERFILE)
    assert set(extras.split(",")) <= set(needed["optional-dependencies"])


def test_the_commands_of_the_head_are_ones_that_there_are():
    commands = re.findall(r"docker run .* fleetnet (.*)", DOCKERFILE)
    assert len(commands) == 2
    for command in commands:
        verb, *words = shlex.split(command)
        flags = _flags(new_parser(verb, VERBS[verb], find(verb)))
        assert {word for word in words if word.startswith("--")} <= set(flags)


def test_script_and_dockerfile_agree(script: ModuleType):
    assert script.DOCKERFILE == ROOT / "Dockerfile"
    assert ("ARG", f"BASE=debian:{script.SUITE}-slim") in STEPS
    entry = json.loads(dict(STEPS)["ENTRYPOINT"])
    words = script.run("c", ["demo"])
    assert words[words.index("--") + 1 :] == [*entry, "demo"]
    built = script.build(["TORCH=cu128"], ["/a:/b:ro"])
    arguments = [word.removeprefix("--build-arg=") for word in built if "--build-arg=" in word]
    assert arguments == [f"BASE={script.BASE}", "TORCH=cu128"]
    assert {word.partition("=")[0] for word in arguments} <= {
        text.partition("=")[0] for instruction, text in STEPS if instruction == "ARG"
    }
    assert built[-1] == str(ROOT)
    assert "--volume=/a:/b:ro" in built


def test_the_script_says_what_is_missing(script: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["container.py", "demo"])
    monkeypatch.setattr(script.shutil, "which", lambda program: None)
    with pytest.raises(SystemExit, match="buildah is missing: apt-get install"):
        script.main()
