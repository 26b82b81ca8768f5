"""The algorithm in plain torch: it imports, trains and evaluates where Ray cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = '''
"""Runs where importing ray raises, as it does on a machine without it."""
import importlib
import json
import pkgutil
import sys
from pathlib import Path


class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "actors", "service", "tuning"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Blocked)
try:
    import ray
except ModuleNotFoundError:
    pass
else:
    sys.exit("ray is not blocked")

import laminar

names = [m.name for m in pkgutil.walk_packages(laminar.__path__, "laminar.")]
for name in names:
    importlib.import_module(name)

from laminar.evaluation import evaluate_run
from tests.tiny import tiny_plan, write_run

run = Path(sys.argv[1])
plan = tiny_plan(12, num_stages=3, phases=[{"phase": "parallel", "epochs": 2}])
reference = write_run(run, plan)
print(json.dumps({
    "modules": names,
    "num_losses": len(reference.losses),
    "evaluated": evaluate_run(run),
    "ray": sorted(name for name in sys.modules if name.partition(".")[0] == "ray"),
}))
'''


def test_nothing_in_laminar_needs_ray(repository: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    files = {path.stem for path in (repository / "laminar").rglob("*.py")} - {"__init__"}
    assert {name.rpartition(".")[2] for name in found["modules"]} >= files
    assert found["ray"] == []
    assert found["num_losses"] == 2 * 12 * 2  # epochs, batches, micro-batches
    evaluated = found["evaluated"]
    assert (evaluated["checkpoint"], evaluated["num_samples"]) == ("epoch_0002", 15)
    assert 0 <= evaluated["accuracy"] <= 1
    assert 0 < evaluated["loss"] < 100
