"""Configuration files, overrides, and the one line that every mistake becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from laminar.config import Config
from laminar.config_file import config_schema, dump_config, load_config
from laminar.errors import ConfigError

# Names of pydantic and of our classes: nothing that somebody who writes YAML has ever heard of.
INTERNAL_NAMES = (
    "tuple[",
    "function-after",
    "pydantic",
    "DigitsConfig",
    "SgdConfig",
    "PhaseSegment",
    "https://",
)

BAD_FILES = [
    # text, what the line must say
    ("epochs: 0", ["`epochs`", "greater than or equal to 1", "got 0", "change epochs"]),
    ("epochs: 2.5", ["`epochs`", "valid integer", "got 2.5"]),
    ("epochs: ten", ["`epochs`", "valid integer", "got 'ten'"]),
    ("seed: -1", ["`seed`", "greater than or equal to 0", "got -1"]),
    ("optimizer: {lr: 0}", ["`optimizer.lr`", "greater than 0", "got 0"]),
    ("optimizer: {lr: .nan}", ["`optimizer.lr`", "finite", "got nan"]),
    ("optimizer: {momentum: 1}", ["`optimizer.momentum`", "less than 1", "got 1"]),
    ("model: {name: resnet9}", ["`model.name`", "did you mean `resnet8`?", "got 'resnet9'"]),
    ("epoch: 3", ["`epoch`", "known key", "did you mean `epochs`?"]),
    ("optimizer: {momentm: 0}", ["`optimizer.momentm`", "did you mean `momentum`?"]),
    ("optimizer: {zzz: 0}", ["`optimizer.zzz`", "known here: name, lr, momentum"]),
    (
        "optimizer: {name: adamw, momentm: 0}",
        ["`optimizer.momentm`", "known here: name, lr, beta1"],
    ),
    ("optimizer: {name: lion}", ["`optimizer.name`", "got lion", "sgd, adamw"]),
    ("optimizer: {name: adamw, eps: 0}", ["`optimizer.eps`", "greater than 0"]),
    ("schedule: {name: step}", ["`schedule.milestones`", "must be given"]),
    ("schedule: {name: step, milestones: [x]}", ["`schedule.milestones.0`", "valid number"]),
    ("ema: {dcay: 0.9}", ["`ema.dcay`", "did you mean `decay`?"]),
    (
        "data: {name: minst}",
        ["`data.name`", "got minst", "digits, mnist, cifar10, cifar100, image_folder"],
    ),
    ("data: {name: mnist}", ["`data.root`", "must be given", "got nothing"]),
    ("data: {name: mnist, root: x, rot: 1}", ["`data.rot`", "did you mean `root`?"]),
    ("data: {name: cifar10}", ["`data.root`", "must be given"]),
    ("data: {name: digits, resized_crop: {scal: 1}}", ["`data.resized_crop.scal`", "`scale`?"]),
    ("data: {name: digits, resized_crop: {scale: 1}}", ["`data.resized_crop.scale`", "got 1"]),
    ("data: {name: digits, flip: maybe}", ["`data.flip`", "boolean", "got 'maybe'"]),
    ("filters: {pool: 9}", ["`filters.pool`", "less than or equal to 8", "got 9"]),
    ("filters: [{pool: 0}]", ["`filters.0.pool`", "greater than or equal to 1", "got 0"]),
    ("precision: {compute: fp16}", ["`precision.compute`", "'bf16'", "got 'fp16'"]),
    ("precision: {memory_format: nhwc}", ["`precision.memory_format`", "'channels_last'"]),
    ("filters: [{pol: 2}]", ["`filters.0.pol`", "did you mean `pool`?"]),
    ("filters: [{}, {}]", ["filters must be one filter", "got 2 filters", "1 for num_stages 2"]),
    ("phases: {warmpu: 0.1}", ["`phases.warmpu`", "did you mean `warmup`?"]),
    ("phases: [{phase: x, epochs: 1}]", ["`phases.0.phase`", "'correction'", "got 'x'"]),
    ("phases: [{phase: parallel}]", ["`phases.0.epochs`", "must be given"]),
    ("phases: {warmup: 0.9, correction: 0.3}", ["must be <= 1", "got 1.2", "lower one of them"]),
    ("batch_size: 7", ["multiple of parallel.micro_batches", "got 7 and 2", "change one of them"]),
    ("cuts: [a]", ["`cuts.0`", "valid integer", "got 'a'"]),
    ("cuts: [1, 2]", ["cuts must name", "got 2 cuts", "1 for num_stages 2"]),
    ("num_stages: 3\ncuts: [4, 2]", ["strictly increasing", "got [4, 2]", "sort them"]),
    ("- 1", ["must be a mapping", "got list", "laminar config schema"]),
    ("epochs: 1\na: [", ["valid YAML", "line 2"]),
    ("seed: 2024-02-30", ["valid YAML", "day"]),
    ("a: " + "[" * 3000, ["valid YAML", "recursion"]),
    ("a: !!python/object:os.system {}", ["valid YAML", "line 1"]),
]

BAD_OVERRIDES = [
    ("epochs", ["KEY=VALUE", "got epochs", "--set optimizer.lr=0.1"]),
    ("=3", ["KEY=VALUE", "got =3"]),
    ("epochs=[", ["valid YAML", "got epochs=["]),
    ("epochs=2024-02-30", ["valid YAML", "got epochs=2024-02-30"]),
    ("cuts.1=3", ["list is addressed", "expected 0..0"]),
    ("cuts.x=3", ["list is addressed", "got cuts.x=3"]),
    ("cuts.0.pool=3", ["`0` must be a mapping", "got 4"]),
    ("optimizer.learn=3", ["`optimizer.learn`", "known key"]),
]


def the_line(path: Path | None, overrides: list[str]) -> str:
    """Return the line of a configuration that must be refused; check what holds for all."""
    with pytest.raises(ConfigError) as raised:
        load_config(path, overrides)
    line, error = str(raised.value), raised.value
    assert len(line.splitlines()) == 1
    assert error.rule
    assert f"(got {error.got}" in line
    assert error.fix
    assert line.endswith(" ".join(str(error.fix).split()))
    assert not [name for name in INTERNAL_NAMES if name in line]
    return line


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("text", "words"), BAD_FILES, ids=[text for text, _ in BAD_FILES])
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, text: str, words: list[str]):
    line = the_line(written(tmp_path, text), [])
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize(("override", "words"), BAD_OVERRIDES)
def test_a_mistake_in_an_override_is_one_line(tmp_path: Path, override: str, words: list[str]):
    line = the_line(written(tmp_path, "cuts: [4]"), [override])
    assert [word for word in words if word not in line] == []


def test_several_mistakes_are_the_first_and_a_count(tmp_path: Path):
    line = the_line(written(tmp_path, "epochs: 0\nseed: -1\nbatch_size: x"), [])
    assert "`seed`" in line  # pydantic reports in the order of the fields
    assert "(and 2 more)" in line


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, kind: str):
    path = tmp_path / "config.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    assert str(path) in the_line(path, [])


def test_an_empty_file_and_no_file_are_the_defaults(tmp_path: Path):
    assert load_config(written(tmp_path, "")) == load_config(None) == Config()


def test_overrides_go_on_top_of_the_file_in_order(tmp_path: Path):
    path = written(tmp_path, "epochs: 3\nfilters: [{pool: 1}]\ncuts: [4]\noptimizer: {lr: 0.2}")
    config = load_config(
        path,
        ["epochs=5", "epochs=6", "filters.0.pool=4", "cuts=null", "optimizer.momentum=0.5"],
    )
    assert config.epochs == 6
    assert isinstance(config.filters, tuple)
    assert config.filters[0].pool == 4
    assert config.cuts is None
    assert (config.optimizer.lr, config.optimizer.momentum) == (0.2, 0.5)


def test_what_is_null_in_a_list_can_be_set_from_within():
    found = load_config(None, ["filters=[null]", "filters.0.pool=3"])
    assert [f.pool for f in found.filter_list()] == [3]


def test_a_number_without_a_decimal_point_is_a_number():
    # YAML 1.1 reads 1e-3 as a string.
    assert load_config(None, ["optimizer.lr=1e-3"]).optimizer.lr == 1e-3


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config.model_validate(
            {
                "num_stages": 3,
                "cuts": [2, 5],
                "optimizer": {"name": "adamw", "lr": 1e-5, "weight_decay": 0, "clip_norm": 1},
                "schedule": {"name": "step", "milestones": [3, 20.5]},
                "ema": {"decay": 0.9},
                "data": {"name": "image_folder", "root": "a: b # 'c'", "max_train": 10},
                "filters": [{"pool": 2}, {"cast": "int8"}],
                "phases": [{"phase": "correction", "epochs": 1.5}],
            }
        ),
        Config.model_validate({"parallel": {"lateness": "auto", "curvature": 4}}),
        Config.model_validate({"parallel": {"lateness": "auto", "order": "forward_first"}}),
    ],
    ids=["defaults", "everything else", "chosen lateness", "chosen but for the order"],
)
def test_a_dump_loads_back_equal(tmp_path: Path, config: Config):
    found = load_config(written(tmp_path, dump_config(config)))
    assert found == config == Config.model_validate_json(config.model_dump_json())


def test_an_order_that_is_named_is_not_that_of_nobody():
    """What makes a form of a job, or a job of a form, drops what is as in the defaults."""
    auto: dict[str, Any] = {"parallel": {"lateness": "auto"}}
    named = {"parallel": {"lateness": "auto", "order": "forward_first"}}
    assert Config.model_validate(named) != Config.model_validate(auto)
    assert Config.model_validate(named).model_dump(exclude_defaults=True) == named


def test_the_schema_describes_every_field():
    def undescribed(node: Any) -> list[str]:
        if isinstance(node, list):
            return [name for item in node for name in undescribed(item)]
        if not isinstance(node, dict):
            return []
        fields = node.get("properties", {})
        # A discriminator has one value only: it is the name of its model, which has a docstring.
        own = [k for k, v in fields.items() if "description" not in v and "const" not in v]
        return own + [name for value in node.values() for name in undescribed(value)]

    schema = config_schema()
    assert {"epochs", "data", "filters", "phases"} <= set(schema["properties"])
    assert all("description" in model for model in schema["$defs"].values())
    assert undescribed(schema) == []


def test_no_pydantic_error_escapes():
    assert not issubclass(ConfigError, ValidationError)
    with pytest.raises(ConfigError) as raised:
        load_config(None, ["epochs=0"])
    assert raised.value.__suppress_context__
