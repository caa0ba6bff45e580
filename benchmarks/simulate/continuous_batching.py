"""What continuous batching gains over static batching, in two published settings.

Anyscale (June 2023, "How continuous batching enables 23x throughput in LLM inference"): OPT-13B on an A100-40G, 1,000
prompts of 512 tokens at once, answers from an exponential distribution of mean 128, cut at 32, 128, 512 and 1,536.
Published at 1,536: throughput of static batching with an optimised model (FasterTransformer) 4 times that of a naive
one, of continuous batching (text-generation-inference) 8 times, of vLLM 23 times: continuous over static 2 times,
paged on top 5.75 times.

Orca (Yu et al., OSDI 2022): prompts of 32 to 512 tokens and answers of 1 to 128, each length as often. Its published
36.9 times the throughput of FasterTransformer is that of a 175-billion model at the same latency, where static batches
also wait for requests to come: no figure to compare with here, where everything is there at once.

Ours: static batches and continuous ones in the same contiguous cache that reserves 2,048 tokens for each, and
continuous ones in pages. Step times are the same for all, memplan's speed model of vLLM on that card.

    python benchmarks/simulate/continuous_batching.py        prints the table, and writes --output FILE
"""

from __future__ import annotations

import argparse
import json
from array import array
from pathlib import Path
from random import Random

from opt_13b import deployment

from memplan.domain.simulation import SimulationSettings, Traffic
from memplan.records import replace
from memplan.simulate.run import simulate

REQUESTS = 1000
PUBLISHED = {"Anyscale, answers up to 1536": {"continuous": 2.0, "paged": 5.75}}


def anyscale(longest: int) -> Traffic:
    random = Random(f"anyscale {longest}")
    outputs = [max(1, min(longest, round(random.expovariate(1 / 128)))) for _ in range(REQUESTS)]
    return Traffic(
        arrivals=array("d", bytes(8 * REQUESTS)),
        prompt_tokens=array("q", [512] * REQUESTS),
        output_tokens=array("q", outputs),
    )


def orca() -> Traffic:
    random = Random("orca")
    return Traffic(
        arrivals=array("d", bytes(8 * REQUESTS)),
        prompt_tokens=array("q", (random.randint(32, 512) for _ in range(REQUESTS))),
        output_tokens=array("q", (random.randint(1, 128) for _ in range(REQUESTS))),
    )


def ways() -> dict[str, SimulationSettings]:
    base = deployment()
    contiguous = replace(base, allocation="contiguous", reserve="longest")
    return {"static": replace(contiguous, batching="static"), "continuous": contiguous, "paged": base}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    settings = {f"Anyscale, answers up to {longest}": anyscale(longest) for longest in (32, 128, 512, 1536)}
    settings["Orca, 32 to 512 in, 1 to 128 out"] = orca()
    rows = []
    print("setting                            static tok/s  continuous tok/s  paged tok/s  gains (published)")
    for name, traffic in settings.items():
        found = {way: simulate(each, traffic).output_tokens_per_s for way, each in ways().items()}
        gains = {way: found[way] / found["static"] for way in ("continuous", "paged")}
        published = PUBLISHED.get(name, {})
        rows.append(
            {
                "setting": name,
                "output_tokens_per_s": {way: round(value, 1) for way, value in found.items()},
                "gain_over_static": {way: round(value, 3) for way, value in gains.items()},
                "published_gain": published or None,
            }
        )
        said = ", ".join(
            f"{way} {gain:.2f}" + (f" ({published[way]:g})" if way in published else "") for way, gain in gains.items()
        )
        print(
            f"{name:<34} {found['static']:>12,.0f}  {found['continuous']:>16,.0f}  {found['paged']:>11,.0f}  {said}",
            flush=True,
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
