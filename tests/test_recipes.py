"""Recipes by name: what their comments say, how they are listed, and that each can be trained with."""

import json
import os
from pathlib import Path

import pytest

from fleetnet import recipes
from fleetnet.cli import main
from fleetnet.cli._table import SIZES
from fleetnet.errors import UsageError
from fleetnet.tasks import split_name
from fleetnet.training.checks import check_settings
from fleetnet.training.config import TrainConfig, read_recipe


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_says_what_it_is_and_can_be_read(name: str):
    recipe = recipes.about(name)
    assert recipe.title.endswith(".")
    assert recipe.command.startswith(f"fleetnet train --recipe {name} ")
    assert recipe.hardware
    assert recipe.differs or not recipe.is_published
    settings = read_recipe(recipes.locate(name))
    config = TrainConfig(**{"model": "fasternet_t0", "data": "shapes", **settings})
    task, backbone = split_name(config.model)
    check_settings(config, task, settings, processes=8)
    assert backbone in SIZES


def test_recipes_are_listed_and_shown(capsys):
    assert main(["recipes", "bccd_*", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])["recipes"]
    assert [recipe["name"] for recipe in listed] == ["bccd_ssd", "bccd_yolo"]
    assert not listed[0]["is_published"]
    assert main(["recipes", "nuclei"]) == 0
    shown = capsys.readouterr().out
    assert "mask AP 50.0" in shown
    assert "model: maskrcnn/fasternet_t0" in shown
    assert main(["recipes", "imagnet_of_nothing"]) == 2


def test_a_recipe_by_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ours = recipes.FOLDER / "nuclei.yaml"
    for name in ("nuclei", "nuclei.yaml", "recipes/nuclei.yaml"):
        assert recipes.locate(name) == ours
    monkeypatch.chdir(tmp_path)
    Path("nuclei").write_text("epochs: 3\n")
    assert os.path.samefile(recipes.locate("nuclei"), tmp_path / "nuclei")  # the user's own wins
    with pytest.raises(UsageError, match="did you mean 'nuclei'"):
        recipes.locate("nuclea")
    with pytest.raises(UsageError, match=r"no recipe 'mine/nuclei\.yaml'"):
        recipes.locate("mine/nuclei.yaml")


def test_comments_without_a_figure_are_an_error():
    with pytest.raises(UsageError, match="no line '# Published or Measured"):
        recipes.parse("x", "# A title.\n# Command: fleetnet train --recipe x\nepochs: 3\n")


def test_train_takes_a_recipe_by_name(tmp_path: Path):
    words = "train --recipe clothing10 --model fasternet_t0 --data shapes:12 --size 32 --epochs 1"
    run = tmp_path / "run"
    assert main([*words.split(), "--batch-size", "4", "--run", str(run)]) == 0
    assert read_recipe(run / "config.yaml")["lr"] == 0.05
