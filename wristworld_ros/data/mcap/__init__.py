"""MCAP container (https://mcap.dev/spec), record by record; knows nothing of ROS messages.

``McapReader`` goes on where a file is truncated or altered and lists what was lost;
``McapWriter`` is deterministic and adds checksums.
"""

from wristworld_ros.data.mcap.compression import ZstdError
from wristworld_ros.data.mcap.reader import McapReader
from wristworld_ros.data.mcap.records import Channel, Message, Schema
from wristworld_ros.data.mcap.writer import McapWriter

__all__ = ["Channel", "McapReader", "McapWriter", "Message", "Schema", "ZstdError"]
