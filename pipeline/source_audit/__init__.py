"""Mutation testing of the Paddle side: is every line of it seen by the verification?

``bisenet audit --source`` changes one place of for_paddle/ at a time, on a copy, runs the steps
that execute the place and looks whether a number gives it away.

=================  =================================================================================
source.py          a file with exact positions of its nodes and tokens
scope.py           what is never changed, by rule: documentation, annotations, error paths, imports
operators.py       the changes, node by node
mutants.py         all mutants of all files, their ids, a changed copy of the package
experiments.py     configurations, steps and sizes; which of them are run for a mutant
server.py          Paddle's process: imported once, forked for every run
workers.py         its client
pool.py            several of them at work
reference.py       Torch's records and the unchanged Paddle's, kept by content; executed lines
trial.py           one mutant: its runs, its verdict
equivalent.py      changes that change nothing that could be observed, with the reason
store.py           results by (mutant, digest of what decides), one line each
campaign.py        all of it together
findings.py        the matrix: catch rate by file, survivors
=================  =================================================================================
"""
