"""Experiments on the paper's claims about stage 1; each is one ``wristworld experiment NAME``.

May import everything but ``cli`` and ``nodes``; only ``cli`` imports it.
"""
