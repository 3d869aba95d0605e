"""How good a generated wrist view is: metrics, baselines to beat, reports, sheets and videos.

May import everything below it (``generation``, ``reconstruction``, ``data``, ``geometry``).
"""
