"""What kind of thing a file is, from its first bytes: nothing is unpacked, and nothing is run."""

from __future__ import annotations

import json
import re
from typing import Literal

from memplan.errors import UsageError

Form = Literal["snapshot", "metrics", "serving config", "training config", "text"]
HEAD_BYTES = 1 << 16
_PACKED = (
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf", "7z"),
)
_METRICS = re.compile(
    rb"^(?:# (?:HELP|TYPE) \S+|"
    rb"(?:vllm|sglang|trtllm|nv_trt_llm|llamacpp|tgi)[:_]\w+(?:\{[^\n]{0,2000}\})? [\d.eE+-]+\s*$)",
    re.MULTILINE,
)
_LOGGED = re.compile(
    rb"\b(?:INFO|WARNING|ERROR|DEBUG)\b|Traceback \(most|llama_|ggml_|Load weight|\[TensorRT-LLM\]|NVIDIA-SMI|"
    rb"[Oo]ut of memory",
)
_TRAINING = re.compile(
    rb"zero_optimization|\bTrainingArguments\(|\bSFTConfig\(|\bDPOConfig\(|\bGRPOConfig\(|deepspeed_config|fsdp_config|"
    rb"distributed_type|per_device_train_batch_size|gradient_accumulation_steps|micro_batch_size|optimizer_state_dict_type|"
    rb"fully_shard\(|FullyShardedDataParallel\(|\badapter: ?q?lora\b|train_micro_batch_size_per_gpu"
)
_SERVING_KEY = re.compile(
    rb"^\s{0,4}['\"]?(?:model|served[-_]model[-_]name|tensor[-_]parallel[-_]size|max[-_]model[-_]len|gpu[-_]memory[-_]utilization|"
    rb"max[-_]num[-_]seqs|model[-_]path|mem[-_]fraction[-_]static|kv_cache_config|max_batch_size|max_num_tokens|swap[-_]space|"
    rb"enforce[-_]eager|kv[-_]cache[-_]dtype|quantization|max[-_]num[-_]batched[-_]tokens|context[-_]length|tp[-_]size)['\"]?\s*:",
    re.MULTILINE,
)
_COMMAND = re.compile(
    rb"(?:^|[\s\"'/])(?:vllm serve\b|vllm\.entrypoints|sglang\.launch_server|sglang serve\b|trtllm-serve\b|"
    rb"llama-server\b|"
    rb"vllm/vllm-openai|\bLLM\()"
)


def form_of(head: bytes, *, name: str = "", is_whole: bool = False) -> Form:
    """Return what the first bytes are of; `is_whole` when there are no more. `name` is the file's, if it has one.

    Raises: UsageError for what is packed, or is no text.
    """
    for magic, packing in _PACKED:
        if head.startswith(magic):
            raise UsageError(
                f"packed with {packing}: it is not unpacked here", hint="unpack it, and give the file inside"
            )
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return "snapshot"
    if head[:4] == b"GGUF" or head[:4] == b"\x7fELF":
        raise UsageError("not a log: a binary file", hint="give a log, a traceback, a config or a snapshot")
    if head[:2] not in (b"\xff\xfe", b"\xfe\xff") and head.count(0) > max(8, len(head) // 20):
        raise UsageError("not text: it is full of zero bytes", hint="give a log, a traceback, a config or a snapshot")
    if len(_METRICS.findall(head[:20000])) >= 3:
        return "metrics"
    return _config_form(head, name.lower(), is_whole=is_whole)


def _config_form(head: bytes, name: str, *, is_whole: bool) -> Form:
    """A config is small, has a config's name or keys, and no lines of a log."""
    if not is_whole:
        return "text"
    ending = name.rpartition(".")[2]
    logged = len(_LOGGED.findall(head))
    if ending in ("log", "out", "err") or (ending not in ("yaml", "yml", "json", "py", "sh", "toml") and logged):
        return "text"
    if ending == "py" or b"TrainingArguments(" in head or b"LLM(" in head:
        if _TRAINING.search(head) and b"Traceback" not in head:
            return "training config"
        return "serving config" if _COMMAND.search(head) or b"from_pretrained(" in head else "text"
    if _is_json(head) or ending in ("yaml", "yml", "toml") or _SERVING_KEY.search(head):
        if _TRAINING.search(head):
            return "training config"
        if _SERVING_KEY.search(head) or _COMMAND.search(head) or ending in ("yaml", "yml"):
            return "serving config"
    if _COMMAND.search(head) and not logged:
        return "serving config"
    return "text"


def _is_json(head: bytes) -> bool:
    if not head.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(head), dict)
    except (ValueError, RecursionError):
        return False
