"""Preferences of a language model: any OpenAI-compatible chat endpoint as one annotator among others.

    questions.py     a pair and a rubric as two questions, one for each order; strict reading of the answers
    endpoint.py      the endpoint over HTTP: who may see the token, what is asked again and when
    pacing.py        requests per minute, waits that the server asks for, the budget of tokens
    journal.py       every answer as it comes, in a file that survives a kill
    asking.py        all that is missing in the journal, some questions at once
    votes.py         two answers to one vote: what changes with the order is a tie
    report.py        position bias, and agreement with people, with intervals

Loads no torch.
"""
