"""Facts: what is read is written again as it was; no other file asks for them by a key."""

import ast
import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from support.described import CHECKPOINTS, EXPORTED, Description, recording

from fleetnet import facts
from fleetnet.errors import ModelError
from fleetnet.facts import OWN_HASH, RULES, Exported, Facts, FileFacts

ROOT = Path(__file__).parents[1] / "fleetnet"
FILES = sorted(file for file in ROOT.rglob("*.py") if file.name != "facts.py")
PARTS = {
    **{name: [name] for name in CHECKPOINTS},
    **{f"{name} {part}": [name, part] for name in EXPORTED for part in ("inside", "beside")},
}


def described(words: list[str]) -> Description:
    about = recording(words[0])
    return about[words[1]] if len(words) > 1 else about


@pytest.mark.parametrize("words", PARTS.values(), ids=PARTS)
def test_what_is_read_is_written_again(words: list[str]) -> None:
    """Key for key, but for the hash, which is of the text; what an older file lacks gets its usual value."""
    about = described(words)
    again = Facts.from_json(about, "a.json").to_json()
    about.pop(OWN_HASH, None)
    if words == ["version_0_1"]:
        usual = {"format": 0, "category_ids": None, "settings": {}, "source": None}
        about |= {**usual, "size": [64, 64], "preprocess": {**about["preprocess"], "mode": "crop"}}
    assert again == about
    assert Facts.from_json(again, "a.json") == Facts.from_json(about, "a.json")


def test_keys_that_are_not_known_stay_where_they_were() -> None:
    about = recording("ssd")
    about["source"]["paper"] = "arXiv:1704.04861"
    about["others"] = {"of": "another program"}
    read = Facts.from_json(about, "a.json")
    assert read.others == {"others": {"of": "another program"}}
    assert read.to_json() == about


def test_what_is_written_of_a_file_without_a_version_can_be_read() -> None:
    about = recording("ssd")
    del about["version"]
    read = Facts.from_json(about, "a.json")
    assert Facts.from_json(read.to_json(), "a.json") == read


WRONG: list[tuple[str, Any, str]] = [
    ("limits", {"nms": "a lot"}, "max_objects, nms, score and only"),
    ("limits", {"max_object": 5}, "max_objects, nms, score and only"),
    ("source", 5, "null, or a mapping"),
    ("outputs", [{"name": "logits", "dtype": 32}], "a list of mappings"),
    ("sizes", {"step": 8, "least": 8, "largest": 64, "made_at": 32}, "step, least and largest"),
    ("int8", {"float": {"top1": "all"}}, "null, or a mapping"),
    ("opset", "20", "null, or a whole number"),
    ("unverified", 5, "null, or text"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), WRONG)
def test_a_wrong_value_is_named(key: str, value: object, allowed: str) -> None:
    about = {**recording("onnx_int8")["beside"], key: value}
    with pytest.raises(ModelError, match=f"a.json: its description says {key} is .*{allowed}"):
        Facts.from_json(about, "a.json")


def test_each_key_has_a_rule() -> None:
    """A field that is read without a check would fail far from its cause."""
    keys = {
        field.name for kind in (Facts, Exported, FileFacts) for field in dataclasses.fields(kind)
    }
    parts = {"exported", "file", "others"}  # of which `file` is a key too: the name
    other_names = {"name": "file", "made_at": "sizes"}
    assert {other_names.get(key, key) for key in keys - parts} <= RULES.keys()
    assert get_type_hints(Facts)["exported"] == Exported | None


KEYS = {field.name for field in dataclasses.fields(Facts)} | set(RULES)
NAMES = {"facts", "meta", "about_file", "sidecar", "beside", "inside"}


def keys_asked(tree: ast.AST) -> list[str]:
    """Accesses such as facts["task"], loaded.meta.get("form") and predictor.facts["classes"]."""
    asked = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            value, key = node.value, node.slice
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("get", "pop", "setdefault")
            and node.args
        ):
            value, key = node.func.value, node.args[0]
        else:
            continue
        name = getattr(value, "id", getattr(value, "attr", ""))
        if name in NAMES and isinstance(key, ast.Constant) and key.value in KEYS:
            asked.append(f"line {node.lineno}: {ast.unparse(node)}")
    return asked


def test_the_search_sees_each_kind_of_access() -> None:
    code = "facts['task'], loaded.meta.get('form'), predictor.facts['classes'], node.meta['val']"
    assert len(keys_asked(ast.parse(code))) == 3


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_asks_for_facts_by_a_key(file: Path) -> None:
    assert not keys_asked(ast.parse(file.read_text(encoding="utf-8")))


def test_the_module_says_what_each_part_is() -> None:
    said = facts.__doc__ or ""
    assert all(part in said for part in ("Facts", "Source", "Exported", "FileFacts", "Int8"))


@pytest.mark.parametrize(
    "source", [{"weights": "x", "license": ["mit"]}, {"weights": 3}, {"by": "me"}, {}]
)
def test_whatever_is_said_of_the_weights_that_a_training_started_from_can_be_read(source) -> None:
    """`fit(source=...)` takes any mapping; the end of a training is too late to refuse it."""
    about = {**recording("ssd"), "source": source}
    read = Facts.from_json(about, "x.safetensors")
    assert read.to_json()["source"] == {"weights": None, "license": None, **source}
