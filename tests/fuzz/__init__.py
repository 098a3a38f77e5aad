"""Generated inputs for the parsers that read what clients send; ``python -m tests.fuzz --help`` tells how to run it.

A target is a function of bytes that gives the kind of the outcome, and may raise nothing but an error that clients
are answered with.  Inputs are made from valid ones, and are the same whenever the seed is the same.
"""
