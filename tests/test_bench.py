"""Measuring interleaves, keeps warm-up apart and says under which conditions."""

import gc
import json
import subprocess
import sys
import time

import pytest

from fleetnet.bench import Row, card, measure, ratios, warnings
from fleetnet.errors import UsageError

QUIET = {"load": 0.1, "cores": 4, "threads": 1, "governor": "performance"}


def test_rounds_are_interleaved_shuffled_and_repeatable():
    def run() -> str:
        seen: list[str] = []
        rows = measure({name: lambda n=name: seen.append(n) for name in "abc"}, runs=20, warmup=2)
        assert [(row.name, len(row.times)) for row in rows] == [("a", 20), ("b", 20), ("c", 20)]
        return "".join(seen)

    order = run()
    warm, timed = order[:6], order[6:]
    assert warm == "abcabc"
    rounds = [timed[i : i + 3] for i in range(0, 60, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 3
    assert run() == order


def test_times_are_milliseconds_of_the_call():
    row, other = measure({"slow": lambda: time.sleep(0.02), "fast": lambda: None}, runs=5, warmup=0)
    assert 20 <= row.median < 200
    assert other.median < 5
    assert ratios([row, other], "slow")["slow"] == 1
    assert ratios([row, other], "slow")["fast"] > 4


def test_statistics():
    row = Row("x", (5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 10.0, 9.0))
    assert row.to_dict() == {
        "name": "x", "runs": 10, "median_ms": 5.5, "p90_ms": 9.0, "mean_ms": 5.5, "min_ms": 1.0,
    }  # fmt: skip
    assert Row("one", (3.0,)).p90 == 3.0


def test_ratios_pair_the_rounds():
    """A machine that becomes ten times slower half-way does not change who is how much faster."""
    slow, fast = Row("slow", (2.0, 2.0, 20.0, 20.0)), Row("fast", (1.0, 1.0, 10.0, 10.0))
    assert ratios([slow, fast], "slow") == {"slow": 1, "fast": 2}
    assert ratios([slow, fast], "fast") == {"slow": 0.5, "fast": 1}


def test_a_budget_ends_after_whole_rounds():
    rows = measure({name: lambda: time.sleep(0.005) for name in "ab"}, runs=10_000, warmup=0, seconds=0.1)
    assert 5 <= len(rows[0].times) == len(rows[1].times) < 30
    assert len(measure({"a": lambda: time.sleep(0.001)}, runs=50, warmup=0, seconds=0)[0].times) == 5


def test_a_failing_call_is_raised_and_collection_goes_on():
    def failing() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure({"x": failing}, warmup=0)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("calls", "options", "message"),
    [
        ({}, {}, "nothing to measure"),
        ({"x": int}, {"runs": 0}, "runs is 0"),
        ({"x": int}, {"warmup": -1}, "warmup is -1"),
    ],
)
def test_usage_errors(calls, options, message):
    with pytest.raises(UsageError, match=message):
        measure(calls, **options)


def test_an_unknown_base_names_the_nearest():
    with pytest.raises(UsageError, match="no row 'onx' to compare with: did you mean 'onnx'"):
        ratios([Row("onnx", (1.0,))], "onx")


def test_card():
    conditions = card(threads=2)
    json.dumps(conditions)
    assert conditions["threads"] == 2
    assert conditions["cpu"]
    assert conditions["torch"].split(".")[0] >= "2"
    assert set(conditions) >= {"cores", "governor", "load", "platform", "python", "onnxruntime", "fleetnet"}


@pytest.mark.parametrize(
    ("change", "times", "message"),
    [
        ({}, (1.0, 1.1, 1.0), None),
        ({"load": 3.9}, (1.0,), "busy: load 3.9 on 4 cores"),
        ({"load": None, "governor": None}, (1.0,), None),
        ({"governor": "powersave"}, (1.0,), "governor is 'powersave'"),
        ({}, (1.0, 1.0, 2.0), "net spreads widely: p90 is 2.00 times the median"),
    ],
)
def test_warnings(change, times, message):
    found = warnings([Row("net", times)], {**QUIET, **change})
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


def test_the_module_loads_no_torch():
    code = "import sys, fleetnet.bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
