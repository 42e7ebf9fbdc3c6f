"""Measuring on a device, with stand-ins for adb and ssh that run everything here, and for the benchmark programs.

The stand-ins print what the programs of ncnn, MNN and onnxruntime print, by their sources, and keep
what they were called with.
"""

import json
import os
import stat
from pathlib import Path

import pytest

from fleetnet.errors import FleetnetError, UsageError
from fleetnet.measure import devices
from fleetnet.measure.devices import TOOLS, Device, Job, conditions, device, measure
from fleetnet.measure.latency import ratios

SSH = """#!/bin/sh
echo "Welcome to the board"
while [ "$1" != "--" ]; do shift; done
[ "$2" = board ] || { echo "ssh: Could not resolve hostname $2" >&2; exit 255; }
shift 2
exec sh -c "$*"
"""
# /data/local/tmp is not here; adb of old does not hand on the exit code of what ran
ADB = """#!/bin/sh
[ "$1" = -s ] && [ "$2" = PHONE1 ] || { echo "adb: device '$2' not found" >&2; exit 1; }
case "$3" in
push) exec cp "$4" "ROOT/${5#/}" ;;
shell) shift 3; sh -c "$(printf %s "$*" | sed "s#/data/local/tmp#ROOT/data/local/tmp#g")" | sed "s#ROOT##g"; exit 0 ;;
esac
"""
CALLED = (
    'printf "%s\\n" "$(basename "$0")" "$@" "LIBRARIES $LD_LIBRARY_PATH" END >> "$FLEETNET_CALLS"\n'
)
NCNN = """for word; do case "$word" in param=*) file=${word#param=} ;; esac; done
[ -f "$file" ] || { echo "fopen $file failed" >&2; exit 0; }
printf 'loop_count = %s\\nnum_threads = %s\\npowersave = 2\\ngpu_device = -1\\ncooling_down = 0\\n' "$1" "$2" >&2
printf '%20s  min = %7.2f  max = %7.2f  avg = %7.2f\\n' "$file" 4.10 9.00 "$(cat "$file")" >&2
"""
OLD_NCNN = """printf '%20s  min = %7.2f  max = %7.2f  avg = %7.2f\\n' squeezenet 4.10 9.00 5.00 >&2
"""
MNN = """printf 'MNN benchmark\\nForward type: CPU thread=%s precision=%s sparsity=0\\n' "$5" "$6"
echo "--------> Benchmarking... loop = $2, warmup = $3"
for f in "$1"/*; do
printf '[ - ] %-24s    max = %8.3f ms  min = %8.3f ms  avg = %8.3f ms\\n' "$(basename "$f")" 9 4.1 "$(cat "$f")"
done
"""
MODULE = """grep -q '"shape": \\[1, 3, 48, 64\\]' "$2/input.json" || { echo "Invalid json"; exit 0; }
printf 'Test %s from input info: %s\\nimage\\noutput: logits\\nprecision=1 in main, 163 \\n' "$1" "$2"
printf 'Avg= %f ms, min= %f ms, max= %f ms\\n' "$(cat "$1")" 4.1 9
"""
ORT = """for file; do :; done
printf 'Setting intra_op_num_threads to %s\\nSession creation time cost: 0.0217932 s\\n' "$6"
printf 'First inference time cost: 19 ms\\nTotal inference time cost: 0.49481 s\\nTotal inference requests: 10\\n'
printf 'Average inference time cost%s: %s ms\\n' "$TOTAL" "$(cat "$file")"
printf 'Total inference run time: 0.494854 s\\nNumber of inferences per second: 10.104 \\nAvg CPU usage: 11 %%\\n'
printf 'Peak working set size: 271122432 bytes\\nAvg CPU usage:11\\nPeak working set size:271122432\\nRuns:10\\n'
printf 'Min Latency: 0.0041 s\\nMax Latency: 0.009 s\\nP50 Latency: 0.005 s\\n'
"""
PROGRAMS = {
    "benchncnn": NCNN,
    "benchmark.out": MNN,
    "ModuleBasic.out": MODULE,
    "onnxruntime_perf_test": ORT,
}
WORDS = {  # of one call of 10, for images of 48 x 64 with 2 threads; FILE for the file, FOLDER for its folder
    "benchncnn": ["10", "2", "2", "-1", "0", "param=FILE", "shape=[64,48,3]"],
    "benchmark.out": ["FOLDER", "10", "5", "0", "2", "1"],
    "ModuleBasic.out": ["FILE", "FOLDER-input", "0", "0", "10", "2", "1"],
    "onnxruntime_perf_test": ["-I", "-m", "times", "-r", "10", "-x", "2", "-s", "FILE"],
}


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Here:
    """A folder with stand-ins: `calls` are those of benchmark programs, `left` what is on the devices."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root = root
        (root / "data/local/tmp").mkdir(parents=True)
        program(root / "bin/ssh", SSH)
        program(root / "bin/adb", ADB.replace("ROOT", str(root)))
        for name, text in PROGRAMS.items():
            program(root / "tools" / name, "#!/bin/sh\n" + CALLED + text)
        (root / "tools" / "libMNN.so").write_text("a library")
        monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv("FLEETNET_CALLS", str(root / "calls"))
        monkeypatch.setitem(devices.FOLDERS, "ssh", str(root / "board"))
        (root / "board").mkdir()

    @property
    def calls(self) -> list[list[str]]:
        """Program, arguments, and the path of libraries, of each call."""
        text = (self.root / "calls").read_text()
        return [call.strip().split("\n") for call in text.split("END\n") if call]

    def left(self) -> list[Path]:
        return [*(self.root / "board").iterdir(), *(self.root / "data/local/tmp").iterdir()]

    def job(self, name: str, suffix: str, milliseconds: float, threads: int = 2) -> Job:
        """A "network" that the stand-ins take so many milliseconds for."""
        file = self.root / f"{name}{suffix}"
        file.write_text(str(milliseconds))
        return Job(name, file, (48, 64), threads)

    def tool(self, name: str) -> str:
        return str(self.root / "tools" / name)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(tmp_path / "here", monkeypatch)


@pytest.mark.parametrize("where", ["ssh:board", "adb:PHONE1"])
@pytest.mark.parametrize("name", TOOLS)
def test_each_program_is_called_and_read(
    name: str, where: str, here: Here, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(devices, "ROUNDS", 4)
    suffix = TOOLS[name].suffix
    jobs = [here.job("slow net", suffix, 6.5), here.job("fast", suffix, 3.25)]
    rows = measure(device(where), [here.tool(name)], jobs, runs=40)
    assert [(row.name, row.times, row.threads) for row in rows] == [
        ("slow net", (6.5,) * 4, 2),
        ("fast", (3.25,) * 4, 2),
    ]
    assert rows[0].to_dict()["min_ms"] == pytest.approx(4.1)
    assert rows[0].to_dict()["waited"] is None
    assert ratios(rows, "slow net") == {"slow net": 1, "fast": 2}
    assert here.left() == []
    assert len(here.calls) == 8
    words = [
        [
            word.replace("FILE", f"{i}/model{suffix}").replace("FOLDER", str(i))
            for word in WORDS[name]
        ]
        for i in "01"
    ]
    assert all(call[0] == name and call[1:-1] in words for call in here.calls)
    # where the copied library is
    assert all(call[-1].startswith("LIBRARIES /") for call in here.calls)
    order = [words.index(call[1:-1]) for call in here.calls]
    assert all(sorted(order[i : i + 2]) == [0, 1] for i in range(0, 8, 2))
    assert 0 < sum(order[::2]) < 4  # shuffled


def test_newer_words_of_onnxruntime(here: Here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOTAL", " total")
    job = here.job("net", ".onnx", 12.5)
    [row] = measure(device("ssh:board"), [here.tool("onnxruntime_perf_test")], [job], runs=10)
    assert (row.median, row.least) == (12.5, pytest.approx(4.1))


def test_runs_are_shared_among_rounds(here: Here):
    measure(device("ssh:board"), [here.tool("benchncnn")], [here.job("net", ".param", 3)], runs=4)
    assert [call[1] for call in here.calls] == ["1"] * 4


def test_half_precision_is_asked_for(here: Here):
    job = here.job("net", ".mnn", 3)
    half = Job("half", job.file, job.size, 1, "fp16")
    measure(device("ssh:board"), [here.tool("benchmark.out")], [job, half], runs=1)
    assert sorted(call[5:7] for call in here.calls) == [["1", "2"], ["2", "1"]]


def test_programs_of_several_runtimes_and_of_the_device(here: Here):
    jobs = [here.job("a", ".param", 2), here.job("b", ".onnx", 3)]
    there = program(here.root / "opt" / "benchncnn", "#!/bin/sh\n" + CALLED + NCNN)
    # a name that is no file here, but a program there
    there = there.rename(here.root / "bin" / "benchncnn")
    rows = measure(
        device("ssh:board"), ["benchncnn", here.tool("onnxruntime_perf_test")], jobs, runs=2
    )
    assert [row.median for row in rows] == [2, 3]
    assert {call[-1] for call in here.calls if call[0] == "benchncnn"} == {
        f"LIBRARIES {there.parent}"
    }


def test_file_names_are_no_commands(here: Here):
    job = here.job("$(touch hacked)", ".mnn", 3)
    tool = here.root / "a; touch hacked" / "benchmark.out"
    tool.parent.mkdir()
    Path(here.tool("benchmark.out")).rename(tool)
    [row] = measure(device("ssh:board"), [str(tool)], [job], runs=1)
    assert row.median == 3
    assert not list(here.root.rglob("hacked"))


def test_conditions_of_the_device(here: Here):
    card = conditions(device("ssh:board"), 2)
    assert card["device"] == "ssh:board"
    assert card["cores"] == os.cpu_count()
    assert isinstance(card["load"], float)
    assert card["platform"].startswith(os.uname().sysname)
    assert card["model"] is None  # no getprop here
    json.dumps(card)


@pytest.mark.parametrize(
    "text", ["", "phone", "usb:1", "ssh:", "adb:", "ssh:-oProxyCommand=x", "ssh:a b", "adb:a;b"]
)
def test_what_is_no_device(text: str):
    with pytest.raises(UsageError, match=r"allowed: adb:SERIAL .* or ssh:HOST"):
        device(text)


def test_devices_are_named_as_their_programs_do():
    assert device("adb:emulator-5554") == Device("adb", "emulator-5554")
    assert device("adb:192.168.0.7:5555") == Device("adb", "192.168.0.7:5555")
    assert device("ssh:pi@10.0.0.2").address == "pi@10.0.0.2"


@pytest.mark.parametrize(
    ("where", "tool", "suffix", "message"),
    [
        (
            "ssh:nowhere",
            "benchncnn",
            ".param",
            "ssh:nowhere cannot be used: .* not resolve hostname nowhere.* `ssh HOST",
        ),
        (
            "adb:PHONE2",
            "benchncnn",
            ".param",
            "adb:PHONE2 cannot be used: .*device 'PHONE2' not found.*`adb devices`",
        ),
        (
            "ssh:board",
            "gone/benchncnn",
            ".param",
            "gone/benchncnn is no file here, and no program on ssh:board",
        ),
        (
            "adb:PHONE1",
            "gone/benchncnn",
            ".param",
            "gone/benchncnn is no file here, and no program on adb:PHONE1",
        ),
        (
            "ssh:board",
            "benchcnn",
            ".param",
            "no known benchmark program 'benchcnn': did you mean 'benchncnn'",
        ),
        (
            "ssh:board",
            "benchncnn",
            ".mnn",
            r"program for net.mnn: give benchmark.out or ModuleBasic.out",
        ),
        ("ssh:board", "benchncnn", ".xml", r"program for net.xml: there is none"),
        ("ssh:board", "fails/benchncnn", ".param", "exit code 7: .*out of memory"),
        ("adb:PHONE1", "fails/benchncnn", ".param", "exit code 7: .*out of memory"),
        ("ssh:board", "old/benchncnn", ".param", "told no time .* last words:.* squeezenet"),
        ("ssh:board", "zero/benchncnn", ".param", "told no time"),
    ],
)
def test_what_goes_wrong_is_said(where: str, tool: str, suffix: str, message: str, here: Here):
    program(here.root / "tools/fails/benchncnn", "#!/bin/sh\necho out of memory\nexit 7\n")
    program(here.root / "tools/old/benchncnn", "#!/bin/sh\n" + OLD_NCNN)
    program(
        here.root / "tools/zero/benchncnn", "#!/bin/sh\n" + NCNN.replace('"$(cat "$file")"', "0")
    )
    with pytest.raises(FleetnetError, match=message):
        measure(device(where), [here.tool(tool)], [here.job("net", suffix, 3)], runs=2)
    assert here.left() == []


def test_a_missing_adb_is_said(here: Here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(here.root))
    with pytest.raises(FleetnetError, match="adb:PHONE1 needs the program adb"):
        measure(device("adb:PHONE1"), [here.tool("benchncnn")], [here.job("net", ".param", 3)])


def test_a_command_that_hangs_is_ended(here: Here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "TIMEOUT", 0.2)
    with pytest.raises(FleetnetError, match=r"did not end within 0.2 s"):
        device("ssh:board").shell("sleep 2")


def test_a_connection_that_is_lost_is_said(here: Here):
    program(here.root / "bin/ssh", "#!/bin/sh\necho half of the\n")
    with pytest.raises(FleetnetError, match="the connection ended early, after: half of the"):
        device("ssh:board").shell("true")
