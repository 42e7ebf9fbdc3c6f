"""An app that knows an exported file and its description, and nothing of fleetnet: numpy, Pillow, onnxruntime.

    python app_from_sidecar.py OUT.json MODEL.onnx ... -- PICTURE ...
    python app_from_sidecar.py --prepare PREPROCESSING.json OUT.npz PICTURE ...

Whatever it does to a picture or to an output it takes from `preprocessing` and `decoding` of
MODEL.json: see docs/deploy.md. It writes what it found: for each model, for each picture, a dict.
"""

import json
import sys
from math import ceil, floor
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Place:
    """x of the picture is x * scale_x + left in the input."""

    def __init__(self, resize, crop, height, width):
        high, wide = resize["size"]
        self.height, self.width, self.top, self.left = height, width, 0, 0
        if resize["mode"] == "stretch":
            self.rows, self.columns = high, wide
        elif resize["mode"] == "letterbox":
            scale = min(high / height, wide / width)
            self.rows, self.columns = max(1, round(height * scale)), max(1, round(width * scale))
            self.top, self.left = floor((high - self.rows) / 2), floor((wide - self.columns) / 2)
        else:
            self.rows, self.columns = floor(high / crop), floor(wide / crop)
            if self.rows * width >= self.columns * height:
                self.columns = max(self.columns, floor(self.rows * width / height))
            else:
                self.rows = max(self.rows, floor(self.columns * height / width))
            self.top, self.left = -round((self.rows - high) / 2), -round((self.columns - wide) / 2)
        self.scale_y, self.scale_x = self.rows / height, self.columns / width


def without_antialias(picture, size, box, interpolation):
    """The four nearest pixels, whatever the scale; beyond the border, the border's."""
    if interpolation != "bilinear":
        raise SystemExit(f"this app has no {interpolation} without antialias")
    pixels = np.asarray(picture, np.float64)
    for axis, (count, start, end) in enumerate(
        [(size[0], box[1], box[3]), (size[1], box[0], box[2])]
    ):
        at = ((np.arange(count) + 0.5) * (end - start) / count + start - 0.5).clip(
            0, pixels.shape[axis] - 1
        )
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, pixels.shape[axis] - 1)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        pixels = pixels.take(low, axis) * (1 - share) + pixels.take(high, axis) * share
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def resized(picture, size, box, resize):
    if resize["antialias"]:
        return picture.resize(size[::-1], PILLOW[resize["interpolation"]], box=box)
    return without_antialias(picture, size, box, resize["interpolation"])


def prepare(picture, about):
    """The input (1, 3, H, W) of a picture, and where the picture lies in it."""
    resize, given = about["resize"], about["input"]
    size = tuple(resize["size"])
    place = Place(resize, about["crop"], picture.height, picture.width)
    if resize["mode"] == "letterbox":
        whole = resized(
            picture, (place.rows, place.columns), (0, 0, picture.width, picture.height), resize
        )
        canvas = Image.new("RGB", size[::-1], tuple(about["padding"]))
        canvas.paste(whole, (place.left, place.top))
    else:
        left, top = -place.left / place.scale_x, -place.top / place.scale_y
        right = min(left + size[1] / place.scale_x, picture.width)
        bottom = min(top + size[0] / place.scale_y, picture.height)
        canvas = resized(picture, size, (max(left, 0), max(top, 0), right, bottom), resize)
    pixels = np.asarray(canvas, np.float32).transpose(2, 0, 1)
    if given["channel_order"] == "BGR":
        pixels = pixels[::-1]
    if given["mean"] is not None:
        mean, std = (np.array(given[key], np.float32)[:, None, None] for key in ("mean", "std"))
        pixels = (pixels / 255 - mean) / std
    return np.ascontiguousarray(pixels[None], given["dtype"]), place


def softmax(values, axis):
    powers = np.exp(values - values.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def sigmoid(values, axis):
    return 1 / (1 + np.exp(-values))


ACTIVATIONS = {"softmax": softmax, "sigmoid": sigmoid}


def corners(centers, sizes):
    return np.concatenate([centers - sizes / 2, centers + sizes / 2], -1)


def all_boxes(outputs, about, size):
    """Boxes (A, 4) and scores (A, classes) of a file that gives raw outputs."""
    how, scoring = about["boxes"], about["scores"]
    if "anchors" in how:
        regressions, anchors = outputs[how["output"]][0], outputs[how["anchors"]["output"]][0]
        centers = anchors[:, :2] + how["variances"][0] * regressions[:, :2] * anchors[:, 2:]
        exponents = np.minimum(how["variances"][1] * regressions[:, 2:], how["largest_exponent"])
        boxes = corners(centers, anchors[:, 2:] * np.exp(exponents))
        boxes = boxes.clip(0, [size[1], size[0]] * 2)  # to the input
        scores = softmax(outputs[scoring["output"]][0], -1)
        return boxes, np.delete(scores, scoring["background"], 1)
    rows = outputs[how["output"]][0]
    first, end = how["columns"]
    four = rows[:, first:end]
    return corners(four[:, :2], four[:, 2:]), rows[:, [scoring["objectness"]]] * rows[
        :, scoring["first_class"] :
    ]


def overlap(box, others):
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = (high - low).clip(0).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - shared)


def suppress(boxes, scores, how):
    """Boxes, scores and labels that are kept, best first."""
    classes = scores.shape[1]
    if how["only"] is not None:
        scores = np.where(np.isin(np.arange(classes), how["only"]), scores, 0)
    flat = scores.ravel()
    order = np.argsort(-flat, kind="stable")[: how["candidates"]]
    order = order[flat[order] > how["score_above"]]
    kept = []
    for pair in order:
        box, label = boxes[pair // classes], pair % classes
        same = [other for other in kept if other % classes == label] if how["per_class"] else kept
        if not same or overlap(box, boxes[np.array(same) // classes]).max() <= how["iou"]:
            kept.append(pair)
    kept = np.array(kept[: how["max_objects"]], int)
    return boxes[kept // classes], flat[kept], kept % classes


def to_picture(boxes, place, clip=True):
    moved = (boxes - [place.left, place.top] * 2) / [
        place.scale_x,
        place.scale_y,
        place.scale_x,
        place.scale_y,
    ]
    return moved.clip(0, [place.width, place.height] * 2) if clip else moved


def pasted(mask, box, how, place):
    """One mask as pixels of the picture."""

    def weights(pixels, start, end):  # (pixels, size)
        cell = (np.arange(pixels) + 0.5 - start) / (end - start) * how["size"] - 0.5
        return (1 - np.abs(cell[:, None] - np.arange(how["size"]))).clip(0)

    rows, columns = weights(place.height, box[1], box[3]), weights(place.width, box[0], box[2])
    return rows @ mask @ columns.T > how["above"]


def objects(outputs, about, place, size):
    if about["nms"] is None:
        there = outputs[about["scores"]["output"]][0] > 0
        boxes, scores, labels = (
            outputs[about[key]["output"]][0][there] for key in ("boxes", "scores", "labels")
        )
    else:
        boxes, scores, labels = suppress(*all_boxes(outputs, about, size), about["nms"])
    restored = to_picture(boxes, place)
    inside = ((restored[:, 2:] - restored[:, :2]) > 0).all(1)
    found = {"boxes": restored[inside], "scores": scores[inside], "labels": labels[inside]}
    if "masks" in about:
        masks = outputs[about["masks"]["output"]][0][there][inside]
        whole = to_picture(boxes, place, clip=False)[inside]
        found["pixels"] = [
            int(pasted(m, b, about["masks"], place).sum())
            for m, b in zip(masks, whole, strict=True)
        ]
    return found


def indices(count, scale, offset, size):
    """Where the centers of the picture's rows (or columns) lie in the output, as fractional indices."""
    first, last = ceil(offset - 0.5), floor(count * scale + offset - 0.5)
    if first > last:
        first = last = round(count * scale / 2 + offset - 0.5)
    at = (np.arange(count) + 0.5) * scale + offset - 0.5
    return at.clip(min(max(first, 0), size - 1), min(max(last, 0), size - 1))


def class_map(outputs, about, place):
    maps = outputs[about["classes"]["output"]][0]
    rows = indices(place.height, place.scale_y, place.top, maps.shape[-2])
    columns = indices(place.width, place.scale_x, place.left, maps.shape[-1])
    if about["classes"].get("activation") is None:
        high = np.minimum(np.floor(rows + 0.5).astype(int), maps.shape[0] - 1)
        wide = np.minimum(np.floor(columns + 0.5).astype(int), maps.shape[1] - 1)
        return maps[high[:, None], wide]
    for axis, at in ((-2, rows), (-1, columns)):
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, maps.shape[axis] - 1)
        share = (at - low).astype(np.float32)
        share = share[:, None] if axis == -2 else share
        maps = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
    return maps.argmax(0)


def answer(outputs, about, place, size):
    if "to_picture" in about:
        return {"classes": class_map(outputs, about, place)}
    if "boxes" in about:
        return objects(outputs, about, place, size)
    scores = about["scores"]
    activation = ACTIVATIONS[scores["activation"]]
    return {"scores": activation(outputs[scores["output"]], scores["axis"])[0]}


def check_golden(file, about, session):
    """The file computes here what the model computed where it was exported, of the input in golden.npz."""
    golden = np.load(Path(file).with_name(about["golden"]))
    names = [output["name"] for output in about["outputs"]]
    outputs = dict(zip(names, session.run(names, {"image": golden["image"]}), strict=True))
    if {"boxes", "scores", "labels"} <= set(names):
        names = ["scores"]  # sorted; which box is in which row may differ
    for name in names:
        expected, given = golden[name], outputs[name]
        if expected.dtype.kind != "f":
            same = (expected == given).mean()
            if same < 0.999:
                raise SystemExit(
                    f"{file}: {name} is that of golden.npz in {same:.1%} of the pixels"
                )
            continue
        apart = np.abs(expected - given).max() / max(expected.std(ddof=1), 1e-3)
        if not apart <= about["golden_tolerance"]:
            raise SystemExit(
                f"{file}: {name} is {apart:.2g} from golden.npz, allowed {about['golden_tolerance']:.2g}"
            )


def prepared(descriptions, out, paths):
    """Write the inputs that pictures become by each description of preprocessing."""
    arrays = {}
    for i, about in enumerate(json.loads(Path(descriptions).read_text(encoding="utf-8"))):
        for j, path in enumerate(paths):
            arrays[f"{i}/{j}"] = prepare(
                ImageOps.exif_transpose(Image.open(path)).convert("RGB"), about
            )[0]
    np.savez(out, **arrays)


def main():
    if sys.argv[1] == "--prepare":
        prepared(*sys.argv[2:4], sys.argv[4:])
        return
    split = sys.argv.index("--")
    found = {}
    for file in sys.argv[2:split]:
        about = json.loads(Path(file).with_suffix(".json").read_text(encoding="utf-8"))
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        check_golden(file, about, session)
        names = [output["name"] for output in about["outputs"]]
        answers = []
        for path in sys.argv[split + 1 :]:
            picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
            image, place = prepare(picture, about["preprocessing"])
            outputs = dict(
                zip(names, session.run(names, {about["inputs"][0]["name"]: image}), strict=True)
            )
            given = answer(
                outputs, about["decoding"], place, about["preprocessing"]["resize"]["size"]
            )
            answers.append({key: np.asarray(value).tolist() for key, value in given.items()})
        found[file] = answers
    if "fleetnet" in sys.modules or "torch" in sys.modules:
        raise SystemExit("this app was to know nothing of fleetnet")
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
