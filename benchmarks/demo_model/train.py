"""Train the demo model on the CPU and write it as a checkpoint that transformers and vLLM load.

    python benchmarks/demo_model/corpus.py WORK
    nice -n 19 python benchmarks/demo_model/train.py WORK                       # goes on where it was stopped
    python benchmarks/demo_model/train.py WORK --export memplan/catalog/demo    # writes the checkpoint

Four million tokens in sequences of 256 tokens, then 512, 1,024 and 2,048. Muon for the matrices of the layers, AdamW
for the embedding and the norms; the learning rate rises for 100 steps, stays, and falls to zero over the last half.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from network import CONFIG, Network
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokens import END_OF_TEXT, texts_of, token_stream, train_tokenizer

TOKENS_PER_STEP = 4096
# Share of the steps, and tokens per sequence in them.
STAGES = ((0.5, 256), (0.4475, 512), (0.03, 1024), (0.0225, 2048))
WARM_UP_STEPS = 100
SAVE_EVERY_STEPS = 50
MATRIX_RATE, VECTOR_RATE = 0.02, 0.004
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ': ' + message['content'].strip() + '\\n\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def prepare(work: Path) -> tuple[Tokenizer, NDArray[np.uint16]]:
    """The tokenizer and the token stream, made once."""
    tokenizer_path, stream_path = work / "tokenizer.json", work / "train.npy"
    if not tokenizer_path.exists():
        train_tokenizer(texts_of(work / "corpus" / "train")).save(str(tokenizer_path))
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    if not stream_path.exists():
        np.save(stream_path, token_stream(tokenizer, list(texts_of(work / "corpus" / "train"))))
    return tokenizer, np.load(stream_path)


def batches(stream: NDArray[np.uint16], first_step: int, last_step: int, steps: int) -> Iterator[torch.Tensor]:
    """Sequences (B, T + 1) for each step, the same whether or not training was stopped in between.

    Each stage takes its own stretch of the stream, cut into sequences that are shuffled.
    """
    stage_first, used = 0, 0
    for number, (share, length) in enumerate(STAGES):
        count = round(share * steps) if number < len(STAGES) - 1 else steps - stage_first
        sequences = TOKENS_PER_STEP // length
        order = np.random.default_rng(number).permutation(count * sequences)
        for step in range(max(first_step, stage_first), min(last_step, stage_first + count)):
            chosen = order[(step - stage_first) * sequences : (step - stage_first + 1) * sequences]
            starts = (used + chosen * length) % (len(stream) - length - 1)
            yield torch.from_numpy(np.stack([stream[at : at + length + 1] for at in starts]).astype(np.int64))
        stage_first += count
        used += count * sequences * length


def rate(step: int, steps: int) -> float:
    """The share of the learning rate at a step."""
    return min(1.0, (step + 1) / WARM_UP_STEPS, (steps - step) / (steps / 2))


def optimizers_of(network: Network) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024) for the layers' matrices, AdamW for the rest."""
    matrices = [p for name, p in network.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in network.named_parameters() if p.ndim != 2 or "layers" not in name]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=VECTOR_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(work: Path, steps: int, until: int) -> Network:
    """Train to step `until` of `steps`, from the last saved step."""
    torch.manual_seed(0)
    _, stream = prepare(work)
    network = Network()
    optimizers = optimizers_of(network)
    saved_path = work / "training.pt"
    step = 0
    if saved_path.exists():
        saved = torch.load(saved_path, weights_only=True)
        step = saved["step"]
        network.load_state_dict(saved["network"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    began, losses = time.monotonic(), []
    for tokens_BT in batches(stream, step, until, steps):
        for optimizer, top in zip(optimizers, (MATRIX_RATE, VECTOR_RATE), strict=True):
            optimizer.param_groups[0]["lr"] = top * rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(tokens_BT[:, :-1], tokens_BT[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        if step % SAVE_EVERY_STEPS == 0 or step == until:
            partial = saved_path.with_suffix(".partial")
            state = {"step": step, "network": network.state_dict()}
            torch.save(state | {"optimizers": [each.state_dict() for each in optimizers]}, partial)
            partial.replace(saved_path)
            speed = len(losses) * TOKENS_PER_STEP / (time.monotonic() - began)
            print(f"step {step}/{steps}  loss {np.mean(losses):.4f}  {speed:,.0f} tokens/s", flush=True)
            began, losses = time.monotonic(), []
    return network


def export(work: Path, folder: Path) -> None:
    """Write config, tokenizer and bfloat16 weights as Hugging Face's tools expect them."""
    from safetensors.torch import save_file

    saved = torch.load(work / "training.pt", weights_only=True)
    tensors = {f"model.{name}": value.bfloat16().contiguous() for name, value in saved["network"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_bytes((work / "tokenizer.json").read_bytes())
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "model_max_length": CONFIG["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    written = {"config.json": CONFIG, "tokenizer_config.json": tokenizer_config}
    written["generation_config.json"] = {"bos_token_id": 0, "eos_token_id": 0}
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Parse, then train or export."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=950, help="of %(default)s: the schedule is made for these")
    parser.add_argument("--until", type=int, help="stop after this step; the next call goes on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the checkpoint as trained so far")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.export:
        export(given.work, given.export)
    else:
        train(given.work, given.steps, given.until or given.steps)


if __name__ == "__main__":
    main()
