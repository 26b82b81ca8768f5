import json
import shutil

import pytest
import ray.train
from safetensors.torch import save_file

from actors import LayerParallelTrainer
from laminar.checkpoint import list_checkpoints, load_tensors, read_manifest
from laminar.data import describe
from laminar.evaluation import evaluate_run
from laminar.one_process import LedgerEngine, OneProcessEngine
from laminar.planning import make_plan
from laminar.progress import Notice
from laminar.run_directory import RunDirectory
from tests.tiny import TINY_MODEL, differing, run_reference, tiny_config, tiny_plan


def fit(config, folder, **kwargs):
    run_config = ray.train.RunConfig(storage_path=str(folder), name="run")
    return LayerParallelTrainer(config, run_config=run_config, **kwargs).fit()


def newest(path):
    return load_tensors(read_manifest(list_checkpoints(path / "checkpoints")[-1]))


@pytest.fixture(scope="module")
def unbroken(ray_session, tmp_path_factory):
    """A run of four epochs that started from a file of weights, which is gone afterwards."""
    path = tmp_path_factory.mktemp("unbroken")
    weights = path / "weights.safetensors"
    module = tiny_plan(seed=1).build_stage_module(0, 5)
    save_file({name: t.detach() for name, t in module.public_tensors()}, weights)
    config = tiny_config(
        epochs=4, model={**TINY_MODEL, "weights": str(weights)}, tracking={"wandb": {}}
    )
    events = []
    result = fit(config, path, callback=events.append)
    reference = run_reference(make_plan(config, describe(config.data)))
    weights.unlink()
    return path / "run", result, events, reference


def test_trainer_equals_reference(unbroken):
    path, result, _, reference = unbroken
    assert differing(reference.state(), newest(path)) == []
    assert differing(reference.state(), run_reference(tiny_plan(epochs=4)).state())
    assert result.path == str(path)
    assert result.metrics == RunDirectory(path).read_metrics()[-1]
    assert 0 <= result.metrics["test_accuracy"] <= 1


def test_the_ledger_is_that_of_the_scripted_engine(unbroken):
    """And the run equals the reference, which measures nothing."""
    path, *_ = unbroken
    config = RunDirectory(path).open_config()
    plan = make_plan(config, describe(config.data))
    engine = LedgerEngine(plan, is_new=False)
    weights = load_tensors(read_manifest(list_checkpoints(path / "checkpoints")[0]))
    for stage in engine.stages:
        stage.load_state(weights)
    entry = RunDirectory(path).read_metrics()[1]["ledger"]
    (segment,) = [s for s in plan.segments if s.epoch == 1 and s.phase == "parallel"]
    for part in (s for s in plan.segments if s.epoch == 1 and s.first_batch <= segment.first_batch):
        engine.train(part)
    assert entry["batch"] == segment.first_batch + segment.num_batches // 2
    found = [applied.exactness() for applied in engine.applied]
    assert [s["cosine"] for s in entry["stages"]] == [e.cosine for e in found]
    assert [s["relative_error"] for s in entry["stages"]] == [e.relative_error for e in found]
    assert found[0].relative_error > 0
    assert entry["cuts"][0]["violation"] > 0


def test_resumed_equals_unbroken(unbroken, tmp_path):
    path, *_ = unbroken
    broken = tmp_path / "run"
    shutil.copytree(path, broken)
    for folder in list_checkpoints(broken / "checkpoints")[1:]:
        shutil.rmtree(folder)
    result = LayerParallelTrainer.resume(broken).fit()
    assert differing(newest(path), newest(broken)) == []
    timed = ("seconds", "samples_per_s")
    lines = [
        [{k: v for k, v in m.items() if k not in timed} for m in RunDirectory(p).read_metrics()]
        for p in (path, broken)
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 4
    assert result.metrics["epoch"] == 4
    told = [json.loads((p / "tracking.json").read_text())["wandb"] for p in (path, broken)]
    assert told[0] == told[1]
    assert told[0]["num_epochs"] == 4
    assert len(list(broken.glob(f"wandb/offline-run-*-{told[0]['run_id']}"))) == 2


def test_resumed_with_another_number_of_stages(unbroken, tmp_path):
    """One stage does the last epoch; the filter stays where the cut was, and so does the rest."""
    path, _, _, _ = unbroken
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(path, run.path)
    before = run.open_config()
    shutil.rmtree(list_checkpoints(run.checkpoints)[-1])
    tensors = newest(run.path)
    events = []
    result = LayerParallelTrainer.resume(
        run.path,
        num_stages=1,
        resources=before.resources.model_copy(update={"cpus_per_stage": 0.5}),
        callback=events.append,
    ).fit()
    config = run.open_config()
    assert (config.num_stages, config.cuts) == (1, ())
    assert [(f.boundary, f.pool, f.cast) for f in config.kept_filters] == [
        (before.cuts[0], *before.filters[0].model_dump(include={"pool", "cast"}).values())
    ]
    assert config.resources.cpus_per_stage == 0.5
    engine = OneProcessEngine(make_plan(config, describe(config.data)), is_new=False)
    engine.stages[0].load_state(tensors)
    for segment in engine.plan.segments:
        if segment.epoch == 3:
            engine.train(segment)
    assert differing(engine.state(), newest(run.path)) == []
    assert result.metrics["epoch"] == 4
    lines = RunDirectory(path).read_metrics(), run.read_metrics()
    fractions = [[line["parallel_fraction"] for line in ls] for ls in lines]
    assert fractions[0] == fractions[1]
    assert evaluate_run(run.path)["accuracy"] == result.metrics["test_accuracy"]
    messages = [e.message for e in events if isinstance(e, Notice)]
    assert messages[0] == "goes on with num_stages 1, cuts []"


def test_resuming_a_finished_run_changes_nothing(unbroken, tmp_path):
    path, result, *_ = unbroken
    done = tmp_path / "run"
    shutil.copytree(path, done)
    again = LayerParallelTrainer.resume(done).fit()
    assert again.metrics == result.metrics
    assert differing(newest(path), newest(done)) == []


def test_evaluation_of_the_checkpoint_equals_the_pipelines(unbroken):
    path, result, *_ = unbroken
    evaluated = evaluate_run(path)
    assert evaluated["accuracy"] == result.metrics["test_accuracy"]
    assert evaluated["loss"] == pytest.approx(result.metrics["test_loss"], rel=1e-5)
    assert evaluated["num_samples"] == 15
    confusion = json.loads((path / "confusion_matrix.json").read_text())
    assert confusion["epoch"] == 4
    assert confusion["matrix"] == evaluated["confusion_matrix"]
    assert confusion["class_names"] == evaluated["class_names"] == ["0", "1", "2", "3"]


def test_callback_saw_progress_and_every_epoch(unbroken):
    from laminar.progress import EpochEnd, Notice, Progress

    _, _, events, _ = unbroken
    notices = [e.message for e in events if isinstance(e, Notice)]
    assert len(notices) == 1
    assert "filters before blocks" in notices[0]
    assert [e.metrics["epoch"] for e in events if isinstance(e, EpochEnd)] == [1, 2, 3, 4]
    seen = [e for e in events if isinstance(e, Progress)]
    assert seen[-1].num_batches_done == seen[-1].num_batches == 20
