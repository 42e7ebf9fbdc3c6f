"""Merged training beside branch by branch: whole networks in float64 over steps, and their drift.

    python benchmarks/merged_exact.py
    python benchmarks/merged_exact.py --networks mobileone_s0 --steps 20

Exact: two copies of a network take the same steps of SGD in float64, one merged. Batches are of 2
to 32 images of odd sizes. Shown is the largest relative difference (of norms; absolute below 1e-3)
of outputs, of gradients of images and parameters, and at the end of parameters and running
statistics. Drift: outputs and gradients of one step in float32 and bfloat16 (autocast), relative to
float64, branch by branch and merged. The last line is JSON.
"""

import argparse
import copy
import json
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fleetnet.merged import Merging, set_merging
from fleetnet.tasks import build

NETWORKS = (
    "mobileone_s0",
    "mobileone_s1",
    "mobileone_s2",
    "mobileone_s3",
    "mobileone_s4",
    "repvit_m0_9",
    "repvit_m1_0",
    "repvit_m1_1",
    "repvit_m1_5",
    "repvit_m2_3",
)
SHAPES = ((2, 97, 129), (8, 97, 96), (32, 65, 64))  # images, height, width
RATE = 0.001  # at 0.01 the last bit of a weight is told apart seven times as far after each step
CLASSES = 10


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    outputs = model(images)
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def difference(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    pairs = zip(one, other, strict=True)
    return max(((a - b).norm() / b.norm().clamp(min=1e-3)).item() for a, b in pairs)


def exact(name: str, steps: int) -> float:
    torch.manual_seed(0)
    model = build(name, CLASSES).double().train().to(memory_format=torch.channels_last)
    models = (copy.deepcopy(model), model)
    set_merging(models[0], "on")
    optimizers = [torch.optim.SGD(each.parameters(), lr=RATE, momentum=0.9) for each in models]
    worst = 0.0
    for step in range(steps):
        batch, height, width = SHAPES[step % len(SHAPES)]
        images = torch.randn(batch, 3, height, width, dtype=torch.float64)
        labels = torch.randint(CLASSES, (batch,))
        seen = []
        for each, optimizer in zip(models, optimizers, strict=True):
            mine = images.clone().requires_grad_()
            logits = logits_of(each, mine)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            gradients = [value.grad for value in (mine, *each.parameters())]
            seen.append([logits.detach(), *(each for each in gradients if each is not None)])
        worst = max(worst, difference(*seen))
        for optimizer in optimizers:
            optimizer.step()
    states = [[value.double() for value in each.state_dict().values()] for each in models]
    return max(worst, difference(*states))


def drift(name: str, batch: int, size: int) -> dict[str, float]:
    torch.manual_seed(0)
    reference = build(name, CLASSES).double().train().to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size, dtype=torch.float64)
    images = images.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(batch, CLASSES, dtype=torch.float64)
    model = copy.deepcopy(reference).float()

    def outcome(model: nn.Module, images: Tensor, low: bool) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = logits_of(model, images).to(images.dtype)
        parameters = list(model.parameters())
        gradients = torch.autograd.grad((logits * weight.to(logits)).sum(), parameters)
        every = torch.cat([each.flatten() for each in gradients])
        return logits.detach().double(), every.double()

    expected = outcome(reference, images, low=False)
    row = {}
    ways: tuple[Merging, ...] = ("off", "on", "auto")
    for low in (False, True):
        for merging in ways:
            set_merging(model, merging)
            values = outcome(model, images.float(), low)
            for what, one, other in zip(("logits", "gradients"), values, expected, strict=True):
                key = f"{'bf16' if low else 'fp32'} {what} {merging}"
                row[key] = difference([one], [other])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="of the drift")
    parser.add_argument("--size", type=int, default=96, help="of the drift")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in settings.networks:
        row: dict[str, str | float] = {"name": name, "exact": exact(name, settings.steps)}
        print(f"{name}: largest difference in float64 {row['exact']:.1e}", flush=True)
        row |= drift(name, settings.batch, settings.size)
        print("   ", *(f"{key} {value:.1e} " for key, value in row.items() if " " in key))
        rows.append(row)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
