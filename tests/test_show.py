"""`eval` and `predict` of detectors and segmentation networks: what they print, draw and write, as other tools read it.

Weights are random; the truth is made of what the network finds, so that figures are neither 0 nor
100.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core.mask import decode
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fleetnet import checkpoint, data
from fleetnet.cli import main
from fleetnet.deploy import predictor
from fleetnet.preprocess import Preprocess
from fleetnet.report import draw
from fleetnet.rle import encode
from fleetnet.tasks import build
from fleetnet.tasks._coco import FIGURES

CLASSES, IDS, SIZE = ["background", "b$d", "cat"], [3, 7, 90], (64, 96)
TASKS = {"ssd": "stretch", "maskrcnn": "letterbox", "deeplabv3": "letterbox"}
SMALLER = {"maskrcnn": {"channels": 32, "hidden": 64, "proposals": 100}}  # options, for speed


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each task, with batch-norm statistics that let pictures differ."""
    folder = tmp_path_factory.mktemp("models")
    for task, mode in TASKS.items():
        torch.manual_seed(1)
        model = build(f"{task}/fasternet_t0", len(CLASSES), options=SMALLER.get(task))
        with torch.no_grad():
            for _ in range(3):
                model.backbone(torch.randn(4, 3, *SIZE))
        preprocess = Preprocess(SIZE, mode=mode)
        checkpoint.save(
            folder / f"{task}.safetensors",
            model.eval(),
            classes=CLASSES,
            preprocess=preprocess,
            category_ids=IDS,
        )
    return {task: folder / f"{task}.safetensors" for task in TASKS}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, two of the same name in two folders, and a damaged one."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (70, 110), "b.jpg": (90, 60), "more/A.png": (40, 80)}.items():
        coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8))
        (root / name).parent.mkdir(exist_ok=True)
        coarse.resize(size[::-1]).save(root / name)
    (root / "broken.png").write_bytes((root / "a.png").read_bytes()[:80])
    return root


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def last_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("task", ["ssd", "maskrcnn"])
def test_predict_draws_and_writes_coco(task, models, pictures, tmp_path, capsys):
    loaded = predictor.load(models[task])
    scores = torch.cat(
        [p.scores for p in loaded.predictions([pictures / "a.png", pictures / "b.jpg"])]
    )
    threshold = round(scores.sort(descending=True).values[30].item(), 3)
    words = f"predict --model {models[task]} {pictures} --out {tmp_path} --threshold {threshold} --threads 1 --json"
    assert main(words.split()) == 3  # one of the files is broken
    document = last_json(capsys)
    assert len(document["skipped"]) == 1
    assert "broken.png" in document["skipped"][0]
    coco = COCO(tmp_path / "predictions.json")
    assert [coco.cats[i]["name"] for i in IDS] == CLASSES
    assert len(coco.imgs) == len(document["results"]) == 3
    assert {image["drawn"] for image in coco.imgs.values()} == {
        "drawn/a.jpg",
        "drawn/b.jpg",
        "drawn/A-2.jpg",
    }
    total = 0
    for image, result in zip(coco.imgs.values(), document["results"], strict=True):
        assert image["file_name"] == result["file"]
        picture = opened(image["file_name"]).convert("RGB")
        assert (image["width"], image["height"]) == picture.size
        prediction = loaded.predictions([picture])[0]
        good = prediction.scores >= threshold
        annotations = coco.imgToAnns[image["id"]]
        total += len(annotations)
        assert [a["score"] for a in annotations] == prediction.scores[good].tolist()
        assert [a["category_id"] for a in annotations] == [IDS[i] for i in prediction.labels[good]]
        corners = prediction.boxes[good].numpy()
        expected = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
        assert np.array([a["bbox"] for a in annotations]) == pytest.approx(
            np.array(expected), abs=1e-3
        )
        assert [o["label"] for o in result["objects"]] == [
            CLASSES[i] for i in prediction.labels[good]
        ]
        if task == "maskrcnn":
            masks = prediction.masks[good].numpy()
            for annotation, mask in zip(annotations, masks, strict=True):
                assert (decode(annotation["segmentation"]) == mask).all()
            assert [a["area"] for a in annotations] == masks.sum((1, 2)).tolist()
        drawn = np.asarray(opened(tmp_path / image["drawn"]), int)
        assert drawn.shape == np.asarray(picture).shape
        assert (np.abs(drawn - np.asarray(picture)).max() > 80) == (len(annotations) > 0)
    assert total >= 10


def test_predict_without_a_folder(models, pictures, tmp_path, capsys):
    assert (
        main(
            [
                "predict",
                "--model",
                str(models["ssd"]),
                str(pictures / "b.jpg"),
                "--threshold",
                "1",
                "--threads",
                "1",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "1 images" in out
    assert "a score of at least 1" in out
    assert list(tmp_path.iterdir()) == []


def test_predict_of_nothing_readable(models, pictures, tmp_path, capsys):
    words = f"predict --model {models['ssd']} {pictures / 'broken.png'} --out {tmp_path}"
    assert main(words.split()) == 3
    assert "no image could be read; 1 skipped" in capsys.readouterr().err
    assert not (tmp_path / "predictions.json").exists()


def test_predict_label_maps(models, pictures, tmp_path, capsys):
    words = f"predict --model {models['deeplabv3']} {pictures} --out {tmp_path} --threads 1 --json"
    assert main(words.split()) == 3  # one of the files is broken
    document = last_json(capsys)
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert written["results"] == document["results"]
    assert written["classes"] == CLASSES
    assert [result["map"] for result in document["results"]] == [
        "maps/a.png",
        "maps/b.png",
        "maps/A-2.png",
    ]
    loaded = predictor.load(models["deeplabv3"])
    for result in document["results"]:
        labels = loaded.predictions([result["file"]])[0].labels.numpy()
        map_ = opened(tmp_path / result["map"])
        assert (np.asarray(map_) == labels).all()
        assert sum(result["shares"].values()) == pytest.approx(1, abs=1e-5)
        assert result["shares"] == pytest.approx(
            {CLASSES[i]: (labels == i).mean() for i in np.unique(labels)}, abs=1e-6
        )
        for i in np.unique(labels):
            y, x = np.argwhere(labels == i)[0]
            assert map_.convert("RGB").getpixel((int(x), int(y))) == draw.colors(3)[i]
        assert opened(tmp_path / result["drawn"]).size == map_.size


def truth_of(loaded: predictor.Predictor, pictures: Path, masks: bool) -> data.Split:
    """Every third of the 40 best boxes found in each picture, moved a little; ids as annotation files have them."""
    samples = []
    for number, file in ((11, "a.png"), (5, "b.jpg"), (200, "more/A.png")):
        prediction = loaded.predictions([pictures / file])[0]
        objects = []
        for i in range(0, min(40, len(prediction.boxes)), 3):
            x0, y0, x1, y1 = prediction.boxes[i].tolist()
            if masks and not prediction.masks[i].any():
                continue
            segmentation = encode(prediction.masks[i : i + 1].roll(1, 2))[0] if masks else None
            box = (x0, y0, max(x1 * (1 - 0.002 * i), x0 + 1), y1)
            objects.append(data.Object(box, int(prediction.labels[i]), segmentation, crowd=i == 6))
        samples.append(data.Sample(pictures / file, objects=tuple(objects), id=number))
    return data.Split(samples, CLASSES, ids=IDS)


@pytest.mark.parametrize("task", ["ssd", "maskrcnn"])
def test_eval_of_detectors(task, models, pictures, tmp_path, capsys, monkeypatch):
    masks = task == "maskrcnn"
    split = truth_of(predictor.load(models[task]), pictures, masks)
    asked = []
    monkeypatch.setattr(data, "load", lambda *words: asked.append(words) or split)
    words = (
        f"eval --model {models[task]} --data somewhere --batch-size 2 --plots {tmp_path / 'plots'} "
        "--threads 1 --json"
    )
    assert main([*words.split(), "--predictions", str(tmp_path / "found.json")]) == 0
    kind = "masks" if masks else "boxes"
    assert asked == [("somewhere", None, None, kind, None, None)]
    shown = capsys.readouterr().out
    result = json.loads(shown.splitlines()[-1])
    for text in ("AP50", "ARl", "By class", "b$d", *(["mask_AP", "mask AP %"] if masks else [])):
        assert text in shown

    annotations = []
    for sample in split.samples:
        height, width = np.asarray(opened(sample.image)).shape[:2]
        for item in sample.objects:
            x0, y0, x1, y1 = np.float32(item.box).astype(float)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": sample.id, "category_id": IDS[item.label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": int(item.crowd),
                    "segmentation": item.segmentation,
                }
            )  # fmt: skip
    coco = COCO()
    coco.dataset = {
        "info": {}, "annotations": annotations, "categories": [{"id": i, "name": str(i)} for i in IDS],
        "images": [{"id": sample.id, "height": height, "width": width} for sample in split.samples],
    }  # fmt: skip
    coco.createIndex()
    kinds = [("bbox", "", "found.json"), ("segm", "mask_", "found_masks.json")][: 1 + masks]
    for kind, prefix, file in kinds:
        if kind == "segm":
            for item in annotations:
                item["area"] = float(decode(item["segmentation"]).sum())
        official = COCOeval(coco, coco.loadRes(str(tmp_path / file)), kind)
        official.evaluate()
        official.accumulate()
        official.summarize()
        expected = [
            None if value < 0 else pytest.approx(100 * value, abs=1e-6) for value in official.stats
        ]
        if masks and kind == "bbox":  # sizes of objects with masks are those of their masks
            expected = expected[:3] + expected[6:9]
            assert [
                result[name] for name in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")
            ] == expected
        else:
            assert [result[prefix + name] for name in FIGURES] == expected
        assert 1 < result[f"{prefix}AP"] < 99
    plots = {path.name for path in (tmp_path / "plots").iterdir()}
    assert plots >= {"ap_by_class.png", "precision_recall.png"}
    assert ("mask_precision_recall.png" in plots) == ("mask_ap_by_class.png" in plots) == masks


def test_eval_of_segmentation(models, pictures, tmp_path, capsys, monkeypatch):
    loaded = predictor.load(models["deeplabv3"])
    found = [loaded.predictions([pictures / name])[0].labels.numpy() for name in ("a.png", "b.jpg")]
    truths = [labels.copy() for labels in found]
    truths[0][:20], truths[1][:, :10] = 2, 255
    samples = [
        data.Sample(pictures / name, semantic=lambda truth=truth: truth)
        for name, truth in zip(("a.png", "b.jpg"), truths, strict=True)
    ]
    monkeypatch.setattr(data, "load", lambda *words: data.Split(samples, CLASSES))
    words = (
        f"eval --model {models['deeplabv3']} --data somewhere --plots {tmp_path} --threads 1 --json"
    )
    assert main(words.split()) == 0
    shown = capsys.readouterr().out
    result = json.loads(shown.splitlines()[-1])
    there = np.concatenate([truth.ravel() for truth in truths])
    ours = np.concatenate([labels.ravel() for labels in found])[there != 255]
    there = there[there != 255]
    for i, value in enumerate(result["iou"]):
        union = ((there == i) | (ours == i)).sum()
        assert value == (
            pytest.approx(100 * ((there == i) & (ours == i)).sum() / union, abs=1e-4)
            if union
            else None
        )
    assert result["mIoU"] == pytest.approx(np.mean([v for v in result["iou"] if v is not None]))
    assert 1 < result["mIoU"] < 99
    assert "IoU %" in shown
    assert (tmp_path / "iou_by_class.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "eval --model {deeplabv3} --data x --predictions p.json",
            "--predictions is for detectors",
        ),
        ("predict --model {ssd} x --threshold 1.5", "threshold is 1.5; allowed: 0 to 1"),
        ("predict --model {ssd} x --threshold=-1", "threshold"),
    ],
)
def test_usage(words, message, models, capsys):
    assert main(words.format(**models).split()) == 2
    assert message in capsys.readouterr().err
