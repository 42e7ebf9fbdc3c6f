"""`fleetnet export`: the file for each runtime, in the deploy form, handed over only when proven equal.

With --check it hands over nothing: it tries what each runtime makes of a network, before the
network is trained.
"""

import re
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from ..errors import ExportError, ModelError, UsageError
from ..find import names
from ._arguments import usual_sizes
from ._data import pictures_of
from ._limits import add_limits, limits
from ._show import say, table, tell

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from ..tasks import Model

EXAMPLE = "fleetnet export --model runs/classification/mobileone_s0-photos --to onnx"
# columns left out first where it is narrow
LEAST = "images", "largest difference", "input", "allowed"
OF_CHECK = ("classes", "output_stride", "options")
OF_EXPORT = ("out", "data", "format", "explain", "embed_preprocess")


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument(
        "--model",
        type=str,
        help="run folder or checkpoint (.safetensors); with --check also a name",
    )
    parser.add_argument(
        "--to",
        type=str,
        help="runtimes, separated by commas, each NAME or NAME:PRECISION, such as mnn:fp16: "
        + ", ".join(names("runtimes")),
    )
    parser.add_argument("--out", type=str, help="folder (default: export/ beside the checkpoint)")
    parser.add_argument(
        "--size",
        type=str | None,
        help="size to deploy at, 224 or 192x256 (default: of the checkpoint; of a name "
        f"{usual_sizes()})",
    )
    parser.add_argument(
        "--opset", type=int | None, help="ONNX operator set (default: the runtime's)"
    )
    parser.add_argument(
        "--dynamic", nargs="?", const="batch", type=str, metavar="batch,size",
        help="leave open: batch, the number of images (without a word); size, height and width "
             "(onnx; multiples of the network's largest stride, usually 32; not ParC, Mask R-CNN); "
             "batch,size",
    )  # fmt: skip
    parser.add_argument(
        "--embed-preprocess",
        action="store_true",
        help="take pixels 0 to 255, RGB; normalize inside",
    )
    parser.add_argument(
        "--embed-decode",
        action="store_true",
        help="give boxes after NMS, masks or class maps instead of raw outputs",
    )
    add_limits(
        parser, "detectors: lowest score that the file keeps, and that predict shows (default: of "
                "the task, and of the best F1)"
    )  # fmt: skip
    parser.add_argument(
        "--data", type=str, help="verify on images of this data too, not on random ones alone"
    )
    parser.add_argument(
        "--format", type=str | None, help="format of the data, where finding it out fails"
    )
    parser.add_argument(
        "--explain", action="store_true", help="name the first layer of a file that differs"
    )
    parser.add_argument(
        "--isolated",
        action="store_true",
        help="make the environments that converters need, where they are missing",
    )
    parser.add_argument(
        "--check", action="store_true", help="only try whether runtimes can hold the model; a name "
                                             "has random weights"
    )  # fmt: skip
    parser.add_argument(
        "--classes", type=PositiveInt, help="with --check, of a model given by name"
    )
    parser.add_argument(
        "--output-stride", type=int, help="with --check, of a model given by name: 8, 16 or 32"
    )
    parser.add_argument(
        "--options", type=dict[str, bool | int | float | str],
        help="with --check, of a model given by name: the family's own, as --options.mixing conv",
    )  # fmt: skip


def run(given: dict[str, Any]) -> dict[str, Any]:
    _check_format(given)
    for key in ("model", "to"):
        if not given.get(key):
            raise UsageError(f"--{key} is missing; example: {EXAMPLE}")
    for key in OF_EXPORT if given.get("check") else OF_CHECK:
        if given.get(key):
            other = "does not go with --check" if given.get("check") else "is for --check"
            raise UsageError(f"--{key.replace('_', '-')} {other}")
    from ..backbones import variants
    from ..runtimes import choice

    to = [choice(text) for text in given["to"].split(",")]
    if not given.get("check") and given["model"] in variants():
        runtimes = shlex.quote(given["to"])
        raise ModelError(
            f"{given['model']!r} is the name of a network, and a trained one is exported. "
            f"`fleetnet train --model {given['model']} --data DATA` makes one; `fleetnet export "
            f"--model {given['model']} --to {runtimes} --check` tries what the runtimes can hold"
        )
    _check_dynamic(given, to)
    if given.get("isolated"):
        _make_environments([name for name, _ in to])
    return _check(given, to) if given.get("check") else _export(given, to)


def _check_dynamic(given: dict[str, Any], to: list[tuple[str, str]]) -> None:
    """`UsageError` for a word that --dynamic does not know, and for a runtime whose files cannot do that."""
    from ..runtimes import check_open_size, parse_open

    _, open_size = parse_open(given.get("dynamic") or False)
    for name, _ in to if open_size else []:
        check_open_size(name)


def _check_format(given: dict[str, Any]) -> None:
    """`UsageError` where --format names a runtime, as in other tools."""
    from ..synonyms import meanings

    word = given.get("format") or ""
    runtimes = [name for name in (word.lower(), *meanings(word)) if name in names("runtimes")]
    if runtimes:
        raise UsageError(
            f"--format is that of the data; the runtime of the file is --to {runtimes[0]}"
        )


def _make_environments(to: list[str]) -> None:
    from ..runtimes import _isolated

    for name in to:
        if name in _isolated.converters() and _isolated.missing(name):
            say(f"making the environment that converts for {name}, in {_isolated.folder(name)}")
            _isolated.create(name)


def _export(given: dict[str, Any], to: list[tuple[str, str]]) -> dict[str, Any]:
    from .. import runtimes
    from ..deploy.export import export
    from ..deploy.trained import Trained
    from ..files import check_writable
    from ..runtimes import label, size_of
    from ..sizes import parse_size
    from ..weights.read import check_inside, locate

    path = locate(Path(given["model"]))
    out = Path(given.get("out") or path.parent / "export")
    if not given.get("out"):
        for place in (out, *out.glob("*")):
            check_inside(place, path.parent, "give --out a folder of yours")
    check_writable(out, "--out", folder=True)
    trained = Trained.read(path)
    pictures = pictures_of(given.get("data"), given.get("format"), path)
    # one does not take the place of the other
    stem = "model-decoded" if given.get("embed_decode") else "model"
    delivered, agreements, sizes = [], [], list[str | None]()
    for name, precision in to:
        title = label(name, precision)
        file = out / title / f"{stem}{runtimes.find(name).suffix}"
        say(f"exporting {path} to {title}")
        before = _input_of(file)
        done = export(
            trained,
            name,
            file,
            size=parse_size(given["size"]) if given.get("size") else None,
            precision=precision,
            opset=given.get("opset"),
            dynamic=given.get("dynamic") or False,
            embed_preprocess=bool(given.get("embed_preprocess")),
            embed_decode=bool(given.get("embed_decode")),
            limits=limits(given),
            pictures=pictures,
            explain=bool(given.get("explain")),
        )
        sizes.append(_input_of(file))
        if before not in (None, sizes[-1]):
            say(f"{file} was a file for {before} before, and is one for {sizes[-1]} now")
        parity = done.parity.to_dict() if done.parity else {"passed": None}
        agreements.append(done.parity and done.parity.agreement)
        for (height, width), proof in done.elsewhere.items():
            say(
                f"{title}: the same at {height}x{width}: relative {proof.relative:.1e}, allowed "
                f"{proof.tolerance:.0e}"
            )
        delivered.append(
            {
                "runtime": name,
                "precision": precision,
                "path": str(done.path),
                "sidecar": str(done.sidecar),
                **parity,
            }
            | {"unverified": done.unverified, "bytes": size_of(done.path)}
        )
    rows = [
        [label(d["runtime"], d["precision"]), d["path"], f"{d['bytes'] / 1e6:.1f}", size]
        + (["not run here"] + [""] * 3 if d["unverified"] else [
            f"{d['max_abs']:.2e}", f"{d['relative']:.2e}", f"{d['tolerance']:.0e}", d["images"],
        ])
        for d, size in zip(delivered, sizes, strict=True)
    ]  # fmt: skip
    columns = [
        "runtime",
        "file",
        "MB",
        "input",
        "largest difference",
        "relative",
        "allowed",
        "images",
    ]
    table("Exported and verified against the multi-branch model", columns, rows, LEAST)
    for d, agreement in zip(delivered, agreements, strict=True):
        if agreement:
            say(f"{d['runtime']}: {agreement}")
        if d["unverified"]:
            say(f"{d['runtime']}: NOT VERIFIED, only inspected: {d['unverified']}")
    return {"model": str(path), "exported": delivered}


def _input_of(file: Path) -> str | None:
    """The size of image that an exported file takes, "224x224", of several "224x224, multiples of 32".

    None without a sidecar that says it.
    """
    from ..deploy.export import facts_of

    try:
        facts = facts_of(file)[1]
    except ModelError:
        return None
    if facts.exported is not None and facts.exported.sizes is not None:
        return f"{facts.size[0]}x{facts.size[1]}, multiples of {facts.exported.sizes.step}"
    shape = facts.file.inputs[0].shape if facts.file is not None and facts.file.inputs else None
    return None if shape is None or len(shape) < 4 else f"{shape[2]}x{shape[3]}"


def _check(given: dict[str, Any], to: list[tuple[str, str]]) -> dict[str, Any]:
    """Export to each runtime in a temporary folder, verify, and say what came of it."""
    from ..runtimes import label

    model, size = _checked(given)
    results: list[dict[str, Any]] = []
    for name, precision in to:
        found: dict[str, Any] = {"runtime": name, "precision": precision}
        results.append(found)
        say(f"trying {given['model']} in {label(name, precision)}")
        try:
            with tempfile.TemporaryDirectory() as folder:
                found |= _tried(model, size, name, precision, Path(folder), given)
        except (
            ExportError
        ) as error:  # it names the operator that the runtime lacks or computes otherwise
            said = re.sub(r"\S*/(?=model\.)", "", str(error))  # without the temporary folder
            found |= {"result": "cannot", "said": said}
    rows = [
        [label(r["runtime"], r["precision"]), r["result"]]
        + ([f"{r['relative']:.2e}", f"{r['tolerance']:.0e}"] if "relative" in r else ["", ""])
        for r in results
    ]
    table(
        f"{given['model']} at {size[0]}x{size[1]}, tried",
        ["runtime", "result", "relative", "allowed"],
        rows,
    )
    for r in results:
        if r["said"]:
            tell(f"{label(r['runtime'], r['precision'])}: {r['said']}")
    failed = [label(r["runtime"], r["precision"]) for r in results if r["result"] == "cannot"]
    if failed:
        raise ExportError(
            f"{given['model']} cannot be handed over for {', '.join(failed)}: see the table"
        )
    if not any(r["result"] == "ok" for r in results):
        raise ExportError(f"nothing could be tried: {results[0]['said']}")
    return {"model": given["model"], "size": list(size), "checked": results}


def _tried(
    model: "Model",
    size: tuple[int, int],
    name: str,
    precision: str,
    folder: Path,
    given: dict[str, Any],
) -> dict[str, Any]:
    """The result in one runtime, which raises where it is not good."""
    from .. import runtimes
    from ..deploy.export import export

    runtime = runtimes.find(name)
    missing = runtime.missing()
    if missing:
        return {"result": "not installed", "said": missing}
    done = export(
        model, name, folder / f"model{runtime.suffix}", size=size, precision=precision, opset=given.get("opset"),
        dynamic=given.get("dynamic") or False, embed_decode=bool(given.get("embed_decode")), limits=limits(given),
        explain=True,
    )  # fmt: skip
    if done.parity is None:
        return {"result": "ok", "said": f"converted and inspected, not run: {done.unverified}"}
    return {
        "result": "ok", "said": "", "relative": done.parity.relative, "tolerance": done.parity.tolerance,
    }  # fmt: skip


def _checked(given: dict[str, Any]) -> "tuple[Model, tuple[int, int]]":
    """The model to try, in eval mode, and the size: a checkpoint's own, or one by name with weights drawn for it."""
    from .. import checkpoint, tasks
    from ..proof.as_if_trained import realistic
    from ..sizes import parse_size
    from ..tasks import build

    size, path = parse_size(given["size"]) if given.get("size") else None, Path(given["model"])
    if path.suffix == ".safetensors" or (path.exists() and path.suffix not in (".yaml", ".yml")):
        loaded = checkpoint.load(path)
        return loaded.model, size or loaded.preprocess.size
    model = build(
        given["model"],
        given.get("classes"),
        output_stride=given.get("output_stride"),
        options=given.get("options"),
    )
    size = size or tasks.find(model.task).SIZE
    realistic(model, size)  # in place
    return model, size
