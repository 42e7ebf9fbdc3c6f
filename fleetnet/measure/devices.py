"""Latency on a phone or a board, over adb or ssh, by the benchmark program of a runtime.

The program is the user's, built from the sources of MNN, ncnn or onnxruntime, and is known by its
file name: see TOOLS. Everything is copied into a folder of its own, which is removed at the end,
whatever happens. As in `latency`, all that is compared runs in turn, in an order drawn anew each
round; but a program runs a file some times in a row and tells the mean, so one time here is the
mean of some calls. What it feeds the network is its own affair: zeros or random values.
"""

import math
import random
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..channels import RGB
from ..errors import FleetnetError, UsageError, suggest
from ..reading import to_json
from .latency import Row

ROUNDS = 10  # in each of which a program runs a file once, with its share of the calls
WARMUP = 5  # calls that do not count, where the program can be told: ncnn's makes 8, the others 1
TIMEOUT = 900  # seconds that one command may take on the device
FOLDERS = {"adb": "/data/local/tmp", "ssh": "/tmp"}  # where a user may write files and run them
ADVICE = {
    "adb": "`adb devices` lists what is connected and allowed",
    "ssh": "`ssh HOST true` must work without a password",
}
# older adbs do not hand on exit codes, so the shell prints it
STATUS = re.compile(r"fleetnet-status (\d+)\s*\Z")


@dataclass(frozen=True)
class Job:
    """A file to time, of images of `size` (height, width), with so many threads."""

    name: str
    file: Path
    size: tuple[int, int]
    threads: int = 1
    precision: str = "fp32"
    outputs: tuple[str, ...] = ("logits",)
    channels: int = RGB  # of the images


@dataclass(frozen=True)
class Tool:
    """A benchmark program: what it runs, how it is called, and how it tells the times."""

    suffix: str  # of the files
    # arguments, for the path of the copied file and a number of calls
    words: Callable[[Job, str, int], list[str]]
    # regular expression with the groups "mean" and "least"; FILE stands for the file
    times: str
    unit: float = 1.0  # of "least", in milliseconds; "mean" is in milliseconds


def _ncnn(job: Job, file: str, calls: int) -> list[str]:
    # big cores only (2), no GPU (-1), no ten seconds of sleep before (0)
    shape = f"shape=[{job.size[1]},{job.size[0]},{job.channels}]"
    return [str(calls), str(job.threads), "2", "-1", "0", f"param={file}", shape]


def _onnxruntime(job: Job, file: str, calls: int) -> list[str]:
    return ["-I", "-m", "times", "-r", str(calls), "-x", str(job.threads), "-s", file]


def _mnn(job: Job, file: str, calls: int) -> list[str]:
    # all files of the folder, on the CPU (0)
    folder = str(PurePosixPath(file).parent)
    return [folder, str(calls), str(WARMUP), "0", str(job.threads), _mnn_precision(job)]


def _mnn_module(job: Job, file: str, calls: int) -> list[str]:
    # the input is described in a folder; nothing is traced (0), on the CPU (0)
    return [
        file,
        f"{PurePosixPath(file).parent}-input",
        "0",
        "0",
        str(calls),
        str(job.threads),
        _mnn_precision(job),
    ]


def _mnn_precision(job: Job) -> str:
    # float32 throughout, or float16 where the processor has it
    return "1" if job.precision == "fp32" else "2"


MEAN, LEAST, NUMBER = r"(?P<mean>[-+.\w]+)", r"(?P<least>[-+.\w]+)", r"[-+.\w]+"
TOOLS = {  # file name of the program
    "benchncnn": Tool(
        ".param", _ncnn, rf"^\s*FILE\s+min =\s*{LEAST}\s+max =\s*{NUMBER}\s+avg =\s*{MEAN}"
    ),
    "onnxruntime_perf_test": Tool(
        ".onnx",
        _onnxruntime,
        rf"Average inference time cost(?: total)?: {MEAN} ms.*Min Latency: {LEAST} s",
        1000.0,
    ),
    "benchmark.out": Tool(
        ".mnn",
        _mnn,
        rf"^\[ - \] FILE\s+max =\s*{NUMBER} ms\s+min =\s*{LEAST} ms\s+avg =\s*{MEAN} ms",
    ),
    "ModuleBasic.out": Tool(".mnn", _mnn_module, rf"^Avg= {MEAN} ms, min= {LEAST} ms"),
}


@dataclass(frozen=True)
class Device:
    """A phone ("adb" and its serial number) or a board ("ssh" and a host).

    The host is called as ssh's own configuration knows it.
    """

    kind: str
    address: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.address}"

    def shell(self, script: str, stdin: Path | None = None) -> str:
        """What a script prints on the device, to both of its streams.

        Raises `FleetnetError` if the device cannot be reached, the script fails or does not end.
        """
        script = f"{{ {script}\n}} 2>&1; echo fleetnet-status $?"
        connect = ["adb", "-s", self.address, "shell"]
        if self.kind == "ssh":
            connect = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", self.address]
        printed = self._call([*connect, f"sh -c {shlex.quote(script)}"], stdin)
        status = STATUS.search(printed)
        if status is None:
            raise FleetnetError(f"{self}: the connection ended early, after: {_last(printed)}")
        if status[1] != "0":
            raise FleetnetError(
                f"{self}: a command ended with exit code {status[1]}: "
                f"{_last(printed[: status.start()])}"
            )
        return printed[: status.start()]

    def push(self, file: Path, target: str) -> None:
        """Copy a file to a path on the device."""
        if self.kind == "adb":
            self._call(["adb", "-s", self.address, "push", str(file.resolve()), target])
        else:
            self.shell(f"cat > {shlex.quote(target)}", file)

    def _call(self, words: list[str], stdin: Path | None = None) -> str:
        if shutil.which(words[0]) is None:
            raise FleetnetError(f"{self} needs the program {words[0]}, which is not installed here")
        try:
            with (stdin or Path("/dev/null")).open("rb") as content:
                call = subprocess.run(words, stdin=content, capture_output=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise FleetnetError(f"{self}: a command did not end within {TIMEOUT} s") from error
        printed = call.stdout.decode(errors="replace").replace("\r\n", "\n")
        if call.returncode and STATUS.search(printed) is None:
            said = _last(call.stderr.decode(errors="replace") or printed)
            raise FleetnetError(
                f"{self} cannot be used: {words[0]} says: {said}. {ADVICE[self.kind]}"
            )
        return printed


def _line(printed: str) -> str:
    """The last line: a login shell may print some of its own before."""
    return (printed.strip().splitlines() or [""])[-1]


def _last(printed: str) -> str:
    return " / ".join(printed.strip().splitlines()[-3:]) or "no message"


def device(text: str) -> Device:
    """The device that "adb:SERIAL" or "ssh:HOST" stands for; `UsageError` for anything else."""
    kind, _, address = text.partition(":")
    if kind not in FOLDERS or not re.fullmatch(r"[\w@\[][\w.:@%\[\]-]*", address):
        raise UsageError(
            f"device is {text!r}; allowed: adb:SERIAL (as `adb devices` lists it) or ssh:HOST"
        )
    return Device(kind, address)


def tool(binary: str) -> Tool:
    """The benchmark program of this path; `UsageError` for one of another file name."""
    name = PurePosixPath(binary).name
    if name not in TOOLS:
        raise UsageError(f"{binary}: no known benchmark program {name!r}: {suggest(name, TOOLS)}")
    return TOOLS[name]


def conditions(device: Device, threads: int) -> dict[str, object]:
    """What `latency.card` tells of this machine, of the device; None: unknown there."""
    asked = {
        "cpu": "sed -n 's/^\\(Hardware\\|model name\\|Model\\)[[:space:]]*: //p' /proc/cpuinfo | "
        "head -n 1",
        "model": "getprop ro.product.model",
        "cores": "grep -c ^processor /proc/cpuinfo",
        "governor": "cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor | sort -u | tr "
        "'\\n' ' '",
        "load": "cut -d ' ' -f 1 /proc/loadavg",
        "platform": "uname -srm",
    }
    script = "\n".join(f'echo "{key}=$({command} 2>/dev/null)"' for key, command in asked.items())
    lines = (line.partition("=") for line in device.shell(script).splitlines())
    answers = {key: value.strip() or None for key, _, value in lines if key in asked}
    cores, load = answers.get("cores"), answers.get("load")
    numbers = {"cores": cores and int(cores), "load": load and float(load)}
    return {
        "device": str(device),
        **dict.fromkeys(asked),
        **answers,
        **numbers,
        "threads": threads,
    }


def measure(
    device: Device, binaries: Sequence[str], jobs: Sequence[Job], runs: int = 100
) -> list[Row]:
    """Time each file `runs` times on the device, in rounds, with its program among `binaries`.

    A program that is a file here is copied, with the shared libraries beside it; else it is one on
    the device. Raises `UsageError` for a program of unknown name, or none for a file,
    `FleetnetError` if the device cannot be reached, a program is missing or fails, or its output is
    not what it should be.
    """
    if runs < 1:
        raise UsageError(f"runs is {runs}; allowed: at least 1")
    by_suffix = {tool(binary).suffix: binary for binary in binaries}
    for job in jobs:
        _check_program(job, by_suffix)
    rounds = min(ROUNDS, runs)
    calls = -(-runs // rounds)  # of a round, rounded up
    times: list[list[float]] = [[] for _ in jobs]
    least = [math.inf for _ in jobs]
    order = list(range(len(jobs)))
    shuffle = random.Random(0).shuffle
    with _folder_on(device) as folder:
        programs = {
            suffix: _program(device, binary, folder) for suffix, binary in by_suffix.items()
        }
        for i, job in enumerate(jobs):
            _copy(device, job, f"{folder}/{i}")
        for _ in range(rounds):
            shuffle(order)
            for i in order:
                suffix = jobs[i].file.suffix
                by, program = tool(by_suffix[suffix]), programs[suffix]
                mean, fastest = _run(device, by, program, folder, i, jobs[i], calls)
                times[i].append(mean)
                least[i] = min(least[i], fastest)
    return [
        Row(job.name, tuple(measured), None, job.threads, least=fastest)
        for job, measured, fastest in zip(jobs, times, least, strict=True)
    ]


def _check_program(job: Job, by_suffix: Mapping[str, str]) -> None:
    """`UsageError` if none of the programs is for this file; it says which would be."""
    suffix = job.file.suffix
    if suffix in by_suffix:
        return
    able = [name for name, program in TOOLS.items() if program.suffix == suffix]
    if able:
        needed = f"give {' or '.join(able)}"
    else:
        needed = f"there is none, only for {', '.join(sorted(by_suffix))}"
    raise UsageError(f"no benchmark program for {job.file.name}: {needed}")


@contextmanager
def _folder_on(device: Device) -> Iterator[str]:
    """A new folder on the device, which is gone afterwards."""
    base = FOLDERS[device.kind]
    folder = _line(device.shell(f"mktemp -d {base}/fleetnet.XXXXXX"))
    if not re.fullmatch(rf"{base}/fleetnet\.\w+", folder):
        raise FleetnetError(
            f"{device}: no folder could be made in {base}: {folder or 'no message'}"
        )
    try:
        yield folder
    finally:
        with suppress(FleetnetError):  # the device may be gone, which is said already
            device.shell(f"rm -rf {folder}")


def _program(device: Device, binary: str, folder: str) -> str:
    """The path of the program on the device, where a file of this machine is copied to."""
    here = Path(binary)
    if not here.is_file():
        try:
            return _line(device.shell(f"command -v {shlex.quote(binary)}"))
        except FleetnetError as error:
            raise FleetnetError(f"{binary} is no file here, and no program on {device}") from error
    beside = [path for path in sorted(here.parent.glob("*.so*")) if path.is_file()]
    for file in dict.fromkeys([here, *beside]):
        device.push(file, f"{folder}/{file.name}")
    device.shell(f"chmod 700 {shlex.quote(f'{folder}/{here.name}')}")
    return f"{folder}/{here.name}"


def _copy(device: Device, job: Job, folder: str) -> None:
    """The file into a folder of its own, and its input beside it.

    MNN's benchmark.out takes all that is in a folder.
    """
    device.shell(f"mkdir {folder} {folder}-input")
    device.push(job.file, f"{folder}/model{job.file.suffix}")
    shape = [1, job.channels, *job.size]
    text = to_json(
        {"inputs": [{"name": "image", "shape": shape, "value": 0.5}], "outputs": list(job.outputs)}
    )
    device.shell(f"printf %s {shlex.quote(text)} > {folder}-input/input.json")


def _run(
    device: Device, tool: Tool, program: str, folder: str, number: int, job: Job, calls: int
) -> tuple[float, float]:
    """Milliseconds of a call of the program: their mean, and the least."""
    file = f"{number}/model{job.file.suffix}"
    libraries = shlex.quote(str(PurePosixPath(program).parent))
    words = shlex.join([program, *tool.words(job, file, calls)])
    printed = device.shell(
        f"cd {folder} && LD_LIBRARY_PATH={libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}} {words}"
    )
    named = rf"(?:{number}/)?{re.escape(PurePosixPath(file).name)}"
    match = re.search(tool.times.replace("FILE", named), printed, re.MULTILINE | re.DOTALL)
    with suppress(ValueError):
        mean, least = (float(match[group]) for group in ("mean", "least")) if match else (0.0, 0.0)
        if mean > 0:
            return mean, least * tool.unit
    raise FleetnetError(
        f"{device}: {PurePosixPath(program).name} ran {job.name}, but told no time as its "
        f"project's program does; its last words: {_last(printed)}"
    )
