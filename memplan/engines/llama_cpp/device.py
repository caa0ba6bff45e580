"""What a GPU process takes beside the buffers that llama.cpp counts: the context of the driver, kernels, cuBLAS, pools.

No record names it for a language model alone, so it is assumed: Ollama reserves 457 MiB for every CUDA device, and
`nvidia-smi` shows 250 to 700 MiB beyond the printed buffers.
"""

from __future__ import annotations

from memplan.units import MIB

CONTEXT_BYTES = 457 * MIB
CONTEXT_LOW_BYTES = 250 * MIB
CONTEXT_HIGH_BYTES = 700 * MIB
CONTEXT_SOURCE = "assumed: Ollama reserves 457 MiB per CUDA device"
HOST_PROCESS_BYTES = 512 * MIB
