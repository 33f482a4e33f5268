"""What is rendered for Kubernetes: equal to golden texts, and valid as strictly as a server would have it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import manifests
import pytest
import yaml
from documentation import split
from manifests import CASES, EXAMPLES, GOLDEN, KINDS, chain, documents, generator, site

from launch.clusters.job import SECRETS
from launch.clusters.kubernetes import SCHEDULER
from launch.clusters.manifests.objects import name_of
from launch.clusters.site import read_site
from launch.clusters.specification import Wanted, specify, with_generators
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe

INVALID = (jsonschema.ValidationError, kubernetes_validate.ValidationError)
# Of these every key is somebody's own.
FREE = {"labels", "annotations", "nodeSelector", "matchLabels", "limits", "requests", "data"}


@pytest.mark.parametrize("case", manifests.GOLDEN_CASES)
def test_golden(case: str) -> None:
    """PYTHONPATH=. python tests/manifests.py writes them anew."""
    assert manifests.golden(case) == (GOLDEN / f"{case}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_examples_are_what_is_rendered(kind: str) -> None:
    assert manifests.example(kind) == (EXAMPLES / f"{kind}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_valid(case: str) -> None:
    found = documents(*CASES[case])
    assert len(found) >= 4
    for document in found:
        manifests.validate(document)


WANTED = {
    "four nodes": (Wanted(nodes="sft=1,ppo=4", gpus=8, hours=4.0), ()),
    "cpus": (Wanted(processes=2, cpus=4, memory=16), ()),
    "generators": (Wanted(nodes="2", gpus=8, generators="2", generator_gpus=4), ()),
    "colocated": (Wanted(gpus=8, generators="colocated", generator_gpus=2), ()),
    "reward server": (Wanted(gpus=8, reward_server="serve"), ("reward.use=http://127.0.0.1:8100/score",)),
}


# A PyTorchJob has no pods for generators.
ASKED = [(case, kind) for case in WANTED for kind in KINDS if (case, kind) != ("generators", "pytorchjob")]


@pytest.mark.parametrize(("case", "kind"), ASKED)
def test_what_the_command_line_asks_for_is_valid(case: str, kind: str) -> None:
    wanted, overrides = WANTED[case]
    of = site(kind=kind, secret="rlhf")
    recipe = with_generators(load_recipe(manifests.ROOT / "stages" / "recipes" / "demo.yaml", overrides), wanted)
    found = documents(specify(recipe, manifests.RUN, Path("/runs"), wanted, of), of)
    assert [each["kind"].lower() for each in found].count(kind) == 4
    for document in found:
        manifests.validate(document)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*job*.yaml")), ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        manifests.validate(document)


def test_the_role_of_the_documentation_is_valid() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "clusters-kubernetes.md"
    (role,) = (block for block in split(page)[0] if "kind: Role" in block.text)
    found = yaml.safe_load(role.text)
    assert [each["kind"] for each in found["items"]] == ["Role", "RoleBinding"]
    for each in found["items"]:
        manifests.validate(each)


def keys(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each key of an object that the object's kind knows."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            if key not in FREE:
                yield from keys(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from keys(value, (*path, index))


def mistyped(document: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """The same with one letter too many in a key."""
    found = copy.deepcopy(document)
    place: Any = found
    for step in path[:-1]:
        place = place[step]
    place[f"{path[-1]}x"] = place.pop(path[-1])
    return found


@pytest.mark.parametrize("case", ["jobset-large", "trainjob-large", "pytorchjob-large", "jobset-queued"])
def test_each_typo_is_caught(case: str) -> None:
    """In any key of PPO's manifests, at whatever depth of a pod template; two keys of a PyTorchJob are the user's."""
    spec, of = CASES[case]
    ppo = replace(spec, jobs=(spec.job("ppo"),))
    tried, deepest, kinds = 0, 0, set()
    for document in documents(ppo, of):
        kinds.add(document["kind"])
        for path in keys(document):
            if path[-1] in ("Master", "Worker"):
                continue
            tried, deepest = tried + 1, max(deepest, len(path))
            with pytest.raises(INVALID):
                manifests.validate(mistyped(document, path))
    assert tried > 150
    assert deepest > 9
    assert kinds & {"JobSet", "TrainJob", "PyTorchJob"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("field", "value"), [("terminationGracePeriodSeconds", "60"), ("securityContext", [])])
def test_a_wrong_type_in_a_pod_is_caught(kind: str, field: str, value: object) -> None:
    for document in documents(*CASES[f"{kind}-large"]):
        for template in manifests.pod_templates(document):
            template["spec"][field] = value
            with pytest.raises(INVALID):
                manifests.validate(document)
            break


@pytest.mark.parametrize("kind", KINDS)
def test_rendering_twice_gives_the_same(kind: str) -> None:
    spec, of = CASES[f"{kind}-large"]
    assert SCHEDULER.render(spec, of) == SCHEDULER.render(spec, of)


@pytest.mark.parametrize("case", CASES)
def test_no_secret_is_written(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, f"the-value-of-{name}")
    assert "the-value-of" not in "".join(file.text for file in SCHEDULER.render(*CASES[case]))


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_root(case: str) -> None:
    for document in documents(*CASES[case]):
        for template in manifests.pod_templates(document):
            assert template["spec"]["securityContext"]["runAsNonRoot"] is True
            for container in template["spec"]["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]


@pytest.mark.parametrize("case", CASES)
def test_what_waits_wants_no_gpu(case: str) -> None:
    found = [
        container
        for document in documents(*CASES[case])
        for template in manifests.pod_templates(document)
        for container in template["spec"]["containers"]
        if container["name"] == "gate"
    ]
    assert len(found) == 3  # reward, ppo and evaluate wait
    assert not [each for each in found if "nvidia.com/gpu" in str(each["resources"])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_queue_sees_a_stage_only_when_it_may_run(kind: str) -> None:
    label = "kueue.x-k8s.io/queue-name"
    found = [each for each in documents(*CASES[f"{kind}-queued"]) if each["kind"].lower() == kind]
    assert [label in each["metadata"]["labels"] for each in found] == [True, False, False, False]
    suspended = [each["spec"].get("suspend", each["spec"].get("runPolicy", {}).get("suspend", False)) for each in found]
    assert suspended == [False, True, True, True]


def test_generators_are_announced_by_the_names_of_their_pods() -> None:
    text = "".join(file.text for file in SCHEDULER.render(*CASES["jobset-large"]))
    hosts = [f"http://rlhf-demo-ppo-generator-0-{node}.rlhf-demo-ppo:8000" for node in (0, 1)]
    assert f"ppo.generation.server.addresses=[{','.join(hosts)}]" in text


def test_a_server_beside_the_trainer_adds_its_gpus_to_the_pod() -> None:
    (ppo,) = (each for each in documents(*CASES["jobset-beside"]) if each["metadata"]["name"] == "rlhf-demo-ppo")
    jobs = ppo["spec"]["replicatedJobs"]
    assert [job["name"] for job in jobs] == ["gate", "trainer"]
    (container,) = jobs[1]["template"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8 + 2


def test_a_dollar_is_a_dollar() -> None:
    """Kubernetes replaces $(NAME) in commands and variables."""
    server = replace(generator(), command=("sh", "-c", "serve $(hostname) $$"))
    (ppo,) = (each for each in documents(chain(server), site(secret="s")) if each["metadata"]["name"].endswith("ppo"))
    (container,) = ppo["spec"]["replicatedJobs"][1]["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][2] == "serve $$(hostname) $$$$"


@pytest.mark.parametrize("name", ["demo", "A run, of Mine", "x" * 60, "llama3-8b-hh-multinode-with-a-long-name", "..."])
def test_names_are_labels_of_dns(name: str) -> None:
    for stage in ("", "sft", "evaluate"):
        found = name_of(replace(chain(), name=name), stage)
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
        assert len(f"{found}-generator-0-999-abcde") <= 63


def test_long_names_that_begin_alike_differ() -> None:
    names = {name_of(replace(chain(), name="x" * 60 + end), "sft") for end in "ab"}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"image": None}, "site kubernetes.image: is not set"),
        ({"claims": []}, "site kubernetes.claims: the run directory /runs/demo is in none that can be written"),
        ({"claims": [{"name": "a", "path": "/runs/demo"}]}, "site kubernetes.directory: pods have no /runs, where"),
        ({"claims": [{"name": "a", "path": "/runs", "read_only": True}]}, "site kubernetes.claims"),
        ({}, "site kubernetes.secret: generator of ppo answers other pods, and wants a token"),
        ({"kind": "pytorchjob", "secret": "s"}, "site kubernetes.kind=pytorchjob: has no pods for a generator"),
    ],
)
def test_what_is_missing_is_said_in_a_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        SCHEDULER.render(chain(generator()), site(**settings))
    assert [problem for problem in raised.value.problems if problem.startswith(line)]


def test_settings_that_pods_cannot_have_are_refused() -> None:
    small = site()
    setup = small.model_copy(update={"setup": ["module load cuda"]})
    with pytest.raises(ConfigError) as raised:
        SCHEDULER.render(chain(), setup)
    assert [problem.partition(":")[0] for problem in raised.value.problems] == [
        "site setup",
    ]


def test_a_site_with_a_typo_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("kubernetes:\n  claims: [{name: runs, path: runs}]\n  quue: research\n", encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        read_site(path)
    assert len(raised.value.problems) == 2
    assert "kubernetes.quue" in str(raised.value)
    assert "kubernetes.claims.0.path" in str(raised.value)
