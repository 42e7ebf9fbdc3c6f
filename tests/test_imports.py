"""The parts depend on each other in one direction only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fleetnet"
MAY_IMPORT = {  # a module or folder of the package -> what it may import of the package
    "synonyms": "",
    "errors": "synonyms",
    "processes": "errors",
    "launched": "errors",
    "find": "errors",
    "bands": "errors",
    "channels": "errors",
    "fetching": "",
    "reading": "",
    "resident": "",
    "stacks": "bands channels errors",
    "images": "bands channels errors fetching jpeg reading stacks",
    "data": "data errors files find images reading",
    "recipes": "errors reading",
    "boxes": "errors",
    "geometry": "",
    "facts": "__init__ errors find preprocess reading sizes",
    "rle": "",
    "predictions": "boxes errors geometry report rle",
    "files": "errors",
    "sizes": "errors",
    "jpeg": "",
    "resizing": "",
    "preprocess": "channels errors geometry images resizing sizes",
    "inputs": "channels data errors geometry images inputs jpeg preprocess processes reading resizing sizes",
    "review": "channels data errors images inputs reading review",
    "reparam": "errors",
    "norms": "processes",
    "merged": "errors norms processes",
    "layers": "errors merged reparam",
    "replacing": "errors",
    "circular": "",
    "parc": "circular errors reparam replacing",
    "pconv": "replacing",
    "backbones": "backbones channels errors find layers merged parc pconv preprocess reparam replacing "
    "synonyms",
    "tasks": "backbones boxes channels errors facts find layers predictions preprocess processes reading rle synonyms "
    "tasks",
    "weights": "backbones channels errors facts fetching files find preprocess reading reparam tasks "
    "weights",
    "checkpoint": "errors facts files preprocess reading reparam tasks weights",
    "proof": "errors predictions proof reparam",
    "runtimes": "circular errors facts find parc proof reading runtimes sizes",
    "deploy": "boxes channels checkpoint deploy errors facts files find geometry images predictions "
    "preprocess proof reading reparam runtimes tasks weights",
    "report": "errors files report",
    "training": "__init__ boxes channels checkpoint data errors facts files find images inputs launched merged "
    "norms predictions preprocess processes reading report resident resizing review sizes synonyms tasks training "
    "weights",
    "__init__": "data deploy errors preprocess reparam training weights",
    "int8": "boxes data deploy errors facts files find images inputs int8 merged predictions preprocess proof reading "
    "reparam runtimes tasks training weights",
    "measure": "backbones channels circular data deploy errors find images inputs measure predictions proof "
    "reading reparam resident review runtimes sizes tasks training weights",
    "cli": "__init__ backbones channels checkpoint cli data deploy errors facts files find images inputs "
    "int8 launched measure predictions preprocess processes proof reading recipes reparam report resident review rle "
    "runtimes sizes synonyms tasks training weights",
    "__main__": "cli",
}
FILES = sorted(ROOT.rglob("*.py"))


def part(file: Path) -> str:
    return file.relative_to(ROOT).with_suffix("").parts[0]


def imported(file: Path) -> set[str]:
    """The parts of the package that a file imports, at any depth of its code."""
    parts = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            outside = node.level == len(file.relative_to(ROOT).parts)
            names = [node.module] if node.module else [alias.name for alias in node.names]
            names = ["__init__" if name == "__version__" else name for name in names]
            parts |= {name.split(".")[0] for name in names} if outside else {part(file)}
    return parts


def test_no_permission_is_left_unused():
    used: dict[str, set[str]] = {name: set() for name in MAY_IMPORT}
    for file in FILES:
        used[part(file)] |= imported(file)
    assert {name: set(allowed.split()) for name, allowed in MAY_IMPORT.items()} == used


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_one_way(file):
    assert imported(file) <= set(MAY_IMPORT[part(file)].split())
