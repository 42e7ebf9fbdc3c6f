"""Training steps of sums of branches, merged and branch by branch: blocks, then whole networks.

    python benchmarks/merged_step.py --out runs/merged_step.json
    python benchmarks/merged_step.py --networks mobileone_s0 --threads 2 --blocks no

What is compared runs in turn within one process. Times are medians of the rounds, ratios medians of
the ratios within a round. On one thread they are of the processor's time, without waiting for a
core; on several, of the clock. Inputs of blocks are channels_last, as `fleetnet train` has them;
timm's network runs in both memory formats, where torch can (in channels_last it corrupts memory in
the backward pass of timm's MobileOne), and the faster one counts. Bytes are those that autograd
holds for the backward pass. The last line is JSON.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fleetnet.merged import BranchSum, Merging, set_merging
from fleetnet.tasks import build
from fleetnet.training.setup import may_be_channels_last

NETWORKS = (
    "mobileone_s0",
    "mobileone_s1",
    "mobileone_s2",
    "mobileone_s3",
    "mobileone_s4",
    "repvit_m0_9",
)
Row = dict[str, str | float]


def rounds(calls: dict[str, Callable[[], None]], times: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round; a round before them is not counted."""
    seen: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for count in range(times + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if count:
                seen[name].append(1e3 * (clock() - start))
    return seen


def summary(seen: dict[str, list[float]], first: str) -> Row:
    """Median milliseconds, and how many times as fast as the `first` each other is."""
    row: Row = {f"{name} ms": statistics.median(values) for name, values in seen.items()}
    for name, values in seen.items():
        if name != first:
            pairs = zip(seen[first], values, strict=True)
            row[f"{name} / {first}"] = statistics.median(one / other for one, other in pairs)
    return row


def sums_of(model: nn.Module, images: Tensor) -> dict[str, tuple[BranchSum, Tensor]]:
    """Each kind of sum in a network, with an input of the size that it gets."""
    kinds: dict[str, tuple[BranchSum, Tensor]] = {}

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x, conv = inputs[0].detach(), module.geometry()
        kind = "depthwise" if conv.groups > 1 else "stem" if x.shape[1] == 3 else "pointwise"
        form = f"{kind:9} {len(module.branches())} branches, stride {conv.stride[0]}"
        name = f"{form}, {conv.in_channels:4} -> {conv.out_channels:4} at {x.shape[2]}"
        kinds.setdefault(name, (module, x))

    hooks = [
        module.register_forward_pre_hook(see)
        for module in model.modules()
        if isinstance(module, BranchSum)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return kinds


def block(module: BranchSum, x: Tensor, low: bool, times: int) -> Row:
    """Forward and backward of one sum, merged and not; what "auto" would choose."""
    x = x.requires_grad_(x.shape[1] > 3)
    weight = torch.randn_like(module.branch_by_branch(x).detach())

    def step(merging: Merging) -> None:
        module.merging = merging
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y = module(x)
        y.backward(weight.to(y.dtype))

    row = summary(rounds({"off": lambda: step("off"), "on": lambda: step("on")}, times), "off")
    module.merging = "auto"
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        return row | {"chosen": "on" if module.merges(x) else "off"}


def held(model: nn.Module, images: Tensor) -> float:
    """MiB that autograd holds for the backward pass, parameters not counted."""
    sizes = {parameter.untyped_storage().data_ptr(): 0 for parameter in model.parameters()}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        sizes.setdefault(storage.data_ptr(), storage.nbytes())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        outputs = model(images)
    total = sum(sizes.values()) / 2**20
    del outputs
    return total


def network(name: str, images: Tensor, low: bool, times: int) -> Row:
    """Steps of a whole network in each way, and timm's of that name; SGD itself is left out."""
    last = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (len(images),))
    ours = build(name, 1000).train().to(memory_format=torch.channels_last)
    theirs = timm.create_model(name, num_classes=1000).train()

    def step(model: nn.Module, images: Tensor, merging: Merging | None = None) -> None:
        if merging is not None:
            set_merging(model, merging)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            outputs = model(images)
        if isinstance(outputs, dict):
            outputs = outputs["logits"]
        if isinstance(outputs, tuple):  # of distillation
            outputs = sum(outputs) / len(outputs)
        F.cross_entropy(outputs.float(), labels).backward()

    calls = {
        "off": lambda: step(ours, last, "off"),
        "on": lambda: step(ours, last, "on"),
        "auto": lambda: step(ours, last, "auto"),
        "timm rows": lambda: step(theirs, images),
    }
    if may_be_channels_last(theirs, torch.device("cpu")):
        theirs_last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
        calls["timm channels_last"] = lambda: step(theirs_last, last)
    seen = rounds(calls, times)
    row = summary(seen, "off")
    of_timm = [form for form in calls if form.startswith("timm")]
    faster = min(of_timm, key=lambda form: statistics.median(seen[form]))
    pairs = zip(seen[faster], seen["auto"], strict=True)
    row["auto / timm"] = statistics.median(one / other for one, other in pairs)
    for merging in ("off", "on", "auto"):
        set_merging(ours, merging)
        row[f"{merging} MiB an image"] = held(ours, last) / len(last)
    return row


def show(row: Row) -> None:
    values = [f"{key} {value:.2f}" for key, value in row.items() if isinstance(value, float)]
    print(row["name"], " ".join(values), row.get("chosen", ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--blocks", choices=("yes", "no", "only"), default="yes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    low = settings.precision == "bf16"
    images = torch.randn(settings.batch, 3, settings.size, settings.size)
    print(f"torch {torch.__version__}, {settings}")
    rows: list[Row] = []
    for name in settings.networks if settings.blocks != "no" else ():
        model = build(name, 1000).train().to(memory_format=torch.channels_last)
        last = images.contiguous(memory_format=torch.channels_last)
        for kind, (module, x) in sums_of(model, last).items():
            row: Row = {"name": f"{name} {kind}", **block(module, x, low, settings.rounds)}
            rows.append(row)
            show(row)
    for name in settings.networks if settings.blocks != "only" else ():
        rows.append({"name": name, **network(name, images, low, settings.rounds)})
        show(rows[-1])
    if settings.out:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_text(json.dumps(rows, indent=1))
    print(json.dumps({"threads": settings.threads, "rows": rows}))


if __name__ == "__main__":
    main()
