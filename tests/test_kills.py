"""A few SIGKILLs at random moments; benchmarks/kills.py makes a hundred."""

import os
from pathlib import Path

import pytest
from conftest import benchmark


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_killed_runs_come_to_the_same_end(tmp_path: Path):
    kills = benchmark("kills")
    result = kills.campaign(3, 1, 1, tmp_path)
    assert sum(result.kills.values()) == 3
    assert (result.refused, result.differing) == ([], [])
