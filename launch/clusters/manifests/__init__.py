"""Manifests for Kubernetes, from specifications alone: nothing here asks a cluster, or this machine.

settings     the site's section `kubernetes`
pods         what every pod has: image, volumes, environment, resources, placement, security
jobs         roles as Jobs: what is tried again, what ends at once, who waits for whom
jobset, trainjob, pytorchjob    one stage each, in the kind that the cluster knows
gate         what holds a stage back until its inputs are complete
objects      names, labels, YAML
states       what `kubectl get -o json` says of a stage
"""
