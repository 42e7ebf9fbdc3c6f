"""A few SIGKILLs, at random moments and while a checkpoint is written; benchmarks/kills.py makes hundreds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BENCHMARKS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_killed_runs_come_to_the_same_end(tmp_path: Path):
    """In a process of its own: torch refuses to train in a fork of one that has trained."""
    words = ["--kills", "2", "--runs", "1", "--writes", "1", "--seed", "1"]
    command = [sys.executable, str(BENCHMARKS / "kills.py"), *words, "--folder", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert (told["kills"], told["writes"]["kills"]) == (2, 1)
    assert [told["refused"], told["differing"], told["writes"]["unreadable"]] == [[], [], []]
