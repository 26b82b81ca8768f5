"""Starting from a file of weights: what is taken, what starts fresh, what is refused."""

import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from laminar.config import Config, FilterConfig
from laminar.data import with_absolute_paths
from laminar.errors import CheckpointError, ConfigError
from laminar.one_process import OneProcessEngine
from laminar.planning import make_plan
from laminar.problem import Problem
from laminar.reference import Reference
from laminar.stage import Stage
from laminar.weights import check_weights, load_weights, notices, read_weights
from tests.tiny import differing, run_reference, tiny_plan

TINY = {"name": "resnet18", "width": 4}
INT8 = {"pool": 1, "cast": "int8"}


def plan_of(path, num_classes=10, num_stages=3, **model):
    config = Config.model_validate(
        {"model": {"name": "resnet18", "weights": str(path), **model}, "num_stages": num_stages}
    )
    return make_plan(config, Problem((3, 64, 64), num_classes, 6400, 10))


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return resnet18(num_classes=10).state_dict()


@pytest.fixture(scope="module")
def files(theirs, tmp_path_factory):
    """The same weights in every way that people keep them."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(theirs, folder / "plain.pth")
    torch.save(theirs, folder / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": theirs, "epoch": 3}, folder / "nested.pth")
    torch.save({f"module.{n}": t for n, t in theirs.items()}, folder / "parallel.pth")
    save_file(theirs, folder / "plain.safetensors")
    counted = {n: t for n, t in theirs.items() if not n.endswith("num_batches_tracked")}
    torch.save(counted, folder / "uncounted.pth")
    return folder


@pytest.mark.parametrize(
    "name",
    ["plain.pth", "old.pt", "nested.pth", "parallel.pth", "plain.safetensors", "uncounted.pth"],
)
def test_every_kind_of_file_gives_the_same_network(name, files, theirs):
    plan = plan_of(files / name)
    assert check_weights(plan) == ()
    state = {}
    for k in range(3):
        state |= Stage(plan, k).state()
    assert differing({f"model.{n}": t for n, t in theirs.items()}, state) == []


@pytest.mark.parametrize("name", ["plain.pth", "plain.safetensors"])
def test_another_number_of_classes_starts_the_classifier_fresh(name, files, theirs):
    plan = plan_of(files / name, num_classes=7)
    assert check_weights(plan) == ("fc.weight", "fc.bias")
    module = plan.build_stage_module(0, plan.bounds[-1])
    fresh = {n: t.detach().clone() for n, t in module.public_tensors()}
    load_weights(module, plan)
    for key, tensor in module.public_tensors():
        expected = fresh[key] if key.startswith("fc.") else theirs[key]
        assert torch.equal(tensor, expected), key


def test_shapes_are_read_without_values(files):
    for name in ("plain.pth", "plain.safetensors"):
        found = read_weights(files / name, device="meta")
        assert all(tensor.is_meta for tensor in found.values())
        assert found["conv1.weight"].shape == (64, 3, 7, 7)


def without(state, *names):
    return {n: t for n, t in state.items() if n not in names}


REFUSED = {
    "a tensor too few": (lambda s: without(s, "layer2.0.bn1.weight"), {},
                         "nothing called layer2.0.bn1.weight"),
    "a tensor too many": (lambda s: s | {"layer1.2.conv1.weight": torch.zeros(2)}, {},
                          "layer1.2.conv1.weight, which it does not have"),
    "another network": (lambda s: s, {"name": "resnet34"}, "nothing called layer1.2.conv1.weight"),
    "another width": (lambda s: s, {"width": 32}, r"conv1.weight of shape \(64, 3, 7, 7\)"),
    "another norm": (lambda s: s, {"norm": "group"}, "num_batches_tracked, which it does not"),
    "another head": (lambda s: s | {"fc.weight": torch.zeros(10, 300)}, {},
                     r"fc.weight of shape \(10, 300\)"),
    "a scalar": (lambda s: s | {"fc.bias": torch.zeros(())}, {}, r"fc.bias of shape \(\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_of_another_network_are_refused(name, theirs, tmp_path):
    change, model, words = REFUSED[name]
    save_file(change(theirs), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=words):
        check_weights(plan_of(tmp_path / "w.safetensors", **model))


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damaged(folder):
    """Yield files that hold no tensors by name."""
    torch.save([torch.zeros(2)], folder / "list.pth")
    torch.save({"conv1.weight": 3}, folder / "number.pth")
    torch.save({1: torch.zeros(2)}, folder / "unnamed.pth")
    torch.save({"a": Trap(folder / "sprung")}, folder / "trap.pth")
    (folder / "pickle.pth").write_bytes(pickle.dumps({"a": Trap(folder / "sprung")}))
    (folder / "empty.pth").write_bytes(b"")
    (folder / "noise.pt").write_bytes(bytes(range(256)) * 4)
    (folder / "noise.safetensors").write_bytes(bytes(range(256)) * 4)
    (folder / "empty.safetensors").write_bytes(b"")
    torch.save({"a": torch.zeros(1000)}, folder / "short.pth")
    content = (folder / "short.pth").read_bytes()
    (folder / "short.pth").write_bytes(content[: len(content) // 2])


def test_files_of_something_else_are_refused_and_never_executed(tmp_path):
    damaged(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    for path in files:
        for device in ("cpu", "meta"):
            with pytest.raises(CheckpointError, match="tensors by name and nothing else"):
                read_weights(path, device=device)
    assert not (tmp_path / "sprung").exists()


def test_paths_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="must be a file"):
        read_weights(tmp_path / "absent.pth")
    (tmp_path / "w.bin").touch()
    with pytest.raises(ConfigError, match=r"\.safetensors, \.pth or \.pt file"):
        read_weights(tmp_path / "w.bin")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(ConfigError, match="must be a file"):
        read_weights(tmp_path / "folder.pth")


def test_engine_and_reference_start_from_the_same_weights(tmp_path):
    other = tiny_plan(2, model=TINY, seed=5, filters=INT8)
    module = other.build_stage_module(0, other.bounds[-1])
    save_file({n: t.detach() for n, t in module.public_tensors()}, tmp_path / "w.safetensors")
    model = {**TINY, "weights": str(tmp_path / "w.safetensors")}
    plan = tiny_plan(4, model=model, filters=INT8)
    reference, engine = run_reference(plan), OneProcessEngine(plan)
    assert torch.equal(engine.state()["model.conv1.weight"], module.blocks[0].conv1.weight)
    engine.run()
    assert differing(reference.state(), engine.state()) == []
    scratch = run_reference(tiny_plan(4, model=TINY, filters=INT8))
    assert differing(reference.state(), scratch.state())


def test_a_resumed_stage_does_not_need_the_file(tmp_path):
    plan = tiny_plan(2, model={**TINY, "weights": str(tmp_path / "gone.safetensors")}, filters=INT8)
    resumed, fresh = Stage(plan, 0, is_new=False), Stage(tiny_plan(2, model=TINY, filters=INT8), 0)
    assert resumed.state().keys() == fresh.state().keys()
    with pytest.raises(ConfigError, match="must be a file"):
        Stage(plan, 0)
    with pytest.raises(ConfigError, match="must be a file"):
        Reference(plan, None, None)


def test_what_the_user_is_told(files):
    plan = plan_of(files / "plain.pth", num_classes=7)
    fresh, filtered = notices(plan)
    assert "fc.weight, fc.bias start fresh" in fresh
    assert "than 7" in fresh
    assert re.search(r"resnet18 with filters before blocks \d, \d is another function", filtered)
    plain = plan.config.model_copy(update={"filters": FilterConfig()})
    assert notices(make_plan(plain, plan.problem)) == [fresh]
    assert notices(tiny_plan(num_stages=2, model=TINY, filters=INT8)) != []
    assert notices(tiny_plan(num_stages=2, filters=INT8)) == []


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config.model_validate({"model": {"name": "resnet18", "weights": "here/w.pth"}})
    assert with_absolute_paths(config).model.weights == str(tmp_path / "here/w.pth")
    assert with_absolute_paths(Config()) == Config()
