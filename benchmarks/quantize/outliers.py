"""A model with planted outlier channels that computes what the model did that it was made from, to the last bit.

    python benchmarks/quantize/outliers.py MODEL OUTPUT

In large language models a few channels of the activations are tens of times larger than the rest, which is what AWQ was
made for; the demo model is too small to have grown such. Here a few of the channels between a norm and the layers that
read it, between values and the output of attention, and between the up and the down projection are made larger by
factors of 8 to 32, and the weights that read them smaller by as much. Factors are powers of two, by which a float is
multiplied exactly, so that what the model predicts stays what it was. Channels of the hidden state are the same in all
layers, as in real models; those inside a layer are drawn for every layer. For Llama's layout.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_PART = 1 / 64  # of the channels, one at least
_FACTORS = (8.0, 16.0, 32.0)
_NORMS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def plant(source: Path, output: Path, *, seed: int = 0) -> None:
    """Write the model of `source` to `output` with outlier channels."""
    output.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, output / path.name)
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    generator = torch.Generator().manual_seed(seed)
    hidden = _factors(config["hidden_size"], generator)
    repeats = config["num_attention_heads"] // config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        inside = f"model.layers.{layer}."
        for norm, readers in _NORMS.items():
            _scale(tensors, f"{inside}{norm}", [inside + reader for reader in readers], hidden)
        values = _factors(config["num_key_value_heads"] * config["head_dim"], generator)
        of_heads = values.reshape(-1, 1, config["head_dim"]).expand(-1, repeats, -1).reshape(-1)
        _scale(tensors, f"{inside}self_attn.v_proj", [f"{inside}self_attn.o_proj"], values, of_heads)
        middle = _factors(config["intermediate_size"], generator)
        _scale(tensors, f"{inside}mlp.up_proj", [f"{inside}mlp.down_proj"], middle)
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})


def _factors(size: int, generator: torch.Generator) -> Tensor:
    """One for most channels, a power of two for some."""
    found = torch.ones(size)
    chosen = torch.randperm(size, generator=generator)[: max(1, int(size * _PART))]
    which = torch.randint(len(_FACTORS), (len(chosen),), generator=generator)
    found[chosen] = torch.tensor(_FACTORS)[which]
    return found


def _scale(
    tensors: dict[str, Tensor], producer: str, readers: list[str], factor: Tensor, read_factor: Tensor | None = None
) -> None:
    """Make what `producer` writes larger, and the weights that read it smaller."""
    name = f"{producer}.weight"
    tensors[name] *= (factor[:, None] if tensors[name].dim() == 2 else factor).to(tensors[name].dtype)
    for reader in readers:
        name = f"{reader}.weight"
        tensors[name] /= (factor if read_factor is None else read_factor).to(tensors[name].dtype)


def main() -> None:
    """Plant outliers into the model that is named."""
    from memplan.introspect.resolve import weights_folder

    source = weights_folder(sys.argv[1])
    if source is None:
        raise SystemExit(f"the weights of {sys.argv[1]} are not on this disk")
    plant(source, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
