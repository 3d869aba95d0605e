"""Virtual wrist camera for robots: third-person views in, wrist view out (WristWorld)."""

from pkgutil import extend_path

# The generated ROS messages (wristworld_ros.msg) may be installed elsewhere than this source tree.
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
