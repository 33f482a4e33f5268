"""What would keep a run from starting, or make it slow: asked of machine, network and recipe before the queue is.

One module a subject. Each has what a node tells of itself (`look`) and what follows from all that was told (`judge`),
so that every verdict can be tested without the machine that earns it. Loads no torch: collectives are tried by
`stages.collectives`, in processes of its own.
"""
