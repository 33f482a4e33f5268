"""The page, the server's address, secrets, and what is refused before anything is written: all without a server."""

from __future__ import annotations

import stat
from pathlib import Path
from xml.etree import ElementTree

import pytest
from labelled import write

from data.labelling.ledger import read_lines
from data.labelling.page import check_dimensions, missing_controls, page
from data.labelling.server import LabelStudio, checked_url
from launch.cli import app
from launch.label_studio import environment, kept_secret, owner_of
from rlhf.errors import ArtifactError, ConfigError, DataError, LabellingError
from rlhf.references import is_loopback


def test_the_page_is_well_formed_and_its_change_is_noticed() -> None:
    for dimensions in ((), ("helpfulness", "honesty")):
        config = page(dimensions)
        ElementTree.fromstring(config)
        assert missing_controls(config, dimensions) == []
    assert missing_controls(page(), ("honesty",)) == ["honesty_a", "honesty_b"]
    assert missing_controls(page().replace('value="tie"', 'value="equal"'), ()) == ["preference"]
    assert missing_controls(page().replace("$response_a", "$response_b"), ()) == ["response_a"]
    assert missing_controls("<View", ()) == ["preference"]
    for bad in ("Honesty", "response", "a b", "x" * 41):
        with pytest.raises(ConfigError, match="--rate"):
            check_dimensions([bad])


def test_addresses_hold_no_secrets_and_tokens_stay_out_of_errors() -> None:
    assert checked_url("https://labels.example.com/studio/") == "https://labels.example.com/studio"
    for bad in ("labels.example.com", "ftp://x", "http://", "http://me:secret@x"):
        with pytest.raises(ConfigError, match="--url") as raised:
            checked_url(bad)
        assert "secret" not in str(raised.value) or bad == "labels"
    assert is_loopback("http://127.0.0.1:8080") and is_loopback("http://[::1]:1") and not is_loopback("http://10.0.0.1")
    with LabelStudio("http://127.0.0.1:9", "a secret", patience=0) as server, pytest.raises(LabellingError) as raised:
        server.user()
    assert "no answer" in str(raised.value) and "secret" not in str(raised.value)


def test_a_server_s_secrets_are_for_its_owner_alone(tmp_path: Path) -> None:
    owner = owner_of(tmp_path / "server")
    assert owner == owner_of(tmp_path / "server") and len(owner.token) == 40
    for name in ("password", "token"):
        assert stat.S_IMODE((tmp_path / "server" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "server").stat().st_mode) == 0o700
    own = environment(tmp_path / "server", owner, {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "HOME": "/root"})
    assert "AWS_SECRET_ACCESS_KEY" not in own and own["COLLECT_ANALYTICS"] == "false" and own["HOME"] != "/root"
    assert kept_secret(tmp_path / "server" / "secret-key", "other") == own["SECRET_KEY"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["push", "pairs.jsonl", "--project", "ab"], "--project 'ab': a title has 3 to 50 characters"),
        (["push", "pairs.jsonl", "--project", "x" * 51], "a title has 3 to 50 characters"),
        (["push", "nothing.jsonl", "--project", "abc"], "nothing.jsonl: no such file"),
        (["push", "pairs.jsonl", "--project", "abc", "--stage", "ppo"], "--stage ppo: is for a run"),
        (["push", "pairs.jsonl", "--project", "abc", "--rate", "A B"], "--rate A B: not a name to rate by"),
        (["push", "pairs.jsonl", "--project", "abc", "--instructions", "none.txt"], "--instructions none.txt: cannot"),
        (["push", "pairs.jsonl", "--project", "abc"], "LABEL_STUDIO_API_KEY is not set"),
        (["pull", "--project", "abc"], "labels/abc: no labelling project (there: none)"),
        (["watch", "--project", "abc"], "labels/abc: no labelling project"),
        (["watch", "--project", "abc", "--host", "0.0.0.0"], "--host 0.0.0.0: is no address that others can call"),
        (["report", "--project", "abc"], "labels/abc: no labelling project"),
    ],
)
def test_wrong_input_ends_before_anything_is_written(
    arguments: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    write(tmp_path / "pairs.jsonl", {"prompt": "p", "responses": ["a", "b"]})
    with pytest.raises((ConfigError, DataError, ArtifactError)) as raised:
        app(["label", *arguments], standalone_mode=False)
    assert problem in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"] and list(read_lines(tmp_path / "none")) == []
