"""Reads DeepSpeed configs with DeepSpeed itself and prints what it made of them: run by an interpreter that has it."""

import json
import sys

import deepspeed.comm
from deepspeed.runtime.config import DeepSpeedConfig


class Ranks:
    """So many data-parallel ranks, as a launched run would have."""

    def __init__(self, count):
        self.count = count

    def get_data_parallel_world_size(self):
        return self.count


deepspeed.comm.get_rank = lambda *_: 0
made = []
for path in sys.argv[1:]:
    with open(path) as file:
        raw = json.load(file)
    ranks = raw["train_batch_size"] // raw["train_micro_batch_size_per_gpu"] // raw["gradient_accumulation_steps"]
    config = DeepSpeedConfig(raw, mpu=Ranks(ranks))
    zero = config.zero_config
    made.append(
        {
            "stage": int(zero.stage),
            "bucket": zero.reduce_bucket_size,
            "live": zero.max_live_parameters,
            "offloads": [
                str(getattr(each.device, "value", each.device)) if each else None
                for each in (zero.offload_optimizer, zero.offload_param)
            ],
            "optimizer": config.optimizer_name,
            "batch": config.train_batch_size,
        }
    )
print(json.dumps(made))
