"""Both nodes of the virtual wrist camera.

ros2 launch wristworld_ros virtual_wrist.launch.py cameras:=front,left pose_source:=kinematic
``--show-args`` lists the arguments. They, and the graph, are described in
``wristworld_ros.nodes.graph``, which ``wristworld up`` shares.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from wristworld_ros.nodes.graph import ARGUMENTS, PACKAGE, Argument, NodeSpec, build_graph
from wristworld_ros.nodes.process import dds_environment


def declare(argument: Argument) -> DeclareLaunchArgument:
    """Launch argument; the empty value leaves the choice to the parameter file."""
    choices = {"choices": ["", *argument.choices]} if argument.choices else {}
    return DeclareLaunchArgument(
        argument.name,
        default_value=argument.default,
        description=argument.description,
        **choices,
    )


def node(spec: NodeSpec) -> LifecycleNode:
    """Launch action of one node; it configures and activates itself (parameter autostart)."""
    return LifecycleNode(
        package=PACKAGE,
        executable=spec.executable,
        name=spec.executable,
        namespace=spec.namespace,
        parameters=[str(spec.params_file), dict(spec.parameters)],
        arguments=["--ros-args", "--log-level", spec.log_level],
        output="screen",
    )


def start(context: LaunchContext) -> list[LifecycleNode]:
    """The nodes for the values of the arguments."""
    values = {a.name: LaunchConfiguration(a.name).perform(context) for a in ARGUMENTS}
    return [node(spec) for spec in build_graph(values)]


def generate_launch_description() -> LaunchDescription:
    """Arguments, environment, nodes."""
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **dds_environment()}
    return LaunchDescription(
        [declare(argument) for argument in ARGUMENTS]
        + [SetEnvironmentVariable(name, value) for name, value in environment.items()]
        + [OpaqueFunction(function=start)]
    )
