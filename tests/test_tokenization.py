import copy
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from published import DATA, require_data
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from rlhf.config import ModelConfig
from rlhf.errors import ContractError, DataError, RLHFError
from rlhf.tokenization import Tokenization, load_tokenization, train_tokenization
from rlhf.types import Demonstration, Message, Prompt
from stages.rows import Keeping
from stages.sft import IGNORED, encode
from tests.test_models import TEXTS, tiny_policy

STORIES = DATA / "model" / "stories260k"
THINKING_TEMPLATE = (  # forgets what earlier assistant turns thought, as several published templates do
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' %}{{ m['content'].split('</think>')[-1] }}<|end|>"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@functools.cache
def byte_level() -> Tokenization:
    return train_tokenization(TEXTS, 300, 128)


@functools.cache
def sentencepiece_like() -> Tokenization:
    """A tokenizer that puts a space before every text; the file is needed where CI is set."""
    require_data()
    return load_tokenization(STORIES, ModelConfig())


BOTH = pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=20)


def chat(*contents: str) -> tuple[Message, ...]:
    roles: list[Literal["user", "assistant"]] = ["user", "assistant"]
    return tuple(Message(roles[i % 2], content) for i, content in enumerate(contents))


def pieces(tokenization: Tokenization, *parts: tuple[str, bool]) -> tuple[list[int], list[bool]]:
    """What a text is in tokens, piece by piece, and which pieces are learned."""
    ids = [tokenization.tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in parts]
    return sum(ids, []), sum(([learned] * len(part) for part, (_, learned) in zip(ids, parts, strict=True)), [])


@BOTH
@given(TEXT)
@example(" there")
@example("  two spaces")
@example("\nnew line")
@example(" \n x ")
@example("é ü 日本 \U0001f600")
@example("")
@settings(deadline=None, max_examples=60)
def test_a_response_decodes_to_its_text(make, text: str) -> None:  # type: ignore[no-untyped-def]
    tokenization = make()
    assert tokenization.text(tokenization.response(text)) == text
    assert tokenization.text(tokenization.response(text, finished=False)) == text


@BOTH
def test_only_a_finished_response_ends_with_the_stop_token(make) -> None:  # type: ignore[no-untyped-def]
    tokenization = make()
    finished, cut = tokenization.response(" a dog"), tokenization.response(" a dog", finished=False)
    assert finished == [*cut, tokenization.stop_id]
    assert tokenization.stop_id not in cut


@pytest.mark.parametrize("text", ["<|end|>", "one<|end|>two", "<|pad|>", "x<|user|>y"])
def test_special_tokens_in_a_text_are_only_text(text: str) -> None:
    """Or an annotator could end a response, or open a turn, by writing so."""
    tokens = byte_level().response(text, finished=False)
    assert not set(tokens) & set(byte_level().tokenizer.all_special_ids)
    assert byte_level().text(tokens) == text


@pytest.mark.parametrize("text", ["a dog", "a <s> dog", "<s>", "it <unk>"])
def test_a_text_with_special_tokens_is_rendered_without_further_spaces(text: str) -> None:
    """Encoded in pieces, each piece but the first is the middle of a text; SentencePiece puts a space before it."""
    tokenizer = copy.deepcopy(sentencepiece_like().tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    tokens = Tokenization(tokenizer, chat=True).prompt(Prompt.of_user(text))
    assert tokenizer.decode(tokens) == f"user: {text}\nassistant:"


@BOTH
def test_padding_and_stop_are_two_tokens(make) -> None:  # type: ignore[no-untyped-def]
    tokenization = make()
    assert tokenization.pad_id != tokenization.stop_id == tokenization.tokenizer.eos_token_id
    assert 0 <= tokenization.pad_id < len(tokenization.tokenizer)


def test_a_tokenizer_that_pads_with_its_end_gets_another_padding() -> None:
    """Trainers ask the tokenizer, so it must say the same: TRL would pad with the end, and pool a token too early."""
    tokenizer = train_tokenization(TEXTS, 300, 128).tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    tokenization = Tokenization(tokenizer, chat=True)
    assert tokenization.pad_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenization.tokenizer.convert_ids_to_tokens(tokenization.pad_id) == "<|pad|>"  # named as one


def test_a_tokenizer_without_padding_or_end_is_refused() -> None:
    backend = Tokenizer(WordLevel({"a": 0, "<end>": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    with pytest.raises(ContractError, match="no padding token"):
        Tokenization(tokenizer, chat=False)
    tokenizer.eos_token = None
    with pytest.raises(ContractError, match="no eos token"):
        Tokenization(tokenizer, chat=False)


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("Once upon a time", " there was a little girl"),
        ("The dog", " ran."),
        ("One day,", " Tom saw a big red ball.\n"),
    ],
)
def test_cut_at_a_space_the_ids_are_those_of_the_whole(prompt: str, response: str) -> None:
    tokenization = sentencepiece_like()
    whole = tokenization.tokenizer(prompt + response)["input_ids"]
    assert tokenization.prompt(Prompt(prompt)) + tokenization.response(response, finished=False) == whole
    assert whole[0] == tokenization.tokenizer.bos_token_id


def test_a_conversation_that_the_template_refuses_is_a_line() -> None:
    """As Gemma's refuses a system's turn, and Mistral's two turns of a user."""
    tokenization = copy.deepcopy(byte_level())
    refusal = "{{ raise_exception('System role not supported') }}"
    tokenization.tokenizer.chat_template = refusal
    with pytest.raises(ContractError, match="refuses a conversation .System role not supported. whose turns are user"):
        tokenization.prompt(Prompt("hi"))
    tokenization.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] "
    with pytest.raises(ContractError, match="the chat template refuses a conversation"):
        tokenization.prompt(Prompt("hi"))


def test_a_prompt_is_rendered_up_to_where_the_answer_begins() -> None:
    tokenization = byte_level()
    expected, _ = pieces(tokenization, ("<|user|>", False), ("a dog", False), ("<|assistant|>", False))
    assert tokenization.prompt(Prompt.of_user("a dog")) == tokenization.prompt(Prompt("a dog")) == expected
    assert [tokenization.tokenizer.decode(expected[i]) for i in (0, -1)] == ["<|user|>", "<|assistant|>"]


@pytest.mark.parametrize("content", ["the cat", chat("the cat")])
def test_a_demonstration_teaches_its_completion_and_the_stop(content: str | tuple[Message, ...]) -> None:
    tokenization = byte_level()
    got = tokenization.demonstration(Demonstration(Prompt(content), " sat <down>"))
    assert got == pieces(tokenization, ("<|user|>the cat<|assistant|>", False), (" sat <down><|end|>", True))
    tokens, learned = got
    assert tokens[-1] == tokenization.stop_id and learned[-1]
    assert not learned[len(tokenization.prompt(Prompt(content))) - 1]


def test_a_demonstration_teaches_every_assistant_turn_and_nothing_else() -> None:
    tokenization = byte_level()
    prompt = Prompt((Message("system", "be kind"), *chat("hi", "hello", "bye?", "good bye", "and now")))
    got = tokenization.demonstration(Demonstration(prompt, "no more"))
    expected = pieces(
        tokenization,
        ("<|system|>be kind<|user|>hi<|assistant|>", False),
        ("hello<|end|>", True),
        ("<|user|>bye?<|assistant|>", False),
        ("good bye<|end|>", True),
        ("<|user|>and now<|assistant|>", False),
        ("no more<|end|>", True),
    )
    assert got == expected


@pytest.mark.parametrize("question", ["Q", "QQQQQQQQQQ"])
@pytest.mark.parametrize("thoughts", [("", ""), ("hm</think>", ""), ("", "hm</think>"), ("hm</think>", "well</think>")])
def test_where_a_template_rewrites_turns_nothing_but_answers_is_learned(thoughts: Sequence[str], question: str) -> None:
    """Which of the earlier turns are taught is free; prompts and markers never are."""
    tokenizer = train_tokenization(TEXTS, 300, 128).tokenizer
    tokenizer.chat_template = THINKING_TEMPLATE
    tokenization = Tokenization(tokenizer, chat=True)
    prompt = Prompt(chat("Q", f"{thoughts[0]}ab", question, f"{thoughts[1]}cd", "Q"))
    tokens, learned = tokenization.demonstration(Demonstration(prompt, "ef"))
    assert len(tokens) == len(learned)
    assert tokens == tokenization.prompt(prompt) + tokenization.response("ef")
    taught = tokenizer.decode([token for token, use in zip(tokens, learned, strict=True) if use])
    assert taught in ("ef<|end|>", "cd<|end|>ef<|end|>", "ab<|end|>cd<|end|>ef<|end|>")


def test_the_contract_survives_saving(tmp_path: Path) -> None:
    byte_level().save(tmp_path)
    loaded = load_tokenization(tmp_path, ModelConfig())
    loaded.require(json.loads(json.dumps(byte_level().contract)), "the saved model")
    assert loaded.prompt(Prompt("a dog")) == byte_level().prompt(Prompt("a dog"))


def mismatches() -> Sequence[tuple[str, Tokenization]]:
    other = train_tokenization(["quite other words than those"], 300, 128)
    template = train_tokenization(TEXTS, 300, 128)
    template.tokenizer.chat_template += " "
    padding = train_tokenization(TEXTS, 300, 128).tokenizer
    padding.pad_token = "<|system|>"
    stop = train_tokenization(TEXTS, 300, 128).tokenizer
    stop.eos_token = "<|system|>"
    plain = Tokenization(byte_level().tokenizer, chat=False)
    return [
        ("vocabulary", other),
        ("chat_template", template),
        ("pad_id", Tokenization(padding, chat=True)),
        ("stop_id", Tokenization(stop, chat=True)),
        ("chat_template", plain),
    ]


@pytest.mark.parametrize("case", range(5))
def test_another_contract_is_one_line_that_says_what_differs(case: int) -> None:
    field, other = mismatches()[case]
    with pytest.raises(ContractError) as caught:
        byte_level().require(other.contract, "the reward model in runs/x")
    (problem,) = caught.value.problems
    assert "\n" not in problem
    assert problem.startswith("the reward model in runs/x ") and f"({field} differ)" in problem


@pytest.mark.parametrize("damage", ["missing", "empty", "broken"])
def test_a_tokenizer_that_cannot_be_loaded_is_one_line(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    if damage != "missing":
        path.mkdir()
    if damage == "broken":
        byte_level().save(path)
        (path / "tokenizer.json").write_text("{")
    with pytest.raises(RLHFError) as caught:
        load_tokenization(path, ModelConfig())
    (problem,) = caught.value.problems
    assert str(path) in problem and "\n" not in problem


DEMONSTRATIONS = [Demonstration(Prompt("the cat"), " sat"), Demonstration(Prompt("a"), " dog ran; a cat ran")]


def test_labels_are_the_learned_ids_and_the_stop_is_among_them() -> None:
    dataset = encode(DEMONSTRATIONS, byte_level(), Keeping(128, "sft.max_length")).dataset
    assert set(dataset.column_names) == {"input_ids", "labels"}
    for row, demonstration in zip(dataset, DEMONSTRATIONS, strict=True):
        prompt = byte_level().prompt(demonstration.prompt)
        answer = byte_level().response(demonstration.completion)
        assert row["input_ids"] == prompt + answer
        assert row["labels"] == [IGNORED] * len(prompt) + answer
        assert row["labels"][-1] == byte_level().stop_id


def test_a_demonstration_that_is_too_long_is_named() -> None:
    longest = len(byte_level().demonstration(DEMONSTRATIONS[1])[0])
    assert len(encode(DEMONSTRATIONS, byte_level(), Keeping(longest, "sft.max_length")).kept) == 2
    with pytest.raises(DataError, match=f"demonstration 1 .* has {longest} tokens, more than {longest - 1}"):
        encode(DEMONSTRATIONS, byte_level(), Keeping(longest - 1, "sft.max_length"))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_sequences_do_not_see_each_other(attention: Literal["eager", "sdpa"]) -> None:
    """Positions that start again are all that tells them apart, as in TRL's packed rows."""
    model = tiny_policy(attention=attention).train()
    rows = [torch.tensor([[5, 9, 200, 31, 7]]), torch.tensor([[8, 9, 10]]), torch.tensor([[77, 78, 79, 80]])]
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    packed = model(input_ids=torch.cat(rows, dim=-1), position_ids=positions, use_cache=False).logits
    alone = torch.cat([model(input_ids=row, use_cache=False).logits for row in rows], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    joined = model(input_ids=torch.cat(rows, dim=-1), use_cache=False).logits
    assert float((joined - alone)[:, 5:].abs().max()) > 0.1
