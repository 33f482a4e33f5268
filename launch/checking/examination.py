"""The whole check: nodes meet, look at themselves and at each other, and the first one judges."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from launch.checking import collectives, folders, gpus, network, versions
from launch.checking.finding import Facts, Finding, Level, by_node, failure, listed, ok, warning, worst
from launch.checking.meeting import Invitation, Meeting, Say, alone, meet
from launch.checking.node import Node, Question, look, own_name

Told = TypeVar("Told", bound=Facts)

CHECK = "nodes"
FACTS_SECONDS = 900.0  # a node reads all data of the recipe
SHORT_SECONDS = 60.0  # what takes a moment
ORDER = ("nodes", "versions", "gpus", "memory", "network", "clocks", "folder", "disk", "collectives", "services")


@dataclass(frozen=True)
class Verdict:
    """What all nodes get to know; findings and facts only the first one has."""

    level: Level
    speaks: bool  # this node is the first
    findings: tuple[Finding, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"level": self.level, "findings": [each.record() for each in self.findings], **self.facts}


def examine(question: Question, invited: Invitation | None, say: Say) -> Verdict:
    """Check this machine, or with an invitation all nodes together. Raises MeetingError, ConfigError."""
    meeting = alone(own_name()) if invited is None else meet(invited, own_name(), say)
    try:
        findings, facts = look_and_judge(question, meeting, say)
        if meeting.first:
            findings = absent(meeting, invited) + findings
            findings.sort(key=lambda each: ORDER.index(each.check) if each.check in ORDER else len(ORDER))
        level = meeting.exchange(worst(findings), SHORT_SECONDS)[0]
        return Verdict(level, meeting.first, tuple(findings), facts)
    finally:
        meeting.close()


def look_and_judge(question: Question, meeting: Meeting, say: Say) -> tuple[list[Finding], dict[str, Any]]:
    """All steps, which all nodes take together; only the first needs what they come to."""
    say("looking at the node and the recipe")
    given = meeting.exchange(look(question, meeting.name, meeting.address).model_dump(mode="json"), FACTS_SECONDS)
    nodes = understood(Node, given, meeting)
    say("writing in the run's folder")
    given = meeting.exchange(folders.Probe(question.run, meeting).look().model_dump(mode="json"), SHORT_SECONDS)
    found = understood(folders.Folder, given, meeting)
    seen = ask_each_other(meeting, nodes, say) if meeting.expected > 1 else {}
    result, errors, skipped = try_collectives(meeting, nodes, seen, say)
    if not meeting.first:
        return [], {}
    names = {rank: node.name for rank, node in nodes.items()}
    findings = judge(question, list(nodes.values()), names, seen)
    findings += folders.judge({names[rank]: each for rank, each in found.items() if rank in names}, names)
    if skipped:
        findings.append(warning(collectives.CHECK, f"not tried: {skipped}", "mend that first"))
    elif result is not None:
        findings += collectives.judge(result, names)
    else:
        told = "; ".join(f"{names[rank]}: {error}" for rank, error in errors.items()) or "no result"
        findings.append(failure(collectives.CHECK, told, "the first node that is named says most"))
    facts = {
        "nodes": [node.model_dump(mode="json", exclude={"findings"}) for node in nodes.values()],
        "folders": {names[rank]: each.model_dump() for rank, each in found.items() if rank in names},
        "links": {one: {other: it.model_dump() for other, it in row.items()} for one, row in seen.items()},
        "collectives": result,
    }
    return findings, facts


def understood(kind: type[Told], given: Mapping[int, Any], meeting: Meeting) -> dict[int, Told]:
    """What nodes have said, without those that run other code and say it otherwise."""
    found = {}
    for rank, told in given.items():
        try:
            found[rank] = kind.model_validate(told)
        except ValidationError:
            meeting.lost[rank] = "it says things that are not understood here: its rlhf is of another version"
    return found


def ask_each_other(meeting: Meeting, nodes: Mapping[int, Node], say: Say) -> dict[str, dict[str, network.Seen]]:
    """Each node opens a port and asks all others for the time; what each sees of each, by name."""
    say("asking the other nodes for the time")
    post = network.Post(meeting.address)
    try:
        given = meeting.exchange([meeting.address, post.port], SHORT_SECONDS)
        places = {rank: (str(address), int(port)) for rank, (address, port) in given.items()}
        seen = network.ask_all(places, meeting.rank)
        told = meeting.exchange({rank: each.model_dump() for rank, each in seen.items()}, SHORT_SECONDS)
    finally:
        post.close()
    rows = {one: {int(other): each for other, each in row.items()} for one, row in told.items() if one in nodes}
    return {
        nodes[one].name: {
            nodes[it].name: each for it, each in understood(network.Seen, row, meeting).items() if it in nodes
        }
        for one, row in rows.items()
    }


def try_collectives(
    meeting: Meeting, nodes: Mapping[int, Node], seen: Mapping[str, Mapping[str, network.Seen]], say: Say
) -> tuple[dict[str, Any] | None, dict[int, str], str | None]:
    """The result, what went wrong by rank of the node, or why it was not tried. All nodes decide alike."""
    port = 0
    if meeting.first:
        with socket.socket(socket.AF_INET6 if ":" in meeting.address else socket.AF_INET) as probe:
            probe.bind((meeting.address, 0))
            port = int(probe.getsockname()[1])
    given = meeting.exchange([meeting.address, port], SHORT_SECONDS)
    if min(len(given), len(nodes)) < meeting.expected:
        return None, {}, "not all nodes are here"
    if any(each.error for row in seen.values() for each in row.values()):
        return None, {}, "not every node reaches every other one"
    if any("torch" not in node.versions.packages for node in nodes.values()):
        return None, {}, "torch is not installed"
    if any(node.gpus.visible and node.processes > node.gpus.visible for node in nodes.values()):
        return None, {}, "there are more processes than GPUs"
    counts = [nodes[rank].processes for rank in sorted(nodes)]
    seconds = collectives.seconds_for(len(counts), max(counts))
    say(f"trying collectives over {sum(counts)} processes")
    host = (str(given[0][0]), int(given[0][1]))
    result, error = collectives.measure(meeting.rank, counts, host, meeting.address, meeting.waited_for)
    told = meeting.exchange({"error": error}, seconds + SHORT_SECONDS)
    return result, {rank: each["error"] for rank, each in told.items() if each["error"]}, None


def judge(
    question: Question, nodes: list[Node], names: Mapping[int, str], seen: Mapping[str, Mapping[str, network.Seen]]
) -> list[Finding]:
    """What the nodes' facts say, each for itself and beside each other."""
    several = len(nodes) > 1
    findings = by_node({node.name: node.own(several, question.recipe) for node in nodes})
    differing = versions.judge_all({node.name: node.versions for node in nodes})
    if not any(each.check == versions.CHECK for each in findings) and not differing:
        findings.append(versions.summary(nodes[0].versions, versions.tested_versions()))
    findings += differing
    if not several:
        return findings
    findings += gpus.judge_all({node.name: node.gpus for node in nodes})
    findings += network.judge_interfaces({node.name: node.interfaces for node in nodes})
    findings += network.judge_ports(seen) + network.judge_clocks([names[rank] for rank in sorted(names)], seen)
    if odd := [node.name for node in nodes if node.recipe != nodes[0].recipe]:
        what = f"{listed(odd)}: the recipe reads otherwise there than on {nodes[0].name}"
        findings.append(failure("recipe", what, "give all nodes the same file and the same overrides"))
    if odd := [node.name for node in nodes if node.processes != nodes[0].processes]:
        what = f"{listed(odd)}: another number of processes than the {nodes[0].processes} of {nodes[0].name}"
        findings.append(warning("gpus", what, "use nodes that are alike, or give all the same --processes"))
    return findings


def absent(meeting: Meeting, invited: Invitation | None) -> list[Finding]:
    """Who has not come, or left."""
    if invited is None:
        return []
    came = listed(list(meeting.names.values()))
    found = []
    if missing := meeting.missing:
        ranks = f"node rank{'s' if len(missing) > 1 else ''} {listed([str(rank) for rank in missing])}"
        what = f"{len(meeting.names)} of {invited.nodes} came within {invited.seconds:g} s ({came}); missing: {ranks}"
        remedy = f"start the same command there, and see that it reaches {invited.place}"
        found.append(failure(CHECK, what, remedy))
    for rank, why in meeting.lost.items():
        what = f"{meeting.names[rank]} left before the end: {why}"
        found.append(failure(CHECK, what, "its own output says more"))
    return found or [ok(CHECK, f"{came} met at {invited.place}")]
