"""Compiler check, TF32 switch, compiled stages."""

import functools

import pytest
import torch

from laminar.config import PrecisionConfig
from laminar.errors import ResourceError
from laminar.precision import check_compiler, use_tf32
from laminar.stage import Stage
from tests.tiny import tiny_plan


def test_compiling_without_a_compiler_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ResourceError, match=r"C\+\+ compiler \(g\+\+ or clang\+\+\)"):
        check_compiler(PrecisionConfig(compile=True), "cpu")
    check_compiler(PrecisionConfig(), "cpu")
    (tmp_path / "clang++").write_text("")
    (tmp_path / "clang++").chmod(0o755)
    check_compiler(PrecisionConfig(compile=True), "cpu")
    monkeypatch.setenv("CXX", "icpx")
    with pytest.raises(ResourceError, match="icpx"):
        check_compiler(PrecisionConfig(compile=True), "cpu")


def test_tf32_is_switched_on_and_off_and_left_alone():
    def state():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = state()
    try:
        use_tf32(PrecisionConfig())
        assert state() == before
        use_tf32(PrecisionConfig(tf32=True))
        assert state() == ("high", True)
        use_tf32(PrecisionConfig(tf32=False))
        assert state() == ("highest", False)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_a_compiled_stage_computes_what_an_eager_one_does(monkeypatch):
    """Forward, adjoint, gradients and running statistics, at its own weights and ahead of them.

    The graphs are captured and differentiated as for any backend but run by torch, because to
    build them with a C++ compiler takes half a minute (docs/log.md has that).
    """
    backend = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", backend)

    def make_plan(precision, curvature=0):
        return tiny_plan(
            cuts=[3],
            filters={"pool": 2},
            optimizer={"lr": 0.01},
            precision=precision,
            parallel={"micro_batches": 1, "curvature": curvature},
        )

    def run(**precision):
        plan = make_plan(precision)
        stage = Stage(plan, 1)
        x = torch.rand(8, *plan.shapes[3], generator=torch.Generator().manual_seed(0))
        labels = torch.arange(8) % 4
        found = []
        for s in (0, 1):
            message = plan.filters[3].encode(x)
            stage.forward(0, message, labels, num_micro=1, s=s, lr=0.01)
            found += stage.backward(0, None)
            stage.update(s)
        return found + list(stage.state().values())

    def run_again(**precision):
        plan = make_plan(precision, curvature=4)
        stage = Stage(plan, 0)
        rng = torch.Generator().manual_seed(0)
        images, p = (torch.rand(8, *plan.shapes[b], generator=rng) for b in (0, 3))
        found = []
        for micro in (0, 1):
            found += stage.forward(micro, images, None, num_micro=1, s=micro + 1, lr=0.01)
        for micro in (0, 1):
            stage.backward(micro, plan.filters[3].encode_adjoint(p, 1.0))
            stage.update(micro)
        return found + list(stage.state().values())

    pairs = [*zip(run(), run(compile=True), strict=True)]
    for eager, compiled in [*pairs, *zip(run_again(), run_again(compile=True), strict=True)]:
        torch.testing.assert_close(eager, compiled, rtol=1e-4, atol=1e-4)
