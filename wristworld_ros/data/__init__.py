"""Sources of AnchorFrames: bags, video folders, simulated episodes; and bags as output.

May import ``types``, ``errors`` and ``geometry``; knows no ROS installation and no model.
"""
