"""Measuring interleaves, keeps warm-up apart and says under which conditions; a busy machine is seen and told.

Busy machines are pretended: their clocks move when a call says so.
"""

import csv
import gc
import itertools
import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fleetnet.cli.bench as cli
from fleetnet.cli import main
from fleetnet.errors import ExportError, ModelError, UsageError
from fleetnet.measure import latency
from fleetnet.measure.candidates import Subject
from fleetnet.measure.flops import Counts
from fleetnet.measure.latency import (
    Row,
    card,
    measure,
    ratios,
    spearman,
    uncertainty,
    warnings,
    watch,
)
from fleetnet.report import figures

QUIET = {"load": 0.1, "cores": 4, "threads": 1, "governor": "performance"}
MS = 1_000_000  # nanoseconds


class Machine:
    """Clocks of a machine where calls compute, and where others take the core for some time after every 3 ms."""

    def __init__(self, busy: float, seed: int = 0):
        self.wall = self.cpu = self.interrupted = 0
        self.busy, self.random = busy, random.Random(seed)

    def clocks(self) -> tuple[int, int, int]:
        return self.wall, self.cpu, self.interrupted

    def work(self, milliseconds: float, threads: int = 1) -> Callable[[], None]:
        def call() -> None:
            left = milliseconds * self.random.lognormvariate(0, 0.02)
            while left > 0:
                share = min(left, 3.0)
                self.wall += round(share * MS)
                self.cpu += round(share * MS) * threads
                if self.random.random() < self.busy:
                    self.interrupted += 1
                    self.wall += round(self.random.expovariate(1 / 6) * MS)
                left -= share

        return call

    def measure(
        self, monkeypatch: pytest.MonkeyPatch, runs: int = 100, **calls: float
    ) -> list[Row]:
        monkeypatch.setattr(latency, "_clocks", self.clocks)
        return measure({name: self.work(length) for name, length in calls.items()}, runs, warmup=1)


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
    row = Row("x", (5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 10.0, 9.0), (0.0,) * 9 + (5.5,))
    assert row.to_dict() == {
        "name": "x", "threads": 1, "runs": 10, "median_ms": 5.5, "p90_ms": 9.0, "mean_ms": 5.5, "min_ms": 1.0,
        "images_per_second": 1000 / 5.5, "working_ms": 4.5, "waited": 0.1,
    }  # fmt: skip
    assert Row("one", (3.0,)).p90 == 3.0
    assert Row("one", (3.0,)).to_dict()["waited"] is None


def test_ratios_pair_the_rounds():
    """A machine that becomes ten times slower half-way does not change who is how much faster."""
    slow, fast = Row("slow", (2.0, 2.0, 20.0, 20.0)), Row("fast", (1.0, 1.0, 10.0, 10.0))
    assert ratios([slow, fast], "slow") == {"slow": 1, "fast": 2}
    assert ratios([slow, fast], "fast") == {"slow": 0.5, "fast": 1}


def test_waiting_is_told_from_working(monkeypatch):
    """The longer call is interrupted more often, so that the wall clock is unfair to it."""
    rows = Machine(busy=0.6).measure(monkeypatch, short=2.0, long=20.0)
    short, long = (row.to_dict() for row in rows)
    assert short["median_ms"] < 5 < 35 < long["median_ms"]
    assert (short["working_ms"], long["working_ms"]) == (
        pytest.approx(2, rel=0.02),
        pytest.approx(20, rel=0.02),
    )
    assert long["waited"] == pytest.approx(0.56, abs=0.05)  # 7 chances of 6 ms each with 20 ms
    assert ratios(rows, "long")["short"] == pytest.approx(10, rel=0.02)
    assert any("too busy: calls waited" in text for text in warnings(rows, QUIET))


def test_two_runs_agree_or_say_that_the_machine_was_busy(monkeypatch):
    calls = {"a": 2.0, "b": 5.0, "c": 30.0}
    idle = Machine(0.01, 1).measure(monkeypatch, **calls)
    assert warnings(idle, QUIET) == []
    busy = Machine(0.7, 2).measure(monkeypatch, **calls)
    assert "too busy" in " ".join(warnings(busy, QUIET))
    for name in calls:
        assert ratios(busy, "c")[name] == pytest.approx(ratios(idle, "c")[name], rel=0.03)
    walls = [ratios([Row(row.name, row.times) for row in rows], "c")["a"] for rows in (idle, busy)]
    assert walls[1] > 1.15 * walls[0]  # what the wall clock alone would say


def test_calls_of_several_threads_do_not_know_their_waiting(monkeypatch):
    machine = Machine(busy=0.6)
    monkeypatch.setattr(latency, "_clocks", machine.clocks)
    monkeypatch.setattr(latency, "_settle", lambda: None)
    calls = {"one": machine.work(6), "two": machine.work(6, threads=2), "gpu": machine.work(6)}
    rows = measure(calls, 50, 0, threads={"two": 2, "gpu": 0})
    assert [(row.threads, row.waited is None) for row in rows] == [(1, False), (2, True), (0, True)]
    assert (
        ratios(rows, "one")["two"]
        == ratios([Row(row.name, row.times) for row in rows], "one")["two"]
    )
    [torn] = [text for text in warnings(rows, QUIET) if "interrupted" in text]
    assert "two and 1 more" in torn


def test_pauses_only_among_threads(monkeypatch):
    pauses = []
    monkeypatch.setattr(latency, "_settle", lambda: pauses.append(1))
    measure({"a": int, "b": int}, 3, 1)
    assert not pauses
    measure({"a": int, "b": int}, 3, 1, threads={"b": 2})
    assert len(pauses) == 8


@pytest.mark.parametrize(("spins", "sleeps"), [(0, 1), (3, 4), (1000, 50)])
def test_settling_waits_for_threads_that_spin(spins, sleeps, monkeypatch):
    state = SimpleNamespace(slept=0)

    def sleep(seconds: float) -> None:
        assert seconds == latency.QUIET
        state.slept += 1

    clock = SimpleNamespace(
        sleep=sleep,
        perf_counter=lambda: state.slept * latency.QUIET,
        process_time=lambda: min(state.slept, spins) * latency.QUIET,
    )
    monkeypatch.setattr(latency, "time", clock)
    latency._settle()
    assert state.slept == pytest.approx(sleeps, abs=1)


def test_what_is_prepared_is_not_timed():
    seen: list[str] = []

    def prepare(name: str) -> None:
        seen.append(f"prepare {name}")
        time.sleep(0.02)

    [row] = measure({"x": lambda: seen.append("call")}, 3, 1, prepare=prepare)
    assert seen == ["prepare x", "call"] * 4
    assert row.median < 15


def noise(
    name: str,
    seed: int,
    width: float = 0.2,
    runs: int = 100,
    factor: Callable[[int], float] = lambda i: 1,
) -> Row:
    generator = random.Random(seed)
    times = tuple(10 * factor(i) * generator.lognormvariate(0, width) for i in range(runs))
    return Row(name, times)


def test_uncertainty_covers_what_another_run_gives():
    """Of many pairs of runs, about 95 % of the ratios are as close as each run says."""
    found = []
    for seed in range(0, 1200, 4):
        first, second = ([noise("a", seed + i), noise("b", seed + i + 1)] for i in (0, 2))
        by = uncertainty(first, "a")["b"]
        found.append(
            abs(math.log(ratios(first, "a")["b"] / ratios(second, "a")["b"])) <= math.log1p(by)
        )
    assert 0.90 <= sum(found) / len(found) <= 0.99


def test_uncertainty_grows_where_one_slows_down_for_a_while():
    steady = [noise("a", 0, 0.01), noise("b", 1, 0.01)]
    assert uncertainty(steady, "a")["b"] < 0.02
    assert warnings(steady, QUIET) == []
    slow = [steady[0], noise("b", 1, 0.01, factor=lambda i: 1.6 if 30 <= i < 70 else 1)]
    assert uncertainty(slow, "a")["b"] > latency.AGREE
    [text] = [text for text in warnings(slow, QUIET) if "another run" in text]
    assert "ratios to a may differ by more than 10%: of b" in text
    both = [
        noise(name, i, 0.01, factor=lambda i: 1.6 if 30 <= i < 70 else 1)
        for i, name in enumerate("ab")
    ]
    assert uncertainty(both, "a")["b"] < 0.02  # the machine slowed down, for both


def test_too_few_rounds_say_nothing_of_their_uncertainty():
    assert uncertainty([noise("a", 0, runs=9)], "a") == {"a": None}
    assert uncertainty([noise("a", 0, runs=10), noise("b", 1, runs=10)], "a")["b"] > 0


# Of three places on both sides, 2 of 6 orders have rho of 1 or -1. The 22 pairs:
# scipy.stats.spearmanr gives rho 0.4468 and, by its approximation, p 0.037.
X = [
    2.0,
    -2.6,
    0.4,
    -0.6,
    -0.5,
    -0.2,
    -2.0,
    -0.2,
    -0.9,
    3.3,
    0.2,
    -0.4,
    -0.3,
    -0.7,
    -1.1,
    -0.4,
    0.5,
    -0.2,
    1,
    -0.2,
    0,
    1.5,
]
Y = [
    1.6,
    -1.8,
    0,
    0.3,
    1.7,
    -0.4,
    -1.3,
    0.9,
    -1.3,
    1.4,
    1,
    0.4,
    0,
    0.3,
    -3.4,
    0.8,
    -0.7,
    -1.8,
    0.8,
    0.6,
    -0.4,
    -0.3,
]


@pytest.mark.parametrize(
    ("a", "b", "rho", "p"),
    [
        ([1, 2, 3], [10, 20, 30], 1, 2 / 6),
        ([1, 2, 3], [30, 20, 10], -1, 2 / 6),
        ([1, 2, 3, 4], [2, 4, 6, 1000], 1, 2 / 24),
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.8207826816681233, 16 / 120),
        (X, Y, 0.44680896012191024, 0.037),
    ],
)
def test_rank_correlation(a, b, rho, p):
    found = spearman(a, b)
    assert found == (pytest.approx(rho), pytest.approx(p, abs=0.003))
    assert spearman(b, a) == (pytest.approx(rho), pytest.approx(p, abs=0.003))
    assert spearman(a, b) == found


def test_rank_correlation_of_what_does_not_vary():
    assert spearman([1, 2, 3], [5, 5, 5]) is None
    with pytest.raises(UsageError, match="2 and 2 values to correlate"):
        spearman([1, 2], [1, 2])


def test_a_budget_ends_after_whole_rounds():
    rows = measure(
        {name: lambda: time.sleep(0.005) for name in "ab"}, runs=10_000, warmup=0, seconds=0.1
    )
    assert 5 <= len(rows[0].times) == len(rows[1].times) < 30
    assert (
        len(measure({"a": lambda: time.sleep(0.001)}, runs=50, warmup=0, seconds=0)[0].times) == 5
    )


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
    assert set(conditions) >= {
        "cores",
        "governor",
        "load",
        "platform",
        "python",
        "onnxruntime",
        "fleetnet",
    }


def test_card_has_the_versions_asked_for():
    assert card(1, ["onnx", "no-such-package"])["no-such-package"] is None
    assert card(1, ["onnx"])["onnx"]
    assert "torch" not in card(1, ["onnx"])


STAT = "cpu  {user} 0 100 5000 {iowait} 0 3 {steal} 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"


def test_watching_tells_what_others_used(monkeypatch):
    """In 10 s two programs computed, one of them this one for 8 s, and the host took a core for 1 s."""
    ticks = latency.os.sysconf("SC_CLK_TCK")
    clock = SimpleNamespace(perf_counter=lambda: state.wall, process_time=lambda: state.own)
    state = SimpleNamespace(wall=100.0, own=3.0, stat=STAT.format(user=1000, iowait=10, steal=50))
    monkeypatch.setattr(latency, "time", clock)
    monkeypatch.setattr(latency, "_read", lambda path: state.stat if path == "/proc/stat" else None)
    monkeypatch.setattr(latency.os, "cpu_count", lambda: 4)
    during = watch()
    state.wall, state.own, state.stat = (
        110.0,
        11.0,
        STAT.format(user=1000 + 20 * ticks, iowait=9 * ticks, steal=50 + ticks),
    )
    told = during()
    assert told["others"] == pytest.approx(1.2)
    assert told["stolen"] == pytest.approx(0.025)
    assert isinstance(told["load"], float)


def test_watching_without_proc_tells_nothing(monkeypatch):
    monkeypatch.setattr(latency, "_read", lambda path: None)
    told = watch()()
    assert (told["others"], told["stolen"]) == (None, None)
    assert warnings([Row("net", (1.0,))], QUIET, told) == []


def test_watching_this_machine():
    told = watch()()
    json.dumps(told)
    assert told["others"] is None or told["others"] >= 0


@pytest.mark.parametrize(
    ("change", "during", "times", "message"),
    [
        ({}, {}, (1.0, 1.1, 1.0), None),
        ({"load": 3.9}, {}, (1.0,), "busy: load 3.9 on 4 cores"),
        ({"load": None, "governor": None}, {}, (1.0,), None),
        ({"load": None, "cores": None, "governor": None}, {"others": 3.0}, (1.0,), None),
        ({"governor": "powersave"}, {}, (1.0,), "governor is 'powersave'"),
        ({}, {}, (1.0, 1.0, 2.0), "net spreads widely: p90 is 2.00 times the median"),
        ({}, {"others": 3.05, "stolen": 0.0}, (1.0,), None),
        (
            {},
            {"others": 3.2, "stolen": 0.0},
            (1.0,),
            "was busy: other programs used 3.2 of 4 cores",
        ),
        (
            {"threads": 4},
            {"others": 0.4, "stolen": None},
            (1.0,),
            "other programs used 0.4 of 4 cores",
        ),
        ({}, {"others": 0.0, "stolen": 0.05}, (1.0,), "virtual machine gave 5% of its cores"),
    ],
)
def test_warnings(change, during, times, message):
    found = warnings([Row("net", times)], {**QUIET, **change}, during)
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


def test_many_wide_rows_are_one_warning():
    rows = [Row(name, (1.0, 1.0, times)) for name, times in (("a", 2.0), ("b", 3.0), ("c", 1.0))]
    assert warnings(rows, QUIET) == ["b and 1 more spreads widely: p90 is 3.00 times the median"]


def test_the_module_loads_no_torch():
    code = "import sys, fleetnet.measure.latency; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- fleetnet bench --------------------------------------------------------------------------------------------------


def last_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


SHORT = ["--size", "32", "--runs", "3", "--warmup", "1", "--json"]


def test_forms_runtimes_precisions_and_threads_in_one_table(run: Path, capsys, tmp_path: Path):
    pytest.importorskip("openvino")
    words = (
        f"--model {run} --to openvino:bf16 --forms deploy --threads 1,2 --csv {tmp_path / 't.csv'}"
    )
    assert main(["bench", *words.split(), "--runs", "2", "--warmup", "0", "--json"]) == 0
    found = last_json(capsys)
    ways = itertools.product(("torch", "openvino-bf16"), ("1 thread", "2 threads"))
    names = [f"{run} deploy ({runtime}, {threads})" for runtime, threads in ways]
    assert [row["name"] for row in found["rows"]] == names
    assert [row["threads"] for row in found["rows"]] == [1, 2] * 2
    assert [row["waited"] is None for row in found["rows"]] == [False, True] * 2
    assert found["conditions"]["openvino"]
    assert "onnxruntime" not in found["conditions"]  # that decides nothing here
    assert found["conditions"]["threads"] == 2
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == names
    assert float(rows[0]["images_per_second"]) == pytest.approx(1000 / float(rows[0]["median_ms"]))
    assert {row["MACs"] for row in rows} == {str(found["rows"][0]["MACs"])}


def test_conditions_are_printed_before(run: Path, capsys, monkeypatch):
    monkeypatch.setattr(latency, "measure", lambda *_, **__: 1 / 0)
    assert main(["bench", "--model", str(run), "--to", "none", *SHORT]) == 1
    assert capsys.readouterr().out.startswith("conditions: cpu ")


def subjects(
    count: int, form: str = "deploy", title: str = "onnx"
) -> tuple[list[Row], dict[str, Subject]]:
    """Networks n0, n1, ... of which each has more MACs and fewer parameters, and takes longer, than the one before."""
    rows, by_name = [], {}
    for i in range(count):
        sizes = Counts(100 - i, 10 * i, activations=7, bytes=(i * 3) % count)
        subject = Subject(f"n{i}", form, "onnx", title, 1, (32, 32), int, ("top1", 70.0 + i), sizes)
        by_name[subject.name(False)] = subject
        rows.append(Row(subject.name(False), (9.0 + i, 8.0 + i), (3.0, 2.0)))
    return rows, by_name


def test_correlations_are_of_networks_in_the_same_runtime(capsys):
    rows, by_name = subjects(5)
    few, others = subjects(4, title="mnn")
    [found] = cli._correlate([*rows, *few], {**by_name, **others})
    assert (found["form"], found["runtime"], found["threads"], found["networks"]) == (
        "deploy",
        "onnx",
        1,
        5,
    )
    assert found["MACs"] == {"rho": pytest.approx(1), "p": pytest.approx(2 / 120)}
    assert found["parameters"] == {"rho": pytest.approx(-1), "p": pytest.approx(2 / 120)}
    assert found["activations"] is None
    assert found["bytes"]["rho"] == pytest.approx(spearman(range(5), [0, 3, 1, 4, 2])[0])
    shown = capsys.readouterr().out
    assert "deploy (onnx, threads: 1), 5 networks" in shown
    assert "-1.00 (p 0.017)" in shown


def test_the_plot_is_of_deploy_forms_and_their_working_time(capsys, tmp_path: Path):
    rows, by_name = subjects(3)
    _, multi = subjects(2, "multi-branch", "torch")
    several = [Row(name, (0.1, 0.1)) for name in multi]  # the fastest of all
    by_name["n2 deploy (onnx)"] = replace(by_name["n2 deploy (onnx)"], accuracy=("accuracy", 60.0))
    cli._plot([*rows, *several], {**by_name, **multi}, str(tmp_path / "p.png"))
    shown = capsys.readouterr()
    assert shown.out == f"Pareto front, in {tmp_path / 'p.png'}: n0 (onnx), n1 (onnx)\n"
    assert "mixes accuracies of different kinds: accuracy, top1" in shown.err
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_the_front_is_what_nothing_as_fast_beats(tmp_path: Path):
    found = [("a", 1, 70), ("b", 2, 69), ("c", 2, 75), ("d", 3, 75), ("$e$", 9, 76), ("f", 9, 75.5)]
    points = [figures.Point(name, "onnx", ms, top1) for name, ms, top1 in found]
    front = figures.pareto(points, tmp_path / "p.png", "top-1, %")
    assert [point.name for point in front] == ["a", "c", "$e$"]
    with pytest.raises(UsageError, match="no accuracies"):
        figures.pareto([], tmp_path / "none.png")


def test_published_and_given_accuracies(capsys, tmp_path: Path):
    words = f"--model fasternet_t0 --to none --forms deploy --plot {tmp_path / 'p.png'}"
    assert main(["bench", *words.split(), *SHORT]) == 0
    assert last_json(capsys)["rows"][0]["accuracy"] == pytest.approx(71.9, abs=0.3)
    assert cli.accuracies_of(["a=b=71.5"], ["a=b"]) == {"a=b": ("accuracy", 71.5)}


def test_peers_are_whole_and_collapsed_by_their_makers(capsys):
    pytest.importorskip("timm")
    assert main(["bench", "--model", "timm/mobileone_s0", "--to", "onnx", *SHORT]) == 0
    rows = last_json(capsys)["rows"]
    assert [(row["runtime"], row["form"], row["parameters"]) for row in rows] == [
        ("torch", "multi-branch", 5_293_272),
        ("torch", "deploy", 2_078_504),
        ("onnx", "deploy", 2_078_504),
    ]


def test_detectors_and_exported_files(run: Path, capsys, tmp_path: Path):
    assert main(["export", "--model", str(run), "--to", "onnx", "--out", str(tmp_path)]) == 0
    file = str(tmp_path / "onnx" / "model.onnx")
    words = ["--model", "ssd/fasternet_t0", file, "--forms", "deploy", "--to", "none"]
    capsys.readouterr()
    assert main(["bench", *words, "--size", "64", "--runs", "2", "--warmup", "0", "--json"]) == 0
    assert [row["name"] for row in last_json(capsys)["rows"]] == [
        "ssd/fasternet_t0 deploy (torch)",
        f"{file} (onnx)",
    ]


def test_an_int8_file_is_as_accurate_as_it_was_measured(run: Path, tmp_path: Path):
    from fleetnet.measure.candidates import of_file

    assert main(["export", "--model", str(run), "--to", "onnx", "--out", str(tmp_path)]) == 0
    file = tmp_path / "onnx" / "model.onnx"
    sidecar = file.with_suffix(".json")
    facts = json.loads(sidecar.read_text())
    assert of_file(file, [1])[0].accuracy == ("top1", facts["metrics"]["top1"])
    del facts["description_sha256"]  # of the description as it was written
    sidecar.write_text(json.dumps({**facts, "precision": "int8", "int8": {"int8": {"top1": 12.5}}}))
    [subject] = of_file(file, [1])
    assert (subject.title, subject.accuracy) == ("onnx-int8", ("top1", 12.5))
    sidecar.write_text("{")
    with pytest.raises(ModelError, match=r"model\.json is damaged"):
        of_file(file, [1])


def test_a_file_with_the_json_of_another_program_beside_it_is_timed(
    run: Path, tmp_path: Path, capsys
):
    assert main(["export", "--model", str(run), "--to", "onnx", "--out", str(tmp_path)]) == 0
    file = tmp_path / "onnx" / "model.onnx"
    file.with_suffix(".json").write_text('{"made by": "another program"}')
    capsys.readouterr()
    assert main(["bench", "--model", str(file), "--runs", "2", "--warmup", "0", "--json"]) == 0
    assert [row["name"] for row in last_json(capsys)["rows"]] == [f"{file} (onnx)"]


def test_what_cannot_be_exported_is_left_out_and_named(run: Path, capsys, monkeypatch):
    from fleetnet.runtimes import onnx

    def refuse(request: object) -> None:
        raise ExportError("ONNX has no operator Warp")

    monkeypatch.setattr(onnx, "export", refuse)
    assert main(["bench", "--model", str(run), "--forms", "deploy", *SHORT]) == 0
    found = last_json(capsys)
    assert [row["runtime"] for row in found["rows"]] == ["torch"]
    assert found["skipped"] == [f"{run} in onnx: ONNX has no operator Warp"]
    assert main(["bench", "--model", str(run), "--forms", "none"]) == 5
    assert "no operator Warp" in capsys.readouterr().err


def test_tuning_names_the_fastest_that_is_as_good(
    run: Path, photos: Path, capsys, tmp_path: Path, monkeypatch
):
    from fleetnet.runtimes import pt2

    def refuse() -> None:
        raise ModelError("torch cannot load this file")

    words = [
        "--model",
        str(run),
        "--tune",
        "--to",
        "onnx,pt2",
        "--threads",
        "1",
        "--data",
        str(photos),
    ]
    monkeypatch.setattr(pt2, "load", lambda *_, **__: refuse())
    assert (
        main(
            [
                "bench",
                *words,
                "--runs",
                "10",
                "--warmup",
                "1",
                "--json",
                "--csv",
                str(tmp_path / "t.csv"),
            ]
        )
        == 0
    )
    found = last_json(capsys)
    assert found["skipped"] == ["pt2:fp32: torch cannot load this file"]
    with (tmp_path / "t.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [
            row["name"] for row in found["rows"]
        ]
    assert found["by"] == "top1 on 12 images"
    assert sorted(row["name"] for row in found["rows"]) == ["onnx, 1 thread", "torch, 1 thread"]
    assert [row["drop"] for row in found["rows"]] == [0, 0]
    assert (
        found["rows"][0]["name"]
        == found["fastest"]
        == max(found["rows"], key=lambda r: r["times_as_fast"])["name"]
    )


def test_a_runtime_of_one_pool_is_timed_with_one_number_of_threads(
    run: Path, photos: Path, capsys, monkeypatch
):
    from fleetnet.runtimes import onnx

    monkeypatch.setattr(onnx, "one_pool", True, raising=False)
    shared = [
        "--model",
        str(run),
        "--to",
        "onnx",
        "--threads",
        "1,2",
        "--runs",
        "2",
        "--warmup",
        "0",
        "--json",
    ]
    for words in (["--forms", "deploy"], ["--tune", "--data", str(photos)]):
        assert main(["bench", *shared, *words]) == 0
        found = last_json(capsys)
        ways = sorted(
            row["name"].removeprefix(f"{run} deploy ").strip("()") for row in found["rows"]
        )
        assert ways == ["onnx, 1 thread", "torch, 1 thread", "torch, 2 threads"]
        [line] = found["skipped"]
        assert line.startswith("onnx with 2 threads: all its files in a process share one number")
        assert torch.get_num_threads() == 1  # as before


def test_tuning_without_labels_leaves_out_files_that_find_something_else(
    run: Path, photos: Path, capsys, tmp_path
):
    from fleetnet import checkpoint
    from fleetnet.deploy.export import export

    loose = tmp_path / "loose"
    loose.mkdir()
    for i, file in enumerate(photos.glob("val/*/*.png")):
        shutil.copy(file, loose / f"{i}.png")
    loaded = checkpoint.load(run)
    # of the last layer, so that the least probable class becomes the most probable
    with torch.no_grad():
        for parameter in list(loaded.model.head.parameters())[-2:]:
            parameter.neg_()
    wrong = tmp_path / "wrong" / "model.onnx"
    export(loaded.model, "onnx", wrong, classes=loaded.classes, preprocess=loaded.preprocess)
    words = [
        "--model",
        str(run),
        str(wrong),
        "--tune",
        "--to",
        "onnx",
        "--threads",
        "1",
        "--data",
        str(loose),
    ]
    assert main(["bench", *words, "--runs", "10", "--warmup", "1", "--json"]) == 0
    found = last_json(capsys)
    assert found["by"] == "agreement with the model on 12 images without labels"
    by_name = {row["name"]: row for row in found["rows"]}
    assert by_name["onnx, 1 thread"]["drop"] == 0
    assert by_name[f"{wrong}, 1 thread"]["drop"] == 100
    assert not by_name[f"{wrong}, 1 thread"]["allowed"]
    assert str(wrong) not in found["fastest"]


def test_the_fastest_and_those_that_may_be():
    from fleetnet.measure.tune import fastest

    rows = [
        noise(name, i, 0.1, factor=lambda _, f=f: f) for i, (name, f) in enumerate(SPEEDS.items())
    ]
    best, level = fastest(rows, ["float", "half", "eighth", "slow"])
    assert (best, level) == ("half", ["eighth"])
    assert ratios(rows, "half")["eighth"] < 1
    assert fastest(rows, [*SPEEDS]) == ("wrong", [])
    assert fastest(rows, ["float", "slow"]) == ("float", [])
    assert fastest(rows, []) == (None, [])


SPEEDS = {"float": 1.0, "wrong": 0.1, "half": 0.5, "eighth": 0.51, "slow": 1.5}


def test_a_device_by_its_own_programs(run: Path, capsys, tmp_path: Path, monkeypatch):
    from test_devices import Here

    here = Here(tmp_path / "here", monkeypatch)
    stand_in = here.root / "tools" / "onnxruntime_perf_test"
    stand_in.write_text(stand_in.read_text().replace('"$(cat "$file")"', "6.5"))
    words = [
        "--model",
        str(run),
        "--device",
        "ssh:board",
        "--binary",
        str(stand_in),
        "--threads",
        "1,2",
    ]
    assert main(["bench", *words, "--runs", "2", "--json"]) == 0
    found = last_json(capsys)
    assert found["conditions"]["device"] == "ssh:board"
    assert [(row["name"], row["median_ms"]) for row in found["rows"]] == [
        (f"{run} deploy (onnx, 1 thread)", 6.5),
        (f"{run} deploy (onnx, 2 threads)", 6.5),
    ]
    assert {tuple(call[6:8]) for call in here.calls} == {("-x", "1"), ("-x", "2")}


BAD = [  # words, exit code, part of the message
    ("", 2, "--model is missing"),
    ("--model RUN --to onnx:fp8", 2, "onnx has no precision 'fp8'"),
    ("--model RUN --to onix", 2, "did you mean 'onnx'"),
    ("--model RUN --threads 0", 2, "threads is '0'; allowed"),
    ("--model RUN --threads 1,x", 2, "threads is '1,x'"),
    ("--model RUN --forms deplyo", 2, "did you mean 'deploy'"),
    ("--model RUN --forms none --to none", 2, "nothing to measure"),
    ("--model fasternet_to", 4, "did you mean 'fasternet_t0'"),
    ("--model timm/mobileone_s00", 4, "no model 'mobileone_s00'"),
    (
        "--model parcnet_xs --forms deploy --to none --size 32 --plot p.png",
        2,
        "--plot needs accuracies",
    ),
    (
        "--model RUN --forms multi-branch --to none --plot p.png",
        2,
        "--plot needs accuracies of deploy forms",
    ),
    ("--model RUN --csv .", 2, "--csv is '.', which is a folder"),
    ("--model RUN --plot p.jpeg2", 2, "allowed: files that end in .png"),
    ("--model RUN --csv no/t.csv", 2, "no folder 'no'"),
    (
        "--model RUN --accuracy fasternet_t0=70",
        2,
        "accuracy of 'fasternet_t0', which is not measured",
    ),
    ("--model RUN --accuracy RUN=good", 2, "allowed: NAME=VALUE"),
    ("--model RUN --accuracy 70", 2, "allowed: NAME=VALUE"),
    ("--model RUN --data photos", 2, "--data goes with --tune"),
    ("--model RUN --max-drop 1", 2, "--max-drop goes with --tune"),
    ("--model RUN --tune", 2, "--tune needs --data"),
    ("--model RUN --max-mb 5", 2, "--max-mb goes with --tune"),
    ("--model RUN --max-ms 5", 2, "--max-ms goes with --tune"),
    ("--model RUN --max-memory 5", 2, "--max-memory goes with --tune"),
    ("--model RUN --tune --data PHOTOS --max-ms 0", 2, "a number above 0"),
    ("--model RUN --tune --data PHOTOS --app", 2, "--app does not go with --tune"),
    ("--model RUN --tune --data PHOTOS --require-fast 1", 2, "--require-fast does not go with"),
    ("--model RUN --picture p.jpg", 2, "--picture goes with --app"),
    ("--model RUN --app --picture p.jpg", 3, "--picture p.jpg cannot be read"),
    ("--model RUN --app --to none", 2, "--app is of exported files, and --to is none"),
    ("--model RUN --require-fast 2", 2, "a number from 0 to 1"),
    ("--model RUN --require-fast 1 --to none", 2, "--require-fast is of exported files"),
    (
        "--model RUN --app --device ssh:board --binary benchncnn",
        2,
        "--app does not go with --device",
    ),
    ("--model RUN --tune --data PHOTOS --plot p.png", 2, "--plot does not go with --tune"),
    ("--model RUN --tune --data nowhere", 3, "nowhere"),
    ("--model RUN RUN --tune --data PHOTOS", 2, "is another checkpoint"),
    ("--model RUN none.onnx --tune --data PHOTOS", 4, "none.onnx: no such file"),
    ("--model fasternet_t0 --tune --data PHOTOS", 4, "fasternet_t0"),
    ("--model RUN --device ssh:board", 2, "--device goes with --binary"),
    ("--model RUN --binary benchncnn", 2, "--binary goes with --device"),
    ("--model RUN --device usb --binary benchncnn", 2, "allowed: adb:SERIAL"),
    ("--model RUN --device ssh:board --binary benchcnn", 2, "did you mean 'benchncnn'"),
]


@pytest.mark.parametrize(("words", "code", "message"), BAD, ids=[words for words, *_ in BAD])
def test_usage_of_the_verb(
    words, code, message, run: Path, photos: Path, capsys, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = [word.replace("RUN", str(run)).replace("PHOTOS", str(photos)) for word in words.split()]
    assert main(["bench", *given]) == code
    assert message in capsys.readouterr().err
