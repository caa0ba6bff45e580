"""Admission: what is let in has room, nobody of a tier overtakes, an engine behind it survives three times its load."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.admission import AdmissionPlan, Gate, Tier, admission_plan, nearly_full, usual_tiers
from memplan.domain.simulation import CacheGroup, ModelledSteps, SimulationSettings, Traffic
from memplan.errors import UsageError
from memplan.records import replace
from memplan.simulate.chains import Chains
from memplan.simulate.clock import TICKS_PER_S, to_ticks
from memplan.simulate.replica import SteppedReplica
from memplan.simulate.run import simulate
from memplan.simulate.served import Served

PLAN = AdmissionPlan(cache_tokens=16_000, context_tokens=4096, max_running=32, tiers=usual_tiers(16_000, 4096))


def test_the_usual_tiers_have_room_together_at_full_length() -> None:
    assert [tier.name for tier in PLAN.tiers] == ["premium", "standard", "free"]
    assert sum(tier.reserved_tokens for tier in PLAN.tiers) <= PLAN.cache_tokens


def test_a_request_is_let_in_while_its_whole_length_has_room() -> None:
    gate = Gate(PLAN)
    decision = gate.ask("a", tier="premium", prompt_tokens=1000, max_tokens=200)
    assert decision.verdict == "admit"
    assert decision.max_tokens == 200
    assert gate.taken_tokens == 1200


def test_a_prompt_that_leaves_no_room_is_rejected_for_good() -> None:
    decision = Gate(PLAN).ask("a", tier="free", prompt_tokens=1024, max_tokens=1)
    assert decision.verdict == "reject"
    assert decision.retry_after_s is None


def test_an_answer_longer_than_the_tier_s_is_cut() -> None:
    decision = Gate(PLAN).ask("a", tier="standard", prompt_tokens=100, max_tokens=5000)
    assert (decision.verdict, decision.max_tokens, decision.shortened) == ("admit", 512, True)


def test_what_has_no_room_waits_and_starts_when_another_ends_in_its_order() -> None:
    gate = Gate(replace(PLAN, max_running=2))
    for name in "abcd":
        gate.ask(name, tier="premium", prompt_tokens=100, max_tokens=100)
    assert (gate.running, gate.waiting) == (2, 2)
    assert [each.name for each in gate.ended("a")] == ["c"]
    assert [each.name for each in gate.ended("b")] == ["d"]


def test_one_that_waits_can_leave() -> None:
    gate = Gate(replace(PLAN, max_running=1))
    for name in "abc":
        gate.ask(name, tier="premium", prompt_tokens=100, max_tokens=100)
    assert gate.ended("b") == ()
    assert [each.name for each in gate.ended("a")] == ["c"]


def test_a_full_queue_rejects_with_a_time_to_come_back() -> None:
    gate = Gate(replace(PLAN, max_running=1, max_waiting=1))
    decisions = [gate.ask(name, tier="free", prompt_tokens=10, max_tokens=10) for name in "abc"]
    assert [each.verdict for each in decisions] == ["admit", "queue", "reject"]
    assert decisions[-1].retry_after_s == 5


def test_a_nearly_full_cache_cuts_answers_rather_than_letting_them_wait() -> None:
    gate = Gate(PLAN)
    for number in range(3):
        gate.ask(f"long-{number}", tier="premium", prompt_tokens=3600, max_tokens=496)
    decision = gate.ask("short", tier="premium", prompt_tokens=3000, max_tokens=1000)
    assert gate.is_pressed
    assert decision.verdict == "admit"
    assert decision.shortened
    assert gate.taken_tokens <= PLAN.cache_tokens


def test_a_tier_that_borrowed_gives_way_to_one_that_waits_for_its_own() -> None:
    gate = Gate(replace(PLAN, least_output_tokens=4096))
    taken = [gate.ask(f"free-{n}", tier="free", prompt_tokens=768, max_tokens=256).verdict for n in range(15)]
    assert taken.count("admit") == 15  # more than its own three: nobody else was there
    gate.ask("premium-1", tier="premium", prompt_tokens=3072, max_tokens=1024)
    gate.ask("free-16", tier="free", prompt_tokens=768, max_tokens=256)
    started: list[str] = []
    for number in range(15):
        started += [each.name for each in gate.ended(f"free-{number}")]
    assert started[0] == "premium-1"


@pytest.mark.parametrize(
    "change",
    [
        {"cache_tokens": 100},
        {"tiers": ()},
        {"max_running": 0},
        {"tiers": (PLAN.tiers[0], PLAN.tiers[0])},
        {"tiers": (replace(PLAN.tiers[0], requests=0),)},
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Gate(replace(PLAN, **change))  # type: ignore[arg-type]


def test_a_name_is_told_once() -> None:
    gate = Gate(PLAN)
    gate.ask("a", tier="free", prompt_tokens=5, max_tokens=5)
    with pytest.raises(UsageError, match="here already"):
        gate.ask("a", tier="free", prompt_tokens=5, max_tokens=5)
    gate.ended("a")
    with pytest.raises(UsageError, match="no request is called"):
        gate.ended("a")


def test_an_estimate_becomes_a_plan() -> None:
    found = admission_plan(
        {
            "kv_cache": {"low_tokens": 100_000, "capacity_tokens": 120_000, "block_size": 16, "needed_tokens": 8192},
            "settings": {"max_model_len": 8192, "max_num_seqs": 64, "concurrency": 1},
        }
    )
    assert (found.cache_tokens, found.context_tokens, found.max_running) == (100_000, 8192, 64)
    assert found.nearly_full == nearly_full(100_000, 8192)
    with pytest.raises(UsageError):
        admission_plan({"schema": "memplan.plan/1"})


@settings(max_examples=150)
@given(
    cache=st.integers(300, 20_000),
    context=st.integers(20, 6000),
    block=st.sampled_from([1, 16, 64]),
    places=st.integers(1, 12),
    seed=st.integers(0, 10**6),
)
def test_whatever_is_asked_the_cache_is_never_promised_twice_and_everybody_gets_in(
    cache: int, context: int, block: int, places: int, seed: int
) -> None:
    context = min(context, cache)
    plan = AdmissionPlan(
        cache_tokens=cache,
        context_tokens=context,
        max_running=places,
        block_tokens=block,
        tiers=usual_tiers(cache, context),
    )
    gate, random, running = Gate(plan), Random(seed), deque[str]()
    order: dict[str, list[str]] = {tier.name: [] for tier in plan.tiers}
    queued: dict[str, str] = {}
    for number in range(120):
        tier = random.choice(plan.tiers).name
        name = f"{number}"
        decision = gate.ask(
            name, tier=tier, prompt_tokens=random.randint(1, context), max_tokens=random.randint(1, context)
        )
        if decision.verdict == "admit":
            running.append(name)
            order[tier].append(name)
        elif decision.verdict == "queue":
            queued[name] = tier
        if running and random.random() < 0.5:
            started = gate.ended(running.popleft())
            running.extend(each.name for each in started)
            for each in started:
                order[queued.pop(each.name)].append(each.name)
        assert gate.taken_tokens <= cache
        assert gate.running <= places
    while running:
        running.extend(each.name for each in gate.ended(running.popleft()))
    assert gate.waiting == 0
    assert gate.taken_tokens == 0
    assert all(names == sorted(names, key=int) for names in order.values())


# The engine behind the gate: a step takes 20 ms and 0.1 ms for each token.
ENGINE = SimulationSettings(
    num_blocks=1000,
    groups=(CacheGroup(block_tokens=16),),
    context_tokens=4096,
    max_num_seqs=64,
    max_num_batched_tokens=2048,
    prefix_caching=False,
    steps=ModelledSteps(
        tokens=(1.0, 4096.0), pass_s=(0.0201, 0.4296), positions=(0.0, 8192.0), decode_s=(0.0, 0.0), prompt_s=(0.0, 0.0)
    ),
)
GATED = AdmissionPlan(cache_tokens=16_000, context_tokens=4096, max_running=64, tiers=usual_tiers(16_000, 4096))
ASKED_TOKENS = 600
PLANNED_RATE = 1.3  # the most at which nobody is turned away


def overload(rate: float, count: int) -> Traffic:
    """Prompts of 50 to 1,200 tokens; clients ask for up to 600 tokens, and most answers are shorter."""
    random = Random(4)
    times, now = array("d"), 0.0
    for _ in range(count):
        times.append(now)
        now += random.expovariate(rate)
    return Traffic(
        arrivals=times,
        prompt_tokens=array("q", (random.randint(50, 1200) for _ in range(count))),
        output_tokens=array("q", (random.randint(20, ASKED_TOKENS) for _ in range(count))),
    )


class Behind:
    """An engine with a gate before it; what became of the requests."""

    def __init__(self, traffic: Traffic) -> None:
        self.gate = Gate(GATED)
        self.verdicts: Counter[str] = Counter()
        self.done: list[int] = []
        self.tokens = 0
        self._traffic = traffic
        self._ended: list[Served] = []
        self.engine = SteppedReplica(ENGINE, Chains(traffic), self)

    def scheduled(self, request: Served, ticks: int) -> None:
        """Nothing to note."""

    def first_token(self, request: Served, ticks: int) -> None:
        """Nothing to note."""

    def finished(self, request: Served, ticks: int) -> None:
        self._ended.append(request)

    def serve(self) -> None:
        """Everything that arrives, until nothing runs or waits."""
        arrivals = deque((to_ticks(time), place) for place, time in enumerate(self._traffic.arrivals))
        while arrivals or self.engine.is_busy():
            if not self.engine.is_busy():
                self.engine.now = max(self.engine.now, arrivals[0][0])
            while arrivals and arrivals[0][0] <= self.engine.now:
                self._ask(arrivals.popleft()[1])
            self.engine.advance(arrivals[0][0] if arrivals else 1 << 62, 1 << 62)
            ended, self._ended = self._ended, []
            for request in ended:
                self.done.append(request.index)
                self.tokens += request.output
                for each in self.gate.ended(str(request.index)):
                    self._send(int(each.name), each.max_tokens)
            assert self.gate.taken_tokens <= GATED.cache_tokens

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / (self.engine.now / TICKS_PER_S)

    def _ask(self, place: int) -> None:
        tier = ("premium", "standard", "free")[place % 3]
        prompt = min(self._traffic.prompt_tokens[place], GATED.tier(tier).context_tokens - 1)
        decision = self.gate.ask(str(place), tier=tier, prompt_tokens=prompt, max_tokens=ASKED_TOKENS)
        self.verdicts[decision.verdict] += 1
        if decision.verdict == "admit":
            self._send(place, decision.max_tokens)

    def _send(self, place: int, max_tokens: int) -> None:
        traffic = self._traffic
        tier = GATED.tier(("premium", "standard", "free")[place % 3])
        prompt = min(traffic.prompt_tokens[place], tier.context_tokens - 1)
        assert self.engine.add(Served(place, prompt, min(traffic.output_tokens[place], max_tokens)))


@pytest.fixture(scope="module")
def over() -> Behind:
    """Three times the planned load."""
    behind = Behind(overload(3 * PLANNED_RATE, 450))
    behind.serve()
    return behind


def test_the_planned_load_is_what_the_engine_serves_without_turning_anybody_away() -> None:
    planned = Behind(overload(PLANNED_RATE, 200))
    planned.serve()
    totals = planned.engine.totals()
    assert planned.verdicts["reject"] == 0
    assert totals.busy_ticks / planned.engine.now > 0.9
    assert totals.preemptions == 0


def test_at_three_times_the_planned_load_nothing_is_put_back_and_all_that_was_let_in_is_served(over: Behind) -> None:
    assert over.engine.totals().preemptions == 0
    assert over.engine.totals().most_blocks <= ENGINE.num_blocks
    assert len(over.done) == over.verdicts["admit"] + over.verdicts["queue"]
    assert (over.gate.running, over.gate.waiting) == (0, 0)
    assert over.verdicts["reject"] > 60


def test_at_three_times_the_planned_load_the_engine_goes_on_at_its_full_pace(over: Behind) -> None:
    planned = Behind(overload(PLANNED_RATE, 200))
    planned.serve()
    assert over.tokens_per_s > planned.tokens_per_s
    assert min(Counter(place % 3 for place in over.done).values()) > 50  # of every tier


def test_the_same_load_without_a_gate_puts_requests_back() -> None:
    assert simulate(ENGINE, overload(3 * PLANNED_RATE, 450)).counts.preemptions > 50


def test_own_tiers_are_taken_as_they_are() -> None:
    own = (Tier(name="all", context_tokens=2000, output_tokens=500, requests=4, share=1.0),)
    assert Gate(replace(PLAN, tiers=own)).plan.tier("all").reserved_tokens == 8000
