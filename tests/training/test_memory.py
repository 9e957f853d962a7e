"""Where the memory does not suffice, a candidate is trained in parts, and its outcome says so."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from expand.expansion.events import read_event
from expand.model.folded_batch_norm import FoldedX3D
from expand.report.summary import summarize
from expand.report.tables import status_text
from expand.rundir.paths import CandidatePaths
from expand.training.candidate import train_candidate, train_final
from expand.training.job import Hooks, Job
from expand.training.loop import Training
from tests.report.conftest import FakeSearch
from tests.training.small import CONFIG, RECIPE, RUNTIME, final, network

SMALL_MEMORY = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from expand.config.schema import RecipeConfig
from expand.rundir.paths import CandidatePaths
from expand.space.factors import Factors
from expand.space.network import Network
from expand import logs
from expand.training.candidate import train_candidate
from expand.training.job import Hooks, Job
from expand.training.loop import Training
from expand.training import runtime
from tests.training.small import CONFIG, RUNTIME, clips
# the limit is one on addresses, of which a heap that keeps what was freed gives none back: not so where memory itself
# is scarce
runtime.keep_freed_memory = lambda: None
data = clips()
factors = Factors.of(frames=16, stride=1, resolution=64, width=1.0, bottleneck=2.0, depth=0.4)
recipe = RecipeConfig(epochs=1, batch_size=32, eval_clips=1, precise_bn_batches=1)
job = Job("s00-basis", Network("large", factors, 16), 0.1, recipe, CONFIG, 7, CandidatePaths(Path({folder!r})), 1000.0)
warm = Training(job, data, RUNTIME, Hooks())
x_BCTHW, y_B = next(iter(warm._train_batches().epoch(0)))
warm.update(x_BCTHW[:2], y_B[:2], 2)  # what torch sets up once is there before the limit
del warm, x_BCTHW, y_B
used = 1024 * int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (used + {spare}, resource.RLIM_INFINITY))
lines = []
with logs.shown_by(lines.append):
    outcome = train_candidate(job, data, RUNTIME, Hooks())
print(json.dumps([outcome.as_dict(), lines]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the process's memory as Linux does")
def test_a_candidate_ends_well_where_its_batch_does_not_fit_and_its_outcome_says_so(tmp_path, pytestconfig):
    script = SMALL_MEMORY.format(root=str(pytestconfig.rootpath), folder=str(tmp_path), spare=300_000_000)
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome, lines = json.loads(done.stdout.splitlines()[-1])
    assert outcome["state"] == "finished" and outcome["accuracy"] is not None, outcome
    parts = [count for count in (2, 4, 8, 16) if
             f"for lack of memory, batches of 32 were split into {count} micro-batches" in outcome["notes"]]
    assert len(parts) == 1 and any(f"into {parts[0]} micro-batches from now on" in line for line in lines)
    assert json.loads(CandidatePaths(tmp_path).outcome.read_text())["notes"] == outcome["notes"]
    assert outcome["notes"][0] in read_event({"event": "candidate_finished", **outcome}).line()


@pytest.fixture
def job(tmp_path):
    return Job("s00-basis", network("s00-basis", frames=1), 0.001, RECIPE, CONFIG, 7, CandidatePaths(tmp_path), 1000.0)


def too_large(most):
    """The allocator's own error for more than `most` clips."""
    def check(x_BCTHW):
        if len(x_BCTHW) > most:
            torch.empty(2**60)
    return check


def test_norms_whose_batches_do_not_fit_are_measured_in_smaller_ones(job, data, monkeypatch, lines):
    training = Training(replace(job, recipe=replace(RECIPE, dropout=0.0)), data, RUNTIME, Hooks())
    training.fit()
    start = {key: value.clone() for key, value in training.model.state_dict().items()}
    training.refresh_batch_norm()
    expected = {key: value.clone() for key, value in training.model.state_dict().items()}
    training.model.load_state_dict(start)
    check = too_large(2)
    lines.clear()
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: check(inputs[0]) if isinstance(module, torch.nn.BatchNorm3d) else None)
    try:
        training.refresh_batch_norm()
    finally:
        hook.remove()
    assert training.progress.parts == 4 and len(lines) == 2
    assert training.notes == ["for lack of memory, it was measured in batches of 2"]
    first = "stem.bn.running_mean"  # nothing before it depends on a batch
    assert not torch.allclose(expected[first], start[first], rtol=1e-3)
    torch.testing.assert_close(training.model.state_dict()[first], expected[first], rtol=1e-4, atol=1e-6)
    assert all(not module._forward_pre_hooks and getattr(module, "momentum", 0.1) != 1.0
               for module in training.model.modules())


def test_a_measurement_in_smaller_batches_is_noted(job, data, monkeypatch):
    check, positions = too_large(2), FoldedX3D._positions
    monkeypatch.setattr(FoldedX3D, "_positions", lambda self, x_BCTHW: check(x_BCTHW) or positions(self, x_BCTHW))
    outcome = train_candidate(job, data, RUNTIME, Hooks())
    assert outcome.notes == ("for lack of memory, it was measured in batches of 2",)


@pytest.mark.parametrize(("accumulation", "parts", "expected"), [
    (1, 1, 1), (1, 4, 4), (2, 2, 4), (4, 8, 4)])  # not 8: batch norm cannot be trained on one clip here
def test_a_job_may_ask_for_parts_from_the_start_and_is_the_same_training(job, data, accumulation, parts, expected):
    job = replace(job, recipe=replace(RECIPE, accumulation=accumulation))
    before = Training(job, data, RUNTIME, Hooks())
    before.save()
    for restored in (False, True):
        training = Training(replace(job, parts=parts), data, RUNTIME, Hooks())
        assert training.progress.parts == expected
        if not restored:
            job.paths.checkpoint.unlink()
            before.save()
    training.save()
    assert Training(job, data, RUNTIME, Hooks()).progress.parts == expected
    assert replace(job, parts=parts).identity == job.identity


def test_a_training_with_parts_enough_for_its_recipe_has_no_note(job, data):
    outcome = train_candidate(replace(job, recipe=replace(RECIPE, accumulation=2)), data, RUNTIME, Hooks())
    assert outcome.is_finished and outcome.notes == ()


def test_of_parts_that_the_system_forced_the_outcome_tells(job, data):
    note = "for lack of memory, batches of 8 were split into 2 micro-batches"
    assert train_candidate(replace(job, parts=2), data, RUNTIME, Hooks()).notes == (note,)
    last = replace(final(job), parts=2)
    result = train_final(last, data, RUNTIME, Hooks())
    assert result["notes"] == [note]
    assert note in read_event({"event": "final_finished", **result}).line()


def test_notes_show_in_the_status_of_a_run(tmp_path):
    search = FakeSearch(tmp_path / "run").start().basis(finish=False)
    [candidate] = summarize(tmp_path / "run")["steps"][0]["candidates"]
    assert candidate["notes"] == []
    note = "for lack of memory, batches of 8 were split into 2 micro-batches"
    search.event("candidate_finished", id=candidate["id"], state="finished", reason=None, accuracy=0.5, stderr=0.1,
                 top5=0.9, loss=1.0, wall_s=1.0, peak_memory_mb=1.0, clips_per_s=1.0, notes=[note])
    summary = summarize(tmp_path / "run")
    assert summary["steps"][0]["candidates"][0]["notes"] == [note]
    assert note in " ".join(status_text(summary, width=300).split())
