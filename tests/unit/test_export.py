"""What is exported computes what the run computes: evaluate(export(run)) = evaluate(run)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from laminar.checkpoint import Manifest
from laminar.config import Config
from laminar.data import describe, load_images
from laminar.evaluation import evaluate_function, evaluate_run
from laminar.export import _compare, describe_network, export_network
from laminar.filters import Filter, FilterBoundary
from laminar.inference import InferenceNetwork, TrainedNetwork, load_network
from laminar.planning import make_plan
from tests.tiny import tiny_plan, write_run

CONFIG = Config.model_validate(
    {
        "epochs": 2,
        "model": {"name": "resnet8", "width": 8},
        "num_stages": 4,
        "cuts": [1, 2, 4],
        "filters": [
            {"pool": 1, "cast": "int8"},
            {"pool": 2, "cast": "fp16"},
            {"pool": 1, "cast": "fp32"},
        ],
    }
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained on digits, with a filter of each kind inside."""
    path = tmp_path_factory.mktemp("export") / "run"
    write_run(path, make_plan(CONFIG, describe(CONFIG.data)))
    return path


@pytest.fixture(scope="module")
def network(run: Path) -> TrainedNetwork:
    return load_network(run)


@pytest.fixture(scope="module")
def evaluated(run: Path) -> dict[str, Any]:
    found = evaluate_run(run)
    assert found["num_samples"] == 899
    assert found["accuracy"] > 0.3, "nothing was learnt: any function would agree"
    return found


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images(CONFIG.data, "test")[:7].float() / 255


def test_safetensors_evaluate_to_the_same(
    run: Path, evaluated: dict[str, Any], tmp_path: Path, laminar: Callable[..., Any]
):
    path = tmp_path / "network.safetensors"
    code, out, err = laminar("export", run, "--output", path)
    assert (code, err) == (0, "")
    assert str(path) in out
    code, out, err = laminar("evaluate", run, "--weights", path)
    assert (code, err) == (0, "")
    unprinted = ("class_names", "confusion_matrix")
    assert json.loads(out) == {k: v for k, v in evaluated.items() if k not in unprinted}


def test_weights_of_a_file_are_what_is_evaluated(run: Path, tmp_path: Path):
    config = CONFIG.model_copy(update={"seed": 1, "epochs": 1})
    write_run(tmp_path / "other", make_plan(config, describe(config.data)))
    path = tmp_path / "other.safetensors"
    export_network(load_network(tmp_path / "other"), "safetensors", path)
    of_weights, of_other = evaluate_run(run, weights=path), evaluate_run(tmp_path / "other")
    assert of_weights["loss"] == of_other["loss"] != evaluate_run(run)["loss"]


def test_safetensors_hold_the_networks_own_names(network: TrainedNetwork, tmp_path: Path):
    path = tmp_path / "network.safetensors"
    assert export_network(network, "safetensors", path) is None
    expected = dict(network.module.blocks.public_tensors())
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(file.get_tensor(name), tensor)
        metadata = file.metadata()
    assert {"stem.conv1.weight", "layer1.0.bn1.running_var", "head.fc.bias"} <= expected.keys()
    assert metadata == {"format": "pt", **describe_network(network)}


def test_a_torch_program_evaluates_to_the_same(
    run: Path, network: TrainedNetwork, evaluated: dict[str, Any], images: Tensor,
    tmp_path: Path, laminar: Callable[..., Any],
):  # fmt: skip
    path = tmp_path / "network.pt2"
    code, _, err = laminar("export", run, "--format", "torch", "--output", path)
    assert (code, err) == (0, "")
    extra = {"laminar.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["laminar.json"]) == describe_network(network)
    for num in (1, 7):
        with torch.no_grad():
            assert torch.allclose(program(images[:num]), network.module(images[:num]), atol=1e-5)
    found = evaluate_function(program, network.manifest.plan)
    assert found["accuracy"] == evaluated["accuracy"]
    assert found["loss"] == pytest.approx(evaluated["loss"], rel=1e-5)


def test_onnx_evaluates_to_the_same(
    run: Path, network: TrainedNetwork, evaluated: dict[str, Any], images: Tensor,
    tmp_path: Path, laminar: Callable[..., Any],
):  # fmt: skip
    path = tmp_path / "network.onnx"
    code, out, err = laminar("export", run, "--format", "onnx", "--output", path)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["network.onnx"]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert describe_network(network).items() <= {(p.key, p.value) for p in model.metadata_props}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def program(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": pixels.numpy()})[0])

    with torch.no_grad():
        expected = network.module(images)
    # Another library's convolutions: a last bit can turn the rounding of an int8 filter.
    assert (program(images) - expected).abs().max() < 1e-2 * expected.abs().max()
    found = evaluate_function(program, network.manifest.plan)
    assert found["accuracy"] == pytest.approx(evaluated["accuracy"], abs=1.5 / 899)
    assert found["loss"] == pytest.approx(evaluated["loss"], rel=1e-3)


def test_a_filtered_network_says_that_it_is_not_the_plain_one(network: TrainedNetwork):
    found = describe_network(network)
    assert json.loads(found["filters"]) == [
        {"before_block": "layer1.0", "pool": 1, "cast": "int8"},
        {"before_block": "layer2.0", "pool": 2, "cast": "fp16"},
    ]
    assert found["is_filtered"] == "true"
    assert "not the function of the plain network" in found["function"]
    assert (found["num_classes"], found["image_shape"]) == ("10", "[1, 8, 8]")
    assert json.loads(found["mean"])[0] == pytest.approx(0.305, abs=0.01)


def test_an_unfiltered_network_says_that_it_is_plain(tmp_path: Path):
    write_run(tmp_path, tiny_plan(3, filters={"pool": 1, "cast": "fp32"}))
    found = describe_network(load_network(tmp_path))
    assert (found["filters"], found["is_filtered"]) == ("[]", "false")
    assert found["function"] == "resnet8, the plain network"


def test_every_filter_exports_at_odd_sizes():
    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters = [
                FilterBoundary(Filter(pool, cast), 8.0)
                for pool in (1, 2, 3, 4)
                for cast in ("fp32", "fp16", "bf16", "int8")
            ]

        def forward(self, x: Tensor) -> list[Tensor]:
            return [filter_(x) for filter_ in self.filters]

    x = torch.randn(3, 2, 7, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = torch.export.export(
            All(), (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )
        for found, expected in zip(program.module()(x), All()(x), strict=True):
            assert torch.equal(found, expected)
    assert not [n for n in program.graph.nodes if "autograd" in str(n.target)]


def untrained(path: Path, **changes: Any) -> TrainedNetwork:
    """A network of freshly drawn weights, and running statistics of nowhere."""
    plan = tiny_plan(3, **changes)
    blocks = plan.build_stage_module(0, plan.bounds[-1])
    generator = torch.Generator().manual_seed(0)
    for name, tensor in blocks.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=generator)
    mean, std = torch.full((3,), 100.0), torch.full((3,), 50.0)
    data = {"mean": mean.tolist(), "std": std.tolist()}
    manifest = Manifest(path / "epoch_0000", 0, plan, (), data)
    return TrainedNetwork(manifest, InferenceNetwork(blocks, mean, std))


@pytest.mark.parametrize(
    ("format_", "changes"),
    [
        ("torch", {"model": {"name": "resnet18", "width": 8}, "cuts": [2]}),
        ("torch", {"model": {"name": "wrn10_1", "width": 4, "dropout": 0.3}}),
        (
            "onnx",
            {
                "model": {"name": "preact_resnet8", "norm": "group"},
                "filters": {"pool": 3, "cast": "bf16"},
            },
        ),
    ],
    ids=["torchvision", "wide", "pre-activation"],
)
def test_every_family_exports(format_: Any, changes: dict[str, Any], tmp_path: Path):
    network = untrained(tmp_path, **changes)
    difference = export_network(network, format_, tmp_path / "network")
    assert difference is not None
    assert difference < 1e-4


def test_an_unfiltered_resnet18_is_torchvisions(tmp_path: Path):
    from torchvision.models import resnet18

    unfiltered = {"pool": 1, "cast": "fp32"}
    network = untrained(tmp_path, model={"name": "resnet18"}, filters=unfiltered)
    export_network(network, "safetensors", tmp_path / "network.safetensors")
    with torch.random.fork_rng():
        published = resnet18(num_classes=4).eval()
    published.load_state_dict(load_file(tmp_path / "network.safetensors"))
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    metadata = describe_network(network)
    mean, std = (torch.tensor(json.loads(metadata[n]))[:, None, None] for n in ("mean", "std"))
    with torch.no_grad():
        expected = network.module(images)
        assert torch.allclose(published((images - mean) / std), expected, rtol=1e-4, atol=1e-5)


def test_a_program_that_computes_something_else_is_refused(network: TrainedNetwork):
    assert _compare(network, network.module) == 0
    with pytest.raises(RuntimeError, match=r"differ from the network's by \d+"):
        _compare(network, lambda images: network.module(images) * 1.02)
    with pytest.raises(RuntimeError, match="differ from the network's by nan"):
        _compare(network, lambda images: network.module(images) * torch.nan)


def test_onnx_without_its_libraries_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, laminar: Callable[..., Any]
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name)
    )
    path = tmp_path / "network.onnx"
    code, out, err = laminar("export", run, "--format", "onnx", "--output", path)
    assert (code, out) == (2, "")
    assert "no onnx, onnxscript, onnxruntime" in err
    assert "laminar-train[onnx]" in err
    assert not path.exists()
