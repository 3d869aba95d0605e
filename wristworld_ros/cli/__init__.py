"""The command ``wristworld``: one module for each verb, found by ``main``.

May import everything of the package; a verb imports what is slow inside ``run``.
"""
