"""docs/coming-from.md: every name of ours is there, and what other tools call it is answered with it."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from jsonargparse import ArgumentParser

from fleetnet.cli import VERBS, find, main
from fleetnet.cli._arguments import _check_words, _flags, new_parser
from fleetnet.errors import UsageError
from fleetnet.training.config import KEYS, TrainConfig, read_recipe

PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"


class Row(NamedTuple):
    verb: str  # empty for a table of commands
    theirs: list[str]
    ours: list[str]
    note: str


def rows() -> list[Row]:
    listed, verb = [], ""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 3 or cells[0].startswith("---"):
            continue
        theirs, ours = (re.findall(r"`([^`]+)`", cell) for cell in cells[:2])
        if not theirs:
            verb = cells[1].removeprefix("fleetnet").strip()
            continue
        listed.append(Row(verb, theirs, ours, cells[2]))
    return listed


ROWS = rows()
PARSERS = {row.verb: new_parser(row.verb, "", find(row.verb)) for row in ROWS if row.verb}
SETTINGS = [
    (row.verb, theirs, row.ours[place] if len(row.ours) > 1 else "".join(row.ours))
    for row in ROWS
    if row.verb
    for place, theirs in enumerate(row.theirs)
]


def answer(parser: ArgumentParser, verb: str, theirs: str) -> str:
    """What the command line says to a flag of theirs, a key behind PaddleClas's -o, or a key of their YAML."""
    words = [theirs, "1"] if theirs.startswith("-") else ["-o", f"{theirs}=1"]
    with pytest.raises(UsageError) as raised:
        _check_words(verb, parser, words)
    return str(raised.value)


def test_the_page_has_tables_of_all_four():
    text = PAGE.read_text()
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == [
        "PaddleClas",
        "CVNets",
        "YOLOv5",
        "timm",
    ]
    assert len(SETTINGS) > 130
    assert {verb for verb, _, _ in SETTINGS} == {"train", "predict", "export"}


def test_rows_of_several_words_have_one_answer_or_one_each():
    for row in ROWS:
        assert len(row.ours) in (0, 1, len(row.theirs)) or not row.verb, row


@pytest.mark.parametrize(("verb", "theirs", "ours"), SETTINGS, ids=[each[1] for each in SETTINGS])
def test_a_word_of_theirs_is_answered_with_ours(verb: str, theirs: str, ours: str):
    flags = _flags(PARSERS[verb])
    if ours:
        assert ours in flags
    if theirs in flags:  # the same here
        assert ours
        return
    said = answer(PARSERS[verb], verb, theirs)
    if ours:
        assert re.search(rf"{ours}\b(?!-)", said), said
    else:
        assert "nearest" not in said, said  # neither known nor told what to do instead


def test_commands_and_notes_name_verbs_and_flags_that_are_there():
    commands = [ours for row in ROWS if not row.verb for ours in row.ours]
    assert len(commands) > 15
    for command in commands:
        verb = command.split()[1]
        assert verb in VERBS, command
        here = [*_flags(new_parser(verb, "", find(verb))), "--KEY"]
        assert set(re.findall(r"--[\w-]+", command)) <= set(here), command
    for row in ROWS:
        for flag in re.findall(r"`[^`]*?(--[\w-]+)", row.note):
            assert flag in (*_flags(PARSERS["train"]), *row.theirs, "--clip-grad"), row


PADDLE = """
Global: {epochs: 20, save_interval: 1, pretrained_model: weights, image_shape: [3, 224, 224]}
Arch: {name: MobileOne_S0, class_num: 102}
Optimizer:
  name: Momentum
  momentum: 0.9
  lr: {name: Cosine, learning_rate: 0.0125, warmup_epoch: 5}
  regularizer: {name: L2, coeff: 0.00001}
DataLoader:
  Train:
    dataset: {name: ImageNetDataset, image_root: ./flowers102/}
    sampler: {name: DistributedBatchSampler, batch_size: 32}
"""


def test_a_file_with_sections_is_answered_with_our_names(tmp_path: Path):
    path = tmp_path / "paddle.yaml"
    path.write_text(PADDLE)
    with pytest.raises(UsageError) as raised:
        read_recipe(path)
    assert str(raised.value).endswith(
        "unknown key 'Global': a recipe has no sections. By our names it has epochs: 20; weights: "
        "weights; model: MobileOne_S0; optimizer: Momentum; momentum: 0.9; schedule: Cosine; lr: "
        "0.0125; warmup_epochs: 5; weight_decay: 1e-05; data: ./flowers102/; batch_size: 32"
    )


def test_a_section_of_nothing_that_is_known_is_answered_by_spelling(tmp_path: Path):
    path = tmp_path / "other.yaml"
    path.write_text("epoch: {a: 1}\n")
    with pytest.raises(UsageError, match="did you mean 'epochs'"):
        read_recipe(path)


def test_settings_of_paddleclas_are_written_as_flags(capsys: pytest.CaptureFixture[str]):
    words = "train -o Arch.name=fasternet_t0 -o Optimizer.lr.learning_rate=0.1 -o Global.epochs=3"
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert "write --model fasternet_t0 --lr 0.1 --epochs 3" in said
    assert {"model", "lr", "epochs"} <= KEYS
    assert TrainConfig(lr=0.1, epochs=3).lr == 0.1
