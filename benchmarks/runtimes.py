"""Which runtime holds which network: each is exported, run and compared, and the table is written into the docs.

    python benchmarks/runtimes.py --docs docs/runtimes.md [--out runs/runtimes.json] [NAME ...]

Networks have random weights with the statistics of a trained one (`fleetnet.realistic`), heads give their raw outputs
and are compared by what is found too. A number is the largest difference from the multi-branch model in torch, relative
to the spread of its outputs; where there is none, the reason stands below the table.
"""

import argparse
import json
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from fleetnet.errors import ExportError
from fleetnet.find import find, names
from fleetnet.predict import export
from fleetnet.realistic import realistic
from fleetnet.runtimes import label
from fleetnet.tasks import build

NETWORKS = (
    "parcnet_s", "fasternet_t0", "repvit_m0_9", "mobileone_s0", "mobileone_s4", "parc_convnext_xt",
    "ssd/parcnet_s", "yolo/repvit_m0_9", "maskrcnn/fasternet_t0", "deeplabv3/parcnet_s",
)  # fmt: skip
SIZE, HEADS = (224, 224), (160, 160)  # of classifiers; of the others, to be done in a few minutes
BEGIN, END = "<!-- from benchmarks/runtimes.py -->", "<!-- end -->"
OPTIONS = {"maskrcnn": {"channels": 64, "hidden": 256, "proposals": 100, "anchor": 16}}


def tried(name: str, runtime: str, precision: str, size: tuple[int, int]) -> dict[str, Any]:
    """One export, in a process of its own: a converter that crashes ends no more than that."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = name.partition("/")[0] if "/" in name else "classification"
    model = realistic(build(name, 1000 if "/" not in name else 20, options=OPTIONS.get(head, {})), size)
    module = find("runtimes", runtime)
    found: dict[str, Any] = {"network": name, "runtime": label(runtime, precision), "relative": None, "reason": None}
    with tempfile.TemporaryDirectory() as folder:
        try:
            if lacking := module.lacks():
                return found | {"reason": f"not here: {lacking}"}
            done = export(model, runtime, Path(folder) / f"model{module.suffix}", size=size, precision=precision)
        except ExportError as error:
            return found | {"reason": str(error).replace(f"{folder}/", "")}
    if done.parity is None:
        return found | {"unverified": done.unverified}
    top1, agreed = done.parity.top1_agreement, done.parity.agreement
    return found | {"relative": done.parity.relative, "allowed": done.parity.tolerance, "top1": top1,
                    "agreement": str(agreed) if agreed else None}  # fmt: skip


def cell(result: dict[str, Any], reasons: list[str]) -> str:
    if result["relative"] is not None:
        return f"{result['relative']:.0e}"
    if result.get("unverified"):
        return "inspected"
    reason = " ".join(result["reason"].split())
    text = f"`{result['runtime']}`, `{result['network']}`: {reason[:400]}"
    if text not in reasons:
        reasons.append(text)
    return f"no ({reasons.index(text) + 1})"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: networks by rows, runtimes by columns, with the reasons below."""
    columns = list(dict.fromkeys(r["runtime"] for r in results))
    rows = list(dict.fromkeys(r["network"] for r in results))
    by = {(r["network"], r["runtime"]): r for r in results}
    reasons: list[str] = []
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| `{row}` | {' | '.join(cell(by[row, column], reasons) for column in columns)} |" for row in rows]
    allowed = {r["runtime"]: r["allowed"] for r in results if r["relative"] is not None}
    lines.append(f"| allowed | {' | '.join(f'{allowed[c]:.0e}' if c in allowed else '' for c in columns)} |")
    return "\n".join([*lines, "", *(f"{i + 1}. {reason}" for i, reason in enumerate(reasons))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NETWORKS)
    parser.add_argument("--docs", type=Path, help="page whose table, between two comments, is replaced")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--to", default=",".join(names("runtimes")), help="runtimes, separated by commas")
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name in args.names:
        size = HEADS if "/" in name else SIZE
        jobs = [(runtime, p) for runtime in args.to.split(",") for p in find("runtimes", runtime).tolerances]
        pool = ProcessPoolExecutor(1)
        for runtime, precision in jobs:
            try:
                results.append(pool.submit(tried, name, runtime, precision, size).result())
            except BrokenProcessPool:
                reason = "its converter or its runtime ended the process"
                title = label(runtime, precision)
                results.append({"network": name, "runtime": title, "relative": None, "reason": reason})
                pool = ProcessPoolExecutor(1)
            print(json.dumps(results[-1]), flush=True)
        pool.shutdown()
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1))
    text = table(results)
    if args.docs:
        page = args.docs.read_text()
        before, rest = page.split(BEGIN)
        args.docs.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    print(text)


if __name__ == "__main__":
    main()
