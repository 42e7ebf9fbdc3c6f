"""Where the XML files of a data set lie, and the lists that divide them into splits."""

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..errors import DataError
from ..images import EXTENSIONS, STACKS, find_images, hidden
from ..reading import ANNOTATIONS, head_of, read_bytes
from . import Part, few, inside, shorten, text_of
from ._conventions import (
    XML_FOLDERS,
    child,
    children,
    files_in,
    same_form,
    split_folders,
    split_lists,
)
from ._places import Pictures, image_folders

HEAD = 4096  # bytes of a file that are looked at
LOOKED_AT = 3  # files of a folder that are looked at
# Of the images, the likeliest first.
SUFFIXES = (".jpg", ".jpeg", ".png", *sorted(EXTENSIONS - {".jpg", ".jpeg", ".png"}), *STACKS)
_PAIR = re.compile(r"(\S.*?\.\w+)[\s,]+(\S.*\.xml)", re.IGNORECASE)


_Item = TypeVar("_Item")


class Entry(NamedTuple):
    """One annotated picture."""

    name: str  # without extension, with folders below that of the XML files
    xml: Path
    image: str | None = None  # as a list names it beside the XML file


class Tree(NamedTuple):
    """The files of a data set of XML files."""

    root: Path
    folders: dict[str, Path]  # split -> its folder of XML files; "" where one holds all
    lists: dict[str, Path]  # split -> its list

    def splits(self) -> dict[str, Path]:
        """What says which pictures a split has: lists before folders."""
        return self.lists or {split: path for split, path in self.folders.items() if split}


class FilesByStem:
    """The files of a folder by their names without extension, which may be in capitals."""

    def __init__(self, folder: Path, suffixes: Sequence[str]) -> None:
        self.folder = folder
        self._suffixes = suffixes  # in small letters, the likeliest first
        self._listed: dict[Path, dict[str, Path]] = {}  # folder -> name without extension -> file

    def of(self, name: str) -> Path | None:
        """The file of a name, which may have folders before it; None where there is none."""
        place = (self.folder / name).parent
        if place not in self._listed:
            files = files_in(place, *self._suffixes)
            files.sort(key=lambda file: self._suffixes.index(file.suffix.lower()), reverse=True)
            self._listed[place] = {same_form(file.stem): file for file in files}
        return self._listed[place].get(same_form((self.folder / name).name))


def tree_of(root: Path) -> Tree | None:
    """The files below a folder; None where there are no XML files of objects."""
    folders = _folders(root)
    if not folders:
        return None
    return Tree(root, folders, _lists(root, folders))


def _folders(root: Path) -> dict[str, Path]:
    for top in children(root, XML_FOLDERS):
        if not files_in(top, ".xml"):
            of_split = {s: f for s, f in split_folders(top).items() if _has_xml(f)}
            if of_split:
                return of_split
        if _has_xml(top):
            return {"": top}
    of_split = {}
    for split, folder in split_folders(root, XML_FOLDERS).items():
        inner = next((f for f in children(folder, XML_FOLDERS) if _has_xml(f)), None)
        if inner is not None or _is_voc(folder):
            of_split[split] = inner or folder
    if of_split:
        return of_split
    return {"": root} if _is_voc(root) else {}


def _lists(root: Path, folders: dict[str, Path]) -> dict[str, Path]:
    """The lists of splits: in ImageSets, or beside the data where their first line names an XML file."""
    sets = child(root, ["ImageSets"])
    if sets is not None:
        for place in (*children(sets, ["Main"]), sets):
            lists = split_lists(place, ("",))
            if lists:
                return lists
    lists = split_lists(root, ("", "_list"))
    tree = Tree(root, folders, {})
    for split, path in lists.items():
        first = next((line for line in text_of(path).split("\n") if line.strip()), "")
        if not os.path.isfile(_Listed(tree, split).entry(first).xml):
            return {}
    return lists


def _has_xml(folder: Path) -> bool:
    """Whether XML files of objects lie below a folder."""
    return any(map(_begins_so, islice(_below(folder), LOOKED_AT)))


def _is_voc(folder: Path) -> bool:
    """Whether XML files of objects lie in a folder itself."""
    return any(map(_begins_so, files_in(folder, ".xml")[:LOOKED_AT]))


def _begins_so(file: Path) -> bool:
    head = head_of(file, HEAD).replace(b"\0", b"")  # of UTF-16
    return re.search(rb"<annotation[\s>]", head) is not None


def _below(folder: Path) -> Iterator[Path]:
    """The XML files below a folder, by path, without what is passed over."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not hidden(name))
        for name in sorted(names):
            if name.lower().endswith(".xml") and not hidden(name):
                yield Path(place, name)


def entries(tree: Tree, split: str) -> list[Entry]:
    """The entries of a split, in the order of its list or by name; all of them for ""."""
    if split in tree.lists:
        lines = text_of(tree.lists[split]).split("\n")
        listed = _Listed(tree, split)
        rows = [listed.entry(line) for line in lines if line.strip()]
        if not rows:
            raise DataError(f"{tree.lists[split]} is empty: no samples")
        return rows
    wanted = {split: tree.folders[split]} if split in tree.folders else tree.folders
    return [
        Entry(xml.relative_to(folder).with_suffix("").as_posix(), xml)
        for folder in wanted.values()
        for xml in _below(folder)
    ]


def without_val(
    lists: Mapping[str, Path], split: str, items: Sequence[_Item], of_val: Callable[[], list[_Item]]
) -> list[_Item]:
    """The items of a split; where train is a list "trainval" and val has its own, without those of val."""
    if split != "train" or "val" not in lists or lists["train"].stem.lower() != "trainval":
        return list(items)
    if lists["val"] == lists.get("test"):  # which serves as val
        return list(items)
    val = set(of_val())
    return [item for item in items if item not in val]


class _Listed:
    """The XML files that lines of the list of a split name."""

    def __init__(self, tree: Tree, split: str) -> None:
        self.tree = tree
        self.split = split
        self._by_stem: dict[str, list[Path]] | None = None

    def entry(self, line: str) -> Entry:
        """The entry of a line: a name, one with 1, 0 or -1 behind it, a path, or an image and its XML file."""
        line = line.strip()
        pair = _PAIR.fullmatch(line)
        if pair:
            xml = self._at(pair[2].replace("\\", "/")) or self.tree.root / pair[2]
            return Entry(
                Path(pair[1]).with_suffix("").as_posix(), inside(xml, self.tree.root, line), pair[1]
            )
        # A list of one class has lines `name 1`, `name -1`; a name may also end so itself.
        names = dict.fromkeys((line, re.sub(r"\s+(-1|0|1)$", "", line)))
        for name in names:
            of_name = self._of_name(name)
            if of_name is not None:
                return Entry(_without_extension(name), of_name)
        name = _without_extension(list(names)[-1])
        folder = next(iter(self.tree.folders.values()))
        return Entry(name, inside(folder / f"{name}.xml", self.tree.root, name))

    def _of_name(self, name: str) -> Path | None:
        """The XML file of a name: in the split's own folder, else in the only other one that has it."""
        plain = _without_extension(name)
        own = self.tree.folders.get(self.split)
        others = [folder for folder in self.tree.folders.values() if folder != own]
        for folders in ([own] if own else [], others):
            files = [inside(folder / f"{plain}.xml", self.tree.root, name) for folder in folders]
            there = [file for file in files if os.path.isfile(file)]
            if len(there) > 1:
                raise DataError(
                    f"{self.tree.lists.get(self.split, self.split)}: {shorten(name)!r} could be "
                    f"{few(repr(str(file)) for file in there)}: call them by different names, or "
                    "put the folder before the name"
                )
            if there:
                return there[0]
        return self._only(plain)

    def _at(self, written: str) -> Path | None:
        path = inside(self.tree.root / written, self.tree.root, written)
        return path if os.path.isfile(path) else self._only(written.rpartition("/")[2][:-4])

    def _only(self, name: str) -> Path | None:
        """The only XML file with this name, whatever its folder."""
        if self._by_stem is None:
            self._by_stem = {}
            for folder in self.tree.folders.values():
                for xml in _below(folder):
                    self._by_stem.setdefault(same_form(xml.stem), []).append(xml)
        paths = self._by_stem.get(same_form(name.rpartition("/")[2]), [])
        return paths[0] if len(paths) == 1 else None


def _without_extension(name: str) -> str:
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in (*EXTENSIONS, *STACKS, ".xml") else name


def pictures_of(tree: Tree, split: str, images: str | None) -> Pictures:
    """The images of a split: in the usual folders, or beside their XML files; or below `images`."""
    if images is not None:
        return Pictures(Path(images), image_folders(Path(images), split))
    folders = image_folders(tree.root, split)
    beside = [path for of, path in tree.folders.items() if split in ("", of) or not of]
    of_split = split if split in tree.folders else ""
    return Pictures(tree.root, [*folders, *beside], of_split)


def image_of(entry: Entry, filename: str | None, pictures: Pictures) -> Path | None:
    """The image of an entry: of its name, else the one that the XML file names, else the only one called so."""
    if entry.image is not None:
        path = pictures.at(entry.image)
        if path is not None:
            return path
    for suffix in SUFFIXES:
        path = pictures.at(f"{entry.name}{suffix}") or pictures.at(f"{entry.name}{suffix.upper()}")
        if path is not None:
            return path
    named = pictures.at(filename) if filename else None
    if named is not None:
        return named
    stem = entry.name.rpartition("/")[2]
    return pictures.with_stem(stem) or (pictures.called(filename) if filename else None)


def without_xml(
    tree: Tree, part: Part, pictures: Pictures, rows: Sequence[Entry], used: Collection[Path]
) -> list[Path]:
    """Images that no XML file is of, in the folder where those of the others lie; none of lists, which choose.

    `rows` are the entries of all parts, `used` the images of this one.
    """
    if part.there in tree.lists:
        return []
    stems = {same_form(entry.name.rpartition("/")[2]) for entry in rows}
    images, _ = find_images(pictures.folders[0])
    alone = [image for image in images if same_form(image.stem) not in stems and image not in used]
    # Where the names of the XML files say nothing, nobody knows of the other part's images.
    return [] if part.take != "all" and len(alone) + len(used) == len(images) else alone


def xml_text(path: Path) -> str:
    """The text of an XML file in the encoding that it declares, else in UTF-8."""
    try:
        data = read_bytes(path, ANNOTATIONS)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot read {shorten(path)!r}: {reason}") from error
    declared = re.search(rb"""^[^>]*encoding=["']([\w.-]+)["']""", data[:HEAD].replace(b"\0", b""))
    names = (
        ["utf-8-sig"] if declared is None else [declared[1].decode("ascii", "replace"), "utf-8-sig"]
    )
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        names = ["utf-16"]
    for name in names:
        try:
            return data.decode(name).removeprefix("\ufeff")
        except (UnicodeDecodeError, LookupError):
            continue
    if declared is None:
        return text_of(path)  # which names the line
    raise DataError(f"{path}: is no text in {names[0]}, which it declares, nor in UTF-8")
