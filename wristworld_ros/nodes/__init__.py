"""ROS 2 nodes: convert messages, call the core, publish. The only place that imports rclpy.

May import everything below it (data, evaluation, generation, reconstruction, geometry, types).
"""
