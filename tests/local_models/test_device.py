"""The device that an engine uses, and the error where it doesn't exist."""

import pytest
import torch

from local_models import shipped_models
from local_models.device import device_for
from local_models.engine import Engine, EngineOptions
from local_models.errors import LocalModelError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize("wanted", ["tpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_an_unknown_device_is_refused(wanted: str) -> None:
    """The error names the known ones."""
    with pytest.raises(LocalModelError, match="none of cpu, cuda, cuda:N and auto"):
        device_for(wanted)


@no_gpu
@pytest.mark.parametrize("wanted", ["cuda", "cuda:1"])
def test_a_missing_gpu_is_an_error_at_load(wanted: str) -> None:
    """An engine that is configured for a GPU isn't computed elsewhere."""
    with pytest.raises(LocalModelError, match=f"device {wanted}: torch finds no CUDA device here"):
        Engine.load(shipped_models()["tiny-small"], EngineOptions(kv_tokens=64, device=wanted))


@no_gpu
def test_auto_uses_the_cpu_without_a_gpu() -> None:
    """The engine loads and computes as with `cpu`."""
    assert device_for("auto") == torch.device("cpu")
    engine = Engine.load(shipped_models()["tiny-small"], EngineOptions(kv_tokens=64, device="auto"))
    assert engine.runner.pool.tensor.device.type == "cpu" and not engine.runner.decoder.paged


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("bits", [0, 8])
def test_a_gpu_gives_the_cpus_answers(bits: int) -> None:
    """These are the shipped models' greedy answers, with the GPU's graphs and kernels."""
    from local_models import quantized_models
    from tests.local_models.checkpoints import greedy, prompts, run

    folder = quantized_models()["tiny-large-int8"] if bits else shipped_models()["tiny-large"]
    asked = [greedy(str(at), prompt, 12) for at, prompt in enumerate(prompts(8, seed=3))]
    said = [
        run(Engine.load(folder, EngineOptions(kv_tokens=2048, dtype="float32", native=False, device=device)), asked)
        for device in ("cpu", "cuda")
    ]
    # with eight bits, activations are quantized on the CPU only
    alike = sum(said[0][name].ids == said[1][name].ids for name in said[0])
    assert alike == len(asked) if not bits else alike >= len(asked) // 2
