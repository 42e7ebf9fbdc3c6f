"""A teacher's answers: what of them is learned from, and how they are stored for students.

`Answers` are as much of what a teacher finds as is learned from: the `STORED` most probable
classes, in half precision, and the rest shared by all others alike. So a teacher that is asked in
training and one that was asked before teach the same.

`StoredAnswers` are those of a folder that `reinforce` filled:

    answers.json          what they depend on: settings, preprocessing, data, classes, teacher
    epoch-0001.answers    a record of each sample that comes up in the epoch, ordered by its number
                          and how often it came up before; then SHA-256 of these records

A record has 4 bytes for the number of the sample, and for each of the `STORED` classes 2 bytes for
its number and 2 for its probability: 64 bytes. Files are mapped into memory, so that processes that
read share them. Of pictures that are mixed with others of their batch, a record holds what was
found in the mixed picture.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import Split
from ..errors import ModelError, UsageError
from ..facts import check_own_hash, sealed
from ..files import replacing, write_text, writing
from ..inputs.dataset import ANSWER
from ..inputs.randomness import Draw
from ..preprocess import Preprocess
from ..processes import world
from ..reading import SMALL, Fields, from_json, read_text, to_json
from . import fingerprint
from .config import SEEN, TrainConfig

STORED = 15  # classes of an answer
FORMAT = 1  # of the folder
CONDITIONS = "answers.json"
DIGEST = 32  # bytes of SHA-256 behind the records
NUMBER = 4  # bytes of a record for the number of its sample
OF_BATCH = ("mixup", "cutmix", "multi_scale", "sizes")  # by which it depends on its batch


# What is learned from -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What a teacher finds in N pictures: the most probable classes, in half precision."""

    classes: Tensor  # (N, k) uint16, the most probable first
    shares: Tensor  # (N, k) float16, their probabilities

    def probabilities(self, count: int) -> Tensor:
        """(N, count) float32, which sum up to 1; what is not stored is shared by the others."""
        numbers = self.classes.long()
        shares = self.shares.float()
        others = count - shares.shape[1]
        left = (1 - shares.sum(1, keepdim=True)).clamp(min=0)
        spread = shares.new_zeros(len(shares), count)
        if others:
            spread += left / others
        spread = spread.scatter(1, numbers, shares)
        return spread / spread.sum(1, keepdim=True)

    def to_bytes(self) -> Tensor:
        """(N, 4 k) uint8."""
        return torch.cat([self.classes.view(torch.uint8), self.shares.view(torch.uint8)], 1)

    @classmethod
    def from_bytes(cls, content: Tensor) -> "Answers":
        """Of (N, 4 k) uint8."""
        classes, shares = content.chunk(2, 1)
        return cls(classes.contiguous().view(torch.uint16), shares.contiguous().view(torch.float16))


def answers_of(logits: Tensor, temperature: float) -> Answers:
    """The answers in logits (N, classes), at a temperature."""
    probabilities = (logits.float() / temperature).softmax(1)
    shares, numbers = probabilities.topk(min(STORED, logits.shape[1]), dim=1)
    return Answers(numbers.to(torch.uint16), shares.half())


# What they depend on ------------------------------------------------------------------------------


def depend_on_batch(config: TrainConfig) -> bool:
    """Whether what a network sees of a sample depends on the others of its batch."""
    return any(getattr(config, key) for key in OF_BATCH)


def conditions_of(config: TrainConfig, preprocess: Preprocess, train: Split) -> Fields:
    """What answers depend on beside the teacher, as JSON has it."""
    # precision: of what the teacher computes
    settings = {key: getattr(config, key) for key in (*SEEN, "precision")}
    if depend_on_batch(config):
        # each process mixes its own part of a batch
        settings |= {"batch_size": config.batch_size, "processes": world()}
    return from_json(
        to_json(
            {
                "settings": settings,
                "preprocess": asdict(preprocess),
                "classes": list(train.classes),
                "data": fingerprint.summary(train),
            }
        )
    )


# Of settings that came after answers were made: they were made as their defaults have it.
_USUAL = {key: getattr(TrainConfig, key) for key in SEEN}


def differences(before: Fields, now: Fields) -> list[str]:
    """In words, what is other now than what answers were made with.

    Where `now` says nothing of teacher or temperature, any will do.
    """
    words = []
    for part, usual in (("settings", _USUAL), ("preprocess", {})):
        old, new = {**usual, **before[part]}, now[part]
        words += [
            f"{key} is {_shown(new.get(key))}, of the answers {_shown(old.get(key))}"
            for key in dict.fromkeys([*new, *old])
            if new.get(key) != old.get(key)
        ]
    if before["classes"] != now["classes"]:
        words.append(
            f"{len(now['classes'])} classes ({_some(now['classes'])}), of the answers "
            f"{len(before['classes'])} ({_some(before['classes'])})"
        )
    if before["data"] != now["data"]:
        counts = now["data"]["samples"], before["data"]["samples"]
        words.append(
            f"the data have {counts[0]} samples, those of the answers {counts[1]}"
            if counts[0] != counts[1]
            else "the data have other files, labels or another order"
        )
    return [*words, *_differences_of_teachers(before, now)]


def _differences_of_teachers(before: Fields, now: Fields) -> list[str]:
    words = []
    if "temperature" in now and before["temperature"] != now["temperature"]:
        words.append(
            f"distill_temperature is {now['temperature']:g}, of the answers "
            f"{before['temperature']:g}"
        )
    if "teacher" in now and before["teacher"].get("sha256") != now["teacher"]["sha256"]:
        words.append(
            f"the teacher is {now['teacher']['name']}, of the answers "
            f"{before['teacher'].get('name')}, with other weights, classes or preprocessing"
        )
    return words


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return "not compared" if value is None else repr(value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def is_store(teacher: str | None) -> bool:
    """Whether what the setting `teacher` names is a folder of answers."""
    return teacher is not None and (Path(teacher) / CONDITIONS).is_file()


def read_conditions(folder: Path) -> Fields:
    """`ModelError` for what `reinforce` did not write, or wrote in a later version."""
    path = folder / CONDITIONS
    try:
        about = from_json(read_text(path, SMALL))
        sound = (
            isinstance(about["format"], int)
            and all(isinstance(about[key], dict) for key in ("settings", "preprocess", "teacher"))
            and isinstance(about["classes"], list)
            and isinstance(about["data"]["samples"], int)
            and isinstance(about["temperature"], float)
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    if not sound:
        raise ModelError(f"{path} is damaged: it does not say what the answers depend on")
    check_own_hash(about, path)
    if about["format"] > FORMAT:
        raise ModelError(
            f"{path} was written by a later version (format {about['format']}); this one reads "
            f"{FORMAT}"
        )
    return about


# The folder ---------------------------------------------------------------------------------------


def file_of(folder: Path, epoch: int) -> Path:
    """The answers of an epoch, counted from 0."""
    return folder / f"epoch-{epoch + 1:04d}.answers"


def record_size(classes: int) -> int:
    """Bytes for a sample, of a teacher that tells so many classes apart."""
    return NUMBER + 4 * min(STORED, classes)


def write_conditions(folder: Path, about: Mapping[str, object]) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONDITIONS, to_json(sealed(about), indent=2) + "\n")


def write_epoch(folder: Path, epoch: int, samples: Sequence[int], answers: Tensor) -> None:
    """Write the `answers` (N, 4 k) of the `samples` in the order in which they came up."""
    numbers = np.asarray(samples, "<u4")
    # stable: a sample that came up several times keeps its turns in order
    order = np.argsort(numbers, kind="stable")
    of_samples = numbers[order].view(np.uint8).reshape(-1, NUMBER)
    content = np.concatenate([of_samples, answers.numpy()[order]], 1).tobytes()
    with replacing(file_of(folder, epoch)) as file:
        file.write(content)
        file.write(hashlib.sha256(content).digest())


def read_epoch(folder: Path, epoch: int, size: int, *, whole: bool) -> np.ndarray:
    """The records (N, size) of uint8 of an epoch, mapped into memory.

    Raises `ModelError` for a file that is missing or cut off, and, if `whole`, for one in which
    anything was changed.
    """
    path = file_of(folder, epoch)
    try:
        length = path.stat().st_size - DIGEST
        if length <= 0 or length % size:
            raise ModelError(f"{path} is cut off: {MEND}")
        content = np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): {MEND}") from error
    if whole and hashlib.sha256(content[:length].data).digest() != content[length:].tobytes():
        raise ModelError(f"{path} is damaged: {MEND}")
    return content[:length].reshape(-1, size)


MEND = "fleetnet data reinforce, given what it was given before, makes it anew"


class StoredAnswers:
    """The answers in a folder, by what a sample's random numbers depend on."""

    def __init__(self, folder: Path, classes: int):
        self.folder = folder
        self.size = record_size(classes)
        self.epoch = -1
        self.records: np.ndarray | None = None  # (N, size) uint8
        self.numbers: np.ndarray | None = None  # (N,) uint32, of the samples

    @classmethod
    def of_training(
        cls, config: TrainConfig, preprocess: Preprocess, train: Split
    ) -> "StoredAnswers":
        """Those that `teacher` names.

        Raises `UsageError` where they were made for other pictures than this training learns from,
        naming all that differs, or for fewer epochs; `ModelError` where a file is damaged.
        """
        folder = Path(str(config.teacher))
        before = read_conditions(folder)
        now = conditions_of(config, preprocess, train)
        if config.distill == "soft":
            now = {**now, "temperature": config.distill_temperature}
        if words := differences(before, now):
            raise UsageError(
                f"teacher is {folder}, whose answers are to other pictures than this training "
                f"shows: {'; '.join(words)}. Train with what they were made with, or make others "
                "with fleetnet data reinforce"
            )
        missing = [n for n in range(config.epochs) if not file_of(folder, n).is_file()]
        if missing:
            raise UsageError(
                f"teacher is {folder}, which has no answers of {len(missing)} of {config.epochs} "
                f"epochs, the first {missing[0] + 1}: fleetnet data reinforce with --epochs "
                f"{config.epochs}, and else what it was given before, makes them"
            )
        stored = cls(folder, len(train.classes))
        for epoch in range(config.epochs):
            read_epoch(folder, epoch, stored.size, whole=False)
        return stored

    def open(self, epoch: int, *, whole: bool = True) -> None:
        """Map an epoch, from 0, into memory; `ModelError` where its file is damaged."""
        self.records = read_epoch(self.folder, epoch, self.size, whole=whole)
        self.numbers = self.records[:, :NUMBER].view("<u4")[:, 0]
        self.epoch = epoch

    def __getstate__(self) -> dict[str, object]:
        """For a process that is not forked: it maps the file itself."""
        return {**vars(self), "epoch": -1, "records": None, "numbers": None}

    def __call__(self, draw: Draw) -> Tensor | None:
        """The answer (4 k,) uint8 to what a network sees of a sample; None if there is none."""
        if draw.epoch != self.epoch or self.records is None or self.numbers is None:
            self.open(draw.epoch, whole=False)
            return self(draw)
        place = bisect_left(self.numbers, draw.sample) + draw.turn
        if place >= len(self.numbers) or self.numbers[place] != draw.sample:
            return None
        return torch.from_numpy(np.array(self.records[place, NUMBER:]))

    def answers(self, images: Tensor, targets: Mapping[str, Tensor], temperature: float) -> Answers:
        """Those that came with a batch."""
        return Answers.from_bytes(targets[ANSWER])
