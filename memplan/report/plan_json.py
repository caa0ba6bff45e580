"""A plan as JSON, in the contract that scripts rely on (docs/schemas/memplan.plan.json).

The winner carries its whole budget, as `memplan estimate --json` would write it; the other plans of the front do not.
"""

from __future__ import annotations

from memplan.domain.lengths import Lengths
from memplan.domain.plan import Nearest, PlanAnswer, PlanRequest, Rejection, ServingPlan
from memplan.domain.serving import ParallelLayout
from memplan.domain.speed import ServingSpeed
from memplan.report.json_report import budget_object, dump


def plan_json(answer: PlanAnswer) -> str:
    """Return one object for a search, with or without a winner."""
    content: dict[str, object] = {
        "schema": "memplan.plan/1",
        "model": {"name": answer.model_name, "parameters": answer.parameters},
        "request": _request(answer.request),
        "verdict": "found" if answer.front else "none",
        "winner": None,
        "runner_up_loses_by": list(answer.runner_up_loses_by),
        "front": [_plan(plan) for plan in answer.front],
        "considered": answer.considered,
        "estimated": answer.estimated,
        "rejections": [_rejection(entry) for entry in answer.rejections],
        "binding": list(answer.binding),
        "nearest": [_nearest(near) for near in answer.nearest],
        "notes": list(answer.notes),
    }
    if answer.winner is not None:
        winner = answer.winner
        content["winner"] = {
            **_plan(winner),
            "reasons": list(winner.reasons),
            "speed_lines": _speed_lines(winner.speed),
            "budget": budget_object(winner.budget),
        }
    return dump(content)


def _request(request: PlanRequest) -> dict[str, object]:
    traffic, limits = request.traffic, request.limits
    return {
        "goal": request.goal,
        "context_tokens": traffic.context_tokens,
        "prompt_tokens": traffic.prompt_tokens,
        "output_tokens": traffic.output_tokens,
        "prompt_lengths": _lengths(traffic.prompt),
        "output_lengths": _lengths(traffic.output),
        "concurrency": traffic.concurrency,
        "request_per_s": traffic.request_per_s,
        "shared_prefix_tokens": traffic.shared_prefix_tokens,
        "limits": {
            "max_ttft_s": limits.max_ttft_s,
            "max_tpot_s": limits.max_tpot_s,
            "max_tpot_is_assumed": limits.tpot_is_assumed,
            "max_perplexity_increase": limits.max_perplexity_increase,
            "max_usd_per_hour": limits.max_usd_per_hour,
            "weight_bits": sorted(limits.weight_bits),
        },
        "gpus": [
            {"name": offer.gpu.name, "counts": list(offer.counts), "owned": offer.is_owned} for offer in request.offers
        ],
        "engines": [name if version is None else f"{name}@{version}" for name, version in request.engines],
    }


def _lengths(lengths: Lengths | None) -> dict[str, object] | None:
    """How lengths are spread; null where none were given, and the context is taken to be full."""
    if lengths is None:
        return None
    parts = {f"p{round(100 * part)}": lengths.quantile(part) for part in (0.5, 0.9, 0.95, 0.99)}
    return {"mean": lengths.mean, "max": lengths.longest, **parts}


def _plan(plan: ServingPlan) -> dict[str, object]:
    settings = plan.settings
    return {
        "engine": {"name": plan.engine, "version": plan.version},
        "gpu": {"name": plan.gpu.name, "count": plan.num_gpus, "memory_bytes": plan.gpu.memory_bytes},
        "layout": _layout(plan.layout),
        "draft": _draft(plan),
        "prefill_pool": _pool(plan),
        "weight_offload_bytes": settings.weight_offload_bytes,
        "weights": {"scheme": plan.scheme, "stored_as": plan.weights_scheme, "kernel": plan.kernel},
        "kv_dtype": plan.kv_dtype or "auto",
        "context_tokens": settings.workload.context_tokens,
        "concurrency": plan.concurrency,
        "full_length_requests": settings.workload.concurrency,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "headroom_bytes": plan.headroom_bytes,
        "speed": _speed(plan.speed),
        "usd_per_hour": plan.usd_per_hour,
        "usd_per_million_output_tokens": plan.usd_per_million_tokens,
        "price_source": plan.gpu.price.source if plan.gpu.price else None,
        "quality": {
            "perplexity_increase": plan.quality.perplexity_increase,
            "level": plan.quality.level,
            "provenance": plan.quality.provenance,
            "source": plan.quality.source,
        },
    }


def _draft(plan: ServingPlan) -> dict[str, object] | None:
    drafted = plan.speculation
    if drafted is None:
        return None
    return {
        "model": drafted.name,
        "tokens": drafted.num_tokens,
        "acceptance": drafted.acceptance,
        "source": drafted.source,
    }


def _pool(plan: ServingPlan) -> dict[str, object] | None:
    """The GPUs that only prefill; the plan's own layout and budget are then of those that decode."""
    pool = plan.prefill
    if pool is None:
        return None
    return {
        "layout": _layout(pool.layout),
        "max_num_seqs": pool.settings.max_num_seqs,
        "used_bytes": pool.budget.used_bytes,
        "link": pool.link,
        "transfer_s": pool.transfer_s,
        "shared_tpot_s": pool.shared_tpot_s,
        "busy_fraction": pool.busy_fraction,
    }


def _layout(cut: ParallelLayout) -> dict[str, object]:
    return {"tensor": cut.tensor, "pipeline": cut.pipeline, "data": cut.data, "expert": cut.expert}


def _speed(speed: ServingSpeed) -> dict[str, object]:
    return {
        "ttft_s": speed.ttft_s,
        "long_prompt_ttft_s": speed.long_ttft_s,
        "tpot_s": speed.tpot_s,
        "low_ttft_s": speed.low_ttft_s,
        "high_ttft_s": speed.high_ttft_s,
        "low_tpot_s": speed.low_tpot_s,
        "high_tpot_s": speed.high_tpot_s,
        "prefill_tokens_per_s": speed.prefill_tokens_per_s,
        "output_tokens_per_s": speed.decode_tokens_per_s,
        "request_per_s": speed.request_per_s,
        "bound": dict(speed.bound),
        "batch_at_ridge": speed.batch_at_ridge,
        "bubble_fraction": speed.bubble_fraction,
    }


def _speed_lines(speed: ServingSpeed) -> list[dict[str, object]]:
    return [
        {
            "name": line.name,
            "phase": line.phase,
            "bound": line.bound,
            "seconds": line.seconds,
            "counts": line.counts,
            "provenance": line.provenance,
            "formula": line.formula,
            "source": line.source,
        }
        for line in speed.lines
    ]


def _rejection(entry: Rejection) -> dict[str, object]:
    return {
        "limit": entry.limit,
        "region": entry.region,
        "candidates": entry.candidates,
        "reason": entry.reason,
        "source": entry.source,
    }


def _nearest(near: Nearest) -> dict[str, object]:
    return {"limit": near.limit, "change": near.change, "plan": _plan(near.plan)}
