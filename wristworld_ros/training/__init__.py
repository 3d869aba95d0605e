"""Training of every shipped network: resumable loops, losses, data sets.

May import ``data``, ``generation``, ``reconstruction`` and below; no ROS.
"""
