"""Simulated tabletop episodes: robots, objects and cameras in MuJoCo, scripted and deterministic.

Imports types and geometry only. MuJoCo and an offscreen OpenGL (EGL or OSMesa) are needed to
render; ``splits`` and ``shards.read_shard`` work without them.
"""
