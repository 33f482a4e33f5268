"""On a GPU: what samples by weights alone computes what the modules compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.test_decoder import CASES, policy, read

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(("architecture", "options"), CASES, ids=str)
def test_logits_are_those_of_the_modules(architecture: str, options: dict[str, Any], bfloat16: bool) -> None:
    device = torch.device("cuda")
    by_weights, modules = read(policy(architecture, **options).to(device), bfloat16, device)
    largest = float(modules.abs().max())
    torch.testing.assert_close(by_weights, modules, atol=largest * (2e-2 if bfloat16 else 2e-6), rtol=0)
