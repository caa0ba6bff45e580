"""What a gateway in front of the engine may let through, from what the cache holds: tiers, sessions, queue, fallback.

No engine reads this file; a gateway's author does, or a program that lets `memplan.admission` count. The engine's own
admission options are named where it has them. Every tier's requests of full length fit into the cache together: that is
what the numbers are for.
"""

from __future__ import annotations

from memplan.admission import RETRY_AFTER_S, Tier, one_tier, usual_tiers
from memplan.catalog.rules import parse_release
from memplan.domain.emission import Emission, EmitSubject, EmittedFile
from memplan.emit import sizing
from memplan.emit.nested_yaml import Fields, Items, document, field
from memplan.emit.words import header
from memplan.emit.yaml_text import Entry

SCHEMA = "memplan.limits/1"
_SUMMARIZE_SHARE = 0.75
_KEPT_SHARE = 0.25


def emit(subject: EmitSubject) -> Emission:
    """Return limits.yaml."""
    granted = tiers(subject)
    fields: Fields = (
        field("schema", SCHEMA),
        field("model", subject.model_reference),
        field("cache_tokens", sizing.pool_tokens(subject), "what the KV cache holds, at the low end of the estimate"),
        field("tiers", Items(of=tuple(_tier(subject, tier) for tier in granted)), _tiers_why(subject, granted)),
        field("session", _session(granted[0])),
        field("admission", _admission(subject)),
        field("fallback", _fallback(subject, granted)),
    )
    text = document(header(subject, "limits for the gateway in front of the engine"), fields)
    notes = (
        "the shares of the tiers are assumed: change them, and keep the sum of reserved_tokens below cache_tokens",
    )
    return Emission(files=(EmittedFile(name="limits.yaml", text=text, media_type="application/yaml"),), notes=notes)


def tiers(subject: EmitSubject) -> tuple[Tier, ...]:
    """Return the tiers of `memplan.admission` for what this setup holds."""
    pool, context = sizing.pool_tokens(subject), sizing.context_tokens(subject)
    if not pool:
        return (one_tier("standard", context, sizing.admitted(subject).value, 1.0),)
    return usual_tiers(pool, context)


def _tiers_why(subject: EmitSubject, granted: tuple[Tier, ...]) -> str:
    reserved = sum(tier.reserved_tokens for tier in granted)
    return f"{reserved:,} tokens when every place is taken at full length, of {sizing.pool_tokens(subject):,}"


def _tier(subject: EmitSubject, tier: Tier) -> Fields:
    each = subject.budget.kv.bytes_per_token * tier.context_tokens
    return (
        field("name", tier.name),
        field("max_context_tokens", tier.context_tokens, f"{each:,} bytes of cache for a request of this length"),
        field("max_output_tokens", tier.output_tokens, "a quarter of it, so that the prompt has the rest"),
        field("max_concurrent_requests", tier.requests, f"{tier.share:.0%} of the cache (assumed)"),
        field("reserved_tokens", tier.reserved_tokens),
    )


def _session(largest: Tier) -> Fields:
    prompt = largest.context_tokens - largest.output_tokens
    return (
        field("max_tokens", largest.context_tokens, "a conversation cannot be longer than a request may be"),
        field(
            "summarize_at_tokens",
            int(prompt * _SUMMARIZE_SHARE),
            f"three quarters of the {prompt:,} tokens that a prompt may have: the answer and one more turn have room",
        ),
        field("keep_recent_tokens", int(prompt * _KEPT_SHARE), "the last turns word for word, the rest as a summary"),
        field("keep_prefix", True, "an unchanged system prompt is found in the cache; put what changes at the end"),
    )


def _admission(subject: EmitSubject) -> Fields:
    running, waiting = sizing.admitted(subject), sizing.max_waiting(subject)
    fields: list[Entry] = [
        field("max_running_requests", running.value, running.why),
        field("max_waiting_requests", waiting.value, waiting.why),
        field(
            "reject_with",
            429,
            "with Retry-After, once that many wait: a queue that nobody sees the end of helps nobody",
        ),
        field("retry_after_seconds", RETRY_AFTER_S),
    ]
    option = own_queue_option(subject)
    if option:
        fields.append(field("engine_option", f"{option[0]} {option[1]}", "the engine's own bound, as a second line"))
    return tuple(fields)


def own_queue_option(subject: EmitSubject) -> tuple[str, int] | None:
    """The option with which the release itself bounds its queue, and its value; None where it has none.

    Source: vllm/config (max_num_queued_reqs, 0.29 and newer); sglang/srt/server_args.py (max_queued_requests, 0.5.2).
    """
    waiting = sizing.max_waiting(subject).value
    if subject.engine == "vllm" and parse_release(subject.version) >= (0, 29, 0):
        return "--max-num-queued-reqs", waiting
    if subject.engine == "sglang" and parse_release(subject.version) >= (0, 5, 2):
        return "--max-queued-requests", waiting
    return None


def _fallback(subject: EmitSubject, granted: tuple[Tier, ...]) -> Fields:
    smallest = granted[-1]
    return (
        field("when", "max_waiting_requests are waiting, or the engine does not answer"),
        field("first", f"cut the context to {smallest.context_tokens} tokens and try again as tier {smallest.name}"),
        field("then", "send the request to another replica or a smaller model; name it here"),
        field("never", "retry at once: a retry before retry_after_seconds makes the queue longer"),
    )
