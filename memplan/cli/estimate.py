"""`memplan estimate`: parse, call the pipeline, render, exit 0 when it fits and 1 when it does not."""

from pathlib import Path
from typing import Annotated

import typer

from memplan.cli.output import guarded_stdout, write_file
from memplan.errors import UsageError

_MODEL = typer.Argument(help="Alias, hub id, directory, config.json, .safetensors or .gguf.", show_default=False)


def estimate_command(
    model: Annotated[str | None, _MODEL] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU, NAMExN, several with commas, or auto.")] = None,
    gpu_memory: Annotated[str | None, typer.Option(help="What CUDA sees in all, such as 79.2GiB.")] = None,
    gpu_free: Annotated[str | None, typer.Option(help="What is free on a shared card.")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine and version, such as vllm@0.10.2.")] = None,
    config: Annotated[Path | None, typer.Option(help="Budget an existing engine config or argument file.")] = None,
    tp: Annotated[int | None, typer.Option(help="Tensor-parallel ranks.")] = None,
    pp: Annotated[int | None, typer.Option(help="Pipeline stages.")] = None,
    dp: Annotated[int | None, typer.Option(help="Data-parallel replicas.")] = None,
    ep: Annotated[bool, typer.Option("--ep", help="Shard experts whole over the ranks.")] = False,
    context: Annotated[str | None, typer.Option(help="Longest request, such as 8192, 8k (8,000), 8K (8,192).")] = None,
    concurrency: Annotated[str, typer.Option(help="Requests of that length at once.")] = "1",
    mean_length: Annotated[str | None, typer.Option(help="Mean length, for the waste of contiguous caches.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float16, bfloat16, float32.")] = None,
    quant: Annotated[str | None, typer.Option(help="Weight scheme; several with commas.")] = None,
    kv_dtype: Annotated[str | None, typer.Option(help="KV cache type, such as fp8.")] = None,
    max_num_seqs: Annotated[str | None, typer.Option(help="Sequences in one step.")] = None,
    max_num_batched_tokens: Annotated[str | None, typer.Option(help="Tokens in one step.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="Part of the GPU the engine may take.")] = None,
    kv_cache_memory: Annotated[str | None, typer.Option(help="Cache size given outright.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens in a cache page.")] = None,
    eager: Annotated[bool | None, typer.Option("--eager/--no-eager", help="No CUDA graphs.")] = None,
    chunked_prefill: Annotated[bool | None, typer.Option(help="Cut long prompts into steps.")] = None,
    prefix_caching: Annotated[bool | None, typer.Option(help="Keep shared prefixes.")] = None,
    cpu_offload: Annotated[str | None, typer.Option(help="Weights kept in host memory, per GPU.")] = None,
    limit_mm: Annotated[str | None, typer.Option(help="Media per prompt: image=2,video=0.")] = None,
    language_model_only: Annotated[bool, typer.Option("--language-model-only", help="Leave media towers out.")] = False,
    prompt_logprobs: Annotated[bool, typer.Option("--prompt-logprobs", help="Reserve for prompt logprobs.")] = False,
    max_loras: Annotated[int, typer.Option(help="LoRA adapters on the GPU at once.")] = 0,
    max_lora_rank: Annotated[int, typer.Option(help="Largest LoRA rank.")] = 16,
    draft_model: Annotated[str | None, typer.Option(help="Draft model for speculative decoding.")] = None,
    num_speculative_tokens: Annotated[int, typer.Option(help="Tokens drafted per step.")] = 0,
    kv_keep: Annotated[float, typer.Option(help="Part of the cache kept by pruning or eviction.")] = 1.0,
    offline_batch: Annotated[
        bool, typer.Option("--offline-batch", help="The engine's batch class, not its server.")
    ] = False,
    set_option: Annotated[list[str] | None, typer.Option("--set", help="An engine's own option, KEY=VALUE.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
    introspect: Annotated[str, typer.Option(help="auto, or torch to ask transformers.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let --introspect torch run it.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown report.")] = False,
    html: Annotated[bool, typer.Option("--html", help="One self-contained HTML page.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to a file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite it.")] = False,
    fail_on: Annotated[str | None, typer.Option(help="tight: exit 1 when it is tight, too.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the verdict.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colour.")] = False,
) -> None:
    """What a model uses on a GPU, line by line; what fits, and what would make it fit."""
    from memplan.cli.serving_options import parse_devices, serving_settings

    devices = parse_devices(gpu, memory=gpu_memory, free=gpu_free)
    settings = serving_settings(
        tensor=tp or 1,
        pipeline=pp or 1,
        data=dp or 1,
        expert=ep,
        context=context,
        concurrency=concurrency,
        mean_length=mean_length,
        dtype=dtype,
        kv_dtype=kv_dtype,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        gpu_memory_utilization=gpu_memory_utilization,
        kv_cache_memory=kv_cache_memory,
        block_size=block_size,
        eager=eager,
        chunked_prefill=chunked_prefill,
        prefix_caching=prefix_caching,
        weight_offload=cpu_offload,
        media_limits=limit_mm,
        language_model_only=language_model_only,
        prompt_logprobs=prompt_logprobs,
        max_loras=max_loras,
        max_lora_rank=max_lora_rank,
        num_speculative_tokens=num_speculative_tokens,
        kv_keep=kv_keep,
        offline_batch=offline_batch,
        engine_options=tuple(set_option or ()),
    )
    if model is None:
        raise UsageError("no model was named", hint="write memplan estimate llama-70b --gpu a100-80g")
    if not devices:
        raise UsageError("no GPU was named", hint="write --gpu a100-80g, or --gpu-memory 80GB")
    from memplan.engines.registry import parse_engine
    from memplan.pipeline import Question, answer, load_model, with_scheme

    name, version = parse_engine(engine)
    base = load_model(
        model, revision=revision, offline=offline, introspect=introspect, trust_remote_code=trust_remote_code
    )
    schemes = quant.split(",") if quant else [None]
    budgets = [
        answer(
            Question(
                spec=with_scheme(base, scheme),
                base_spec=base,
                gpu=device.gpu,
                settings=settings,
                engine=name,
                version=version,
                num_gpus=device.count,
                with_remedies=not quiet,
            )
        )
        for device in devices
        for scheme in schemes
    ]
    with guarded_stdout() as stdout:
        if json:
            from memplan.report.json_report import estimate_json

            text = estimate_json(budgets)
        else:
            from memplan.report.text import Style, render_budget, render_verdict

            style = Style(color=stdout.isatty() and not no_color)
            render = render_verdict if quiet else render_budget
            text = "\n".join(render(budget, style) for budget in budgets)
        if output:
            write_file(output, text, force=force)
        else:
            stdout.write(text)
    if any(budget.verdict == "does_not_fit" for budget in budgets):
        raise typer.Exit(1)
    if fail_on == "tight" and any(budget.verdict == "tight" for budget in budgets):
        raise typer.Exit(1)
