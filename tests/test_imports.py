"""The parts depend on each other in one direction only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fleetnet"
MAY_IMPORT = {  # a module or folder of the package -> what it may import of the package
    "synonyms": "",
    "errors": "synonyms",
    "reading": "",
    "fetching": "",
    "facts": "reading find errors",
    "find": "errors",
    "files": "errors",
    "boxes": "errors",
    "preprocess": "errors",
    "reparam": "errors",
    "bench": "errors",
    "bands": "errors",
    "images": "bands fetching reading errors",
    "scopes": "",
    "flops": "scopes errors",
    "devices": "bench reading errors",
    "report": "files errors",
    "page": "files",
    "layers": "reparam errors",
    "parc": "reparam errors",
    "backbones": "backbones layers parc reparam find errors synonyms",
    "data": "data images find reading errors",
    "transforms": "data images boxes preprocess errors",
    "loading": "transforms errors",
    "balance": "data errors",
    "augment": "transforms data boxes errors",
    "tasks": "tasks backbones layers boxes find reading errors synonyms",
    "weights": "weights tasks backbones reparam fetching files reading find errors",
    "checkpoint": "facts tasks transforms weights reparam files reading errors __init__",
    "runtimes": "runtimes facts scopes boxes reparam parc files reading find errors",
    "realistic": "",
    "predict": "checkpoint weights reparam reading images runtimes tasks transforms boxes find "
    "errors",
    "training": "training augment balance boxes checkpoint data facts images loading page predict "
    "preprocess report tasks transforms files reading find errors __init__",
    "equalize": "",
    "int8": "int8 runtimes find reading errors",
    "quantize": "loading int8 equalize checkpoint weights runtimes predict training transforms "
    "tasks reparam files reading find errors",
    "cli": "cli backbones bench boxes checkpoint data devices errors files reading find flops "
    "preprocess training images loading predict quantize realistic reparam report runtimes "
    "synonyms tasks transforms weights __init__",
    "__init__": "data errors predict reparam training transforms weights",
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
