"""The Dockerfile without a daemon: builds it by buildah on a fresh Debian root, and runs a command in what comes out.

    sudo python benchmarks/container.py [--build-arg TORCH=cu128] [--volume DIR:DIR:ro] [--keep] -- demo

Needs the Debian packages buildah and debootstrap, and about 12 GB in --work. Isolation is that of
chroot, so that neither user namespaces nor a daemon are asked for. `--root DIR` takes a root that
is there already in place of debootstrap's. Everything is removed at the end unless `--keep`. The
last line is JSON: seconds of each step.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOCKERFILE = REPOSITORY / "Dockerfile"
SUITE = "bookworm"  # of Debian, as the Dockerfile's BASE has it
BASE, IMAGE = "localhost/base", "localhost/fleetnet"
ISOLATION = ["--isolation", "chroot"]


def debootstrap(root: Path, mirror: str) -> list[str]:
    return ["debootstrap", "--variant=minbase", SUITE, str(root), mirror]


def build(arguments: Sequence[str], volumes: Sequence[str]) -> list[str]:
    """The command that builds the Dockerfile as it stands, on our own root."""
    given = [f"--build-arg={argument}" for argument in (f"BASE={BASE}", *arguments)]
    mounted = [f"--volume={volume}" for volume in volumes]
    options = [*ISOLATION, "--pull-never", "--layers=false", *given, *mounted]
    return ["build", *options, "-f", str(DOCKERFILE), "-t", IMAGE, str(REPOSITORY)]


def run(container: str, words: Sequence[str]) -> list[str]:
    """The command that runs `fleetnet` with `words`, as the user and in the folder of the image."""
    return ["run", *ISOLATION, container, "--", "fleetnet", *words]


class Buildah:
    """buildah with a storage of its own; where the kernel has no overlay each step is a copy."""

    def __init__(self, storage: Path):
        folders = ["--root", str(storage / "images"), "--runroot", str(storage / "run")]
        driver = "overlay" if "overlay" in Path("/proc/filesystems").read_text() else "vfs"
        self.head = ["buildah", "--storage-driver", driver, *folders]

    def __call__(self, *words: str) -> None:
        """Do something; all that it says goes to standard error."""
        subprocess.run([*self.head, *words], check=True, stdout=sys.stderr)

    def begin(self, image: str) -> str:
        """The name of a container from an image."""
        words = [*self.head, "from", "--pull-never", image]
        return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def base(self, root: Path) -> None:
        """An image of a root folder."""
        container = self.begin("scratch")
        self("add", "--quiet", container, str(root), "/")
        self("commit", "--quiet", "--rm", container, BASE)


def main() -> None:
    options = _parser().parse_args()
    for program in ("buildah", *(() if options.root else ("debootstrap",))):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: apt-get install buildah debootstrap")
    if os.geteuid() != 0:
        sys.exit("debootstrap and chroot need root: sudo python benchmarks/container.py")
    work = Path(tempfile.mkdtemp(prefix="fleetnet-container-", dir=options.work))
    seconds: dict[str, float] = {}

    def timed(name: str, action: Callable[[], object]) -> None:
        start = time.monotonic()
        action()
        seconds[name] = round(time.monotonic() - start, 1)

    buildah = Buildah(work / "storage")
    try:
        root = options.root or work / "root"
        if options.root is None:
            command = debootstrap(root, options.mirror)
            timed("root", lambda: subprocess.run(command, check=True, stdout=sys.stderr))
        timed("base", lambda: buildah.base(root))
        timed("build", lambda: buildah(*build(options.build_arg, options.volume)))
        container = buildah.begin(IMAGE)
        timed("run", lambda: buildah(*run(container, options.words or ["demo"])))
    finally:
        if not options.keep:
            buildah("rm", "--all")  # what is mounted
            shutil.rmtree(work)
    print(json.dumps(seconds))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--root", type=Path, help="a Debian root in place of debootstrap's")
    parser.add_argument("--work", type=Path, help="a folder for all of it, instead of /tmp")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--volume", action="append", default=[], metavar="HERE:THERE[:ro]")
    parser.add_argument("--keep", action="store_true", help="leave root and images there")
    parser.add_argument("words", nargs="*", help="of fleetnet: demo")
    return parser


if __name__ == "__main__":
    main()
