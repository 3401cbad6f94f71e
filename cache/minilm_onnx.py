"""`python -m cache.minilm_onnx FOLDER OUT`: MiniLM as an ONNX file for `OnnxEmbedder`, int8 unless `--float`.

Needs the packages onnx and onnxruntime (extra `semantic`). The weights are read from a published folder whose checksum
is known; OUT holds model.onnx, the tokenizer and embedder.json with the file's own checksum, which is verified at every
start. Weights become int8 per output channel, activations at run time from one text alone: vectors of the two kinds
must never be compared, and never are, for the checksum is part of the embedder's name.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from cache.minilm import ALL_MINILM_L6_V2, MAX_TOKENS, Floats, read_weights

OPSET = 18
IR_VERSION = 9
MICROSOFT = "com.microsoft"
"""Where onnxruntime's fused layers live."""


class Graph:
    """An ONNX graph under construction."""

    def __init__(self) -> None:
        self.onnx: Any = importlib.import_module("onnx")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, *, fused: bool = False, **attributes: Any) -> str:
        domain = MICROSOFT if fused else ""
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [output], domain=domain, **attributes))
        return output

    def model(self, width: int) -> Any:
        helper, kinds = self.onnx.helper, self.onnx.TensorProto
        given = helper.make_tensor_value_info("ids", kinds.INT64, [1, "tokens"])
        made = helper.make_tensor_value_info("vector", kinds.FLOAT, [1, width])
        graph = helper.make_graph(self.nodes, "minilm", [given], [made], self.constants)
        domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=domains)
        model.ir_version = IR_VERSION
        return model


def build(weights: dict[str, Floats], heads: int, layers: int) -> Any:
    """Token ids (1, n) to one unit vector (1, d)."""
    graph = Graph()
    x = _embedded(graph, weights)
    for number in range(layers):
        x = _layer(graph, weights, x, number, heads)
    graph.node("ReduceMean", [x, graph.constant("over tokens", np.array([1]))], "mean", keepdims=0)
    graph.node("LpNormalization", ["mean"], "vector", axis=1, p=2)
    return graph.model(weights["embeddings.LayerNorm.weight"].shape[0])


def _embedded(graph: Graph, weights: dict[str, Floats]) -> str:
    words = graph.constant("words", weights["embeddings.word_embeddings.weight"])
    places = weights["embeddings.position_embeddings.weight"][:MAX_TOKENS]
    kind = weights["embeddings.token_type_embeddings.weight"][0]
    graph.node("Gather", [words, "ids"], "word")
    graph.node("Shape", ["ids"], "shape")
    graph.node("Gather", ["shape", graph.constant("second", np.array([1]))], "length")
    zero = graph.constant("zero", np.array([0]))
    graph.node("Slice", [graph.constant("places", places + kind), zero, "length", zero], "place")
    graph.node("Add", ["word", "place"], "sum")
    return graph.node(
        "LayerNormalization", ["sum", *_norm(graph, weights, "embeddings.LayerNorm", "in")], "x", epsilon=1e-12
    )


def _layer(graph: Graph, weights: dict[str, Floats], x: str, number: int, heads: int) -> str:
    name, at = f"encoder.layer.{number}.", str(number)
    parts = [f"{name}attention.self.{part}" for part in ("query", "key", "value")]
    merged = graph.constant(f"qkv{at}", np.concatenate([weights[f"{part}.weight"].T for part in parts], 1))
    bias = graph.constant(f"qkv bias{at}", np.concatenate([weights[f"{part}.bias"] for part in parts]))
    graph.node("Attention", [x, merged, bias], f"mixed{at}", fused=True, num_heads=heads)
    y = _joined(graph, weights, f"mixed{at}", x, f"{name}attention.output", f"y{at}")
    inner = _product(graph, weights, y, f"{name}intermediate.dense", f"inner{at}")
    raised = graph.constant(f"inner bias{at}", weights[f"{name}intermediate.dense.bias"])
    graph.node("BiasGelu", [inner, raised], f"active{at}", fused=True)
    return _joined(graph, weights, f"active{at}", y, f"{name}output", f"z{at}")


def _joined(graph: Graph, weights: dict[str, Floats], x: str, beside: str, name: str, output: str) -> str:
    """A linear layer, added to what went by it, at length one."""
    product = _product(graph, weights, x, f"{name}.dense", f"{output} product")
    bias = graph.constant(f"{output} offset", weights[f"{name}.dense.bias"])
    inputs = [product, beside, *_norm(graph, weights, f"{name}.LayerNorm", output), bias]
    return graph.node("SkipLayerNormalization", inputs, output, fused=True, epsilon=1e-12)


def _product(graph: Graph, weights: dict[str, Floats], x: str, name: str, output: str) -> str:
    matrix = graph.constant(f"{output} weight", np.ascontiguousarray(weights[f"{name}.weight"].T))
    return graph.node("MatMul", [x, matrix], output)


def _norm(graph: Graph, weights: dict[str, Floats], name: str, at: str) -> list[str]:
    return [graph.constant(f"{at} {part}", weights[f"{name}.{part}"]) for part in ("weight", "bias")]


def export(folder: Path, out: Path, *, sha256: str = ALL_MINILM_L6_V2, int8: bool = True) -> str:
    """Write the files; the checksum of model.onnx. ValueError for weights of another checksum."""
    weights, config = read_weights(folder, sha256)
    out.mkdir(parents=True, exist_ok=True)
    onnx: Any = importlib.import_module("onnx")
    plain = out / "model.float.onnx"
    onnx.save(build(weights, config["num_attention_heads"], config["num_hidden_layers"]), str(plain))
    if int8:
        quantization: Any = importlib.import_module("onnxruntime.quantization")
        quantization.quantize_dynamic(
            str(plain), str(out / "model.onnx"), op_types_to_quantize=["MatMul", "Attention"], per_channel=True,
            weight_type=quantization.QuantType.QInt8, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )  # fmt: skip
        plain.unlink()
    else:
        plain.replace(out / "model.onnx")
    shutil.copy(folder / "tokenizer.json", out / "tokenizer.json")
    digest = hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest()
    about = {"sha256": digest, "dimension": config["hidden_size"], "from_sha256": sha256}
    (out / "embedder.json").write_text(json.dumps(about))
    return digest


def main() -> None:
    parser = argparse.ArgumentParser("python -m cache.minilm_onnx", description=__doc__)
    parser.add_argument("folder", type=Path, help="all-MiniLM-L6-v2: model.safetensors, config.json, tokenizer.json")
    parser.add_argument("out", type=Path)
    parser.add_argument("--float", action="store_true", help="keep 32 bits: twice the time, the published vectors")
    args = parser.parse_args()
    print(export(args.folder, args.out, int8=not args.float))


if __name__ == "__main__":
    main()
