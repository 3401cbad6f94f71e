"""The device an engine asks for, and what it hears where there is none."""

import pytest
import torch

from local_models import shipped_models
from local_models.device import device_for
from local_models.engine import Engine, EngineOptions
from local_models.errors import LocalModelError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize("wanted", ["tpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_a_device_that_is_none_is_refused(wanted: str) -> None:
    """The error names what there is to choose from."""
    with pytest.raises(LocalModelError, match="none of cpu, cuda, cuda:N and auto"):
        device_for(wanted)


@no_gpu
@pytest.mark.parametrize("wanted", ["cuda", "cuda:1"])
def test_a_gpu_that_is_missing_is_said_at_load(wanted: str) -> None:
    """An engine that asks for one is not quietly computed elsewhere."""
    with pytest.raises(LocalModelError, match=f"device {wanted}: torch finds no CUDA device here"):
        Engine.load(shipped_models()["tiny-small"], EngineOptions(kv_tokens=64, device=wanted))


@no_gpu
def test_auto_takes_the_processor_where_there_is_no_gpu() -> None:
    """The engine loads and computes as with `cpu`."""
    assert device_for("auto") == torch.device("cpu")
    engine = Engine.load(shipped_models()["tiny-small"], EngineOptions(kv_tokens=64, device="auto"))
    assert engine.runner.pool.tensor.device.type == "cpu" and not engine.runner.decoder.paged


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("bits", [0, 8])
def test_a_gpu_says_what_the_processor_says(bits: int) -> None:
    """The shipped models' greedy answers, with graphs and kernels as they are there."""
    from local_models import quantized_models
    from tests.local_models.checkpoints import greedy, prompts, run

    folder = quantized_models()["tiny-large-int8"] if bits else shipped_models()["tiny-large"]
    asked = [greedy(str(at), prompt, 12) for at, prompt in enumerate(prompts(8, seed=3))]
    said = [
        run(Engine.load(folder, EngineOptions(kv_tokens=2048, dtype="float32", native=False, device=device)), asked)
        for device in ("cpu", "cuda")
    ]
    # Eight bits are weights only there, and activations too here.
    alike = sum(said[0][name].ids == said[1][name].ids for name in said[0])
    assert alike == len(asked) if not bits else alike >= len(asked) // 2
