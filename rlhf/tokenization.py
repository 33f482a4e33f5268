"""From text to tokens and back: the one place where a prompt is rendered and a response begins and ends.

The same functions serve supervised training, reward training, scoring and sampling, so that all stages see the same
ids. Prompt and response are encoded apart and joined: sampling starts from a prompt's ids, and training must see the
same boundary. The contract (template, special ids, vocabulary hash) is saved with every artifact and compared when
two of them meet.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf.config import ModelConfig
from rlhf.errors import ArtifactError, ContractError
from rlhf.store.weights import TOKENIZERS, base_of_adapter
from rlhf.types import Demonstration, Message, Prompt

PAD, END = "<|pad|>", "<|end|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Tokenization:
    """A tokenizer with its prompt format and stop token.

    frozen: of a model that is not trained here, whose padding may then be its stop token: masks tell them apart.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: bool, frozen: bool = False) -> None:
        if tokenizer.eos_token_id is None:
            raise ContractError("the tokenizer has no eos token, so no response could end; set one in its directory")
        if chat and not tokenizer.chat_template:
            raise ContractError(
                "prompts are conversations but the tokenizer has no chat template; "
                "give it one or set model.chat_template=none"
            )
        self.tokenizer = tokenizer
        self.chat = chat
        self.stop_id: int = tokenizer.eos_token_id
        self.pad_id: int = _pad_id(tokenizer, frozen)
        # Trainers take the padding from the tokenizer, so it must say the same.
        tokenizer.pad_token = str(tokenizer.convert_ids_to_tokens(self.pad_id))

    def prompt(self, prompt: Prompt) -> list[int]:
        """Ids up to where the response begins."""
        if not self.chat:
            return self._ids(prompt.text, special=True)
        return self._rendered_ids(prompt)

    def response(self, text: str, finished: bool = True) -> list[int]:
        """Ids of a response; a finished one ends with the stop token, a cut one does not."""
        return self._continuation(text) + ([self.stop_id] if finished else [])

    def demonstration(self, demonstration: Demonstration) -> tuple[list[int], list[bool]]:
        """Ids of prompt and completion, and which of them to learn: every assistant turn with its stop token."""
        content = demonstration.prompt.content
        turns = () if isinstance(content, str) else content
        answers = [(Prompt(turns[:i]), turn.content) for i, turn in enumerate(turns) if turn.role == "assistant"]
        tokens: list[int] = []
        learned: list[bool] = []
        for prompt, answer in [*answers, (demonstration.prompt, demonstration.completion)]:
            before = self.prompt(prompt)
            if before[: len(tokens)] != tokens:  # the template rewrites earlier turns, which then are context alone
                tokens, learned = [], []
            learned += [False] * (len(before) - len(tokens))
            response = self.response(answer)
            tokens = before + response
            learned += [True] * len(response)
        return tokens, learned

    def text(self, tokens: Sequence[int]) -> str:
        """A response's text, without special tokens."""
        anchor = self._anchor()
        joined: str = self.tokenizer.decode([*anchor, *tokens], skip_special_tokens=True)  # type: ignore[assignment]
        alone: str = self.tokenizer.decode(anchor, skip_special_tokens=True)  # type: ignore[assignment]
        return joined[len(alone) :]

    @property
    def contract(self) -> dict[str, Any]:
        """What two artifacts must share to exchange token ids."""
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        return {
            "chat_template": self.tokenizer.chat_template if self.chat else None,
            "bos_id": self.tokenizer.bos_token_id,
            "stop_id": self.stop_id,
            "pad_id": self.pad_id,
            "vocabulary": hashlib.sha256(vocabulary).hexdigest(),
        }

    def require(self, contract: dict[str, Any], owner: str) -> None:
        """Raise ContractError unless another artifact's contract is the same."""
        if differing := self.differing(contract):
            raise ContractError(
                f"{owner} uses another tokenizer contract ({', '.join(differing)} differ); "
                "train it from the same SFT model"
            )

    def differing(self, contract: dict[str, Any]) -> list[str]:
        """What another artifact's contract says otherwise."""
        return [key for key, value in self.contract.items() if contract.get(key) != value]

    def save(self, directory: Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(directory)

    def _rendered_ids(self, prompt: Prompt) -> list[int]:
        content = prompt.content
        turns = (Message("user", content),) if isinstance(content, str) else content
        reserved = [token for token in self.tokenizer.all_special_tokens if any(token in t.content for t in turns)]
        if not reserved:
            return self._ids(self._render(turns), special=False, literal=False)
        # Somebody wrote a special token into a text. Only the template may open a turn or end one, so the template is
        # rendered around place holders, and each text is encoded as the plain characters that it is. A template's own
        # filters, such as trim, then do not reach the texts.
        holders = [chr(0xF0000 + i) for i in range(len(turns))]  # private use: in no template and no text
        rendered = self._render([Message(t.role, holder) for t, holder in zip(turns, holders, strict=True)])
        tokens: list[int] = []
        for piece in filter(None, re.split(f"([{''.join(holders)}])", rendered)):
            literal = piece in holders
            text = turns[holders.index(piece)].content if literal else piece
            tokens += self._continuation(text, literal) if tokens else self._ids(text, False, literal)
        return tokens

    def _render(self, turns: Sequence[Message]) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except (TemplateError, TypeError, ValueError) as error:  # which it may raise itself, as `raise_exception` does
            said, roles = " ".join(str(error).split())[:200], ", ".join(turn.role for turn in turns)
            raise ContractError(
                f"the chat template refuses a conversation ({said}) whose turns are {roles}; leave such turns out, or "
                "set model.chat_template=none"
            ) from error

    def _ids(self, text: str, special: bool, literal: bool = True) -> list[int]:
        """Ids of a text; `special` puts a bos before it, `literal` reads special tokens in it as plain characters."""
        return list(self.tokenizer(text, add_special_tokens=special, split_special_tokens=literal)["input_ids"])

    def _anchor(self) -> list[int]:
        # Tokenizers of the SentencePiece family put a space before every text they are given. Behind an anchor a
        # continuation is encoded and decoded as what it is: the middle of a text.
        return self._ids("a\n", special=False)

    def _continuation(self, text: str, literal: bool = True) -> list[int]:
        anchor = self._anchor()
        joined = self._ids("a\n" + text, False, literal)
        return joined[len(anchor) :] if joined[: len(anchor)] == anchor else self._ids(text, False, literal)


def _pad_id(tokenizer: PreTrainedTokenizerBase, frozen: bool) -> int:
    """A padding id that is not the stop token, so that no model mistakes an end for padding."""
    if frozen:
        return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    added = sorted(tokenizer.added_tokens_decoder.items(), reverse=True)
    named = [token_id for token_id, token in added if "pad" in str(token).lower()]
    special = (tokenizer.pad_token_id, *named, tokenizer.unk_token_id, tokenizer.bos_token_id)
    for candidate in (*special, *(token_id for token_id, _ in added)):
        if candidate is not None and candidate != tokenizer.eos_token_id:
            return int(candidate)
    raise ContractError(
        "the tokenizer has no padding token apart from its eos token; add one: model.added_tokens=['<|pad|>']"
    )


def load_tokenization(
    path: str | Path, config: ModelConfig, added: Sequence[str] = (), frozen: bool = False
) -> Tokenization:
    """The tokenizer of a model directory or hub id, or of an adapter's base, with the recipe's prompt format.

    added: special tokens that it gets unless it has them. frozen: see Tokenization.
    """
    path = tokenizer_home(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        if new := [token for token in added if token not in tokenizer.get_vocab()]:
            tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)
    except Exception as error:  # the tokenizers library raises no narrower one for a broken file
        reason = str(error).strip().split("\n")[0]
        remedy = "give a directory that holds tokenizer files"
        raise ArtifactError(f"tokenizer {path}: cannot be loaded ({reason}); {remedy}") from error
    chat = config.chat_template == "auto" and bool(tokenizer.chat_template)
    return Tokenization(tokenizer, chat, frozen)


def tokenizer_home(path: str | Path) -> str | Path:
    """Where a model's tokenizer is: beside it, or for an adapter that was saved without one beside its base."""
    if any((Path(path) / name).is_file() for name in TOKENIZERS):
        return path
    return base_of_adapter(Path(path)) or path


def train_tokenization(texts: Iterable[str], vocab_size: int, context: int) -> Tokenization:
    """A byte-level BPE tokenizer trained on texts, with a chat template and distinct pad and end tokens."""
    roles = ["<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, *roles],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=roles,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return Tokenization(fast, chat=True)
