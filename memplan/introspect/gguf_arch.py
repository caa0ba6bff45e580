"""What llama.cpp calls each family of Hugging Face models.

Source: the converters of llama.cpp (`conversion/*.py` and `gguf-py/gguf/constants.py` as vendored by llama-cpp-python
0.3.36), which choose by architecture class; here by `model_type`.
"""

from __future__ import annotations

from collections.abc import Mapping

ARCHITECTURES: Mapping[str, str] = {
    "bailing_moe": "bailingmoe",
    "bert": "bert",
    "bloom": "bloom",
    "chatglm": "chatglm",
    "codeshell": "codeshell",
    "cohere": "command-r",
    "cohere2": "cohere2",
    "dbrx": "dbrx",
    "deepseek": "deepseek",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "deepseek_ref": "deepseek4",
    "deepseek_v32": "deepseek32",
    "deepseek_v4": "deepseek4",
    "deepseek_vl_v2": "deepseek2",
    "distilbert": "bert",
    "ernie4_5": "ernie4_5",
    "ernie4_5_moe": "ernie4_5-moe",
    "exaone": "exaone",
    "exaone4": "exaone4",
    "falcon": "falcon",
    "falcon_h1": "falcon-h1",
    "falcon_mamba": "mamba",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "gemma3n": "gemma3n",
    "gemma4": "gemma4",
    "glm": "chatglm",
    "glm4": "glm4",
    "glm4_moe": "glm4moe",
    "glm4_moe_lite": "deepseek2",
    "glm4v": "glm4",
    "glm4v_moe": "glm4moe",
    "glm_moe_dsa": "glm-dsa",
    "gpt2": "gpt2",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "granitemoehybrid": "granitehybrid",
    "hunyuan_v1_dense": "hunyuan-dense",
    "hunyuan_v1_moe": "hunyuan-moe",
    "internlm": "llama",
    "internlm2": "internlm2",
    "internlm3": "llama",
    "internvl_chat": "qwen2",
    "jamba": "jamba",
    "kimi_k2": "deepseek2",
    "kimi_k25": "deepseek2",
    "kimi_k3": "kimi-k3",
    "kimi_linear": "kimi-linear",
    "lfm2": "lfm2",
    "lfm2_moe": "lfm2moe",
    "llama": "llama",
    "llama4": "llama4",
    "llama4_text": "llama4",
    "llava": "llama",
    "llava_llama": "llama",
    "llava_next": "llama",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "mimo": "qwen2",
    "mimo_v2_flash": "mimo2",
    "minicpm": "minicpm",
    "minicpm3": "minicpm3",
    "minicpmv": "qwen2",
    "minicpmv4_6": "qwen35",
    "minimax_m1": "minimax-01",
    "minimax_m2": "minimax-m2",
    "minimax_m3": "minimax-m3",
    "minimax_m3_vl": "minimax-m3",
    "ministral3": "mistral3",
    "mistral": "llama",
    "mistral3": "llama",
    "mistral4": "mistral4",
    "mixtral": "llama",
    "modernbert": "modern-bert",
    "mpt": "mpt",
    "multi_modality": "llama",
    "nemotron": "nemotron",
    "nemotron-nas": "deci",
    "nemotron_h": "nemotron_h",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "olmoe": "olmoe",
    "orion": "orion",
    "phi": "phi2",
    "phi-msft": "phi2",
    "phi3": "phi3",
    "phi3_v": "phi3",
    "phimoe": "phimoe",
    "plamo": "plamo",
    "qwen": "qwen",
    "qwen2": "qwen2",
    "qwen2_5_omni": "qwen2vl",
    "qwen2_5_vl": "qwen2vl",
    "qwen2_audio": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen2_vl": "qwen2vl",
    "qwen3": "qwen3",
    "qwen3_5": "qwen35",
    "qwen3_5_moe": "qwen35moe",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "qwen3_vl": "qwen3vl",
    "qwen3_vl_moe": "qwen3vlmoe",
    "refact": "refact",
    "roberta": "bert",
    "seed_oss": "seed_oss",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
    "step3p7": "step35",
    "t5": "t5",
    "xlm-roberta": "bert",
    "xverse": "xverse",
}

# Every language model architecture that llama.cpp builds a graph for.
_KNOWN = frozenset(
    """
    afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bert bitnet bloom chameleon chatglm
    codeshell cogvlm cohere2 cohere2moe command-r dbrx deci deepseek deepseek2 deepseek2-ocr deepseek32 deepseek4 dots1
    dots3note dream ernie4_5 ernie4_5-moe eurobert exaone exaone-moe exaone4 falcon falcon-h1 gemma gemma-embedding
    gemma2 gemma3 gemma3n gemma4 glm-dsa glm4 glm4moe glm5-next gpt-oss gpt2 gptneox granite granite_swa granitehybrid
    granitemoe graniteswitch grok grovemoe hrm_text hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 hy_v4 internlm2 jais
    jais2 jamba jina-bert-v2 jina-bert-v3 kimi-k3 kimi-linear laguna lfm2 lfm2moe llada llada-moe llama llama-embed
    llama4 maincoder mamba mamba2 maple mellum mimo2 minicpm minicpm3 minimax-01 minimax-m2 minimax-m3 mistral3 mistral4
    modern-bert mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe neo-bert nomic-bert nomic-bert-moe olmo
    olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 plm qwen qwen2 qwen2moe
    qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3vl qwen3vlmoe qwen4exp refact rnd1 rwkv6 rwkv6qwen2 rwkv7
    seed_oss smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 step35 t5 t5encoder talkie xverse
    """.split()  # noqa: SIM905
)


def is_known_architecture(name: str) -> bool:
    """Whether llama.cpp runs an architecture, by its own name of it."""
    return name in _KNOWN


def gguf_architecture(model_type: str) -> str:
    """Return llama.cpp's name of a family; the family's own where there is none."""
    return ARCHITECTURES.get(model_type, model_type.replace("_", "-"))
