"""Write fleetnet/cli/_table.py anew: what `fleetnet models` shows, so that it answers without building a network.

    python benchmarks/models_table.py > fleetnet/cli/_table.py

Parameters are counted in both forms, multiplications and additions in the deploy form at 224
pixels, on torch's meta device. tests/test_backbones.py and tests/test_newcomer.py compare the table
with the networks; run this after a change of a backbone's file.
"""

import torch

from fleetnet.backbones import pretrained, variants
from fleetnet.measure.flops import count
from fleetnet.reparam import reparameterize
from fleetnet.tasks import build

HEADER = '''"""What `fleetnet models` shows, written by benchmarks/models_table.py: nothing is built to show it."""

SIZE = (224, 224)  # height and width in pixels, that the multiplications are counted at
SIZES = {  # of each network: parameters, parameters of the deploy form, its multiplications and additions
'''


def sizes(name: str, size: tuple[int, int] = (224, 224)) -> tuple[int, int, int]:
    """Parameters, parameters of the deploy form, and its multiplications and additions at a size (height, width)."""
    with torch.device("meta"):
        model, example = build(name).eval(), torch.empty(1, 3, *size)
    deploy = reparameterize(model, example)
    parameters, of_deploy = (sum(p.numel() for p in net.parameters()) for net in (model, deploy))
    return parameters, of_deploy, count(deploy, example).macs


def main() -> None:
    print(HEADER, end="")
    for name in variants():
        print(f'    "{name}": ({", ".join(f"{number:_}" for number in sizes(name))}),')
    print("}")
    print(
        "PUBLISHED = {  # ImageNet-1k top-1 in percent, who measured it, license, and where the "
        "weights are"
    )
    for name in variants():
        weights = pretrained(name)
        if weights is not None:
            print(f'    "{name}": (')
            print(f"        {weights.top1},")
            for text in (weights.measured_by, weights.license, weights.source):
                print(f'        "{text}",')
            print("    ),")
    print("}")


if __name__ == "__main__":
    main()
