"""Kills, damaged files and closed streams at random moments of random commands; a sample runs with the other tests.

    PYTHONPATH=tests python -m faults --count 1000 --seed 0

runs more of them, in a folder of their own, and prints a line for each that lost or hid anything.
"""
