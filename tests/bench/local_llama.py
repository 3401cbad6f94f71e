"""llama.cpp on the same shape, for `local_models.bench --llama PYTHON`: run by a Python that has xllamacpp and gguf.

    python3 -m venv ~/.cache/headgate-bench/llamacpp
    ~/.cache/headgate-bench/llamacpp/bin/pip install xllamacpp gguf numpy

(xllamacpp is llama.cpp's server in a wheel; llama-cpp-python builds the same from source.) It reads one JSON object a
line from stdin: first `{"weights": npz, "config": {...}, "kind": "Q8_0", "streams": n, "context": tokens}`, then
requests `{"prompts": [[ids]], "new": n}`, each answered with the CPU-seconds it took. One thread.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found, unused-ignore]
import numpy as np
import xllamacpp  # type: ignore[import-not-found, unused-ignore]


def main() -> None:
    first = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_model(path, np.load(first["weights"]), first["config"], first["kind"])
        server = xllamacpp.Server(_parameters(path, first["streams"], first["context"]))
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps(answered(server, asked["prompts"], asked["new"])), flush=True)


def _parameters(path: Path, streams: int, context: int) -> Any:
    chosen = xllamacpp.CommonParams()
    chosen.model.path = str(path)
    chosen.n_parallel, chosen.n_ctx, chosen.n_batch = streams, streams * context, 512
    chosen.n_ubatch = 512
    chosen.cpuparams.n_threads = chosen.cpuparams_batch.n_threads = 1
    chosen.cpuparams.poll = 0
    chosen.cache_prompt, chosen.warmup, chosen.verbosity = False, False, -1
    chosen.endpoint_metrics = False
    return chosen


def answered(server: Any, prompts: list[list[int]], new: int) -> dict[str, float]:
    """CPU-seconds of all prompts at once; and of their decoding alone, by llama.cpp's own account."""
    done: list[dict[str, Any]] = []
    began_s = _cpu_s()

    def ask(ids: list[int]) -> None:
        body = {"prompt": ids, "n_predict": new, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
        done.append(server.handle_completions(body))

    threads = [threading.Thread(target=ask, args=(ids,)) for ids in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent_s = _cpu_s() - began_s
    assert len(done) == len(prompts)
    return {"cpu_s": spent_s}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def write_model(path: Path, weights: Any, config: dict[str, int], kind: str) -> None:
    """A Llama of these weights as GGUF; matrices in `kind`, the rest in float32."""
    writer = gguf.GGUFWriter(str(path), "llama")
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(2048)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{at}" for at in range(config["vocab_size"])])
    writer.add_token_types([1] * config["vocab_size"])
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    for name in weights.files:
        tensor, theirs = weights[name], _name(name)
        if theirs is None:
            continue
        if ".attn_q." in theirs or ".attn_k." in theirs:
            heads = config["num_attention_heads"] if ".attn_q." in theirs else config["num_key_value_heads"]
            rows, columns = tensor.shape  # their rotary pairs are neighbours
            tensor = tensor.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        tensor = np.ascontiguousarray(tensor, np.float32)
        if tensor.ndim == 1 or kind == "F32":
            writer.add_tensor(theirs, tensor)
            continue
        quantized = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(theirs, gguf.quants.quantize(tensor, quantized), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
_INSIDE = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _name(ours: str) -> str | None:
    """llama.cpp's name of a tensor; None for the head, which is the embedding."""
    if ours in _OUTSIDE:
        return _OUTSIDE[ours]
    if not ours.startswith("model.layers."):
        return None
    _, _, layer, rest = ours.split(".", 3)
    return f"blk.{layer}.{_INSIDE[rest.removesuffix('.weight')]}.weight"


if __name__ == "__main__":
    main()
