"""Whatever a user gets wrong: one line, exit code 2, and nothing was started.

All rows run in one fresh process, which watches itself: it must initialise no Ray and start no
other process. What only a running cluster can refuse is in tests/on_ray/test_placement.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from laminar.checkpoint import MANIFEST, list_checkpoints
from laminar.config_file import dump_config
from laminar.run_directory import RunDirectory
from tests.own import own_plan
from tests.tiny import tiny_config, tiny_plan, write_run

Prepare = Callable[[Path], None]

LINE = re.compile(r"error: (?P<rule>[^\n]+) \(got (?P<got>[^\n]+)\); (?P<fix>[^\n]+)\n")


@dataclass(frozen=True)
class Row:
    """A mistake: the folder it is made in, the command, and what the line must say."""

    name: str
    command: str
    words: tuple[str, ...]
    prepare: Prepare = lambda folder: None


def wrong(name: str, settings: str, *words: str, prepare: Prepare = lambda folder: None) -> Row:
    """A run of `tiny.yaml` with settings on top."""
    options = " ".join(f"--set {shlex.quote(s)}" for s in settings.split(";"))
    return Row(name, f"train tiny.yaml {options}", words, prepare)


# -- folders to fail in ----------------------------------------------------------------------


def images(folder: Path) -> None:
    """A good image folder of two classes, two images each."""
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (folder / "data" / split / name).mkdir(parents=True)
            for i in range(2):
                image = Image.fromarray(np.full((8, 8, 3), 100 * i, np.uint8))
                image.save(folder / "data" / split / name / f"{i}.png")


def other_classes(folder: Path) -> None:
    images(folder)
    (folder / "data/train/bee").rename(folder / "data/train/wasp")


def empty_class(folder: Path) -> None:
    images(folder)
    for path in (folder / "data/test/bee").iterdir():
        path.unlink()


def broken_image(folder: Path) -> None:
    images(folder)
    path = folder / "data/train/bee/1.png"
    path.write_bytes(path.read_bytes()[:40])


def mnist(folder: Path, suffix: str = "", damage: bytes = b"") -> None:
    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        pixels = struct.pack(">BBBBIII", 0, 0, 8, 3, 9, 28, 28) + bytes(9 * 784)
        (raw / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pixels + damage)
        labels = struct.pack(">BBBBI", 0, 0, 8, 1, 9) + bytes(9)
        (raw / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(labels)


def packed_mnist(folder: Path) -> None:
    mnist(folder, suffix=".gz")


def damaged_mnist(folder: Path) -> None:
    mnist(folder, damage=b"\0")


def damaged_cifar(folder: Path) -> None:
    """All of CIFAR-100's files, none of them with the published content."""
    (folder / "data/cifar-100-python").mkdir(parents=True)
    for name in ("train", "test", "meta"):
        (folder / "data/cifar-100-python" / name).write_bytes(b"not a pickle")


def finished(folder: Path) -> None:
    """A finished run in `run`."""
    write_run(folder / "run", tiny_plan(3))


def checkpoint(folder: Path) -> Path:
    return list_checkpoints(folder / "run" / "checkpoints")[-1]


def without_checkpoint(folder: Path) -> None:
    finished(folder)
    (checkpoint(folder) / MANIFEST).unlink()


def flipped_bit(folder: Path) -> None:
    finished(folder)
    path = checkpoint(folder) / "stage_000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(folder: Path) -> None:
    finished(folder)
    path = checkpoint(folder) / "stage_000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def missing_part(folder: Path) -> None:
    finished(folder)
    (checkpoint(folder) / "stage_000.safetensors").unlink()


def with_manifest(change: Callable[[dict[str, Any]], None]) -> Prepare:
    def prepare(folder: Path) -> None:
        finished(folder)
        path = checkpoint(folder) / MANIFEST
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return prepare


def torn_manifest(folder: Path) -> None:
    finished(folder)
    path = checkpoint(folder) / MANIFEST
    path.write_text(path.read_text()[:200])


def list_manifest(folder: Path) -> None:
    finished(folder)
    (checkpoint(folder) / MANIFEST).write_text("[]")


def other_configuration(folder: Path) -> None:
    """The run's configuration says another network than its checkpoint."""
    finished(folder)
    path = folder / "run" / "config.yaml"
    path.write_text(dump_config(tiny_plan(3, model={"name": "resnet20", "width": 4}).config))


def beside_a_run(name: str, content: bytes) -> Prepare:
    """A finished run and a file."""

    def prepare(folder: Path) -> None:
        finished(folder)
        (folder / name).write_bytes(content)

    return prepare


def weights_of_another_network(folder: Path) -> None:
    finished(folder)
    save_file({"stem.conv1.weight": torch.zeros(8, 3, 3, 3)}, folder / "other.safetensors")


def unfinished(folder: Path) -> None:
    """A run whose first epoch never ended."""
    RunDirectory(folder / "run").create(tiny_plan(3).config)


def torn_yaml(folder: Path) -> None:
    (folder / "bad.yaml").write_text("epochs: [")


def occupied(folder: Path) -> None:
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "notes.txt").write_text("keep me")


def a_file(folder: Path) -> None:
    (folder / "runs").write_text("a file")


def a_pickle(folder: Path) -> None:
    (folder / "w.pth").write_bytes(pickle.dumps({"stem.conv1.weight": Path("w")}))


def other_weights(folder: Path) -> None:
    save_file({}, folder / "w.safetensors")


def own_run(folder: Path) -> None:
    """A finished run in `run` whose network, data and loss are Python code."""
    write_run(folder / "run", own_plan())


def a_search(folder: Path) -> None:
    """A search over the tiny run."""
    tree = (folder / "tiny.yaml").read_text()
    (folder / "search.yaml").write_text(f"{tree}search: {{num_trials: 2}}\n")


def search(name: str, settings: str, *words: str) -> Row:
    """A search with settings on top."""
    options = " ".join(f"--set {shlex.quote(s)}" for s in settings.split(";"))
    return Row(name, f"tune search.yaml {options}", words, a_search)


FOLDER = "data={name: image_folder, root: data, image_size: 8}"
MNIST = "data={name: mnist, root: data}"

ROWS = [
    # values and keys
    wrong("learning rate", "optimizer.lr=0", "`optimizer.lr`", "greater than 0", "got 0"),
    wrong("momentum", "optimizer.momentum=1", "`optimizer.momentum`", "less than 1"),
    wrong("epochs", "epochs=0", "`epochs`", "greater than or equal to 1"),
    wrong("not a number", "optimizer.lr=.nan", "`optimizer.lr`", "finite"),
    wrong("network", "model.name=resnet9", "`model.name`", "did you mean `resnet8`?"),
    wrong("cast", "filters.cast=fp8", "`filters.cast`", "'int8'"),
    wrong("pooling", "filters.pool=9", "`filters.pool`", "less than or equal to 8"),
    wrong("half precision", "precision.compute=fp16", "`precision.compute`", "'bf16'"),
    wrong("order", "parallel.order=last", "`parallel.order`", "backward_first"),
    wrong("unknown key", "optimiser.lr=1", "`optimiser`", "did you mean `optimizer`?"),
    wrong("unknown key inside", "parallel.micro_batch=2", "did you mean `micro_batches`?"),
    wrong("unknown data set", "data.name=minst", "`data.name`", "digits, mnist"),
    wrong("optimiser", "optimizer.name=lion", "`optimizer.name`", "got lion", "sgd, adamw"),
    wrong("momentum of AdamW", "optimizer.name=adamw;optimizer.momentum=0.9",
          "`optimizer.momentum`", "known here: name, lr, beta1"),
    wrong("Nesterov without momentum", "optimizer={nesterov: true, momentum: 0}",
          "optimizer.momentum > 0"),
    wrong("clipping to nothing", "optimizer.clip_norm=0", "`optimizer.clip_norm`", "than 0"),
    wrong("schedule", "schedule.name=polynomial", "`schedule.name`", "step, linear, one_cycle"),
    wrong("no milestones", "schedule.name=step", "`schedule.milestones`", "must be given"),
    wrong("milestones not increasing", "schedule={name: step, milestones: [1, 0.5]}",
          "schedule.milestones", "strictly increasing"),
    wrong("milestone after the end", "schedule={name: step, milestones: [1, 2]}",
          "must be < epochs", "got 2 and 2"),
    wrong("average of nothing", "ema.decay=1", "`ema.decay`", "less than 1"),
    wrong("method", "method=dgl", "`method`", "'greedy'"),
    wrong("ledger of no epoch", "ledger.every=0", "`ledger.every`", "than or equal to 1"),
    wrong("place of a tracker", "tracking.mlflow.uri=sqlite:///x", "`tracking.mlflow.uri`",
          "known here: experiment"),
    wrong("project of a tracker", "tracking.wandb.project=a/b", "`tracking.wandb.project`"),
    wrong("no value", "epochs", "KEY=VALUE", "got epochs"),
    Row("no file", "train absent.yaml", ("readable file", "absent.yaml")),
    Row("not YAML", "train bad.yaml", ("valid YAML", "line 1"),
        torn_yaml),
    wrong("micro-batches", "batch_size=6", "multiple of correction.micro_batches", "6 and 4"),
    wrong("several mistakes", "epochs=0;seed=-1", "`seed`", "(and 1 more)"),
    # data
    wrong("no folder", FOLDER, "must hold a folder `train`"),
    wrong("no root", "data={name: mnist}", "`data.root`", "must be given"),
    wrong("other classes", FOLDER, "the same classes", "`bee`", prepare=other_classes),
    wrong("empty class", FOLDER, "at least one image", "test/bee", prepare=empty_class),
    wrong("broken image", f"{FOLDER};batch_size=4", "every image must be readable", "bee/1.png",
          prepare=broken_image),
    wrong("packed MNIST", MNIST, "only the packed", "gunzip", prepare=packed_mnist),
    wrong("damaged MNIST", MNIST, "IDX files must be whole", prepare=damaged_mnist),
    wrong("no MNIST", MNIST, "train-images-idx3-ubyte", "four IDX files"),
    wrong("no CIFAR-10", "data={name: cifar10, root: data}", "cifar-10-batches-py/data_batch_1",
          "nothing is downloaded"),
    wrong("damaged CIFAR-100", "data={name: cifar100, root: data}", "the published checksums",
          "cifar-100-python/train", prepare=damaged_cifar),
    wrong("mean without deviation", "data.mean=[0.5, 0.5, 0.5]", "data.mean and data.std", "None"),
    wrong("one mean for three channels", "data.mean=[0.5];data.std=[0.5]", "for each channel",
          "got 1 and 1", "expected 3"),
    wrong("deviation of zero", "data.mean=[0.5];data.std=[0]", "`data.std.0`", "greater than 0"),
    wrong("shorter side of nothing", f"{FOLDER};data.shorter_side=9", "data.fit crop", "squash",
          prepare=images),
    wrong("shorter side too short", f"{FOLDER};data.fit=crop;data.shorter_side=7",
          "data.shorter_side must be >= data.image_size", "got 7", prepare=images),
    wrong("cutout too large", "data.cutout=9", "data.cutout must be <=", "got 9", "<= 8"),
    wrong("two crops", "data.resized_crop={}", "data.crop_padding must be 0", "got 1"),
    wrong("scale of a crop", "data.resized_crop.scale=[0.9, 0.1]", "data.resized_crop.scale",
          "[0.9, 0.1]"),
    wrong("nobody to mix with",
          "data.mixup=1;batch_size=1;parallel.micro_batches=1;correction.micro_batches=1",
          "batch_size must be >= 2", "data.mixup"),
    wrong("smoothing", "loss.label_smoothing=1", "`loss.label_smoothing`", "less than 1"),
    wrong("too few images", FOLDER, "batch_size must be <= number of training images",
          "got 8, images 4", prepare=images),
    # network, cuts, filters, phases
    wrong("dropout without a place", "model.dropout=0.3", "model.dropout must be 0", "wrn16_2"),
    wrong("no weights", "model.weights=absent.pth", "model.weights must be a file", "absent.pth"),
    wrong("weights of no kind", "model.weights=w.bin", ".safetensors, .pth or .pt", "w.bin"),
    wrong("no tensors", "model.weights=w.pth", "tensors by name and nothing else", "w.pth",
          prepare=a_pickle),
    wrong("starting weights of another network", "model.weights=w.safetensors",
          "the tensors of resnet8", "nothing called stem.conv1.weight", prepare=other_weights),
    wrong("too many stages", "num_stages=6", "num_stages must be <= number of blocks", "5 blocks"),
    wrong("cuts do not add up", "cuts=[1, 2]", "cuts must name the first block", "got 2 cuts"),
    wrong("cut out of range", "cuts=[5]", "inside the network", "got cut 5", "1..4"),
    wrong("cuts not increasing", "num_stages=3;cuts=[3, 2]", "strictly increasing", "[3, 2]"),
    wrong("cut at the start", "cuts=[0]", "positive", "[0]"),
    wrong("filters do not add up", "filters=[{}, {}]", "one for each cut", "got 2 filters"),
    wrong("filter too big", "data.image_size=4;cuts=[4];filters.pool=2",
          "at block 4", "pool 2, map 1x1"),
    wrong("phases do not add up", "phases=[{phase: parallel, epochs: 3}]",
          "must sum to `epochs`", "got 3", "expected 2"),
    wrong("no phase", "phases=[]", "must sum to `epochs`", "got 0"),
    wrong("too much is exact", "phases={warmup: 0.9, correction: 0.2}", "must be <= 1"),
    wrong("too short a phase",
          "num_stages=4;parallel.hop_delay=2;phases=[{phase: parallel, epochs: 2}]",
          "4(K-1)d ticks", "got 5 batches", ">= 12"),
    wrong("feed", "parallel.feed=kept", "`parallel.feed`", "stored"),
    wrong("nothing to store", "parallel.feed=stored;method=greedy", "parallel.feed stored must",
          "got method greedy"),
    wrong("stored settings of the streamed feed", "stored.sweeps=2", "`stored` must be left out",
          "set parallel.feed to stored"),
    wrong("a penalty of the streamed feed", "method=penalty;penalty.ratio=0.5",
          "`penalty` must be left out", "makes no difference"),
    wrong("a penalty of no method", "parallel.feed=stored;penalty={name: fixed, rho: 1}",
          "method delayed_gradient, which has none"),
    wrong("kind of penalty", "parallel.feed=stored;penalty.name=adaptive", "`penalty.name`",
          "balanced, fixed, scheduled"),
    wrong("multipliers of no method",
          "method=penalty;parallel.feed=stored;stored.multiplier_step=2",
          "stored.multiplier_step must come with", "got 2, method penalty"),
    wrong("momentum of AdamW's visits",
          "optimizer={name: adamw};parallel.feed=stored;stored.momentum=0.5",
          "stored.momentum must come with optimizer sgd"),
    wrong("no scratch folder", "parallel.feed=stored;stored.scratch_dir=absent",
          "stored.scratch_dir must be a folder", "absent"),
    wrong("kept filter twice", "kept_filters=[{boundary: 1}, {boundary: 1}]",
          "name each boundary once", "[1, 1]"),
    wrong("kept filter out of range", "kept_filters=[{boundary: 5}]", "boundary of the network",
          "got boundary 5", "1..4"),
    wrong("too little memory", "partition.memory_limit_mb=0.01", "must be enough for some",
          "got 0.01", "raise it or num_stages"),
    wrong("too little memory at these cuts", "cuts=[4];partition.memory_limit_mb=0.01",
          "stage 0, blocks 0..3", "limit 0.01"),
    wrong("bandwidth", "partition.bandwidth_mb_s=0", "`partition.bandwidth_mb_s`", "than 0"),
    # what only Python code can bring
    wrong("own network", "model.name=custom", "a run with blocks of its own", "got no blocks"),
    wrong("own data", "data={name: custom}", "a run with datasets of its own", "evaluate_run"),
    wrong("own loss", "loss.name=custom", "a run with loss of its own", "LayerParallelTrainer"),
    Row("resume an own run", "resume run", ("in Python, each time", "blocks=..."), own_run),
    Row("evaluate an own run", "evaluate run", ("in Python, each time", "blocks=..."), own_run),
    Row("export an own run", "export run", ("in Python, each time", "blocks=..."), own_run),
    # resources
    wrong("too few CPUs", "resources.cpus_per_stage=1000", "resources.cpus_per_stage of 1000",
          "this machine has"),
    wrong("too few GPUs", "resources.gpus_per_stage=1000", "resources.gpus_per_stage of 1000",
          "this machine has"),
    wrong("lateness chosen twice", "parallel={lateness: auto, micro_batches: 4}",
          "parallel.micro_batches must be left out", "got 4"),
    wrong("ticks of the stored feed", "parallel={lateness: auto, feed: stored}",
          "parallel.lateness must be given"),
    wrong("a GPU and a half", "resources.gpus_per_stage=1.5", "whole number", "got 1.5"),
    wrong("CUDA without a GPU", "resources.device=cuda", "gpus_per_stage > 0", "auto"),
    wrong("object store too large", "resources.object_store_mb=1000000000", "object_store_mb"),
    Row("no Ray at the address", "train tiny.yaml --address 127.0.0.1:9 --name mine",
        ("Ray must be reachable", "got 127.0.0.1:9")),
    # where runs are kept
    Row("remote storage", "train tiny.yaml --storage-path s3://bucket/runs",
        ("storage_path must be a folder", "got s3://bucket/runs")),
    Row("folder not empty", "train tiny.yaml --name mine", ("an empty folder", "runs/mine"),
        occupied),
    Row("file in the way", "train tiny.yaml --name mine", ("must be writable", "is a file"),
        a_file),
    Row("resume no run", "resume nowhere", ("must contain config.yaml", "nowhere")),
    Row("resume with too many stages", "resume run --num-stages 6",
        ("num_stages must be <= number of blocks", "5 blocks"), finished),
    Row("resume with cuts for others", "resume run --num-stages 3 --cuts 2",
        ("cuts must name the first block", "got 1 cuts"), finished),
    Row("resume with words for cuts", "resume run --cuts two", ("--cuts must be numbers", "two"),
        finished),
    Row("resume with another rate", "resume run --set optimizer.lr=1",
        ("only `resources` can be set", "got optimizer.lr=1"), finished),
    Row("evaluate no run", "evaluate nowhere", ("must hold a checkpoint", "nowhere")),
    Row("wrong split", "evaluate nowhere --split valid", ("--split must be test or train",)),
    Row("no folder for the matrix", "evaluate nowhere --confusion-matrix no/m.json",
        ("--confusion-matrix must be a file in a folder that exists", "no/m.json")),
    # searches
    search("nothing to search", "epochs=3", "a search must vary at least one value"),
    search("bounds of a search", "optimizer.lr={uniform: [0, 1]}", "`optimizer.lr`",
           "greater than 0", "at optimizer.lr=0.0"),
    search("option of a search", "filters={choice: [{pool: 9}]}", "`filters.pool`", "got 9"),
    search("plan of a search", "num_stages={choice: [2, 9]}", "number of blocks",
           "at num_stages=9"),
    search("setting of a search", "seed={choice: [1, 2]};search.trials=2", "`search.trials`",
           "did you mean"),
    search("trial too large", "seed={choice: [1, 2]};search.seeds=1000",
           "num_stages times search.seeds", "this machine has room for"),
    Row("resume no search", "tune resume nowhere", ("must contain search.yaml",)),
    Row("report no search", "tune report nowhere", ("must contain search.yaml",)),
    # checkpoints
    Row("no checkpoint", "resume run", ("must hold a checkpoint",), without_checkpoint),
    Row("no such checkpoint", "evaluate run --checkpoint epoch_0009",
        ("the checkpoint epoch_0009", "got epoch_0002"), finished),
    Row("flipped bit", "resume run", ("as they were written", "checksum"), flipped_bit),
    Row("cut short", "evaluate run", ("as they were written", "another size"), cut_short),
    Row("part gone", "resume run", ("as they were written", "missing"), missing_part),
    Row("torn manifest", "resume run", ("as they were written", MANIFEST), torn_manifest),
    Row("manifest of a list", "evaluate run", ("as they were written", MANIFEST),
        list_manifest),
    Row("manifest without figures", "evaluate run", ("as they were written", MANIFEST),
        with_manifest(lambda content: content.update(data={}))),
    Row("manifest of another program", "evaluate run", ("as they were written", "`new` must be"),
        with_manifest(lambda content: content["config"].update(new=1))),
    Row("other schema", "resume run", ("schema_version", "got 99", "expected 1"),
        with_manifest(lambda content: content.update(schema_version=99))),
    Row("other network", "resume run", ("the configuration of its checkpoint", "config.yaml"),
        other_configuration),
    Row("other width", "evaluate run", ("must hold", "of the network resnet8", "shape"),
        with_manifest(lambda content: content["config"]["model"].update(width=8))),
    Row("deeper network", "evaluate run", ("must hold", "of the network resnet20", "got nothing"),
        with_manifest(lambda content: content["config"]["model"].update(name="resnet20"))),
    # reports
    Row("report no run", "report nowhere", ("must contain config.yaml", "nowhere")),
    Row("report nothing", "report run", ("at least one finished epoch",), unfinished),
    Row("compare one run", "compare run", ("at least two runs", "got 1"), unfinished),
    Row("compare nothing", "compare run run", ("must have a finished epoch",), unfinished),
    # exports and predictions
    Row("export no run", "export nowhere", ("must hold a checkpoint", "nowhere")),
    Row("export format", "export run --format pickle", ("--format must be", "got pickle"),
        finished),
    Row("export nowhere to", "export run --output absent/a.safetensors",
        ("--output must be a file that can be written", "absent"), finished),
    Row("export to a folder", "export run --output .", ("--output must be a file",), finished),
    Row("weights absent", "evaluate run --weights no.safetensors",
        ("readable safetensors file", "no.safetensors"), finished),
    Row("weights pickled", "evaluate run --weights a.pt", ("readable safetensors file", "a.pt"),
        beside_a_run("a.pt", pickle.dumps({"stem.conv1.weight": 0}))),
    Row("weights of another network", "evaluate run --weights other.safetensors",
        ("must hold stem.conv1.weight of the network resnet8", "got shape (8, 3, 3, 3)"),
        weights_of_another_network),
    Row("predict without a run", "predict nowhere a.png", ("must hold a checkpoint", "nowhere")),
    Row("predict no image", "predict run absent.png", ("every image must be readable",
        "absent.png"), finished),
    Row("predict a text", "predict run a.txt", ("every image must be readable", "a.txt"),
        beside_a_run("a.txt", b"no image")),
]  # fmt: skip


assert len({row.name for row in ROWS}) == len(ROWS), "results go by name"


def attempt(row: Row, folder: Path) -> dict[str, Any]:
    """Make one mistake in this process and return what came of it."""
    import ray

    from service.cli import main

    folder.mkdir()
    (folder / "tiny.yaml").write_text(dump_config(tiny_config(resources={})))
    row.prepare(folder)
    before = sorted(folder.rglob("*"))
    os.chdir(folder)
    started.clear()
    sys.argv = ["laminar", *shlex.split(row.command)]
    out, err = io.StringIO(), io.StringIO()
    code: object = "none"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    made = [str(p) for p in sorted(folder.rglob("*")) if p not in before]
    return {
        "code": code,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "has_ray": ray.is_initialized(),
        "started": list(started),
        "made": made,
    }


started: list[str] = []
"""Programs that this process has started."""


def note_processes(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty"):
        started.append(f"{event} {arguments[:2]}")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("errors")
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.test_errors", str(folder)],
        cwd=repository,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_mistake_is_one_line_before_anything_starts(row: Row, results: dict[str, Any]):
    found = results[row.name]
    assert found["code"] == 2, found
    assert found["out"] == ""
    line = LINE.fullmatch(found["err"])
    assert line, found["err"]
    assert [word for word in row.words if word not in found["err"]] == []
    assert not found["has_ray"]
    assert found["started"] == []
    assert found["made"] == []


def test_rows_have_names_of_their_own():
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_watch_for_processes_would_see_one():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import subprocess, sys\n"
            "from tests.unit.test_errors import note_processes, started\n"
            "sys.addaudithook(note_processes)\n"
            "subprocess.run(['true'], check=True)\n"
            "assert len(started) == 1, started\n",
        ],
        check=False,
    )
    assert done.returncode == 0


def main(folder: Path) -> None:
    """Run all rows; nothing but results.json leaves this process."""
    import service.plot  # noqa: F401 - the first time anywhere it starts a program to list fonts

    torch.set_num_threads(1)
    sys.addaudithook(note_processes)
    found = {row.name: attempt(row, folder / f"row_{n}") for n, row in enumerate(ROWS)}
    (folder / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
