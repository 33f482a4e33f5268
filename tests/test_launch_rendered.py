"""What `rlhf launch` would submit, word for word, and from what it follows. Nothing here is started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from documentation import split

from launch.clusters.hosts import HERE, Host, read_hosts
from launch.clusters.itinerary import ITINERARY, itinerary, read_itinerary
from launch.clusters.job import SECRETS, SECRETS_HERE, RunSpec
from launch.clusters.network import network_environment
from launch.clusters.over_ssh import OverSSH, gpus_of
from launch.clusters.processes import on_this_node
from launch.clusters.schedulers import MODULES, find_scheduler
from launch.clusters.site import Network, Site, read_site
from launch.clusters.specification import ADDRESSES, Wanted, interpreter, nodes_of, site_on, specify, with_generators
from rlhf.config import Recipe
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe
from stages.lineage import STAGES

BASELINES = Path(__file__).parent / "baselines"
RUN, DIRECTORY = Path("/shared/runs/tiny"), Path("/shared")
SITE = Site(
    python="/opt/rlhf/bin/python",
    setup=["module load cuda"],
    environment={"NCCL_DEBUG": "WARN", "WITH": "a space"},
    network=Network(interface="ib0", infiniband="mlx5_0,mlx5_1", timeout_minutes=20),
    ssh=["-i", "key"],
)
HOSTS = (Host("node-1", "10.0.0.1", slots=8), Host("node-2", "10.0.0.2", "me", 2222, 8), Host("node-3", "node-3"))


def recipe(*overrides: str) -> Recipe:
    return load_recipe(Path(__file__).parent / "recipes" / "tiny.yaml", overrides)


def spec(wanted: Wanted, *overrides: str, site: Site = SITE) -> RunSpec:
    return specify(with_generators(recipe(*overrides), wanted), RUN, DIRECTORY, wanted, site)


def same(name: str, text: str) -> None:
    """Equal to the file of that name; RLHF_WRITE_BASELINES=1 writes it."""
    if os.environ.get("RLHF_WRITE_BASELINES"):
        (BASELINES / name).write_text(text)
    assert text == (BASELINES / name).read_text()


EIGHT = Wanted(nodes="sft=1,reward=1,ppo=2,evaluate=1", gpus=8, hosts=HOSTS[:2])


@pytest.mark.parametrize("on", ["torchrun", "deepspeed"])
def test_two_nodes_of_eight_gpus(on: str) -> None:
    texts = find_scheduler(on).render(spec(EIGHT), SITE)
    same(f"launch-{on}.txt", "".join(f"# {each.name}\n{each.text}" for each in texts))


def test_local_keeps_to_the_gpus_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    (text,) = find_scheduler("local").render(spec(Wanted(gpus=2)), SITE)
    assert "export CUDA_VISIBLE_DEVICES=4,5\n" in text.text
    assert on_this_node({"CUDA_VISIBLE_DEVICES": "2,3"}) == {"CUDA_VISIBLE_DEVICES": "6,7"}


@pytest.mark.parametrize("name", [*SECRETS, *SECRETS_HERE])
def test_a_site_that_holds_a_secret_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(f"environment: {{{name}: s3cret}}\n")
    with pytest.raises(ConfigError) as error:
        read_site(tmp_path / "site.yaml")
    (line,) = error.value.problems
    assert f"site.yaml: environment: {name} is a secret; export it" in line


def test_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (text,) = find_scheduler("local").render(spec(Wanted(gpus=2)), SITE)
    same("launch-local.txt", text.text)


def test_generators_and_a_reward_server() -> None:
    wanted = Wanted(
        stages=("reward", "ppo"),
        nodes="ppo=2",
        gpus=8,
        generators="1",
        generator_gpus=4,
        generator_python="/opt/vllm/bin/python",
        reward_server="serve --port 8100",
        hosts=HOSTS,
    )
    (text, _) = find_scheduler("torchrun").render(spec(wanted, "reward.use=http://127.0.0.1:8100/score"), SITE)
    same("launch-servers.txt", text.text)


def test_nodes_read_what_was_rendered(tmp_path: Path) -> None:
    wanted = Wanted(nodes="2", gpus=8, generators="1", hosts=HOSTS)
    plan = itinerary("torchrun", spec(wanted), SITE)
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / ITINERARY).write_text(plan.text())
    assert read_itinerary(tmp_path) == plan


def test_stages_get_their_nodes() -> None:
    assert nodes_of(Wanted(nodes="4")) == dict.fromkeys(STAGES, 4)
    assert nodes_of(Wanted(nodes="2, ppo=4")) == {"sft": 2, "reward": 2, "ppo": 4, "evaluate": 2}
    for wrong in ("", "0", "x", "ppo=", "ppo=-1", "2.5"):
        with pytest.raises(ConfigError, match=r"--nodes=.*write a number of nodes, or one by stage"):
            nodes_of(Wanted(nodes=wrong))
    with pytest.raises(ConfigError, match="--nodes=pp=4: pp is not a stage"):
        nodes_of(Wanted(nodes="pp=4"))


def test_what_is_used_in_place_of_a_stage_takes_one_process() -> None:
    found = spec(Wanted(nodes="2", gpus=8, hosts=HOSTS), "reward.use=http://127.0.0.1:8100/score")
    assert [(job.trainer.nodes, job.trainer.processes, job.trainer.gpus) for job in found.jobs] == [
        *[(2, 8, 8), (1, 1, 1), (2, 8, 8), (2, 8, 8)]
    ]
    assert found.job("ppo").after == ("sft", "reward")


def test_processes_on_cpus_are_as_the_recipe_says() -> None:
    four = "parallelism.processes=4"
    assert {job.trainer.processes for job in spec(Wanted(nodes="2"), four).jobs} == {2}
    assert {job.trainer.processes for job in spec(Wanted(nodes="2")).jobs} == {1}
    with pytest.raises(ConfigError) as raised:
        spec(Wanted(nodes="3", processes=2), four)
    assert len(raised.value.problems) == 4
    assert raised.value.problems[0].startswith("sft: parallelism.processes=4 where there are 6 (3 x 2); use --nodes")


def test_generators_have_the_recipe_sample_by_vllm() -> None:
    wanted = Wanted(stages=("ppo",), gpus=8, generators="colocated", generator_gpus=2, hosts=(HERE,))
    generation = with_generators(recipe(), wanted).ppo.generation
    assert (generation.engine, generation.weights) == ("vllm", "server")
    generator, trainer = spec(wanted).job("ppo").roles
    assert trainer.processes == trainer.gpus == 6 and generator.gpus == 2
    assert trainer.environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5"
    assert generator.environment["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert generator.announced == ADDRESSES and generator.command[-2:] == ("--tensor-parallel-size", "2")
    assert "127.0.0.1" in generator.command, "beside its trainers nobody else has to reach it"


def test_generators_beside_the_trainers_of_two_hosts_are_all_asked_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """One server alone has the policy's weights from the main process; so PPO has to know them all."""
    monkeypatch.delenv("RLHF_GENERATION_TOKEN", raising=False)
    hosts = HOSTS[:2]
    found = spec(Wanted(stages=("ppo",), nodes="2", gpus=8, generators="colocated", generator_gpus=2, hosts=hosts))
    generator, trainer = found.job("ppo").roles
    assert (generator.nodes, trainer.nodes, trainer.gpus) == (2, 2, 6) and "0.0.0.0" in generator.command
    (leg,) = itinerary("torchrun", found, Site()).legs
    assert [server.node for server in leg.servers] == [0, 1]
    announced = ",".join(f"http://{host.address}:8000" for host in hosts)
    assert all(f"{ADDRESSES}=[{announced}]" in agent for agent in leg.agents)
    with pytest.raises(ConfigError, match="servers on other nodes want a token; set RLHF_GENERATION_TOKEN"):
        OverSSH("torchrun").check(found, Site())
    assert gpus_of(found, 0) == gpus_of(found, 1) == 8


@pytest.mark.parametrize(
    ("wanted", "overrides", "problem"),
    [
        ({"generators": "two"}, [], "--generators=two: write a number of nodes, or colocated"),
        ({"generators": "1", "stages": ("sft",)}, [], "--generators=1: PPO is not among the stages"),
        ({"generators": "colocated", "gpus": 8}, [], "--generators=colocated: needs some of the 8 GPUs"),
        (
            {"generators": "colocated", "nodes": "2"},
            [],
            "--generators=colocated: serves the node it is on, and PPO has 2",
        ),
        ({"generators": "1", "gpus": 4, "generator_gpus": 8}, [], "--generator-gpus=8: a node has --gpus 4"),
        ({"reward_server": "serve"}, [], "--reward-server: reward.use names no server"),
        (
            {"reward_server": "serve"},
            ["reward.use=http://node-7:8100/score"],
            "--reward-server: reward.use=http://node-7:8100/score is not asked on its own node",
        ),
    ],
)
def test_what_cannot_be_is_a_line(wanted: dict[str, object], overrides: list[str], problem: str) -> None:
    asked = Wanted(**wanted)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as raised:
        specify(recipe(*overrides), RUN, DIRECTORY, asked, SITE)
    assert raised.value.problems[0].startswith(problem)


def test_a_variable_has_a_variables_name(tmp_path: Path) -> None:
    """It is written into a shell's script as it stands."""
    (tmp_path / "site.yaml").write_text("environment: {'A;reboot': '1'}\n")
    with pytest.raises(ConfigError, match="environment: 'A;reboot' is no name of a variable"):
        read_site(tmp_path / "site.yaml")


def test_a_container_has_an_interpreter_of_its_own() -> None:
    container = Site.model_validate({"slurm": {"container": {"image": "registry/rlhf:1"}}})
    assert interpreter(site_on("slurm", container)) == "python"
    assert interpreter(site_on("local", container)) == interpreter(site_on("slurm", Site())) == sys.executable
    own = container.model_copy(update={"python": "/opt/python"})
    assert interpreter(site_on("slurm", own)) == "/opt/python"


def test_a_network_is_said_by_the_site_alone() -> None:
    assert not {"NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_IB_DISABLE"} & network_environment(Site()).keys()
    off = network_environment(Site(network=Network(infiniband="off", flight_recorder=False)))
    assert off["NCCL_IB_DISABLE"] == "1" and off["TORCH_FR_BUFFER_SIZE"] == "0"


def test_the_site_file_of_the_documentation(tmp_path: Path) -> None:
    blocks = split(Path(__file__).parents[1] / "docs" / "clusters.md")[0]
    (text,) = (block.text for block in blocks if block.text.startswith("python: "))
    (tmp_path / "site.yaml").write_text(text)
    site = read_site(tmp_path / "site.yaml")
    assert site.network.interface == "ib0" and site.ssh == ["-i", "~/.ssh/cluster"]


def test_no_secret_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "do-not-write-me")
    for on in ("local", "torchrun", "deepspeed"):
        assert "do-not-write-me" not in str(find_scheduler(on).render(spec(EIGHT), SITE))


def test_hostfiles_are_those_of_mpirun_and_deepspeed(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# mine\nnode-1 slots=8\n\nme@node-2:2222 slots=4 address=10.0.0.2 # fast\n")
    assert read_hosts(path) == (Host("node-1", "node-1", slots=8), Host("node-2", "10.0.0.2", "me", 2222, 4))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no host"),
        ("node-1 slot=8", "line 1: slot=8 is not known; write slots=PROCESSES or address=ADDRESS"),
        ("node-1 slots=many", "line 1: slots=many is no number of processes"),
        ("node-1\nnode-1", "line 2: node-1 is there twice"),
        ("node-1:99999", "line 1: node-1:99999 is no host"),
        ("-oProxyCommand=sh", "line 1: -oProxyCommand=sh is no host"),
        ("localhost\nnode-1", "localhost is another machine on each host"),
    ],
)
def test_a_wrong_hostfile_is_a_line(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_hosts(tmp_path / "hosts")
    assert problem in str(raised.value)


def test_schedulers_are_found_by_name() -> None:
    assert list(MODULES) == ["local", "torchrun", "deepspeed", "slurm", "kubernetes"]
    with pytest.raises(ConfigError, match="--on=sge: is no scheduler; use one of local, torchrun"):
        find_scheduler("sge")


def test_more_is_asked_for_than_hosts_give() -> None:
    scheduler = find_scheduler("torchrun")
    with pytest.raises(ConfigError, match="ppo: 3 nodes, 1 of them generators, and there are 2 hosts; name more"):
        scheduler.render(spec(Wanted(nodes="ppo=2", gpus=8, generators="1", hosts=HOSTS[:2])), SITE)
    with pytest.raises(ConfigError, match=r"sft: 16 processes on each node, and node-1 has slots=8; lower --gpus"):
        scheduler.render(spec(Wanted(gpus=16, hosts=HOSTS)), SITE)
    with pytest.raises(ConfigError, match=r"--gpus=64: this machine has \d+"):
        scheduler.check(spec(Wanted(gpus=64, hosts=(HERE,))), SITE)
    with pytest.raises(ConfigError, match="local is one machine, and ppo asks for more; use --on torchrun"):
        find_scheduler("local").check(spec(Wanted(nodes="ppo=2")), SITE)
