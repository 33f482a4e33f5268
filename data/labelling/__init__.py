"""Votes of people, by a Label Studio server: pairs are pushed to it as tasks, annotations are pulled as comparisons.

    pairs.py sampled.py      what is to be labelled: of files of examples, and of a run's samples
    order.py                 in which order, and which of them: prompt kinds in proportion, gold pairs in between
    ledger.py                what was pushed, which response was shown as A, what came back: files of a directory
    page.py                  what people see
    server.py                the server's interface, by its official SDK
    client.py access.py      how that is asked: what is repeated, errors of one line, the token
    pushing.py pulling.py watching.py      there, back, and back again while people vote
    annotations.py votes.py  from what the server holds to votes, strictly
    reporting.py ...         who agrees with whom, and what needs attention

Loads no torch. The server itself has an environment of its own (`launch.label_studio`).
"""
