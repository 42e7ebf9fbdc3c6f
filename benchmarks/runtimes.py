"""Which runtime holds which network: each is exported, run and compared, and the tables are written into the docs.

    python benchmarks/runtimes.py --out runs/runtimes.jsonl --docs docs/runtimes.md \\
        [--trained RUN=DATA ...] [--classifiers RUN ... --data DATA] [NAME ...]

The first table. A number is the largest difference from the multi-branch model in torch, relative
to the spread of its outputs; where there is none, the reason stands below. Heads give their raw
outputs and are compared by what is found too. A network has random weights with the statistics of a
trained one (`fleetnet.proof.as_if_trained`) unless --trained gives a checkpoint of it: that is compared at
its own size, on pictures of its data too.

The second table. Each of --classifiers in every runtime's first precision: the pictures of --data's
validation split that it takes for another class than its checkpoint does, by the library's own
evaluation.

Every cell goes to --out as it is done, one line of JSON, and an interrupted run goes on with what
is missing.
"""

import argparse
import hashlib
import json
import re
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from fleetnet import data
from fleetnet.checkpoint import read_facts
from fleetnet.cli._data import Reading, pictures_of
from fleetnet.deploy.export import export
from fleetnet.deploy.predictor import load
from fleetnet.errors import ExportError
from fleetnet.find import find, names
from fleetnet.inputs.dataset import ImageDataset, collate
from fleetnet.predictions import Labels
from fleetnet.proof.as_if_trained import as_if_trained
from fleetnet.runtimes import title_of
from fleetnet.tasks import build
from fleetnet.training.evaluate import evaluate
from fleetnet.weights.read import locate

NETWORKS = (
    "parcnet_s", "fasternet_t0", "repvit_m0_9", "mobileone_s0", "mobileone_s4", "parc_convnext_xt",
    "ssd/parcnet_s", "yolo/repvit_m0_9", "maskrcnn/fasternet_t0", "deeplabv3/parcnet_s",
)  # fmt: skip
# of classifiers; of heads with random weights, to be done in a few minutes
SIZE, HEADS = ((224, 224), (160, 160))
OPTIONS = {"maskrcnn": {"channels": 64, "hidden": 256, "proposals": 100, "anchor": 16}}
TABLES = "runtimes", "classifiers"  # each between two comments in the docs
ROUNDED = {"fp16": "to float16", "bf16": "to bfloat16", "int8": "the weights to int8"}
Result = dict[str, Any]


def held(
    name: str, trained: str | None, pictures: str | None, runtime: str, precision: str
) -> Result:
    """One export, compared with its model."""
    torch.manual_seed(0)
    head, is_head = name.partition("/")[0], "/" in name
    size, shown, model = HEADS if is_head else SIZE, [], trained
    if trained:
        size, shown = None, pictures_of(pictures, Reading(), locate(Path(trained)))
    else:
        options = OPTIONS.get(head, {}) if is_head else {}
        model = as_if_trained(build(name, 20 if is_head else 1000, options=options), size)
    module = find("runtimes", runtime)
    found: Result = {"relative": None, "reason": None}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{module.suffix}"
        try:
            if lacking := module.missing():
                return found | {"reason": f"not here: {lacking}"}
            done = export(model, runtime, file, size=size, precision=precision, pictures=shown)
        except ExportError as error:
            return found | {"reason": said(error, folder)}
    if done.parity is None:
        return found | {"unverified": done.unverified}
    top1, agreed = done.parity.top1_agreement, done.parity.agreement
    return found | {"relative": done.parity.relative, "allowed": done.parity.tolerance, "top1": top1,
                    "agreement": str(agreed) if agreed else None}  # fmt: skip


def answers(file: str | Path, pictures: str) -> tuple[float, list[int]]:
    """Top-1 in percent of a checkpoint or an exported file, and the class it gives each picture."""
    predictor, given = load(file, trust=True), {}
    split = data.load(pictures, "val", None, "label")
    batches = DataLoader(
        ImageDataset(split, predictor.preprocess, target="label"), 32, collate_fn=collate
    )

    def keep(prediction: Labels, sample: int) -> None:
        given[sample] = int(prediction.logits.argmax())

    found = evaluate(predictor, predictor.task, batches, split.classes, on_prediction=keep)
    return found["top1"], [given[i] for i in sorted(given)]


def classified(run: str, pictures: str, runtime: str | None) -> Result:
    """The answers of a checkpoint, or of the file that a runtime makes of it."""
    if runtime is None:
        top1, given = answers(run, pictures)
        return {"top1": top1, "answers": given, "reason": None}
    module = find("runtimes", runtime)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if lacking := module.missing():
                return {"top1": None, "reason": f"not here: {lacking}"}
            done = export(run, runtime, Path(folder) / f"model{module.suffix}")
        except ExportError as error:
            return {"top1": None, "reason": said(error, folder)}
        top1, given = answers(done.path, pictures)
    return {"top1": top1, "answers": given, "reason": None}


def quietly(work: Callable[..., Result], *args: Any) -> Result:
    """In a process of its own: a converter that crashes ends no more than that."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    return work(*args)


def _pool() -> ProcessPoolExecutor:
    # a fork of a process with threads may wait for ever
    return ProcessPoolExecutor(1, get_context("spawn"))


class Record:
    """Results by what they are of; those of an earlier run are read back."""

    def __init__(self, path: Path | None):
        self.path = path
        text = path.read_text() if path and path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if path and text != whole:  # it was interrupted in the midst of a line
            path.write_text(whole)
        self.results: list[Result] = [json.loads(line) for line in whole.splitlines()]
        self.pool = _pool()

    def done(self, key: Result, work: Callable[..., Result], *args: Any) -> Result:
        """What is known of `key`, or the work's result, which is then known."""
        for result in self.results:
            if key.items() <= result.items():
                return result
        try:
            found = self.pool.submit(quietly, work, *args).result()
        except BrokenProcessPool:
            found = {
                "relative": None,
                "top1": None,
                "reason": "its converter or its runtime ended the process",
            }
            self.pool = _pool()
        self.results.append(key | found)
        print(json.dumps({k: v for k, v in self.results[-1].items() if k != "answers"}), flush=True)
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(self.results[-1]) + "\n")
        return self.results[-1]


def weights_of(run: str) -> str:
    return hashlib.sha256(locate(Path(run)).read_bytes()).hexdigest()[:12]


def said(error: Exception, folder: str) -> str:
    return re.sub(r"\.export-\w+/", "", str(error).replace(f"{folder}/", ""))


# The tables ----------------------------------------------------------------------------------------------------------


def figures(text: str) -> str:
    """Of the message of a file that differs, what is beyond its limit."""
    beyond = []
    if found := re.search(r"relative (\S+) \(allowed ([\d.e-]+)\)", text):
        off, allowed = map(float, found.groups())
        beyond += [f"{off:.2g}"] if not off <= allowed else []
    if found := re.search(r"(\d+) of (\d+) boxes without their like \(allowed ([\d.]+)%\)", text):
        others, boxes, allowed = map(float, found.groups())
        beyond += (
            [f"{others / boxes:.0%} of its boxes are others"]
            if 100 * others > allowed * boxes
            else []
        )
    if found := re.search(r"mean ([\d.]+) \(needed ([\d.]+)\)", text):
        mean, needed = map(float, found.groups())
        beyond += [f"its boxes overlap by {mean:.3f} in the mean"] if mean < needed else []
    if found := re.search(r"([\d.]+)% of pixels of the same class \(needed ([\d.]+)%\)", text):
        same, needed = map(float, found.groups())
        beyond += [f"{100 - same:.1f}% of its pixels have another class"] if same < needed else []
    return " and ".join(beyond)


def cause(result: Result, precision: str, finest: Result | None) -> str:
    """Why a file was refused, in words."""
    text = " ".join(result["reason"].split())
    if "operator" in text and "nms" in text:
        return "It chooses boxes in its graph, by NMS and RoIAlign; the conversion has no operators that do just that"
    if not figures(text):
        return text[:300]
    if "amplify rounding" in text:
        return (
            "Its weights amplify the rounding of float32 itself: torch's deploy form is as far "
            "from torch's own model"
        )
    if finest and not finest["reason"]:
        return f"Rounding {ROUNDED[precision]} is too much for it, its float32 file for the same runtime agrees"
    return "The conversion computes something else"


def table(results: list[Result]) -> str:
    """Markdown: networks by rows, runtimes by columns, with the reasons below."""
    of = {title_of(r, p): (r, p) for r in names("runtimes") for p in find("runtimes", r).tolerances}
    columns = [column for column in of if any(r["runtime"] == column for r in results)]
    by = {(r["network"], r["runtime"]): r for r in results}
    reasons: dict[tuple[str, str], list[str]] = {}

    def cell(row: str, column: str) -> str:
        result, (runtime, precision) = by.get((row, column)), of[column]
        if result is None:
            return ""
        if result["relative"] is not None:
            return f"{result['relative']:.0e}"
        if result.get("unverified"):
            return "inspected"
        tolerances = find("runtimes", runtime).tolerances
        finest = min(tolerances, key=tolerances.__getitem__)
        why = cause(
            result,
            precision,
            by.get((row, title_of(runtime, finest))) if precision != finest else None,
        )
        beyond = figures(" ".join(result["reason"].split()))
        said = reasons.setdefault((why, column if beyond else ""), [])
        said.append(f"`{row}` ({beyond})") if beyond else None
        return f"no ({list(reasons).index((why, column if beyond else '')) + 1})"

    rows = {r["network"]: "" if r["weights"] == "random" else ", trained" for r in results}
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [
        f"| `{row}`{how} | {' | '.join(cell(row, column) for column in columns)} |"
        for row, how in rows.items()
    ]
    allowed = {r["runtime"]: r["allowed"] for r in results if r["relative"] is not None}
    lines.append(
        f"| allowed | {' | '.join(f'{allowed[c]:g}' if c in allowed else '' for c in columns)} |"
    )
    for number, ((why, column), networks) in enumerate(reasons.items(), 1):
        lines += [""] if number == 1 else []
        where = f"{column}: " if column else ""
        lines.append(f"{number}. {where}{why}{': ' if networks else ''}{', '.join(networks)}.")
    return "\n".join(lines)


def second_table(scores: list[Result]) -> str:
    """Markdown: classifiers by rows, the pictures that a runtime takes for another class by columns."""
    own = {r["classifier"]: r for r in scores if r["runtime"] is None}
    columns = list(dict.fromkeys(r["runtime"] for r in scores if r["runtime"]))
    by = {(r["classifier"], r["runtime"]): r for r in scores}
    lines = [
        f"| | checkpoint, top-1 | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]

    def cell(row: str, column: str) -> str:
        result = by[row, column]
        if result["top1"] is None:
            return f"no: {' '.join(result['reason'].split())[:100]}"
        pairs = list(zip(own[row]["answers"], result["answers"], strict=True))
        right = round((result["top1"] - own[row]["top1"]) / 100 * len(pairs))
        return (
            f"{right:+d} ({sum(a != b for a, b in pairs)})"
            if right or any(a != b for a, b in pairs)
            else "0"
        )

    for row, checkpoint in own.items():
        count = len(checkpoint["answers"])
        right = round(checkpoint["top1"] / 100 * count)
        cells = " | ".join(cell(row, column) for column in columns)
        lines.append(f"| `{row}` | {checkpoint['top1']:.2f} % ({right} of {count}) | {cells} |")
    return "\n".join(lines)


def write(page: Path, name: str, text: str) -> None:
    """Replace what stands between the two comments of a table."""
    begin, end = (f"<!-- {name}: from benchmarks/runtimes.py -->", f"<!-- {name}: end -->")
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def main() -> None:  # noqa: C901
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NETWORKS, metavar="NAME")
    parser.add_argument(
        "--trained", nargs="+", default=[], metavar="RUN=DATA", help="run folders or checkpoints"
    )
    parser.add_argument(
        "--classifiers", nargs="+", default=[], metavar="RUN", help="for the second table"
    )
    parser.add_argument("--data", help="of the classifiers")
    parser.add_argument(
        "--docs", type=Path, help="page whose tables, between two comments each, are replaced"
    )
    parser.add_argument(
        "--out", type=Path, help="file of lines of JSON, continued where it is there"
    )
    parser.add_argument(
        "--to", default=",".join(names("runtimes")), help="runtimes, separated by commas"
    )
    args = parser.parse_args()
    if bool(args.classifiers) != bool(args.data):
        parser.error("--classifiers and --data go together")
    runtimes, record = args.to.split(","), Record(args.out)
    trained: dict[str, tuple[str, str | None]] = {}
    for given in args.trained:
        run, _, pictures = given.partition("=")
        trained[read_facts(run).model] = run, pictures or None
    results = []
    for name in dict.fromkeys([*trained, *args.names]):
        run, pictures = trained.get(name, (None, None))
        weights = weights_of(run) if run else "random"
        for runtime in runtimes:
            for precision in find("runtimes", runtime).tolerances:
                key = {"network": name, "runtime": title_of(runtime, precision), "weights": weights}
                results.append(record.done(key, held, name, run, pictures, runtime, precision))
    scores = []
    for run in args.classifiers:
        name = read_facts(run).model
        for runtime in (None, *runtimes):
            if runtime and find("runtimes", runtime).cannot_run():
                continue
            key = {"classifier": name, "runtime": runtime, "weights": weights_of(run)}
            scores.append(record.done(key, classified, run, args.data, runtime))
    record.pool.shutdown()
    for name, text in zip(
        TABLES, (table(results), second_table(scores) if scores else ""), strict=True
    ):
        print(f"{text}\n")
        if args.docs and text:
            write(args.docs, name, text)


if __name__ == "__main__":
    main()
