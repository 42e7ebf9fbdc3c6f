"""A few SIGKILLs at random moments; benchmarks/kills.py makes a hundred."""

import importlib.util
import os
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_killed_runs_come_to_the_same_end(tmp_path: Path):
    file = Path(__file__).parents[1] / "benchmarks" / "kills.py"
    spec = importlib.util.spec_from_file_location("kills", file)
    assert spec is not None
    assert spec.loader is not None
    kills = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kills)
    result = kills.campaign(3, 1, 1, tmp_path)
    assert sum(result.kills.values()) == 3
    assert (result.refused, result.differing) == ([], [])
