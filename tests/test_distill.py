"""Learning from a teacher: what is asked, what is learned of it, and that it is learned."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fleetnet
from fleetnet import checkpoint, data
from fleetnet.errors import DataError, ModelError, UsageError
from fleetnet.preprocess import Preprocess
from fleetnet.tasks import Model, build
from fleetnet.training.answers import STORED, answers_of
from fleetnet.training.checks import check_settings
from fleetnet.training.config import TrainConfig
from fleetnet.training.distill import Distilled, Teacher, columns_of, teacher_of
from fleetnet.training.objective import TaskObjective

SIZE = (32, 32)


class Fixed(nn.Module):
    """A network that gives the same logits for anything, and keeps what it was shown."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.answer = logits
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images)
        return self.answer


def distilled(kind: str, logits: Tensor, model: Model, **settings: float) -> Distilled:
    preprocess = Preprocess(SIZE)
    teacher = Teacher(Fixed(logits), preprocess, None, preprocess)
    return Distilled(
        TaskObjective(model, {}),
        teacher,
        kind,
        settings.get("weight", 0.25),
        settings.get("temperature", 1.0),
    )


def test_hard_and_soft_losses_as_their_papers_write_them():
    model = build("fasternet_t0", 4)
    own, taught = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.randn(5, 4)
    labels = torch.tensor([0, 1, 2, 3, 0])
    images = torch.zeros(5, 3, *SIZE)
    usual = F.cross_entropy(own, labels)
    losses = distilled("hard", taught, model).losses(Fixed(own), images, {"label": labels})
    assert losses["cross_entropy"].item() == pytest.approx(0.75 * usual.item())
    hard = F.cross_entropy(own, taught.argmax(1))
    assert losses["distillation"].item() == pytest.approx(0.25 * hard.item(), rel=1e-5)
    soft = distilled("soft", taught, model, temperature=3.0)
    p, q = (taught / 3).softmax(1), (own / 3).softmax(1)
    divergence = 9 * (p * (p.log() - q.log())).sum(1).mean()
    learned = soft.losses(Fixed(own), images, {"label": labels})["distillation"]
    assert learned.item() == pytest.approx(0.25 * divergence.item(), rel=1e-2)  # half precision


def test_two_classifiers_learn_labels_and_answers():
    model = build("repvit_m0_6", 3).train()
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, *SIZE), torch.tensor([0, 1, 2, 0])
    taught = torch.eye(3)[[2, 2, 1, 1]] * 9
    losses = distilled("hard", taught, model, weight=0.5).losses(model, images, {"label": labels})
    first, second = model.head.classifier.heads
    losses["distillation"].backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in first.parameters())
    assert all(parameter.grad is not None for parameter in second.parameters())
    second.zero_grad()
    losses["cross_entropy"].backward()
    assert all(parameter.grad is not None for parameter in first.parameters())
    assert not any(p.grad is not None and p.grad.any() for p in second.parameters())


def test_answers_are_small_and_near():
    logits = torch.randn(8, 1000, generator=torch.Generator().manual_seed(1)) * 4
    answers = answers_of(logits, 1.0)
    bytes_a_sample = answers.classes.element_size() + answers.shares.element_size()
    assert STORED * bytes_a_sample <= 64
    wanted, kept = logits.softmax(1), answers.probabilities(1000)
    assert kept.sum(1) == pytest.approx(1)
    assert kept.argmax(1).tolist() == wanted.argmax(1).tolist()
    top = wanted.topk(STORED, 1).indices
    torch.testing.assert_close(kept.gather(1, top), wanted.gather(1, top), rtol=2e-3, atol=1e-6)


def test_answers_hold_numbers_of_many_classes():
    logits = torch.zeros(1, 60_000)
    logits[0, 59_999] = 20.0
    assert answers_of(logits, 1.0).probabilities(60_000).argmax().item() == 59_999


def test_the_teacher_sees_the_picture_as_it_was_taught():
    """Mean, std and order of the colors are its own: the same values from 0 to 1."""
    student = Preprocess(SIZE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    own = Preprocess(SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), channel_order="BGR")
    values = torch.rand(2, 3, *SIZE)
    images = (values - torch.tensor(student.mean).view(3, 1, 1)) / torch.tensor(student.std).view(
        3, 1, 1
    )
    network = Fixed(torch.tensor([[1.0, 2.0, 3.0]] * 2))
    logits = Teacher(network, own, [2, 0], student).logits(images)
    torch.testing.assert_close(network.shown[0], values.flip(1))
    assert logits.tolist() == [[3.0, 1.0]] * 2


def test_classes_go_by_name():
    assert columns_of(["a", "b"], ["a", "b"], 2, "t") is None
    assert columns_of(["a", "b", "c"], ["c", "a"], 3, "t") == [2, 0]
    assert columns_of(None, ["a", "b"], 2, "t") is None
    with pytest.raises(DataError, match="does not know 1 of 2 classes: bb"):
        columns_of(["a", "b"], ["a", "bb"], 2, "t")
    with pytest.raises(DataError, match="has 1000 classes without names; the data have 2"):
        columns_of(None, ["a", "b"], 1000, "t")


def test_a_teacher_has_to_be_a_classifier(tmp_path: Path):
    train = data.load("shapes:12", "train")
    path = tmp_path / "segmenter.safetensors"
    model = build("deeplabv3/fasternet_t0", len(train.classes), options={"channels": 16})
    checkpoint.save(path, model, classes=train.classes, preprocess=Preprocess(SIZE))
    with pytest.raises(ModelError, match="of deeplabv3; allowed: a classifier"):
        teacher_of(TrainConfig(teacher=str(path)), train, Preprocess(SIZE))
    with pytest.raises(UsageError, match=r"distill_weight is 0\.1, but classification"):
        check_settings(TrainConfig(distill_weight=0.1), "classification")


def test_a_student_becomes_like_its_teacher(tmp_path: Path):
    """With the teacher alone in the loss, the student agrees with it more than with the labels."""
    train, val = (data.load("shapes:24", split) for split in ("train", "val"))
    path = tmp_path / "teacher.safetensors"
    torch.manual_seed(1)
    teacher = build("fasternet_t0", len(train.classes))
    teacher.head.classifier[-1].bias.data[2] = 9.0  # finds the same in every picture
    checkpoint.save(path, teacher, classes=train.classes, preprocess=Preprocess(SIZE))
    config = TrainConfig(
        size=SIZE,
        epochs=3,
        batch_size=8,
        lr=3e-3,
        warmup_epochs=0,
        ema=None,
        device="cpu",
        augment="none",
        teacher=str(path),
        distill="soft",
        distill_weight=1.0,
    )
    torch.manual_seed(0)
    student = build("fasternet_t0", len(train.classes))
    fleetnet.fit(student, train, val, config, tmp_path / "run", report=False)
    said = checkpoint.load(tmp_path / "run" / "last.safetensors").model
    logits = said(torch.randn(16, 3, *SIZE))
    assert (logits.argmax(1) == 2).float().mean() > 0.8
