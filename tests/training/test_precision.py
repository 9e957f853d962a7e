"""What a GPU's lower precision, and its distance from the host, may touch and what not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from expand.data.loading import transforms
from expand.data.loading.transforms import resample
from expand.model import X3D
from expand.model.folded_batch_norm import FoldedX3D, for_inference
from expand.run import environment
from expand.rundir.paths import CandidatePaths
from expand.training import evaluate
from expand.training.checkpoint import save, save_weights
from expand.training.evaluate import score_videos
from expand.training.job import Hooks, Job
from expand.training.loop import MovingAverage, Training, make_optimizer, update_precise_bn
from expand.training.progress import Progress
from expand.training.runtime import Runtime
from tests.model.seeded import awaken
from tests.training.small import CONFIG, RECIPE, RUNTIME, network

BF16 = Runtime(torch.device("cpu"), 1, "bf16")


def cuts(batch=3):
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(0, 256, (batch, 2, 48, 48, 3), dtype=torch.uint8, generator=generator),
            torch.tensor([48, 40, 33][:batch]), torch.tensor([True, False, True][:batch]))


def test_pictures_are_the_same_under_autocast():
    expected = resample(*cuts(), 32, 0.45, 0.225)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = resample(*cuts(), 32, 0.45, 0.225)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("is_allowed", [True, False])
def test_pictures_are_not_rounded_to_tf32_where_a_training_is(monkeypatch, is_allowed):
    matmul, product, seen = torch.backends.cuda.matmul, torch.bmm, []
    monkeypatch.setattr(transforms.torch, "bmm", lambda *parts: seen.append(matmul.allow_tf32) or product(*parts))
    before = matmul.allow_tf32
    matmul.allow_tf32 = is_allowed
    try:
        resample(*cuts(), 32, 0.45, 0.225)
        assert seen == [False, False] and matmul.allow_tf32 is is_allowed
    finally:
        matmul.allow_tf32 = before


def test_precise_norms_run_the_model_under_autocast_and_make_the_clips_without():
    model, seen = X3D.of(network("small", frames=1)), []

    def clips():
        seen.append(torch.is_autocast_enabled("cpu"))
        yield torch.randn(2, 3, 1, 32, 32)

    hook = nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: seen.append(torch.is_autocast_enabled("cpu")) if isinstance(module, X3D) else None)
    try:
        update_precise_bn(model, clips(), 1, BF16)
    finally:
        hook.remove()
    assert seen == [False, True]


def test_folded_weights_are_cast_once_and_answer_as_if_cast_at_every_call():
    torch.manual_seed(0)
    model = X3D.of(network("small", frames=2))
    awaken(model, norms=0.3, classifier=0.1)
    x_BCTHW = torch.randn(2, 3, 2, 32, 32)
    cast = for_inference(model, BF16.autocast_dtype)
    assert cast._spatial.weight.dtype == cast._blocks[0].a.weight.dtype == torch.bfloat16
    with torch.inference_mode(), BF16.autocast():
        assert torch.equal(cast.logits(x_BCTHW), FoldedX3D(model).logits(x_BCTHW))


class Ops(TorchDispatchMode):
    """Notes the operators that are called."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.called.append(operator.overloadpacket.__name__)
        return operator(*args, **(kwargs or {}))


def test_results_of_a_measurement_are_fetched_now_and_then(monkeypatch):
    fetched, fetch = [], evaluate._on_host
    monkeypatch.setattr(evaluate, "_on_host", lambda some: fetched.append(len(some)) or fetch(some))
    monkeypatch.setattr(evaluate, "FETCH_EVERY", 4)
    batches = [(torch.full((2, 3, 1, 1, 1), float(number)), torch.tensor([0, 1]), torch.tensor([number, number]))
               for number in range(10)]
    model = SimpleNamespace(eval=lambda: None, probabilities=lambda x: x.flatten(1)[:, :3])
    scores, _ = score_videos(model, batches, 10, 3, RUNTIME)
    assert fetched == [4, 4, 2] and scores[:, 0].tolist() == list(range(10))


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_moving_average_is_torchs_to_the_bit(decay):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4))
    ours, torchs = MovingAverage(model, decay), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for _ in range(5):
        model(torch.randn(2, 3, 4, 4, 4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update_parameters(model), torchs.update_parameters(model)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), torchs.state_dict().values(), strict=True))
    assert int(ours.n_averaged) == 5


def test_the_moving_average_copies_nothing_between_host_and_device():
    model = nn.Linear(3, 2).to("meta")
    average = MovingAverage(model, 0.9)
    average.update_parameters(model)
    with Ops() as ops:
        average.update_parameters(model)
    assert "_to_copy" not in ops.called and "_foreach_lerp_" in ops.called


@pytest.fixture
def job(tmp_path):
    return Job("final", network("small", frames=1), 0.001, RECIPE, CONFIG, 7, CandidatePaths(tmp_path / "job"), 1000.0)


def test_looking_for_weights_that_are_not_finite_waits_for_the_device_once(job, data):
    training = Training(job, data, RUNTIME, Hooks())
    with Ops() as ops:
        training._check_weights("now")
    assert sum(name in ("_local_scalar_dense", "is_nonzero") for name in ops.called) == 0


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU, and comes to the host when it is asked to."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device="cuda:3")

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten._to_copy.default and kwargs["device"].type == "cpu":
            return args[0].held
        if operator is torch.ops.aten.detach.default:
            return cls(args[0].held)
        raise AssertionError(f"{operator} on the device")


def moved(value):
    if isinstance(value, torch.Tensor):
        return Elsewhere(value)
    return type(value)((key, moved(item)) for key, item in value.items()) if isinstance(value, dict) else value


def test_files_hold_tensors_of_the_host_wherever_they_were(tmp_path):
    model = X3D.of(network("small", frames=1))
    optimizer = make_optimizer(model, RECIPE)
    model(torch.randn(2, 3, 1, 32, 32)).sum().backward()
    optimizer.step()
    weights, state = model.state_dict(), optimizer.state_dict()
    there = SimpleNamespace(network=model.network, state_dict=lambda: moved(weights), parameters=model.parameters)
    average = SimpleNamespace(module=there, n_averaged=torch.tensor(1))
    save_weights(tmp_path / "weights.pt", there)
    save(tmp_path / "checkpoint.pt", "id", there, SimpleNamespace(state_dict=lambda: moved(state)), Progress(), average)
    for name in ("weights.pt", "checkpoint.pt"):
        found = torch.load(tmp_path / name, weights_only=True)  # without map_location
        assert all(torch.equal(found["model"][key], value) for key, value in weights.items())
    assert torch.equal(found["average"]["stem.bn.weight"], weights["stem.bn.weight"])
    momentum = found["optimizer"]["state"][0]["momentum_buffer"]
    assert type(momentum) is torch.Tensor and torch.equal(momentum, state["state"][0]["momentum_buffer"])
    assert state["state"][0]["momentum_buffer"] is optimizer.state_dict()["state"][0]["momentum_buffer"]


@pytest.mark.parametrize("device, accumulation, expected", [("cuda", 1, [64]), ("cuda", 4, [16]), ("cpu", 1, [20])])
def test_the_time_of_a_search_is_tried_with_the_recipes_batch_on_a_gpu(monkeypatch, device, accumulation, expected):
    tried = []
    monkeypatch.setattr(environment, "_step_seconds", lambda *given: tried.append(given[-1]) or 1.0)
    recipe = replace(RECIPE, batch_size=64, accumulation=accumulation)
    config, runtime = SimpleNamespace(candidate=recipe), Runtime(torch.device(device), 1, "fp32")
    assert environment.clip_seconds(SimpleNamespace(gflops=0.005), 5, config, runtime) == 1 / expected[0]
    assert tried == expected


def test_a_batch_that_does_not_fit_is_tried_in_smaller_ones(monkeypatch):
    tried = []

    def full(*given):
        tried.append(given[-1])
        if given[-1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    monkeypatch.setattr(environment, "_step_seconds", full)
    config = SimpleNamespace(candidate=replace(RECIPE, batch_size=64))
    on_gpu = Runtime(torch.device("cuda"), 1, "fp32")
    assert environment.clip_seconds(SimpleNamespace(gflops=0.005), 5, config, on_gpu) == 1 / 16
    assert tried == [64, 32, 16]
