"""Mistakes in layers and products that keep less for the backward pass."""

from __future__ import annotations

from mutation import Mutation

MLP = "tests/test_layers.py::test_a_gated_mlp_"
TIED = "tests/test_tied.py::test_"

OF_LAYERS: dict[str, Mutation] = {
    "a norm's gradient that leaves out its scale's": Mutation(
        "rlhf/layers.py",
        "scaled.addcmul_(normed, mean, value=-1).mul_(scale)",
        "scaled.mul_(scale)",
        ("tests/test_layers.py::test_a_norm[False]",),
    ),
    "a rounded product whose gradient is of the whole weight": Mutation(
        "rlhf/narrow.py",
        "(gradient @ weight.to(context.kind)).to(kind_of_hidden)",
        "gradient.to(kind_of_hidden) @ weight",
        ("tests/test_layers.py::test_a_rounded_product_is_autocasts_to_the_bit_and_keeps_no_copy_of_the_weight[True]",),
    ),
    "an MLP whose last product learns from what it was not given": Mutation(
        "rlhf/layers.py",
        "inner = (activated * up).to(kind)",
        "inner = activated.to(kind)",
        (MLP + "is_transformers_to_the_bit[True-False-False]",),
    ),
    "an MLP that keeps what it multiplies": Mutation(
        "rlhf/layers.py",
        "found: Tensor = self.down_proj(gate, up) if own else self.down_proj(gated(gate, up))",
        "found: Tensor = self.down_proj(gated(gate, up))",
        (MLP + "keeps_what_its_first_products_gave_and_no_more[True]",),
    ),
    "a head's gradient handed to embeddings that are not asked for it": Mutation(
        "rlhf/tied.py",
        "torch._C._will_engine_execute_node(self.node) and ",
        "",
        (TIED + "a_head_without_its_embeddings_keeps_its_gradient",),
    ),
    "a head's gradient handed to embeddings that had theirs": Mutation(
        "rlhf/tied.py",
        "if self.taken_in == now:",
        "if self.taken_in == NEVER - 1:",
        (TIED + "it_hands_nothing_on_behind_the_embeddings_turn",),
    ),
    "a head's gradient left over from another backward": Mutation(
        "rlhf/tied.py",
        "return gradient if self.sent_in == self.taken_in else None",
        "return gradient",
        (TIED + "what_was_on_its_way_reaches_no_other_backward",),
    ),
    "padding that learns": Mutation(
        "rlhf/tied.py",
        "if padding >= 0:",
        "if padding < -1:",
        (TIED + "it_is_autograds_to_the_bit[5-False]",),
    ),
    "logits of a second backward that are the first's gradient": Mutation(
        "rlhf/token_head.py",
        "logits, context.kept = context.kept, None",
        "logits = context.kept",
        (TIED + "a_second_backward_gives_it_again",),
    ),
}
