"""Recording and replaying a step, with a recorder of the test's own that obeys CUDA's rules: a recording has no effect,
reads its inputs and writes its results where they were recorded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from expand.training.cuda_graphs import WARM_UP, CudaRecorder, GraphedStep


class FakeRecorder:
    def __init__(self, model, error=None):
        self.model, self.error, self.calls = model, error, []

    def beside(self, work):
        self.calls.append("beside")
        return work()

    def record(self, work):
        self.calls.append("record")
        if self.error:
            raise self.error
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        random = torch.get_rng_state()
        result = work()
        self.model.load_state_dict(state)
        torch.set_rng_state(random)
        grads = [p.grad for p in self.model.parameters()]
        for part in (*grads, result):
            if part is not None:
                part.fill_(torch.nan)  # nothing has run

        def replay():
            self.calls.append("replay")
            result.copy_(work())
            for parameter, grad in zip(self.model.parameters(), grads, strict=True):
                grad.copy_(parameter.grad)
                parameter.grad = None

        return replay, result


class Toy:
    """A training with batch norm and dropout; `step` is one update."""

    def __init__(self, graphed, error=None, full=()):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.Flatten(), nn.Dropout(0.5),
                                   nn.Linear(4 * 27, 5))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.recorder, self.full = FakeRecorder(self.model, error), list(full)
        self.graphed = GraphedStep(self.gradients, list(self.model.parameters()), "toy", self.recorder)
        self.called = self.graphed if graphed else self.gradients

    def gradients(self, x, y, clips):
        if self.full and self.full.pop(0):
            return None
        self.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(self.model(x), y, reduction="sum")
        (loss / clips).backward()
        return torch.stack([loss.detach().double()])

    def run(self, sizes):
        torch.manual_seed(2)
        data, sums = torch.Generator().manual_seed(1), []
        for clips in sizes:
            x, y = torch.randn(clips, 3, 5, 5, 5, generator=data), torch.randint(0, 5, (clips,), generator=data)
            sums.append(self.called(x, y, clips))
            if sums[-1] is not None:
                self.optimizer.step()
        return sums


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values(),
                                                 strict=True))


def test_a_training_with_smaller_last_batches_comes_to_the_same_with_graphs(lines):
    sizes = [8, 8, 8, 8, 3, 8, 8, 8, 8, 3, 8]
    plain, graphed = Toy(False), Toy(True)
    expected, got = plain.run(sizes), graphed.run(sizes)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True)) and same(plain, graphed)
    assert graphed.recorder.calls == ["beside"] * WARM_UP + ["record"] + ["replay"] * (sizes.count(8) - WARM_UP)
    assert not lines


def test_a_small_batch_between_the_first_ones_does_not_count():
    graphed = Toy(True)
    graphed.run([8, 3, 8, 3, 8, 8])
    assert graphed.recorder.calls == ["beside"] * 5 + ["record", "replay"]


@pytest.mark.parametrize("error, reason", [(RuntimeError("operation not permitted when stream is capturing\nmore"),
                                            "(operation not permitted when stream is capturing)"),
                                           (torch.OutOfMemoryError("full"), "(out of memory)")])
def test_a_recording_that_fails_is_said_once_and_the_training_goes_on(error, reason, lines):
    plain, graphed = Toy(False), Toy(True, error)
    plain.run([8] * 7), graphed.run([8] * 7)
    assert same(plain, graphed)
    assert graphed.recorder.calls == ["beside"] * WARM_UP + ["record"]
    assert len(lines) == 1 and reason in lines[0]


class BrokenGraph:
    """`torch.cuda.graph` around a recording that fails: it cannot end it, and leaves its stream the current one."""

    def __init__(self, graph, capture_error_mode):
        pass

    def __enter__(self):
        torch.cuda.set_stream("of the recording")

    def __exit__(self, *error):
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def test_a_recording_that_fails_gives_the_stream_back(monkeypatch, lines):
    streams, ended = [SimpleNamespace(device_index=0)], []
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(pool=lambda: (0, 1)))
    monkeypatch.setattr(torch.cuda, "graph", BrokenGraph)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: ended.append(pool), raising=False)
    plain, graphed = Toy(False), Toy(True)
    graphed.recorder.record = lambda work: CudaRecorder().record(lambda: None)  # a recording has no effect
    plain.run([8] * 7), graphed.run([8] * 7)
    assert streams == [streams[0], "of the recording", streams[0]] and ended == [(0, (0, 1))]
    assert same(plain, graphed) and "previous error during capture" in lines[0]


def test_gradients_of_a_recording_that_failed_are_dropped():
    graphed = Toy(True, RuntimeError("capturing"))
    graphed.run([8] * WARM_UP)
    held = []
    graphed.graphed._gradients = lambda *batch: held.extend(p.grad for p in graphed.model.parameters())
    graphed.run([8])
    assert held and all(gradient is None for gradient in held)


def test_steps_without_memory_are_told_and_warm_nothing_up():
    graphed = Toy(True, full=[True, False, False, True, False, False])
    sums = graphed.run([8] * 6)
    assert [value is None for value in sums] == [True, False, False, True, False, False]
    assert graphed.recorder.calls == ["beside"] * 5 + ["record", "replay"]


def test_memory_that_ends_in_the_recording_leads_back_to_plain_steps(lines):
    graphed = Toy(True)
    graphed.run([8] * WARM_UP)
    gradients, graphed.recorder.record = graphed.gradients, lambda work: (lambda: None, None)
    graphed.run([8])
    assert "out of memory" in lines[0] and graphed.model[0].weight.grad is not None
    assert gradients == graphed.gradients


def test_after_forgetting_the_step_is_recorded_anew():
    graphed = Toy(True)
    graphed.run([8] * 5)
    graphed.graphed.forget()
    graphed.recorder.calls.clear()
    graphed.run([8] * 5)
    assert graphed.recorder.calls == ["beside"] * WARM_UP + ["record", "replay", "replay"]


def test_sums_stay_what_they_were_when_the_next_step_is_replayed():
    graphed = Toy(True)
    sums = graphed.run([8] * 6)
    assert len({float(value) for value in sums}) == 6
