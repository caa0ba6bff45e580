"""What people write of a run in their own words: the weakest evidence, used where no engine's wording is there.

An issue, a chat or a ticket often has one line of the log, the command, and the rest told: at which stage it ended, or
that it did not.
"""

from __future__ import annotations

from memplan.doctor.sightings import pattern

PATTERNS = (
    pattern(
        "says_oom",
        "",
        r"(?i)\bOOM\b|out of (?:gpu |video |cuda )?memory|\bvram\b[^\n]{0,40}(?:exhaust|insufficient|not enough)",
    ),
    pattern(
        "says_graphs",
        "",
        r"(?i)(?:captur\w+[^\n]{0,30}(?:cuda )?graphs?|(?:cuda )?graph[^\n]{0,20}captur\w+|without --enforce-eager|capture_model|cuda_?graph\.py|torch\.cuda\.graph)",
    ),
    pattern(
        "says_loading",
        "",
        r"(?i)(?:(?:during|while|when|at) (?:the )?(?:model )?(?:weights? )?load(?:ing)?|load(?:ing)? (?:the )?(?:model )?weights?[^\n]{0,40}(?:oom|out of memory|fail)|model weights alone|weights (?:alone )?(?:do not|don't|does not|doesn't) fit)",
    ),
    pattern(
        "says_kv",
        "",
        r"(?i)(?:kv[- ]?(?:cache|pool)(?:-pool)?[^\n]{0,40}(?:pressure|insufficient|too small|not enough|exhaust)|(?:insufficient|not enough) (?:memory|space|room)[^\n]{0,30}kv|max_model_len[^\n]{0,80}(?:kv-pool|budget))",
    ),
    pattern(
        "says_profile",
        "",
        r"(?i)(?:profil(?:e|ing) run|memory profiling|dummy (?:run|input|batch))[^\n]{0,60}(?:oom|out of memory|fail)",
    ),
    pattern("says_sampler", "", r"(?i)(?:warm(?:ing)?[- ]?up (?:the )?sampler|sampler warm-?up)"),
    pattern(
        "says_works",
        "",
        r"(?i)(?:(?<!not )(?<!n't )(?<!never )\b(?:works?\b(?! around)|fits\b|boots\b|launch(?:es|ed)\b(?! the)|can (?:run|serve|load) it\b|up and running\b)|\bmanaged to\b|\b(?:it|server|engine|which|model) (?:now )?starts\b|\bsolve[sd] (?:it|this|the)\b|\bload(?:s|ed) (?:fine|ok|successfully)\b|\bsucceed(?:s|ed)?\b|\bboots? and serves?\b|\bserves? fine\b|\bstarted successfully\b|\bable to run\b|\bOK\b|\bruns? (?:fine|well|ok)\b|\b(?:no longer|(?:do|did|does)(?:n't| not) (?:get|hit|see|have)(?: an?)?) OOM|\bTPS\b|tok(?:ens)?/s\b|holds only)",
    ),
    pattern(
        "says_fails",
        "",
        r"(?i)(?:can(?:'|no)t (?:run|serve|start|load)|fail(?:s|ed|ure)?\b|crash|refuse[sd]? to start|unable to|always oom|error)",
    ),
    pattern("says_speed", "", r"(?i)\b(?:TPS|tok(?:ens)?/s|tokens per second)\b"),
    pattern(
        "says_serving",
        "",
        r"(?i)(?:during|after|under) (?:inference|serving|load|generation|verify|hours|requests)|while serving|when (?:serving|sending|processing) (?:a |the |many |concurrent )?requests?",
    ),
    pattern(
        "command_util",
        "utili",
        r"--?(?:gpu|device)[_-]memory[_-]utilization[ =](?P<utilization_x>0?\.\d+|1\.0|1)\b|gpu_memory_utilization\s?=\s?(?P<utilization2_x>0?\.\d+)",
    ),
    pattern("command_len", "max", r"(?:--max-model-len|max_model_len)[ =]\s?(?P<context_n>[\d,_]+)"),
    pattern("command_tp", "tensor", r"(?:--tensor[_-]parallel[_-]size|-tp|tensor_parallel_size)[ =]\s?(?P<tp_n>\d+)"),
    pattern("command_tp", "--tp", r"--tp(?:-size)?[ =](?P<tp_n>\d+)"),
    pattern("command_pp", "pipeline", r"(?:--pipeline[_-]parallel[_-]size|pipeline_parallel_size)[ =]\s?(?P<pp_n>\d+)"),
    pattern("command_seqs", "max", r"(?:--max-num-seqs|max_num_seqs)[ =]\s?(?P<seqs_n>\d+)"),
    pattern("command_tokens", "max", r"(?:--max-num-batched-tokens|max_num_batched_tokens)[ =]\s?(?P<tokens_n>\d+)"),
    pattern("command_eager", "enforce", r"--enforce-eager|enforce_eager\s?=\s?True"),
    pattern("command_model", "serve ", r"\bvllm serve (?P<model>[\w][\w./-]{1,150})"),
    pattern("command_model", "--model", r"--model(?:-path)?[ =](?P<model>[\w./][\w./-]{1,150})"),
    pattern(
        "command_quant",
        "quantization",
        r"--quantization[ =](?P<quantization>[\w-]+)|\bquantization=(?P<quantization2>[\w-]+)",
    ),
    pattern("command_kv", "kv-cache-dtype", r"--kv-cache-dtype[ =](?P<kv_dtype>\w+)"),
)
