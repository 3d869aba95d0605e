"""Geometry of the virtual view: cameras, transforms, TF tree, clouds, splatting.

May import only ``types`` and ``errors``.
"""
