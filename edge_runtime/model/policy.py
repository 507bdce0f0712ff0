"""What a model and its session options may refer to: nothing outside the bundle, no operator nobody vouched for."""

from __future__ import annotations

from edge_runtime.errors import BundleError, ModelError
from edge_runtime.model.onnx_graph import GraphFacts, Operator, read_facts

MAX_NODES = 100_000
MAX_TENSORS = 100_000
MOST_NAMED = 3
NAME_CHARACTERS = 80

STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
MICROSOFT = "com.microsoft"
RESERVED = ("ai.onnx", "com.microsoft", "com.ms", "org.pytorch")
"""Domains whose names ONNX Runtime may resolve to kernels of its own before it looks at the model's functions."""

QUANTIZED = (
    "DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul GatherBlockQuantized MatMulBnb4 MatMulFpQ4 "
    "MatMulInteger16 MatMulIntegerToFloat MatMulNBits MulInteger QAttention QEmbedLayerNormalization QGemm QLinearAdd "
    "QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul "
    "QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QMoE QuantizeLinear ReduceSumInteger"
)
FUSED = (
    "Attention BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu ComplexMul ComplexMulConj "
    "DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention EmbedLayerNormalization FastGelu FusedConv FusedGemm "
    "FusedMatMul FusedMatMulActivation GatedRelativePositionBias Gelu GemmFastGelu GroupNorm GroupQueryAttention "
    "LongformerAttention MoE MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool PackedAttention "
    "PackedMultiHeadAttention QuickGelu RelativePositionBias RemovePadding RestorePadding RotaryEmbedding "
    "SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization SparseAttention TransposeMatMul"
)
BEFORE_ONNX_HAD_THEM = (
    "CDist ConvTransposeWithDynamicPads CropAndResize ExpandDims GatherND GridSample Inverse Irfft Pad Range Rfft "
    "Trilu Unique"
)
MICROSOFT_OPERATORS = frozenset(f"{QUANTIZED} {FUSED} {BEFORE_ONNX_HAD_THEM}".split())
"""What onnxruntime.quantization writes, what the optimizer and onnxruntime.transformers fuse, what exporters used."""

SESSION_ENTRIES = frozenset(
    {
        "mlas.enable_gemm_fastmath_arm64_bfloat16",
        "optimization.disable_specified_optimizers",
        "optimization.enable_cast_chain_elimination",
        "optimization.enable_gelu_approximation",
        "session.disable_aot_function_inlining",
        "session.disable_double_qdq_remover",
        "session.disable_prepacking",
        "session.disable_qdq_constant_folding",
        "session.disable_quant_qdq",
        "session.enable_dq_matmulnbits_fusion",
        "session.enable_quant_qdq_cleanup",
        "session.qdq_matmulnbits_accuracy_level",
        "session.qdq_matmulnbits_block_size",
        "session.qdqisint8allowed",
        "session.set_denormal_as_zero",
        "session.use_deterministic_compute",
        "session.x64quantprecision",
    }
)
"""Entries that change numbers or speed. Others name files that ONNX Runtime then reads or writes."""


def judge(path: str, model: bytes, entries: dict[str, str]) -> GraphFacts:
    """What the ONNX bytes of a bundle refer to. path: of the bundle. entries: session config entries of its manifest.

    Raises BundleError with the first objection.
    """
    try:
        facts = read_facts(model)
    except ModelError as error:
        raise BundleError(path, f"model.onnx: {error}") from error
    for objection in objections(facts, entries):
        raise BundleError(path, objection)
    return facts


def objections(facts: GraphFacts, entries: dict[str, str]) -> list[str]:
    """What is not allowed, a sentence each."""
    found = []
    if facts.external_tensors:
        found.append(
            f"{facts.external_tensors} of {facts.tensors} tensors have their data outside the model, at "
            f"{_names(facts.locations)}; a bundle holds all its data"
        )
    if redefined := [name for name in facts.functions if name[0] == "" or name[0].startswith(RESERVED)]:
        found.append(f"functions redefine {_operators(redefined)}, of a domain reserved for ONNX and ONNX Runtime")
    if refused := [name for name in facts.operators if not _allowed(name, facts.functions)]:
        found.append(
            f"operators not allowed: {_operators(refused)}; allowed are ai.onnx, ai.onnx.ml, the model's own functions "
            "and what docs/gate.md lists of com.microsoft"
        )
    nodes = sum(facts.operators.values())
    if nodes > MAX_NODES or facts.tensors > MAX_TENSORS:
        found.append(f"{nodes:,} nodes and {facts.tensors:,} tensors, allowed {MAX_NODES:,} and {MAX_TENSORS:,}")
    if unknown := sorted(entries.keys() - SESSION_ENTRIES):
        found.append(f"session entries not allowed: {_names(unknown)}; allowed are those in docs/gate.md")
    return found


def _allowed(name: Operator, functions: frozenset[Operator]) -> bool:
    domain, operator = name
    if domain == MICROSOFT:
        return operator in MICROSOFT_OPERATORS
    return domain in STANDARD_DOMAINS or name in functions


def _operators(names: list[Operator]) -> str:
    return _names([f"{domain or 'ai.onnx'}:{operator}" for domain, operator in sorted(names)])


def _names(names: list[str] | tuple[str, ...]) -> str:
    """The first few, each shortened, quoted so that no character of them reaches the terminal as it is."""
    shown = ", ".join(ascii(name[:NAME_CHARACTERS]) for name in names[:MOST_NAMED])
    return shown + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "") if names else "no place"
