"""What other tools call things, and what they are called here: suggestions go by meaning before they go by spelling.

The words on the left are those of timm, torchvision, PaddleClas, CVNets, keras, Lightning,
MMDetection and the flags that YOLO's many programs have in common; they are written as `plain`
leaves them. `errors.suggest` looks them up.
"""

import re
from collections.abc import Collection, Iterator, Mapping

# Settings: as flags, as keys of a recipe, as keyword arguments. "name=value" proposes the value
# too.
SETTINGS: dict[str, tuple[str, ...]] = {
    "arch": ("model",),
    "architecture": ("model",),
    "backbone": ("model",),
    "modelname": ("model",),
    "net": ("model",),
    "network": ("model",),
    "m": ("model",),
    "a": ("model",),
    "checkpoint": ("model", "weights"),
    "ckpt": ("model", "weights"),
    "modelpath": ("model",),
    "initialcheckpoint": ("weights",),
    "initweights": ("weights",),
    "loadfrom": ("weights",),
    "finetune": ("weights",),
    "pretrained": ("weights=default",),
    "pretrainedmodel": ("weights=default",),
    "usepretrained": ("weights=default",),
    "weight": ("weights", "model"),
    "weights": ("model",),
    "dataset": ("data",),
    "datasets": ("data",),
    "datadir": ("data",),
    "datapath": ("data",),
    "dataroot": ("data",),
    "dataconfig": ("data",),
    "imagefolder": ("data",),
    "root": ("data",),
    "traindir": ("data",),
    "valdir": ("data",),
    "d": ("data",),
    "datasetformat": ("format",),
    "datatype": ("format",),
    "classes": ("only", "classes"),
    "numclasses": ("classes",),
    "nclasses": ("classes",),
    "classnum": ("classes",),
    "nc": ("classes",),
    "numepochs": ("epochs",),
    "nepochs": ("epochs",),
    "maxepochs": ("epochs",),
    "epochnum": ("epochs",),
    "niter": ("epochs",),
    "imgsz": ("size",),
    "imgsize": ("size",),
    "img": ("size",),
    "imagesize": ("size",),
    "imageshape": ("size",),
    "inputsize": ("size",),
    "inputshape": ("size",),
    "inputres": ("size",),
    "resolution": ("size",),
    "res": ("size",),
    "cropsize": ("size",),
    "traincropsize": ("size",),
    "valresizesize": ("size",),
    "targetsize": ("size",),
    "height": ("size",),
    "width": ("size",),
    "batch": ("batch_size",),
    "bs": ("batch_size",),
    "b": ("batch_size",),
    "trainbatchsize": ("batch_size",),
    "valbatchsize": ("batch_size",),
    "validationbatchsize": ("batch_size",),
    "samplespergpu": ("batch_size",),
    "gradaccumsteps": ("accumulate",),
    "gradientaccumulationsteps": ("accumulate",),
    "accumulategradbatches": ("accumulate",),
    "accumsteps": ("accumulate",),
    "nbs": ("accumulate",),
    "opt": ("optimizer",),
    "optim": ("optimizer",),
    "optimizertype": ("optimizer",),
    "learningrate": ("lr",),
    "lr0": ("lr",),
    "baselr": ("lr",),
    "initlr": ("lr",),
    "maxlr": ("lr",),
    "peaklr": ("lr",),
    "wd": ("weight_decay",),
    "l2": ("weight_decay",),
    "warmup": ("warmup_epochs",),
    "warmuplr": ("warmup_lr",),
    "warmuplrinit": ("warmup_lr",),
    "warmupinitlr": ("warmup_lr",),
    "warmupiters": ("warmup_steps",),
    "warmupiterations": ("warmup_steps",),
    "lrscheduler": ("schedule",),
    "scheduler": ("schedule",),
    "sched": ("schedule",),
    "lrschedule": ("schedule",),
    "coslr": ("schedule=cosine",),
    "multistep": ("schedule=step",),
    "milestones": ("step_epochs",),
    "decayepochs": ("step_epochs",),
    "decayrate": ("step_factor",),
    "gamma": ("step_factor",),
    "etamin": ("min_lr",),
    "minimumlr": ("min_lr",),
    "weightdecayend": ("decay_end",),
    "layerwisedecay": ("layer_decay",),
    "layerdecayrate": ("layer_decay",),
    "llrd": ("layer_decay",),
    "opteps": ("optimizer_options",),
    "optbetas": ("optimizer_options",),
    "lrwarmupepochs": ("warmup_epochs",),
    "smoothing": ("label_smoothing",),
    "clipgrad": ("clip",),
    "gradclip": ("clip",),
    "clipnorm": ("clip",),
    "clipgradnorm": ("clip",),
    "maxgradnorm": ("clip",),
    "gradientclipval": ("clip",),
    "gradientclip": ("clip",),
    "modelema": ("ema",),
    "modelemadecay": ("ema",),
    "emadecay": ("ema",),
    "droppathrate": ("drop_path",),
    "dropblock": ("drop_path",),
    "stochasticdepth": ("drop_path",),
    "syncbn": ("norm=sync",),
    "freezebn": ("norm=frozen",),
    "aa": ("auto_augment",),
    "autoaug": ("auto_augment",),
    "randaugment": ("auto_augment=randaugment",),
    "augmentation": ("augment",),
    "aug": ("augment",),
    "closemosaic": ("plain_epochs",),
    "multiscale": ("multi_scale=0.3",),
    "hflip": ("flip",),
    "fliplr": ("flip",),
    "horizontalflip": ("flip",),
    "colorjitter": ("color_jitter",),
    "hsvs": ("color_jitter",),
    "hsvv": ("color_jitter",),
    "reprob": ("erasing",),
    "randomerase": ("erasing",),
    "randomerasing": ("erasing",),
    "mixupalpha": ("mixup",),
    "cutmixalpha": ("cutmix",),
    "croppct": ("crop",),
    "amp": ("precision=bf16",),
    "torchcompile": ("compile=true",),
    "half": ("precision=bf16",),
    "fp16": ("precision=fp16",),
    "bf16": ("precision=bf16",),
    "mixedprecision": ("precision=bf16",),
    "dtype": ("precision",),
    "gpu": ("device=cuda",),
    "gpus": ("device=cuda",),
    "gpuid": ("device=cuda",),
    "usegpu": ("device=cuda",),
    "cuda": ("device=cuda",),
    "nocuda": ("device=cpu",),
    "cpu": ("device=cpu",),
    "accelerator": ("device",),
    "j": ("workers",),
    "numworkers": ("workers",),
    "nworkers": ("workers",),
    "numthreads": ("threads",),
    "nthreads": ("threads",),
    "evalinterval": ("eval_every",),
    "valinterval": ("eval_every",),
    "valperiod": ("eval_every",),
    "evalduringtrain": ("eval_every",),
    "earlystopping": ("patience",),
    "randomseed": ("seed",),
    "manualseed": ("seed",),
    "config": ("recipe",),
    "configfile": ("recipe",),
    "cfg": ("recipe", "model"),
    "hyp": ("recipe",),
    "c": ("recipe",),
    "output": ("out", "run"),
    "outputdir": ("out", "run"),
    "outdir": ("out", "run"),
    "outputpath": ("out",),
    "o": ("out",),
    "savedir": ("out", "run"),
    "workdir": ("run",),
    "logdir": ("run",),
    "resultdir": ("run", "out"),
    "project": ("run", "out"),
    "experiment": ("run",),
    "expname": ("run",),
    "name": ("run", "model"),
    "resumefrom": ("resume",),
    "resumepath": ("resume",),
    "continue": ("resume",),
    # Settings that stand in sections, where their last word alone would mean something else or
    # nothing.
    "archname": ("model",),
    "archpretrained": ("weights=default",),
    "checkpoints": ("resume",),
    "optimizername": ("optimizer",),
    "lrname": ("schedule",),
    "coeff": ("weight_decay",),
    "epsilon": ("label_smoothing",),
    "warmupepoch": ("warmup_epochs",),
    "warmupstartlr": ("warmup_lr",),
    "imageroot": ("data",),
    "clslabelpath": ("data",),
    "saveinferencedir": ("out",),
    "useamp": ("precision=fp16",),
    "resultsloc": ("run",),
    "runlabel": ("run",),
    "accumfreq": ("accumulate",),
    "autoresume": ("resume",),
    "roottrain": ("data",),
    "rootval": ("data",),
    "datasetname": ("format",),
    "trainbatchsize0": ("batch_size",),
    "valbatchsize0": ("batch_size",),
    "evalbatchsize0": ("batch_size",),
    "classificationname": ("model",),
    "detectionname": ("model",),
    "segmentationname": ("model",),
    "normalizationname": ("norm",),
    "optimname": ("optimizer",),
    "beta1": ("momentum",),
    "nodecaybnfilterbias": ("decay_norms",),
    "schedulername": ("schedule",),
    "isiterationbased": ("rate_by",),
    "emaenable": ("ema",),
    "samplername": ("sizes",),
    "vbscropsizewidth": ("size",),
    "vbscropsizeheight": ("size",),
    "vbsmincropsizewidth": ("sizes",),
    "vbsmaxcropsizewidth": ("sizes",),
    "vbsmaxnscales": ("sizes",),
    "usevisualdl": ("log=tensorboard",),
    "tensorboardlogging": ("log=tensorboard",),
    "tensorboard": ("log=tensorboard",),
    "reportto": ("log=tensorboard",),
    "logwith": ("log=tensorboard",),
    "logwandb": ("log=wandb",),
    "wandb": ("log=wandb",),
    # timm's
    "inchans": ("channels",),
    "augrepeats": ("repeats",),
    "lrbase": ("lr",),
    "lrbasesize": ("lr_batch",),
    "schedonupdates": ("rate_by=step",),
    "decaymilestones": ("step_epochs",),
    "warmupprefix": ("cosine_from=warmup",),
    "patienceepochs": ("patience",),
    "clipmode": ("agc",),
    "modelemawarmup": ("ema_warmup",),
    "traininterpolation": ("interpolation",),
    "ampdtype": ("precision",),
    "mean": ("normalize",),
    "std": ("normalize",),
    # of YOLO's programs
    "imageweights": ("balance=true",),
    # predict and eval
    "conf": ("score",),
    "confidence": ("score",),
    "confthres": ("score",),
    "confthreshold": ("score",),
    "scorethr": ("score",),
    "scorethreshold": ("score",),
    "minscore": ("score",),
    "iou": ("nms",),
    "iouthres": ("nms",),
    "nmsthreshold": ("nms",),
    "maxdet": ("max_objects",),
    "maxdetections": ("max_objects",),
    "topk": ("top",),
    "visualize": ("out",),
    "savetxt": ("out",),
    "save": ("out",),
    "savejson": ("predictions", "json"),
    "saveplots": ("plots",),
    # export, quantize, bench
    "include": ("to",),
    "target": ("to",),
    "runtime": ("to",),
    "exportformat": ("to",),
    "backend": ("to",),
    "format": ("to",),
    "opsetversion": ("opset",),
    "dynamicbatch": ("dynamic",),
    "dynamicaxes": ("dynamic",),
    "simplify": (),
    "int8": (),
    "calib": ("calibrate_on",),
    "calibration": ("calibrate_on",),
    "calibrationdata": ("calibrate_on",),
    "iterations": ("runs",),
    "repeat": ("runs",),
    "numruns": ("runs",),
    "numwarmup": ("warmup",),
}

# Values of settings, runtimes, precisions, verbs, splits. Only those that are allowed where they
# are asked for are ever proposed, so that one table does for all.
VALUES: dict[str, tuple[str, ...]] = {
    "adam": ("adamw",),
    "radam": ("adamw",),
    "nadam": ("adamw",),
    "lion": ("adamw",),
    "rmsprop": ("sgd", "adamw"),
    "momentum": ("sgd",),
    "nesterov": ("sgd",),
    "0": ("cuda",),
    "1": ("cuda",),
    "01": ("cuda",),
    "0123": ("cuda",),
    "gpu": ("cuda",),
    "cuda0": ("cuda",),
    "cuda1": ("cuda",),
    "mps": ("cpu",),
    "xpu": ("cpu",),
    "rand": ("randaugment",),
    "randm9mstd05inc1": ("randaugment",),
    "ra": ("randaugment",),
    "imagenet": ("autoaugment", "folder"),
    "ta": ("trivial",),
    "trivialaugment": ("trivial",),
    "trivialaugmentwide": ("trivial",),
    "float16": ("fp16",),
    "half": ("fp16", "bf16"),
    "float32": ("fp32",),
    "full": ("fp32",),
    "float": ("fp32",),
    "bfloat16": ("bf16",),
    "amp": ("bf16",),
    # runtimes
    "torchscript": ("pt2",),
    "torchexport": ("pt2",),
    "exportedprogram": ("pt2",),
    "jit": ("pt2",),
    "script": ("pt2",),
    "trace": ("pt2",),
    "pytorch": ("pt2",),
    "torch": ("pt2",),
    "aoti": ("pt2",),
    "onnxruntime": ("onnx",),
    "ort": ("onnx",),
    "tflite": ("litert",),
    "tensorflow": ("litert",),
    "tf": ("litert",),
    "savedmodel": ("litert",),
    "edgetpu": ("litert",),
    "pb": ("litert",),
    "keras": ("litert",),
    "ios": ("coreml",),
    "mlmodel": ("coreml",),
    "mlpackage": ("coreml",),
    "mlprogram": ("coreml",),
    "ir": ("openvino",),
    "vino": ("openvino",),
    "intel": ("openvino",),
    "pte": ("executorch",),
    "ptmobile": ("executorch",),
    "ptl": ("executorch",),
    "mobile": ("executorch",),
    "xnnpack": ("executorch",),
    "android": ("executorch", "litert"),
    "tensorrt": ("onnx",),
    "trt": ("onnx",),
    "engine": ("onnx",),
    "paddle": ("onnx",),
    "rknn": ("onnx",),
    "opencv": ("onnx",),
    # verbs
    "val": ("eval", "val"),
    "valid": ("eval", "val"),
    "validation": ("eval", "val"),
    "validate": ("eval", "val"),
    "dev": ("val",),
    "training": ("train",),
    "testing": ("test",),
    "test": ("eval",),
    "evaluate": ("eval",),
    "infer": ("predict",),
    "inference": ("predict",),
    "detect": ("predict", "train"),
    "segment": ("predict", "train"),
    "classify": ("predict", "train"),
    "fit": ("train",),
    "finetune": ("train",),
    "convert": ("export",),
    "deploy": ("export",),
    "fuse": ("reparam",),
    "merge": ("reparam",),
    "reparameterize": ("reparam",),
    "switchtodeploy": ("reparam",),
    "benchmark": ("bench",),
    "speed": ("bench",),
    "latency": ("bench",),
    "time": ("bench",),
    "profile": ("flops",),
    "summary": ("flops",),
    "macs": ("flops",),
    "params": ("flops",),
    "list": ("models",),
    "listmodels": ("models",),
    "zoo": ("models",),
    "info": ("doctor",),
    "checks": ("doctor",),
    "check": ("doctor", "verify"),
    "env": ("doctor",),
    "settings": ("doctor",),
    "ptq": ("quantize",),
    "int8": ("quantize",),
    "compare": ("verify",),
    "tutorial": ("demo",),
    "example": ("demo",),
    "quickstart": ("demo",),
    # formats of data
    "imagefolder": ("folder",),
    "classfolders": ("folder",),
    "darknet": ("yolo",),
    "ultralytics": ("yolo",),
    "pascal": ("voc",),
    "pascalvoc": ("voc",),
    "xml": ("voc",),
    "json": ("coco",),
    "csv": ("csvfile",),
    "instance": ("instances",),
    "pennfudan": ("instances",),
    "dsb": ("instances",),
    "txt": ("listfile",),
    "segmentation": ("masks",),
    "cityscapes": ("masks",),
    "ade20k": ("masks",),
    "png": ("masks",),
    "synthetic": ("shapes",),
    # models: earlier names, and variants that are called otherwise elsewhere
    "edgeformers": ("parcnet_s",),
    "edgeformer": ("parcnet_s",),
    "parcnetxxs": ("parcnet_xs",),
    "fasternetx": ("fasternet_s",),
    "mobileone": ("mobileone_s0",),
}

KEPT = (
    "leave it out: the state is kept after every epoch for --resume, and within one every "
    "--save-every minutes"
)

# Where no word of ours means the same: what to do instead, by the kind of thing that was asked for.
INSTEAD: dict[str, dict[str, str]] = {
    "runtime": {
        "tensorrt": "TensorRT builds its engine on the device, from the file of --to onnx",
        "trt": "TensorRT builds its engine on the device, from the file of --to onnx",
        "engine": "TensorRT builds its engine on the device, from the file of --to onnx",
        "int8": "int8 files are made by `fleetnet quantize --model RUN --data DATA --to onnx`",
    },
    "precision": {
        "int8": "int8 files are made by `fleetnet quantize --model RUN --data DATA --to onnx`",
        "uint8": "int8 files are made by `fleetnet quantize --model RUN --data DATA --to onnx`",
    },
    "flag": {
        "int8": "int8 files are made by `fleetnet quantize --model RUN --data DATA --to onnx`",
        "simplify": "leave it out: exported graphs are simple already",
        "verbose": "leave it out: what is done is said; --debug shows tracebacks",
        "v": "leave it out: what is done is said; --debug shows tracebacks",
        "lrf": "give --min-lr: the learning rate at the end, not a share of the peak",
        "emamomentum": "give --ema: what is kept of the average, 1 less this, as --ema 0.9995 for "
        "0.0005",
        "warmupmomentum": "leave it out: momentum stays as it is in the warm-up",
        "warmupbiaslr": "leave it out: biases warm up as all else",
        "lrbasescale": "leave it out: the rate grows with the images an update (--lr-batch)",
        "saveinterval": KEPT,
        "saveperiod": KEPT,
        "nosave": KEPT,
        "checkpointhist": KEPT,
        "recoveryinterval": KEPT,
        "kbestcheckpoints": KEPT,
        "printbatchstep": "leave it out: the terminal shows each step, log.jsonl each epoch",
        "loginterval": "leave it out: the terminal shows each step, log.jsonl each epoch",
        "logfreq": "leave it out: the terminal shows each step, log.jsonl each epoch",
        "noval": "give --eval-every: the last epoch is evaluated always",
        "noplots": "leave it out: figures are drawn once, at the end",
        "existok": "leave it out: a run folder is never written over; --resume goes on with one",
        "noautoanchor": "leave it out: anchors are not searched for",
        "anchort": "leave it out: anchors are not searched for",
        "rect": "give --size HEIGHTxWIDTH: all pictures have one",
        "singlecls": "write the labels so: every class of the data is learned",
        "evolve": "leave it out: settings are not searched for",
        "entity": "leave it out: runs stay in their folder",
        "bucket": "leave it out: runs stay in their folder",
        "source": "the pictures stand by themselves: fleetnet predict --model RUN photos/*.jpg",
        "inferimgs": "the pictures stand by themselves: fleetnet predict --model RUN photos/*.jpg",
        "pinmem": "leave it out: memory is pinned where there is a GPU",
        "pinmemory": "leave it out: memory is pinned where there is a GPU",
        "persistentworkers": "leave it out: workers are looked after by themselves",
        "useshm": "leave it out: workers share memory",
        "usesharedmemory": "leave it out: workers share memory",
        "noprefetcher": "leave it out: pictures are read by --workers N processes ahead of the step",
        "reduction": "leave it out: losses are means over the batch",
        "evalmetric": "leave it out: top-1, AP or mean IoU decides, by the task",
        "checkpointmetric": "leave it out: top-1, AP or mean IoU decides, by the task",
        "checkpointmetricmax": "leave it out: top-1, AP or mean IoU decides, by the task",
        "distbn": "leave it out: process 0 is evaluated and saved; --norm sync shares statistics",
        "drop": "leave it out, or --drop-path: stochastic depth",
        "vflip": "leave it out: pictures are mirrored left to right alone (--flip)",
        "flipud": "leave it out: pictures are mirrored left to right alone (--flip)",
        "localrank": "leave it out: the launcher says it by the environment",
        "distributed": "give --devices 8, or start it by torchrun",
        "worldsize": "give --devices 8, or start it by torchrun",
        "task": "the task is in the name of the model, as --model yolo/repvit_m0_9",
    },
    "verb": {
        "detect": "the task is in the name of the model: fleetnet train --model yolo/repvit_m0_9 "
        "--data DATA",
        "segment": "the task is in the name of the model: fleetnet train --model "
        "deeplabv3/repvit_m0_9 --data DATA",
        "classify": "the task is in the name of the model: fleetnet train --model repvit_m0_9 "
        "--data DATA",
        "pose": "poses are not among the tasks",
        "obb": "turned boxes are not among the tasks",
        "track": "tracking is not among the tasks; fleetnet predict finds objects in single "
        "pictures",
        "install": "pip install 'fleetnet[all]' adds the runtimes; fleetnet doctor says what is "
        "missing",
    },
}
INSTEAD["key"] = INSTEAD["argument"] = INSTEAD["flag"]

# The same by our own names, where a setting of that name is not to be had.
ABSENT = {"classes": "leave it out: the data have their classes"}

# Whose values in the files of other tools are the names of their parts, and none of ours.
OF_THEIR_PARTS = {"datasetname", "samplername"}

# What other tools call whole detectors and segmenters begins with one of these; here they are heads
# on a backbone.
HEADS = {
    "yolo": "yolo", "nanodet": "yolo", "damoyolo": "yolo", "rtmdet": "yolo", "ppyoloe": "yolo", "picodet": "yolo",
    "ssd": "ssd", "fasterrcnn": "ssd", "retinanet": "ssd", "fcos": "ssd", "efficientdet": "ssd", "detr": "yolo",
    "rtdetr": "yolo", "mask": "maskrcnn", "deeplab": "deeplabv3", "unet": "deeplabv3", "fcn": "deeplabv3",
    "lraspp": "deeplabv3", "segformer": "deeplabv3", "pspnet": "deeplabv3", "bisenet": "deeplabv3",
    "ppliteseg": "deeplabv3",
}  # fmt: skip


def plain(word: str) -> str:
    """A name without case, dashes, underscores and dots: plain("--Batch-size") -> "batchsize"."""
    return re.sub(r"[^a-z0-9]", "", word.lower())


def keys(word: str) -> list[str]:
    """A word as it may stand in a table, whole and without the sections before it.

    >>> keys("--optim.weight-decay")
    ["optimweightdecay", "weightdecay"]
    """
    parts = word.split(".")
    return [plain("".join(parts[first:])) for first in range(len(parts))]


def setting(word: str) -> tuple[str, ...]:
    """What a setting of another tool is called here, "name" or "name=value"."""
    return next((SETTINGS[key] for key in keys(word) if key in SETTINGS), ())


def meanings(word: str) -> tuple[str, ...]:
    """What a word of another tool is called here, "name" or "name=value"; nothing where it is not known."""
    return (*setting(word), *VALUES.get(plain(word), ()))


def instead(kind: str, word: str) -> str | None:
    """What to do where there is no such thing here, in a sentence."""
    sentences = INSTEAD.get(kind, {})
    return next((sentences[key] for key in keys(word) if key in sentences), None)


def absent(word: str) -> str | None:
    """What to do where the setting that a word means is not to be had."""
    return next((ABSENT[name] for name in setting(word) if name in ABSENT), None)


def translated(values: Mapping[str, object], names: Collection[str]) -> dict[str, object]:
    """The settings of a file that has them in sections, by those of our `names` that mean the same.

    >>> translated({"Global": {"epochs": 20}, "Optimizer": {"lr": {"learning_rate": 0.1}}}, KEYS)
    {"epochs": 20, "lr": 0.1}
    """
    by_plain = {plain(name): name for name in names}
    ours: dict[str, object] = {}
    for word, value in _leaves(values):
        name, usual = _named_here(word, by_plain)
        if usual and isinstance(value, bool):  # a switch there, a value here
            value = usual if value else None
        if name and value is not None:
            ours.setdefault(name, value)
    return ours


def _named_here(word: str, by_plain: Mapping[str, str]) -> tuple[str, str]:
    """The first name of ours that a setting of a file means, and the value if it is a switch there; else empty."""
    for key in keys(word):
        if key in OF_THEIR_PARTS:
            break
        for meaning in (key, *SETTINGS.get(key, ())):
            name, _, usual = meaning.partition("=")
            if plain(name) in by_plain:
                return by_plain[plain(name)], usual
        if key in SETTINGS:
            break
    return "", ""


def _leaves(values: Mapping[str, object], section: str = "") -> Iterator[tuple[str, object]]:
    """Texts and numbers with the sections that they stand in: ("Global.epochs", 20)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{section}{key}.")
        elif isinstance(value, str | int | float) and len(key) > 1:  # else a flag, as -m
            yield f"{section}{key}", value


def head(word: str) -> str | None:
    """The head here that does what another tool's model of this name does; None where none is known."""
    return next((task for start, task in HEADS.items() if plain(word).startswith(start)), None)
