"""Try the sweep's points on a machine with no GPU: does vLLM take each point's arguments and build its model?

    VLLM_PYTHON benchmarks/gpu/check_points.py [ID...]

Any build of vLLM will do, a CPU build or an unpacked CUDA wheel (benchmarks/vllm/pretend_cuda.py says what is
pretended). Models are built without memory. Time on a GPU is dear: a config that a release refuses, a package that
is missing or a model that comes out unquantized shows here. Prints each point's parameter bytes; exit code 1 when a
point fails.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "vllm"), str(HERE.parents[1])]
from gpu_points import Point, read_points  # noqa: E402
from model_folder import write_model_folder  # noqa: E402
from pretend_cuda import pretend, pretend_ranks  # noqa: E402


def parameter_bytes(point: Point, folder: Path) -> int:
    """Build the point's model on the meta device with the engine's own configuration and return its bytes."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    config = EngineArgs(model=str(folder), **point.engine).create_engine_config()
    dtype = set_default_torch_dtype(config.model_config.dtype)
    with set_current_vllm_config(config), torch.device("meta"), dtype:
        model = initialize_model(config, model_config=config.model_config)
    return sum(parameter.nbytes for parameter in model.parameters())


def main() -> int:
    """Check the points that are named, or all."""
    pretend((9, 0), 80 * 2**30, "NVIDIA H100 80GB HBM3")
    pretend_ranks(1)
    failed = 0
    with tempfile.TemporaryDirectory() as models:
        for point in read_points():
            if sys.argv[1:] and point.id not in sys.argv[1:]:
                continue
            try:
                size_bytes = parameter_bytes(point, write_model_folder(point.model, Path(models)))
            except Exception as error:  # whatever a release raises is the answer
                failed += 1
                place = traceback.extract_tb(error.__traceback__)[-1]
                reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:240]
                print(f"{point.id:30} fails at {Path(place.filename).name}:{place.lineno}: {reason}", flush=True)
            else:
                print(f"{point.id:30} {size_bytes / 2**30:7.2f} GiB", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
