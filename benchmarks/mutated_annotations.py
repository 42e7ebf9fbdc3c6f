"""Annotations damaged in every way: each is read, or refused in our words, within a bound of time and memory.

    python benchmarks/mutated_annotations.py --count 2000 --seed 0

Small data sets of every format are made, and one of their files is damaged at a time: bytes
flipped, cut or doubled, numbers made huge, negative, NaN or text, names made odd, values of another
type, nesting without end. Every outcome has to be a `Split` or a `FleetnetError` of at most 20
lines; label maps of a `Split` are read too. A worker reads them, and is replaced when it takes
longer than `SECONDS` or dies, so that a hang or a crash is an outcome and not the end. Prints what
is wrong, a summary and, last, a line of JSON.
"""

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fleetnet.data import load
from fleetnet.data._contents import contents_of
from fleetnet.errors import FleetnetError
from fleetnet.review.usable import check_usable

SECONDS = 20.0  # for one case
MEGABYTES = 300  # that a case may add to the peak of the process
LINES, LETTERS = 20, 6000  # of a message

NUMBERS = [
    "0", "-1", "1", "0.5", "1e9", "-1e9", "1e400", "NaN", "Infinity", "-Infinity", "1" * 30, "1" * 5000,
    "9223372036854775808", "0x10", "1_000", "٣", "true", "null", '"7"', '""', "[]", "{}", "[1, "
                                                                                          "2]", '"nan"',
    '"\\u0000"', "1e-400",
]  # fmt: skip
WORDS = [
    "", " ", "\0", "../../../etc/passwd", "/etc/passwd", "a" * 5000, "é\u0301", "\u202egpj", "a/b\\c", "train",
    "__ignore__", "<!DOCTYPE "
                  "a>", "&amp;", "&bomb;", "%s{0}", "\n", "\t\t", "-", "~", "*x", "&x", "!!python/none",
    "<<", "\ud800",
]  # fmt: skip


# --- data sets


def picture(path: Path, size: tuple[int, int] = (16, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_coco(root: Path) -> list[Path]:
    packed = {"size": [12, 16], "counts": [20, 30, 142]}
    for split in ("train", "val"):
        images = [
            {"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(1, 5)
        ]
        rows = [
            {
                "id": i, "image_id": 1 + i % 4, "category_id": 1 + i % 2, "bbox": [1, 2, 6, 5], "area": 30.0,
                "iscrowd": int(i == 5), "segmentation": packed if i % 3 == 0 else [[1, 2, 7, 2, 7, 7, 1, 7]],
            }
            for i in range(1, 8)
        ]  # fmt: skip
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        for row in images:
            picture(root / "images" / split / str(row["file_name"]))
        document = {"images": images, "annotations": rows, "categories": categories}
        write(root / "annotations" / f"instances_{split}.json", json.dumps(document))
    return [root / "annotations" / "instances_train.json"]


def make_voc(root: Path) -> list[Path]:
    for i in range(4):
        picture(root / "JPEGImages" / f"{i}.png")
        corners = "<xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax>"
        name = "cat" if i % 2 else "dog"
        item = f"<object><name>{name}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"
        head = f"<filename>{i}.png</filename><size><width>16</width><height>12</height><depth>3</depth></size>"
        write(
            root / "Annotations" / f"{i}.xml",
            f"<?xml version='1.0'?>\n<annotation>{head}{item}{item}</annotation>\n",
        )
    write(root / "ImageSets" / "Main" / "train.txt", "0\n1\n2\n")
    write(root / "ImageSets" / "Main" / "val.txt", "3\n")
    write(root / "classes.txt", "cat\ndog\n")
    return [root / "Annotations" / "0.xml", root / "Annotations" / "1.xml", root / "ImageSets" / "Main" / "train.txt",
            root / "classes.txt"]  # fmt: skip


def make_yolo(root: Path) -> list[Path]:
    for split in ("train", "val"):
        for i in range(4):
            picture(root / "images" / split / f"{i}.png")
            write(
                root / "labels" / split / f"{i}.txt",
                "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.6 0.1 0.6 0.7\n",
            )
    write(
        root / "data.yaml",
        "path: .\nnames: {0: cat, 1: dog}\nnc: 2\ntrain: images/train\nval: images/val\n",
    )
    return [root / "labels" / "train" / "0.txt", root / "data.yaml"]


def make_pose(root: Path) -> list[Path]:
    files = make_yolo(root)
    write(
        root / "data.yaml",
        "names: [cat, dog]\nkpt_shape: [2, 3]\ntrain: images/train\nval: images/val\n",
    )
    for file in (root / "labels").rglob("*.txt"):
        write(file, "0 0.5 0.5 0.25 0.25 0.1 0.1 2 0.2 0.2 1\n")
    return files


def make_lists(root: Path) -> list[Path]:
    for i in range(6):
        picture(root / "jpg" / f"a {i}.png")
    write(root / "train_list.txt", "".join(f"jpg/a {i}.png {i % 2}\n" for i in range(4)))
    write(root / "val_list.txt", "jpg/a 4.png 0\njpg/a 5.png 1\n")
    write(root / "label_list.txt", "0 cat\n1 polar bear\n")
    return [root / "train_list.txt", root / "label_list.txt"]


def make_maps(root: Path) -> list[Path]:
    values = (np.arange(192, dtype=np.uint8).reshape(12, 16) // 64) % 3
    for i in range(4):
        picture(root / "images" / f"{i}.png")
        image = Image.fromarray(values)
        if i == 1:
            image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
        (root / "labels").mkdir(exist_ok=True)
        image.save(root / "labels" / f"{i}.png")
    write(root / "classes.txt", "a\nb\nc\n")
    write(root / "train.txt", "images/0.png labels/0.png\n1\n2.png\n")
    write(root / "val.txt", "3\n")
    return [
        root / "labels" / "0.png",
        root / "labels" / "1.png",
        root / "classes.txt",
        root / "train.txt",
    ]


def make_colors(root: Path) -> list[Path]:
    make_maps(root)
    write(root / "colors.txt", "0 0 0 a\n200 0 0 b\n0 200 0 c\n9 9 9 void\n")
    for file in (root / "labels").glob("*.png"):
        values = np.asarray(Image.open(file))
        table = np.array([(0, 0, 0), (200, 0, 0), (0, 200, 0)], np.uint8)
        Image.fromarray(table[values]).save(file)
    palette = Image.fromarray(np.asarray(values))
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    palette.save(root / "labels" / "1.png")
    return [root / "colors.txt", root / "labels" / "0.png", root / "labels" / "1.png"]


MAKERS: dict[str, tuple[Callable[[Path], list[Path]], str | None, tuple[str, ...]]] = {
    "coco": (make_coco, None, ("boxes", "masks")), "voc": (make_voc, None, ("boxes",)),
    "yolo": (make_yolo, None, ("boxes", "masks")), "pose": (make_pose, None, ("boxes",)),
    "lists": (make_lists, None, ("label",)), "maps": (make_maps, None, ("semantic",)),
    "colors": (make_colors, None, ("semantic",)),
}  # fmt: skip


# --- damage


def flip(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 3, 20))):
        if changed:
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def remove(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data) + 1)
    return data[:start] + data[start + dice.randrange(40) :]


def double(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data) + 1)
    piece = data[start : start + dice.randrange(1, 60)]
    return data[:start] + piece * dice.choice((2, 3, 500)) + data[start:]


def noise(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data) + 1)
    return data[:start] + dice.randbytes(dice.choice((1, 8, 400))) + data[start:]


def replace_number(data: bytes, dice: random.Random) -> bytes:
    """A number of the text becomes another, or something else."""
    text = data.decode("latin-1")
    places = [
        i
        for i, char in enumerate(text)
        if char.isdigit() and (i == 0 or text[i - 1] not in "0123456789.")
    ]
    if not places:
        return noise(data, dice)
    start = end = dice.choice(places)
    while end < len(text) and text[end] in "0123456789.":
        end += 1
    return (text[:start] + dice.choice(NUMBERS) + text[end:]).encode("utf-8", "surrogatepass")


def replace_word(data: bytes, dice: random.Random) -> bytes:
    """A word of the text becomes another, or something else."""
    text = data.decode("latin-1")
    places = [
        i for i, char in enumerate(text) if char.isalpha() and (i == 0 or not text[i - 1].isalpha())
    ]
    if not places:
        return noise(data, dice)
    start = end = dice.choice(places)
    while end < len(text) and text[end].isalpha():
        end += 1
    return (text[:start] + dice.choice(WORDS + NUMBERS) + text[end:]).encode(
        "utf-8", "surrogatepass"
    )


def nest(data: bytes, dice: random.Random) -> bytes:
    """Brackets, tags or aliases without end."""
    start, depth = dice.randrange(len(data) + 1), dice.choice((50, 3000, 100_000))
    opening = dice.choice((b"[", b"{", b'{"a":', b"<a>", b"- ", b"&a [*a, ", b"\n ", b'"', b"[["))
    return data[:start] + opening * depth + data[start:]


def recode(data: bytes, dice: random.Random) -> bytes:
    coding = dice.choice(("utf-16", "utf-8-sig", "utf-32", "cp037"))
    return data.decode("latin-1").encode(coding, "replace")


def swap_lines(data: bytes, dice: random.Random) -> bytes:
    lines = data.split(b"\n")
    dice.shuffle(lines)
    return dice.choice((b"\n", b"\r", b"\r\n", b"\x85", b" ")).join(lines)


def change_value(data: bytes, dice: random.Random) -> bytes:
    """Somewhere in a JSON document, a value of another type, a key gone, or a list many times as long."""
    try:
        document = json.loads(data)
    except ValueError:
        return replace_number(data, dice)
    place: Any = document
    while isinstance(place, dict | list) and place:
        key = dice.choice(list(place) if isinstance(place, dict) else list(range(len(place))))
        below = place[key]
        if not isinstance(below, dict | list) or not below or dice.random() < 0.25:
            choices: list[Any] = [
                None, True, -1, 0, 1.5, 10**30, 10**5000, "7", "", "x" * 3000, [], {}, [[]], [None] * 9,
                {"size": [1], "counts": "x"},
            ]  # fmt: skip
            if dice.random() < 0.2 and isinstance(place, dict):
                del place[key]
            elif isinstance(below, list) and dice.random() < 0.3:
                place[key] = below * 300
            else:
                place[key] = dice.choice(choices)
            break
        place = below
    sys.set_int_max_str_digits(0)
    return json.dumps(document, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")


def other_picture(data: bytes, dice: random.Random) -> bytes:
    """A label map of another kind: size, mode, values."""
    import io

    mode = dice.choice(("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F"))
    size = dice.choice(((16, 12), (12, 16), (1, 1), (3000, 3000), (16, 12)))
    if mode == "I;16":
        image = Image.fromarray(
            np.full(size[::-1], dice.choice((0, 1, 255, 256, 65535)), np.uint16)
        )
    else:
        image = Image.new(
            mode,
            size,
            dice.choice((0, 1)) if mode in ("1", "P") else dice.choice((0, 0, 2)) * (mode != "F"),
        )
    file = io.BytesIO()
    image.save(file, "TIFF" if mode in ("I", "F") else dice.choice(("PNG", "TIFF")))
    return file.getvalue()


def nothing(data: bytes, dice: random.Random) -> bytes:
    return dice.choice(
        (
            b"",
            b"\n",
            b"\0" * 1000,
            b" " * 1_000_000,
            b"a" * 3_000_000,
            b"0 " * 500_000,
            b"\n" * 500_000,
        )
    )


DAMAGES = (
    flip, cut, remove, double, noise, replace_number, replace_number, replace_word, nest, recode, swap_lines,
    change_value, change_value, other_picture, nothing,
)  # fmt: skip


def mutate(data: bytes, dice: random.Random) -> tuple[bytes, str]:
    names = []
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        damage = dice.choice(DAMAGES)
        names.append(damage.__name__)
        data = damage(data, dice)
    return data, "+".join(names)


# --- outcomes


def outcome(root: str, split: str | None, target: str) -> tuple[str, str]:
    """("read" or "refused" or what is wrong, a text that explains it)."""
    try:
        found = load(root, split, None, target)
        contents = contents_of(found, target)
        check_usable(found, contents)
        for sample in found.samples:
            if sample.semantic is not None:
                sample.semantic()
        return "read", f"{len(found.samples)} samples, {contents.total} {contents.unit}"
    except FleetnetError as error:
        text = str(error)
        if text.count("\n") >= LINES or len(text) > LETTERS:
            return "message too long", f"{len(text)} characters: {text[:500]}"
        if "\0" in text:
            return "message with a null byte", text[:500]
        return "refused", text
    except MemoryError:
        return "out of memory", traceback.format_exc(limit=-4)
    except BaseException:
        return "raw exception", traceback.format_exc(limit=-4)


def work(pipe: Connection) -> None:
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 4_000 * 2**20
    # a guard, not the bound
    resource.setrlimit(resource.RLIMIT_AS, (max(limit, 8 * 2**30), resource.RLIM_INFINITY))
    while True:
        task = pipe.recv()
        if task is None:
            return
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kind, text = outcome(*task)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        pipe.send((kind, text, grown))


class Worker:
    """A process that reads data, replaced when it hangs or dies."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, *task: object) -> tuple[str, str, int]:
        self.pipe.send(task)
        try:
            if self.pipe.poll(SECONDS):
                kind, text, grown = self.pipe.recv()
                return (
                    ("too much memory", f"{grown} MB; {text}", grown)
                    if grown > MEGABYTES
                    else (kind, text, grown)
                )
            kind = "hang"
        except EOFError:
            kind = "crash"
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self._start()
        return kind, f"after {SECONDS:g} s or with exit code {code}", 0

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join(10)


def campaign(
    count: int, seed: int, place: Path, only: str | None = None
) -> tuple[Counter[str], list[dict[str, Any]]]:
    """The outcomes of `count` damaged files, and what is wrong with those that are neither read nor refused."""
    names = [name for name in MAKERS if only in (None, name)]
    sets = {name: MAKERS[name][0](place / name) for name in names}
    whole = {file: file.read_bytes() for files in sets.values() for file in files}
    outcomes: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    worker = Worker()
    for name in names:  # undamaged, each is read
        for target in MAKERS[name][2]:
            kind, text, _ = worker.ask(str(place / name), "train", target)
            if kind != "read":
                faults.append(
                    {"case": f"{name} undamaged, {target}", "outcome": kind, "text": text}
                )
    for case in range(count):
        dice = random.Random(seed * 1_000_003 + case)
        name = dice.choice(names)
        file = dice.choice(sets[name])
        damaged, how = mutate(whole[file], dice)
        file.write_bytes(damaged)
        split, target = dice.choice(("train", "val", "train", None)), dice.choice(MAKERS[name][2])
        root = file if dice.random() < 0.1 and file.suffix in (".json", ".yaml") else place / name
        kind, text, _ = worker.ask(str(root), split, target)
        outcomes[kind] += 1
        if kind not in ("read", "refused"):
            where = f"case {case} of seed {seed}: {file.relative_to(place)}, {how}, split {split}, {target}"
            faults.append({"case": where, "outcome": kind, "text": text})
        file.write_bytes(whole[file])
    worker.close()
    return outcomes, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(MAKERS))
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="mutated-"))
    began = time.monotonic()
    try:
        outcomes, faults = campaign(args.count, args.seed, place, args.only)
    finally:
        shutil.rmtree(place)
    for fault in faults:
        print(f"{fault['outcome']}: {fault['case']}\n{fault['text']}\n")
    for kind, number in outcomes.most_common():
        print(f"{number:6} {kind}")
    seconds = round(time.monotonic() - began, 1)
    print(
        json.dumps(
            {
                "count": args.count,
                "seed": args.seed,
                "outcomes": outcomes,
                "faults": len(faults),
                "seconds": seconds,
            }
        )
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
