"""Weights from files, addresses and training scripts: read safely, fitted strictly, reported."""

import argparse
import hashlib
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from zoo import VARIANTS, image, on_meta, random_model

from fleetnet import checkpoint
from fleetnet.backbones import pretrained
from fleetnet.errors import ModelError, UsageError
from fleetnet.preprocess import Preprocess
from fleetnet.reparam import FORMS, difference, form_of, reparameterize
from fleetnet.tasks import Model, build
from fleetnet.weights import create_model, list_models, load_weights
from fleetnet.weights.identify import plan
from fleetnet.weights.read import hash_tensors, read_weights, unwrap

State = dict[str, Tensor]
SMALL = "fasternet_t0"
TOLERANCE = 1e-4  # relative, in float32, with gammas of both signs; a tensor in the wrong place gives about 1
W, E = torch.zeros(2), torch.ones(2)  # the weights, and their moving average


def state_of(name: str, **options: Any) -> State:
    return random_model(name, options=options or None).state_dict()


def outputs(model: Model, size: int = 64) -> Tensor:
    with torch.no_grad():
        return model.eval()(image(size, size))


# ---- unwrap ----------------------------------------------------------------------------------------------------------

WRAPPERS = {
    "bare": ({"a.b": W}, ""),
    "model": ({"model": {"a.b": W}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, "[model]"),
    "state_dict": ({"state_dict": {"a.b": W}, "epoch": 3}, "[state_dict]"),
    "nested": ({"model": {"state_dict": {"a.b": W}}}, "[model][state_dict]"),
    "both": ({"model": {"a.b": W}, "model_ema": {"a.b": E}, "optimizer": {"state": {}}}, "[model]"),
    "timm": ({"state_dict": {"a.b": W}, "state_dict_ema": {"a.b": E}, "arch": "x"}, "[state_dict]"),
    "cvnets": (
        {"model_state_dict": {"a.b": W}, "ema_state_dict": {"a.b": E}, "iterations": 1},
        "[model_state_dict]",
    ),
    "no average yet": ({"model": {"a.b": W}, "model_ema": None}, "[model]"),
    "data parallel": ({"model": {"module.a.b": W}}, "[model]"),
    "compiled": ({"_orig_mod.a.b": W}, ""),
    "compiled, parallel": ({"module._orig_mod.a.b": W}, ""),
    "a compiled part": ({"a._orig_mod.b": W}, ""),
    "lightning": (
        {"state_dict": {"model.a.b": W}, "pytorch-lightning_version": "2"},
        "[state_dict]",
    ),
    "averaged model": ({"n_averaged": torch.tensor(5), "module.a.b": W}, ""),
    "plain values beside": ({"a.b": W, "_metadata": {}}, ""),
}


@pytest.mark.parametrize(("content", "branch"), WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_removed(content: dict[str, Any], branch: str) -> None:
    state, found = unwrap(content, ema=False, where="x")
    assert (list(state), found) == (["a.b"], branch)
    assert state["a.b"] is W


@pytest.mark.parametrize("key", ["both", "timm", "cvnets"])
def test_the_moving_average_is_taken_when_asked_for(key: str) -> None:
    state, branch = unwrap(WRAPPERS[key][0], ema=True, where="x")
    assert state["a.b"] is E
    assert "ema" in branch


@pytest.mark.parametrize("key", ["bare", "model", "no average yet"])
def test_a_moving_average_that_is_not_there_is_an_error(key: str) -> None:
    with pytest.raises(ModelError, match=r"x\.pth holds no moving average"):
        unwrap(WRAPPERS[key][0], ema=True, where="x.pth")


def test_a_moving_average_alone_is_taken() -> None:
    assert unwrap({"model_ema": {"a.b": E}}, ema=False, where="x")[1] == "[model_ema]"


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, {"model": {}}, [W], None, {"model": {"x": {"y": 1}}}], ids=str
)
def test_what_holds_no_state_is_an_error(content: Any) -> None:
    with pytest.raises(ModelError, match=r"x holds no state dict; it holds"):
        unwrap(content, ema=False, where="x")


# ---- read ------------------------------------------------------------------------------------------------------------


def write(path: Path, content: Any) -> Path:
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


@pytest.mark.parametrize("file", ["a.safetensors", "a.pt", "a.pth", "a.pth.tar", "a.bin", "a.ckpt"])
@pytest.mark.parametrize("given", [Path, str])
def test_files_are_read(tmp_path: Path, file: str, given: type) -> None:
    content = (
        {"w": torch.arange(3.0)} if file == "a.safetensors" else {"model": {"w": torch.arange(3.0)}}
    )
    found = read_weights(given(write(tmp_path / file, content)), SMALL)
    assert found.state["w"].tolist() == [0, 1, 2]
    assert found.source.startswith(str(tmp_path / file))


def test_old_torch_files_are_read(tmp_path: Path) -> None:
    torch.save({"w": W}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "a.pth", SMALL).state["w"], W)


def test_arguments_in_a_namespace_are_read(tmp_path: Path) -> None:
    content = {
        "model": {"w": W},
        "model_ema": {"w": E},
        "args": argparse.Namespace(lr=0.1, data={"path": "x"}),
    }
    assert torch.equal(
        read_weights(write(tmp_path / "a.pth", content), SMALL, ema=True).state["w"], E
    )


class Evil:
    """A pickle of this runs a command when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_code_in_a_pickle_is_refused_and_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.pth", {"model": {"w": W}, "callback": Evil(tmp_path / "mark")})
    with pytest.raises(
        ModelError, match=r"a\.pth was refused: it is a pickle that would run (posix|nt)\.system"
    ):
        read_weights(file, SMALL)
    assert not (tmp_path / "mark").exists()
    (tmp_path / "bare.pkl.pth").write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    with pytest.raises(ModelError, match=r"is not a file of torch\.save"):
        read_weights(tmp_path / "bare.pkl.pth", SMALL)
    assert not (tmp_path / "mark").exists()


def test_whole_models_in_a_pickle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"would run torch\.nn\.modules\.linear\.Linear"):
        read_weights(write(tmp_path / "a.pth", torch.nn.Linear(2, 2)), SMALL)


@pytest.mark.parametrize("file", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_files_that_are_cut_short(tmp_path: Path, file: str, share: float) -> None:
    path = write(tmp_path / file, {"w": torch.arange(5000.0)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        ModelError, match=r"a\.\w+ \(\d+ bytes\) is (damaged, cut short|not a file of torch)"
    ):
        read_weights(path, SMALL)


@pytest.mark.parametrize("file", ["a.safetensors", "a.pth"])
def test_a_web_page_or_a_pointer_is_no_weights_file(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(
        ModelError, match=r"is damaged|is not a file of torch\.save: it begins with b've'"
    ):
        read_weights(tmp_path / file, SMALL)


def test_paths_that_are_wrong(tmp_path: Path) -> None:
    write(tmp_path / "fasternet_t0.pth", {"w": W})
    with pytest.raises(
        ModelError, match=r"no file '.*fasternet_to\.pth': did you mean 'fasternet_t0\.pth'"
    ):
        read_weights(tmp_path / "fasternet_to.pth", SMALL)
    with pytest.raises(ModelError, match=r"is a folder without best\.safetensors"):
        read_weights(tmp_path, SMALL)
    (tmp_path / "a.onnx").write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"weights are read from .*; this is '\.onnx'"):
        read_weights(tmp_path / "a.onnx", SMALL)


CHANGES: dict[str, Callable[[State], State]] = {
    "another value": lambda state: {**state, "b": state["b"] + 1},
    "another name": lambda state: {"a": state["a"], "c": state["b"]},
    "another shape": lambda state: {**state, "b": state["b"].reshape(3, 2)},
    "another type": lambda state: {**state, "b": state["b"].view(torch.int32)},
    "names exchanged": lambda state: {"a": state["b"], "b": state["a"]},
    "one left out": lambda state: {"a": state["a"]},
    "one more": lambda state: {**state, "c": W},
}


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_were_changed_after_they_were_hashed(change: str, tmp_path: Path) -> None:
    """The hash is of names, types, shapes and values: all that a file of tensors says."""
    state = {"a": torch.arange(6.0), "b": torch.arange(6.0, 12.0)}
    notes = {"fleetnet": "{}", "tensors_sha256": hash_tensors(state)}
    save_file(state, tmp_path / "same.safetensors", notes)
    assert set(read_weights(tmp_path / "same.safetensors", SMALL).state) == {"a", "b"}
    save_file(CHANGES[change](state), tmp_path / "other.safetensors", notes)
    with pytest.raises(ModelError, match="the hash of its tensors is not the one that was written"):
        read_weights(tmp_path / "other.safetensors", SMALL)


# ---- the hub and other addresses -------------------------------------------------------------------------------------


class Server:
    """Answers like the hub (and any web server) with `files`: path -> content; `requests` are what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.short = 0  # bytes to leave out at the end of every file
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                content = outer.files.get(self.path)
                if self.command == "GET":
                    outer.requests.append(self.path)
                self.send_response(404 if content is None else 200)
                repository = self.path.partition("/resolve/")[0]
                known = any(path.startswith(repository + "/") for path in outer.files)
                if content is None:
                    self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("ETag", hashlib.sha256(content or b"").hexdigest())
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if self.command == "GET" and content is not None:
                    self.wfile.write(content[: len(content) - outer.short])

            do_GET = do_HEAD

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    import huggingface_hub as hub

    server = Server()
    download = partial(hub.hf_hub_download, endpoint=server.url, cache_dir=tmp_path / "hub")
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    yield server
    server.close()


def content_of(tmp_path: Path, suffix: str, state: State) -> bytes:
    return write(tmp_path / f"content{suffix}", state).read_bytes()


def test_the_hub_gives_safetensors_else_a_pickle(
    web: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files = {
        "/o/both/resolve/main/model.safetensors": content_of(tmp_path, ".safetensors", {"w": W}),
        "/o/both/resolve/main/pytorch_model.bin": content_of(tmp_path, ".bin", {"w": E}),
        "/o/pickle/resolve/main/pytorch_model.bin": content_of(tmp_path, ".bin", {"w": E}),
        "/o/tagged/resolve/v1.0/model.safetensors": content_of(tmp_path, ".safetensors", {"w": E}),
        "/o/none/resolve/main/README.md": b"",
    }
    for repo, value in (("o/both", W), ("o/pickle", E), ("o/tagged@v1.0", E)):
        found = read_weights(f"hf-hub:{repo}", SMALL)
        assert torch.equal(found.state["w"], value)
        assert found.source == f"hf-hub:{repo}"
    with pytest.raises(
        ModelError, match=r"hf-hub:o/none has neither model\.safetensors nor pytorch_model\.bin"
    ):
        read_weights("hf-hub:o/none", SMALL)
    with pytest.raises(
        ModelError, match=r"hf-hub:o/unknown cannot be fetched: .*Repository Not Found"
    ):
        read_weights("hf-hub:o/unknown", SMALL)
    with pytest.raises(ModelError, match=r"hf-hub:a b/c cannot be fetched: Repo id must"):
        read_weights("hf-hub:a b/c", SMALL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert torch.equal(read_weights("hf-hub:o/pickle", SMALL).state["w"], E)  # from the cache
    with pytest.raises(
        ModelError, match=r"hf-hub:o/new is not in the cache, and the hub cannot be reached"
    ):
        read_weights("hf-hub:o/new", SMALL)


def test_default_means_the_published_weights(web: Server, tmp_path: Path) -> None:
    published = pretrained(SMALL)
    assert published is not None
    state = state_of(SMALL)
    repo = published.source.removeprefix("hf-hub:")
    web.files[f"/{repo}/resolve/main/model.safetensors"] = content_of(
        tmp_path, ".safetensors", state
    )
    for given in ("default", published.source):
        model = create_model(SMALL, weights=given)
        assert torch.equal(
            model.backbone.stages[0].merge[0].weight, state["backbone.stages.0.merge.0.weight"]
        )
        assert model.report.source == published.source
        assert published.license in model.report.summary()
        assert model.preprocess == published.preprocess


def test_default_without_published_weights_lists_those_that_have() -> None:
    with pytest.raises(
        ModelError,
        match=r"no weights were published for 'parcnet_xs'; there are for: .*fasternet_t0",
    ):
        create_model("parcnet_xs", weights="default")


def test_an_address_is_downloaded_once_and_whole(web: Server, tmp_path: Path) -> None:
    web.files["/files/weights%20a.pth"] = content_of(tmp_path, ".pth", {"w": W})
    url = f"{web.url}/files/weights%20a.pth"
    web.short = 10
    with pytest.raises(ModelError, match=r"ended after \d+ of \d+ bytes|cannot be fetched"):
        read_weights(url, SMALL)
    assert not list((tmp_path / "torch").rglob("*.*"))
    web.short = 0
    for _ in range(2):
        assert torch.equal(read_weights(url, SMALL).state["w"], W)
    assert web.requests == ["/files/weights%20a.pth"] * 2  # the failed one and one more
    with pytest.raises(ModelError, match=r"/none\.pth cannot be fetched: HTTP Error 404"):
        read_weights(f"{web.url}/none.pth", SMALL)


# ---- form, options and number of classes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["fasternet_t0", "mobileone_s1", "repvit_m0_6", "repvit_m1", "parcnet_xs"]
)
@pytest.mark.parametrize("form", FORMS)
def test_a_model_takes_the_form_of_its_weights(name: str, form: str) -> None:
    example = image(256, 256, batch=1)
    original = random_model(name)
    state = (reparameterize(original, example) if form == "deploy" else original).state_dict()
    model = create_model(name, weights=state)
    assert form_of(model) == model.report.form == form
    assert model.training
    assert model.report.loaded == tuple(model.state_dict())
    assert not model.report.reinitialized
    with torch.no_grad():
        _, relative = difference([original(example)], [model.eval()(example)])
    assert relative < TOLERANCE if form == "deploy" else relative == 0


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("fasternet_t0", FORMS[0]),
        *((name, form) for name in ("mobileone_s1", "repvit_m0_9") for form in FORMS),
    ],
)
def test_timm_names_go_in(name: str, form: str) -> None:
    import timm
    from timm.utils.model import reparameterize_model
    from zoo import randomize

    theirs = randomize(timm.create_model(name, num_classes=7), seed=3).eval()
    theirs = reparameterize_model(theirs) if form == "deploy" else theirs
    model = create_model(
        name, weights={"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}
    )
    assert (model.classes, model.report.form) == (7, form)
    with torch.no_grad():
        _, relative = difference([theirs(image(64, 64))], [outputs(model)])
    assert relative < TOLERANCE


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("repvit_m0_6", {"distillation": False}),
        ("repvit_m0_6", {"distillation": True}),
        ("mobileone_s1", {"branches": 3}),
        ("fasternet_t0", {"output_norm": True}),
    ],
    ids=str,
)
def test_options_are_inferred_unless_given(name: str, options: dict[str, Any]) -> None:
    state = state_of(name, **options)
    model = create_model(name, weights=state)
    # that one is the default
    assert model.options == ({} if options == {"distillation": True} else options)
    assert model.state_dict().keys() == state.keys()
    assert create_model(name, weights=state, options=options).options == options


def test_options_that_were_said_are_kept() -> None:
    two_heads = state_of("repvit_m0_6")
    with pytest.raises(
        ModelError, match=r"unexpected: head\.classifier\.heads\.1.*made with the default options;"
    ):
        create_model("repvit_m0_6", weights=two_heads, options={"distillation": False})
    # the head starts anew anyhow
    model = create_model("repvit_m0_6", 4, two_heads, options={"distillation": False})
    assert all(key.startswith("head.classifier.heads.1") for key in model.report.unexpected)
    with pytest.raises(UsageError, match="no option 'destillation': did you mean 'distillation'"):
        create_model("repvit_m0_6", weights=two_heads, options={"destillation": False})


def test_options_of_a_features_only_state_stay_the_defaults() -> None:
    state = {
        key: value for key, value in state_of("repvit_m0_6").items() if key.startswith("backbone.")
    }
    assert plan("repvit_m0_6", state).options == {}


@pytest.mark.parametrize(
    ("made", "wanted"), [("repvit_m1", "repvit_m0_9"), ("repvit_m0_9", "repvit_m1")]
)
def test_both_versions_of_repvit_go_into_both(made: str, wanted: str) -> None:
    original = random_model(made)
    model = create_model(wanted, weights=original.state_dict())
    assert "equal in eval mode only" in model.report.summary()
    _, relative = difference([outputs(original)], [outputs(model)])
    assert relative < TOLERANCE
    assert "eval mode" not in create_model(made, weights=original.state_dict()).report.summary()


@pytest.mark.parametrize(
    ("name", "form"),
    [("fasternet_t0", FORMS[0]), ("repvit_m0_6", FORMS[0]), ("repvit_m0_6", FORMS[1])],
)
def test_classes_are_those_of_the_weights_unless_given(name: str, form: str) -> None:
    original = build(name, 7).eval()
    state = (
        reparameterize(original, image(256, 256)) if form == "deploy" else original
    ).state_dict()
    assert create_model(name, weights=state).classes == 7
    model = create_model(name, 5, state)
    assert model.report.note == "head: re-initialized, 7 -> 5 classes"
    assert model.report.reinitialized
    assert set(model.report.reinitialized) == set(model.report.wrong_shape)
    assert all(key.startswith("head.") for key in model.report.reinitialized)
    assert set(model.report.loaded) | set(model.report.reinitialized) == set(model.state_dict())
    assert outputs(model, 256).shape == (2, 5)


def test_a_classifier_that_starts_anew_is_drawn_anew() -> None:
    model = random_model(SMALL)  # its classifier has seen something
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_weights(model, build(SMALL, 7).state_dict())
    last = "head.classifier.4.weight"
    assert sorted(report.reinitialized) == ["head.classifier.4.bias", last]
    assert not torch.equal(model.state_dict()[last], before[last])
    # as the paper's authors draw it
    assert model.state_dict()[last].std().item() == pytest.approx(0.02, rel=0.2)
    assert "head: re-initialized, 7 -> 1000 classes" in report.summary()


def test_features_only_weights_go_in_with_a_new_classifier() -> None:
    state = {key: value for key, value in state_of(SMALL).items() if key.startswith("backbone.")}
    model = create_model(SMALL, 5, state)
    assert "head: re-initialized, the weights have none" in model.report.summary()
    assert all(key.startswith("head.") for key in model.report.reinitialized)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


# ---- weights that do not fit -----------------------------------------------------------------------------------------


def other_form(name: str) -> Model:
    return reparameterize(random_model(name), image(64, 64))


MISFITS = {  # what the model is, the weights, what the message must say
    "another family": (
        "repvit_m0_9", lambda: state_of("mobileone_s1"),
        r"0 of 605 tensors fit \(0%\); 605 missing: .*; \d+ unexpected: .*These look like mobileone_s1 weights \(multi",
    ),
    "another family, deploy": (
        "repvit_m0_9", lambda: other_form("mobileone_s1").state_dict(), r"mobileone_s1 weights \(deploy form, 100%",
    ),
    "another variant": (
        "repvit_m0_9", lambda: state_of("repvit_m1_0"), r"of wrong shape: .* instead of .*look like repvit_m1_0",
    ),
    "no network of ours": ("fasternet_t0", lambda: {"conv1.weight": W, "fc.bias": W}, "weights of "
                                                                                      "none of our "
                                                                                      "models"),
    "deploy form": ("repvit_m0_6", lambda: other_form("repvit_m0_6").state_dict(), "cannot be "
                                                                                   "unfolded into "
                                                                                   "branches"),
    "one missing": (
        "fasternet_t0", lambda: {k: v for k, v in state_of(SMALL).items() if k != "backbone.stages.0.merge.0.weight"},
        r"1 missing: backbone\.stages\.0\.merge\.0\.weight\. These are fasternet_t0 weights of the same form, but not",
    ),
    "one "
    "too many": ("fasternet_t0", lambda: {**state_of(SMALL), "extra": W}, r"114 of 114 .*1 unexpected: extra"),
    "one of another shape": (
        "fasternet_t0", lambda: {**state_of(SMALL), "backbone.stages.0.merge.1.bias": W},
        r"1 of wrong shape: backbone\.stages\.0\.merge\.1\.bias \(2,\) instead of \(40,\)",
    ),
    "half a head": (
        "repvit_m0_6", lambda: state_of("repvit_m0_6", distillation=False),
        r"missing: head\.classifier\.heads\.1.*made with \{'distillation': False\}; this model has the default options",
    ),
    "another width of the classifier's input": (
        "fasternet_t0", lambda: {**state_of(SMALL), "head.classifier.4.weight": torch.zeros(1000, 5)},
        "1 of wrong shape: head",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "weights", "says"), MISFITS.values(), ids=MISFITS)
def test_weights_that_do_not_fit_change_nothing_and_say_why(
    name: str, weights: Any, says: str
) -> None:
    model = random_model(name, seed=5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=says) as caught:
        load_weights(model, weights())
    assert str(caught.value).startswith(
        f"state dict does not fit {name} (multi-branch form, 1000 classes)"
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_branches_do_not_go_into_the_deploy_form() -> None:
    with pytest.raises(
        ModelError, match=r"multi-branch form: load them into a new model, then call reparameterize"
    ):
        load_weights(other_form("repvit_m0_6"), state_of("repvit_m0_6"))


def test_the_deploy_form_of_parc_is_for_one_size() -> None:
    state = other_form("parcnet_xs").state_dict()
    with pytest.raises(
        ModelError, match=r"parcnet_xs weights of the same form, but .* or for another size"
    ):
        load_weights(reparameterize(random_model("parcnet_xs"), image(96, 96)), state)


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    model = build("fasternet_t0", 2)
    checkpoint.save(
        tmp_path / "best.safetensors", model, classes=["a", "b"], preprocess=Preprocess((64, 64))
    )
    with pytest.raises(ModelError, match="This is a checkpoint of fasternet_t0"):
        create_model("fasternet_t1", weights=tmp_path)


def test_our_checkpoints_bring_size_options_and_license(tmp_path: Path) -> None:
    model = random_model("parcnet_xs").eval()
    deploy = reparameterize(model, image(96, 64))
    checkpoint.save(
        tmp_path / "best.safetensors", deploy, classes=[str(i) for i in range(1000)], preprocess=Preprocess((96, 64)),
        source={"weights": "x.pth", "license": "CC0"},
    )  # fmt: skip
    again = create_model("parcnet_xs", weights=str(tmp_path))
    assert (again.report.form, again.report.license, again.preprocess.size) == (
        "deploy",
        "CC0",
        (96, 64),
    )
    with torch.no_grad():
        assert torch.equal(again.eval()(image(96, 64)), deploy(image(96, 64)))


def test_counters_of_batch_norms_may_be_absent() -> None:
    state = {
        key: value
        for key, value in state_of(SMALL).items()
        if not key.endswith("num_batches_tracked")
    }
    assert not load_weights(build(SMALL), state).missing


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_model_keeps_its_dtype(dtype: torch.dtype) -> None:
    model = build(SMALL).to(dtype)
    state = state_of(SMALL)
    load_weights(model, state)
    weight = model.state_dict()["backbone.stages.0.merge.0.weight"]
    assert weight.dtype == dtype
    assert torch.equal(weight, state["backbone.stages.0.merge.0.weight"].to(dtype))


def test_random_weights_and_names() -> None:
    model = create_model("fasternet_t0", 3, options={"mixing": "dwconv"})
    assert (model.classes, model.training, model.options) == (3, True, {"mixing": "dwconv"})
    assert on_meta("fasternet_t0").classes == create_model("fasternet_t0").classes == 1000
    with pytest.raises(
        ModelError, match="no backbone 'mobileone_s00': did you mean 'mobileone_s0'"
    ):
        create_model("mobileone_s00")
    assert list_models() == VARIANTS
    assert list_models("mobileone_*") == [f"mobileone_s{i}" for i in range(5)]
