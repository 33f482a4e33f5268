"""A recipe as people would write it: the settings that matter, each with the reason for its value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from launch.proposal.examples import KINDS, Examples, Lengths, Source
from launch.proposal.models import FirstModel
from launch.proposal.sizes import RANK, Sizes, Task
from rlhf.config import InitConfig
from rlhf.memory import GIB

_PLAIN = re.compile(r"[A-Za-z_./][\w./@+-]*")
WIDTH = 120
TRIED = 400  # examples of each source in a trial


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """All that a recipe says, and where it is written."""

    file: str  # as the commands in its head name it
    schema: str  # the first line
    name: str
    directory: str | None  # data.directory
    start: FirstModel  # what SFT starts from, or takes the place of SFT
    init: InitConfig | None  # of a model made from nothing
    uses_sft: bool  # start takes the place of SFT
    reward_use: str | None
    examples: Examples
    lengths: Lengths
    task: Task
    sizes: Sizes


def recipe_text(proposal: Proposal) -> str:
    """The recipe's file."""
    parts = (_head, _model, _data, _sft, _reward, _ppo, _rest)
    return "\n".join(line for part in parts for line in part(proposal)) + "\n"


def _head(proposal: Proposal) -> Iterator[str]:
    yield proposal.schema
    yield f"# Written by `rlhf init` for {proposal.task.hardware}. A proposal: change what you know better."
    yield "#"
    file = quoted(proposal.file)
    yield f"#   rlhf run {file} --dry-run              the whole recipe, with the defaults of what is not said here"
    yield f"#   rlhf run {file}                        all stages; the same command goes on where it was stopped"
    yield "# One step of PPO on a little of the data, in a run directory of its own:"
    first, step, rest = trial(proposal).partition(" ppo.steps=1")
    yield f"#   {first}{step}" + (" \\" if rest else "")
    yield from [f"#    {rest}"] if rest else []
    yield "#"
    yield "# Memory for each GPU, estimated:" if proposal.task.hardware.gpus else "# Memory, estimated:"
    for stage, estimate in proposal.sizes.estimates.items():
        yield f"#   {stage:<7}{estimate.total / GIB:5.1f} GiB at the peak, its {estimate.peak}"
    yield f"name: {scalar(proposal.name)}"
    yield "seed: 0"


def trial(proposal: Proposal) -> str:
    """The command that takes one step of PPO on a little of the data, to see that everything fits."""
    sources = proposal.examples.sources
    capped = [f"data.{kind}.{n}.count={TRIED}" for kind in KINDS[:2] for n in range(len(sources[kind]))]
    return " ".join([f"rlhf run {quoted(proposal.file)} --run runs/trial --until ppo ppo.steps=1", *capped])


def _model(proposal: Proposal) -> Iterator[str]:
    start, sizes = proposal.start, proposal.sizes
    yield ""
    yield "model:"
    if proposal.init is not None:
        init = proposal.init
        widths = f"hidden_size: {init.hidden_size}, layers: {init.layers}, heads: {init.heads}"
        yield f"  # No model given: one of {counted_weights(start.shape.weights)} that knows nothing yet."
        yield f"  init: {{{widths}, vocab_size: {init.vocab_size}, context: {init.context}}}"
    elif not proposal.uses_sft:
        about = "" if start.exact else "about "
        size = f"{about}{counted_weights(start.shape.weights)}, context of {start.shape.context:,} tokens"
        yield f"  path: {scalar(str(start.path))}  # {size}"
        if start.revision:
            yield f"  revision: {scalar(start.revision)}"
    yield "  dtype: auto  # bfloat16 on a GPU that has it; weights that learn stay in float32"
    if sizes.training == "full":
        yield "  lora: null  # every weight learns; {rank: 16, alpha: 32.0} would train adapters, for less memory"
    elif sizes.training == "lora":
        yield f"  lora: {{rank: {RANK}, alpha: {2.0 * RANK}}}  # adapters: all weights with moments do not fit"
    else:
        yield "  # Adapters over 4-bit weights, or else they do not fit; needs bitsandbytes:"
        yield "  # pip install -c constraints.txt -e '.[quantization]'"
        yield f"  lora: {{rank: {RANK}, alpha: {2.0 * RANK}, quantization: nf4}}"


def _data(proposal: Proposal) -> Iterator[str]:
    examples = proposal.examples
    yield ""
    yield "data:"
    if proposal.directory is not None:
        yield f"  directory: {scalar(proposal.directory)}  # relative paths start here"
    for kind in KINDS:
        if not examples.sources[kind]:
            yield f"  # No {kind}: no stage of this recipe reads any."
            continue
        note = f"  # {examples.notes[kind]}" if kind in examples.notes else ""
        yield f"  {kind}:{note}"
        for source in examples.sources[kind]:
            yield from _source(source, kind)
    yield "  test_fraction: 0.1  # of the prompts; held out of all training"
    yield "  too_long: drop  # examples of more tokens than max_length are left out and counted; fail: end instead"


def _source(source: Source, kind: str) -> Iterator[str]:
    inspection = source.inspection
    settings = f"path: {scalar(source.path)}"
    if source.path != "toy":
        settings += f", format: {inspection.format}"
    found = inspection.distinct_prompts if kind == "prompts" else inspection.examples
    note = f"{found:,} {'distinct prompts' if kind == 'prompts' else inspection.holds}"
    if inspection.bad:
        settings += ", bad_records: drop"
        note += f", and {inspection.bad:,} bad"
    yield f"    - {{{settings}}}  # {note}"


def _sft(proposal: Proposal) -> Iterator[str]:
    sizes = proposal.sizes
    yield ""
    if proposal.uses_sft:
        yield f"sft: {{use: {scalar(proposal.start.reference)}}}  # the policy that PPO starts from, as it is"
        return
    examples = proposal.examples.count("demonstrations")
    yield f"sft:  # {examples:,} demonstrations, about {_steps(examples, sizes.sft_batch)} steps an epoch"
    yield f"  epochs: {1 if proposal.start.pretrained else 3}"
    yield f"  learning_rate: {number(sizes.rates.sft)}"
    yield from _batch(sizes.sft_batch, sizes.sft_micro, proposal)
    yield f"  max_length: {sizes.sft_length}  # tokens, prompt and response{_how_long(proposal)}"
    yield f"  packing: {str(sizes.packing).lower()}{'' if sizes.packing else '  # true pays where examples are short'}"


def _reward(proposal: Proposal) -> Iterator[str]:
    sizes = proposal.sizes
    yield ""
    if proposal.reward_use is not None:
        yield f"reward: {{use: {scalar(proposal.reward_use)}}}  # in place of a reward model trained here"
        return
    examples = proposal.examples.count("comparisons")
    yield f"reward:  # {examples:,} comparisons, about {_steps(examples, sizes.reward_batch)} steps an epoch"
    yield "  epochs: 1  # more and it learns the votes by heart"
    yield f"  learning_rate: {number(sizes.rates.reward)}"
    yield from _batch(sizes.reward_batch, sizes.reward_micro, proposal)
    yield f"  max_length: {sizes.reward_length}"


def _batch(size: int, micro: int, proposal: Proposal) -> Iterator[str]:
    shared = f", {size // proposal.task.hardware.processes} on each GPU" if proposal.task.hardware.gpus > 1 else ""
    yield f"  batch_size: {size}  # examples per optimizer step{shared}"
    yield f"  micro_batch_size: {micro}  # examples per forward: memory alone"


def _ppo(proposal: Proposal) -> Iterator[str]:
    sizes = proposal.sizes
    yield ""
    yield "ppo:"
    yield "  steps: 100"
    yield f"  prompts_per_step: {sizes.prompts_per_step}  # each answered once"
    sampling = f"max_new_tokens: {sizes.max_new_tokens}, batch_size: {sizes.generation_rows}"
    yield f"  generation: {{{sampling}}}  # batch_size: responses decoded at once, memory alone"
    yield "  kl: {coef: 0.05}  # price of a nat away from the SFT model; lower lets the policy go further"
    yield f"  learning_rate: {number(sizes.rates.ppo)}"
    yield f"  value_learning_rate: {number(sizes.rates.value)}"
    yield f"  micro_batch_tokens: {sizes.micro_batch_tokens}  # padded tokens per forward: memory alone"
    yield "  evaluate_every: 10  # steps, on held-out prompts"


def _rest(proposal: Proposal) -> Iterator[str]:
    yield ""
    # Each prompt is answered by two models.
    slow = not proposal.task.hardware.gpus and proposal.task.policy.weights > 3e7
    yield f"evaluate: {{prompts: {32 if slow else 256}}}  # held out, answered before and after"
    yield "checkpoint: {every_minutes: 15, keep_last: 2}"
    yield "tracking: {wandb: {mode: auto}}  # online with WANDB_API_KEY, else files; disabled: none"


def _steps(examples: int, batch: int) -> str:
    return f"{max(1, round(0.9 * examples / batch)):,}"


def _how_long(proposal: Proposal) -> str:
    if proposal.sizes.sft_length == proposal.start.shape.context:
        return "; the model's context"
    guess = "" if proposal.lengths.measured else ", by a guess of how long a token is"
    return f"; 95 in a hundred have no more{guess}"


def counted_weights(weights: int) -> str:
    """How many weights, for people."""
    size = f"{weights / 1e6:,.1f} M" if weights < 1e7 else f"{weights / 1e6:,.0f} M"
    return f"{size if weights < 1e9 else f'{weights / 1e9:.1f} B'} weights"


def number(value: float) -> str:
    """A float as people write it: 1e-5, not 1e-05."""
    return re.sub(r"e([-+])0+", r"e\1", f"{value:g}")


def scalar(text: str) -> str:
    """A string in YAML, quoted where it would be read as something else."""
    plain = _PLAIN.fullmatch(text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text)


def quoted(text: str) -> str:
    """A word of a shell's command line, short of strange characters."""
    return text if re.fullmatch(r"[\w./@:+-]+", text) else "'" + text.replace("'", "'\\''") + "'"


def problems_of(examples: Examples) -> Sequence[str]:
    """What people should know of their files before the recipe runs, a line each."""
    every = {source.path: source.inspection for kind in KINDS for source in examples.sources[kind]}
    return [
        f"{path}: {found.bad:,} of {found.records:,} records are bad and dropped; `rlhf data show` names them"
        for path, found in every.items()
        if found.bad
    ]
