"""What a GPU or a CPU can do: the machine limits and rates that planning and prediction read."""

from onnxopt.target.device import Device, find_device
from onnxopt.target.figures import CpuProfile, GpuProfile, read_cpu_profile, read_profile
from onnxopt.target.profile import Target, gpu_profiles, load_target

__all__ = [
    "CpuProfile",
    "Device",
    "GpuProfile",
    "Target",
    "find_device",
    "gpu_profiles",
    "load_target",
    "read_cpu_profile",
    "read_profile",
]
