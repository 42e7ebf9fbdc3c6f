"""An int8 file on CPUs of other classes: its answers here, and with kernels that have no VNNI.

    python benchmarks/int8_cpus.py --data ../shared/data/clothing10 FILE [FILE ...]

FILE is an .onnx or .xml that `fleetnet quantize` wrote. Its answers on the validation pictures are compared with those
of the same file, opened as it is (no slower kernels, whatever it holds):
- OpenVINO with oneDNN capped to AVX2 and to AVX-512 without VNNI (ONEDNN_MAX_CPU_ISA), in processes of their own;
- with --qemu "qemu-x86_64-static -cpu Haswell" in an emulated CPU, which is the only way for onnxruntime, whose kernels
  cannot be capped: about a second a picture, so --pictures limits them.
Prints one line each: pictures, share of the same top-1, and decibels between the outputs; exit code
1 if more than one picture in a hundred has another top-1. The last line is JSON.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CAPS = ("AVX2", "AVX512_CORE")


def answers(file: Path, images: np.ndarray) -> np.ndarray:
    """The logits (N, classes) of images (N, 3, H, W), one at a time, by the runtime alone: torch is slow in qemu."""
    if file.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would report the import to its makers
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    return np.concatenate([compiled(image[None])[0] for image in images])


def elsewhere(file: Path, images: np.ndarray, cap: str | None, emulator: str) -> np.ndarray:
    """`answers` in a process of its own, with oneDNN capped or in an emulator."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "images.npy", Path(folder) / "answers.npy"
        np.save(given, images)
        command = [
            *shlex.split(emulator),
            sys.executable,
            __file__,
            "--worker",
            str(file),
            str(given),
            str(found),
        ]
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": cap} if cap else dict(os.environ)
        subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
        return np.load(found)


def compare(here: np.ndarray, there: np.ndarray) -> dict[str, float]:
    noise = np.square(here - there).sum()
    return {
        "pictures": len(here),
        "same_top1": float((here.argmax(1) == there.argmax(1)).mean()),
        "decibels": float(10 * np.log10(np.square(here).sum() / noise)) if noise else 200.0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument(
        "--qemu",
        default="",
        help="an emulator's command, such as 'qemu-x86_64-static -cpu Haswell'",
    )
    parser.add_argument("--pictures", type=int, default=100, help="in the emulator")
    args = parser.parse_args()

    from fleetnet import data
    from fleetnet.deploy.export import facts_of
    from fleetnet.images import read
    from fleetnet.runtimes._cpu import int8_class

    print(f"here: {int8_class()}", flush=True)
    rows = []
    for file in args.files:
        preprocess = facts_of(file)[1].preprocess
        samples = data.load(args.data, "val").samples
        images = np.stack([preprocess(read(sample.image)).numpy() for sample in samples])
        here = answers(file, images)
        places = (
            [(f"oneDNN {cap}", cap, "", images) for cap in CAPS] if file.suffix == ".xml" else []
        )
        if args.qemu:
            spread = images[:: -(-len(images) // args.pictures)]
            places.append((args.qemu, None, args.qemu, spread))
        for name, cap, emulator, some in places:
            reference = (
                here if len(some) == len(here) else here[:: -(-len(images) // args.pictures)]
            )
            row = {
                "file": str(file),
                "there": name,
                **compare(reference, elsewhere(file, some, cap, emulator)),
            }
            rows.append(row)
            print(
                f"{file}: {name}: {row['pictures']} pictures, same top-1 {row['same_top1']:.1%}, "
                f"{row['decibels']:.1f} dB",
                flush=True,
            )
    print(json.dumps(rows))
    return int(any(float(row["same_top1"]) < 0.99 for row in rows))


if __name__ == "__main__":
    if "--worker" in sys.argv:
        file, given, found = map(Path, sys.argv[2:])
        np.save(found, answers(file, np.load(given)))
    else:
        sys.exit(main())
