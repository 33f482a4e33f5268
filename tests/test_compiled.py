"""What is compiled between a layer's products computes what it is compiled from; inductor needs a C++ compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.config import GenerationConfig
from rlhf.generation import native
from rlhf.generation.between import PLAIN, compiled, norm_of
from rlhf.generation.decoder import decoder_of
from rlhf.generation.graphs import GraphedDecoder
from tests import test_decoder
from tests.test_decoder import CPU, policy, read
from tests.test_graphs import sampled

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor
ROWS, QUERIES, WIDTH = 6, 2, 16


def given(kind: torch.dtype) -> dict[str, list[tuple[Any, ...]]]:
    """What each function is called with: sums and norms in float32, and of products, in `kind`."""
    torch.manual_seed(3)
    states, found = torch.randn(ROWS, WIDTH), torch.randn(ROWS, 2 * WIDTH).to(kind)
    heads, turns = torch.randn(ROWS, QUERIES + 2, WIDTH).to(kind), tuple(torch.randn(2, ROWS, 1, WIDTH))
    norm, *norms = (norm_of(SimpleNamespace(weight=torch.randn(WIDTH), variance_epsilon=1e-5)) for _ in range(3))
    return {
        "normed": [(states, norm), (states.to(kind), norm)],
        "summed": [(states, found[:, :WIDTH], norm)],
        "turned": [(heads, QUERIES, None, *turns), (heads, QUERIES, tuple(norms), *turns)],
        "gated": [(found,)],
    }


@torch.inference_mode()
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_each_is_one_graph_for_any_number_of_rows(kind: torch.dtype) -> None:
    """Without inductor: that dynamo finds nothing which it must leave to Python, and compiles no size anew."""
    for name, calls in given(kind).items():
        made: list[int] = []

        def count(graph: Any, _: Any, made: list[int] = made) -> Callable[..., Any]:
            made.append(1)
            return graph.forward  # type: ignore[no-any-return]

        torch._dynamo.reset()
        plain = getattr(PLAIN, name)
        whole = torch.compile(plain, dynamic=True, fullgraph=True, backend=count)
        for arguments in calls:
            before = len(made)
            for rows in (ROWS, 4, 5):
                cut = [isinstance(each, Tensor) and len(each) == ROWS for each in arguments]
                # Copies, for a view of something larger is another kind of argument, and some are written to.
                fewer = [
                    [each[:rows].clone() if is_cut else each for each, is_cut in zip(arguments, cut, strict=True)]
                    for _ in range(2)
                ]
                by_compiler, by_hand = fewer
                torch.testing.assert_close(whole(*by_compiler), plain(*by_hand), atol=0, rtol=0)
                torch.testing.assert_close(by_compiler, by_hand, atol=0, rtol=0)  # what was written to
            assert len(made) <= before + 1
    torch._dynamo.reset()


class Plainly:
    """Records nothing: a step is called again."""

    def once(self, step: Callable[[], Tensor]) -> Tensor:
        """The step's result."""
        return step()

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The step."""
        return step


@pytest.fixture
def anew() -> Iterator[None]:
    torch._dynamo.reset()
    compiled.cache_clear()
    yield
    torch._dynamo.reset()
    compiled.cache_clear()


@pytest.mark.timeout(180)  # the C++ compiler
@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])  # without norms of heads, and with them
def test_what_is_compiled_computes_the_same(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = GenerationConfig(max_new_tokens=40, batch_size=6), policy(architecture)
    plain = sampled(model, config)
    made = compiled(CPU)
    assert made is not PLAIN and compiled(CPU) is made

    def by_what_is_compiled(*given: Any) -> Any:
        decoder = decoder_of(*given[:2], made)
        assert decoder is not None
        return GraphedDecoder(decoder, Plainly())

    monkeypatch.setattr(native, "decoder_of", by_what_is_compiled)
    found = sampled(model, config)
    assert torch.equal(found.responses, plain.responses)
    torch.testing.assert_close(found.logprobs, plain.logprobs, atol=2e-5, rtol=0)
    # In bfloat16 it rounds less often, so that samples are others; logits are near.
    monkeypatch.setattr(test_decoder, "decoder_of", lambda *given: decoder_of(*given, made))
    by_weights, modules = read(model, bfloat16=True)
    torch.testing.assert_close(by_weights, modules, atol=2e-2 * float(modules.abs().max()), rtol=0)


@pytest.mark.usefixtures("anew")
def test_without_a_compiler_it_stays_as_it_is_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_nothing(*_: Any, **__: Any) -> Callable[..., Any]:
        def called(*_: Any) -> None:
            raise RuntimeError("no C compiler was found\nmore of it")

        return called

    monkeypatch.setattr(torch, "compile", compile_nothing)
    with pytest.warns(RuntimeWarning, match=r"decoding is not compiled \(no C compiler was found\)$"):
        assert compiled(CPU) is PLAIN
