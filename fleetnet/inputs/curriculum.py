"""Sizes of the input that change in a training: by the epoch, or from step to step.

    a curriculum   sizes and strengths of the augmentation by epoch: MobileOne (arXiv:2206.04040) goes
                   from 160 pixels and weak augmentation to 224 and strong; FasterNet
                   (arXiv:2303.03667) from 192 to 224 in its last 20 epochs
    sizes          each step has one of several by chance, and as many images as have the pixels of
                   the usual batch (CVNets, arXiv:2206.02680, section B): ParC-Net is trained so

Both are functions of the place in the run, so a run that continues needs to remember nothing.
"""

from dataclasses import dataclass

from ..sizes import Size
from .randomness import choice, generator_of, of_size


@dataclass(frozen=True)
class Sizes:
    """One of several sizes for each step of a training, and how many images it has there.

    `usual` and `batch` are the size and number of images of a process that memory and learning rate
    are meant for: smaller sizes have as many more as have the same pixels, in multiples of the
    `world` processes as CVNets has it, and larger ones no fewer.
    """

    sizes: tuple[Size, ...]
    usual: Size
    batch: int
    seed: int
    world: int = 1

    def at(self, epoch: int, step: int) -> Size:
        """The size of a step, for all processes alike."""
        return choice(self.sizes, generator_of(of_size(self.seed, epoch, step)))

    def images(self, size: Size) -> int:
        """How many images a step of a size has, in each process."""
        wanted = self.usual[0] * self.usual[1] * self.batch // (size[0] * size[1])
        return max(self.batch, round(wanted / self.world) * self.world)

    def steps(self, count: int) -> int:
        """Of an epoch of so many samples, as if all sizes came equally often; at least one."""
        mean = sum(self.images(size) for size in self.sizes) / len(self.sizes) * self.world
        return max(1, int(count / mean))
