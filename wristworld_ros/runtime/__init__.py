"""What runs a network: one backend interface, engines and their cache.

May import ``types`` and ``errors``; knows neither reconstruction nor generation.
"""
