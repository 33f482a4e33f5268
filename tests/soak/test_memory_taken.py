"""The arithmetic of memory beside what stages take, strategy by strategy: `make soak ARGS="-k memory_taken -s"`.

Two real processes over gloo on the CPU, in float32. Tensors within 5 %, resident memory within 25 %,
beside what libraries make for themselves when they are first used.
"""

from __future__ import annotations

import pytest
from measurements import Case, measured, peak, write_start

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

LIBRARIES = 90_000_000  # bytes: as resident memory exceeds tensors at every size
CASES = [
    *(Case(stage, "ddp", rank) for stage in ("sft", "reward", "ppo") for rank in (None, 16)),
    *(Case("ppo", strategy, rank) for strategy in ("zero2", "zero3", "fsdp") for rank in (None, 16)),
]


def test_it_is_what_two_processes_take(tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = write_start(tmp_path_factory.mktemp("measured"))
    found = measured(CASES, recipe, 2)
    print("\n| stage | strategy | learns | computed, MB | tensors, MB | | resident, MB | |")
    print(f"|{'---|' * 8}")
    wrong = []
    for case in CASES:
        computed = case.computed(recipe, 2)
        most = {kind: peak(computed, phases) for kind, phases in found[case].items()}
        apart = {kind: computed.total / size - 1 for kind, size in most.items()}
        cells = [f"{size / 1e6:.0f} | {apart[kind]:+.1%}" for kind, size in most.items()]
        learns = "all" if case.rank is None else f"adapters of {case.rank}"
        print(f"| {case.stage} | {case.strategy} | {learns} | {computed.total / 1e6:.0f} | {' | '.join(cells)} |")
        beyond = max(0, abs(computed.total - most["resident"]) - LIBRARIES) / most["resident"]
        if abs(apart["tensors"]) >= 0.05 or beyond >= 0.25:
            wrong.append((case.name, apart))
    assert not wrong
