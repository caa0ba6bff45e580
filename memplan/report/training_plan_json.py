"""A plan of training as JSON, in the contract of docs/schemas/memplan.training-plan.json."""

from __future__ import annotations

from memplan.domain.training_plan import TrainingCandidate, TrainingPlanAnswer
from memplan.report.json_report import dump
from memplan.report.training_json import training_object


def training_plan_json(answer: TrainingPlanAnswer) -> str:
    """Return one object; sizes are whole bytes of the fullest rank, times seconds of a step."""
    limits = answer.limits
    return dump(
        {
            "schema": "memplan.training-plan/1",
            "goal": answer.goal,
            "asked": training_object(answer.asked),
            "changes": [
                {
                    "change": each.change,
                    "saves_bytes": each.saves_bytes,
                    "verdict": each.verdict,
                    "time_fraction": each.time_fraction,
                    "note": each.note,
                }
                for each in answer.changes
            ],
            "smallest_change": answer.smallest,
            "winner": _candidate(answer.winner) if answer.winner else None,
            "limits": {"micro_batch": limits.micro_batch, "sequence_tokens": limits.sequence_tokens}
            if limits
            else None,
            "alternatives": [_candidate(each) for each in answer.alternatives],
            "ruled_out": [
                {"region": each.region, "reason": each.reason, "candidates": each.candidates}
                for each in answer.rejections
            ],
            "considered": answer.considered,
            "notes": list(answer.notes),
        }
    )


def _candidate(found: TrainingCandidate) -> dict[str, object]:
    question, training = found.question, found.training
    return {
        "gpu": found.gpu.name,
        "num_gpus": found.num_gpus,
        "trainer": question.trainer,
        "sharding": question.sharding,
        "tp": question.tensor,
        "pp": question.pipeline,
        "dp": training.layout.data,
        "cp": training.layout.context,
        "ep": training.layout.expert,
        "checkpointing": training.checkpointing,
        "loss": training.loss,
        "optimizer": training.optimizer,
        "optimizer_form": training.optimizer_form,
        "mixed_precision": question.precision,
        "offload": list(question.offloaded),
        "micro_batch": training.micro_batch,
        "grad_accum": training.accumulation,
        "seq_len": training.sequence_tokens,
        "allocated_bytes": found.allocated_bytes,
        "room_bytes": found.room_bytes,
        "verdict": "tight" if found.is_tight else "fits",
        "tokens_per_step": found.tokens_per_step,
        "step_s": found.step_s,
        "parts_s": found.parts_s,
        "tokens_per_s": found.tokens_per_s,
        "mfu": found.mfu,
        "usd_per_hour": found.usd_per_hour,
        "usd_per_billion_tokens": found.usd_per_billion_tokens,
        "changes": list(found.changes),
    }
