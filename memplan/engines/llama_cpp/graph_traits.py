"""How architectures differ in the graph that llama.cpp builds for them, beyond what their tensors tell.

Source: `src/models/*.cpp` of llama.cpp as vendored by llama-cpp-python 0.3.36 (`src/llama.cpp` before b4881).
"""

from __future__ import annotations

from memplan.records import dataclass

_LAYER_NORM = frozenset(
    {
        *("bert", "bloom", "codeshell", "cohere2", "command-r", "dbrx", "falcon", "gpt2", "gptj", "gptneox", "jais"),
        *(
            "jina-bert-v2",
            "jina-bert-v3",
            "modern-bert",
            "mpt",
            "nemotron",
            "nomic-bert",
            "nomic-bert-moe",
            "olmo",
            "orion",
            "phi2",
            "phimoe",
            "stablelm",
            "starcoder",
        ),
        "starcoder2",
    }
)
# Attention and MLP side by side, and the order in which they are added to the residual.
_PARALLEL = {
    **dict.fromkeys(("cohere2", "command-r", "gptj", "gptneox", "plamo"), ("fed", "residual", "mixed")),
    "falcon": ("fed", "mixed", "residual"),
    "phi2": ("mixed", "fed", "residual"),
}
_SCALED_EMBEDDING = frozenset(
    {"gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "granite", "granitemoe", "minicpm", "grok"}
)
_SCALED_QUERIES = frozenset({"gemma", "gemma2", "gemma3", "phi2", "phi3"})
_SCALED_RESIDUAL = frozenset({"granite", "granitemoe", "granitehybrid", "minicpm", "minicpm3"})
_SCALED_LOGITS = frozenset(
    {"cohere2", "command-r", "gemma2", "granite", "granitemoe", "granitehybrid", "grok", "minicpm"}
)
_WITHOUT_ROPE = frozenset(
    {"bert", "bloom", "gpt2", "jais", "jina-bert-v2", "mpt", "refact", "starcoder", "t5", "jamba"}
)
# Every so many layers there is one without rotary positions.
_SKIPPED_ROPE = {"smollm3": 4, "llama4": 4, "cohere2": 4, "exaone4": 4}
_SIGMOID_GATE = frozenset({"qwen2moe", "qwen3next", "qwen35moe"})
_UNNORMED_EXPERTS = frozenset({"deepseek", "qwen2moe", "olmoe", "gpt-oss"})
_FOUR_POSITIONS = frozenset({"qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "paddleocr"})
ENCODERS = frozenset(
    {
        *("bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llama-embed", "modern-bert"),
        *("neo-bert", "nomic-bert", "nomic-bert-moe"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a graph has beyond the common parts: which norm, residuals side by side, scales, gates."""

    norm: str = "rms_norm"
    parallel: tuple[str, ...] = ()
    residual_first: bool = False
    scales_embedding: bool = False
    scales_queries: bool = False
    scales_residual: bool = False
    scales_logits: bool = False
    softcaps_attention: bool = False
    has_rope: bool = True
    rope_skips_every: int = 0
    norms_after_rope: bool = False
    gates_shared_expert: bool = False
    norms_expert_weights: bool = True
    position_axes: int = 1
    is_encoder: bool = False

    def rotates(self, index: int) -> bool:
        """Whether layer `index` has rotary positions."""
        return self.has_rope and not (self.rope_skips_every and (index + 1) % self.rope_skips_every == 0)


def traits_of(architecture: str) -> Traits:
    """Return the traits of an architecture by llama.cpp's name."""
    return Traits(
        norm="norm" if architecture in _LAYER_NORM else "rms_norm",
        parallel=_PARALLEL.get(architecture, ()),
        residual_first=architecture in ("phi3", "phimoe"),
        scales_embedding=architecture in _SCALED_EMBEDDING,
        scales_queries=architecture in _SCALED_QUERIES,
        scales_residual=architecture in _SCALED_RESIDUAL,
        scales_logits=architecture in _SCALED_LOGITS,
        softcaps_attention=architecture in ("gemma2", "grok"),
        rope_skips_every=_SKIPPED_ROPE.get(architecture, 0),
        norms_after_rope=architecture in ("hunyuan-dense", "hunyuan-moe"),
        has_rope=architecture not in _WITHOUT_ROPE,
        gates_shared_expert=architecture in _SIGMOID_GATE,
        norms_expert_weights=architecture not in _UNNORMED_EXPERTS,
        position_axes=4 if architecture in _FOUR_POSITIONS else 1,
        is_encoder=architecture in ENCODERS,
    )
