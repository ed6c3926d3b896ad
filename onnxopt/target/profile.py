"""From the name of a target to what is known about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.target.architecture import ARCHITECTURES, plain_name
from onnxopt.target.device import find_device
from onnxopt.target.figures import CpuProfile, GpuProfile, read_cpu_profile, read_profile

__all__ = [
    "CpuProfile",
    "GpuProfile",
    "Target",
    "gpu_profiles",
    "load_target",
    "read_cpu_profile",
    "read_profile",
]


@dataclass(frozen=True)
class Target:
    """What a model is optimised for.

    ``name`` is canonical: ``cpu`` or an architecture such as ``sm_89``. Exactly one of ``cpu`` and
    ``architecture`` is set. ``gpu`` is None for an architecture that no profile describes yet: engines can be
    built for it, predictions cannot be made. ``device`` is the ordinal of this machine's GPU where ``auto``
    found one, and ``note`` says what a user should know about the choice; it may be empty.
    """

    name: str
    cpu: CpuProfile | None = None
    architecture: str | None = None
    gpu: GpuProfile | None = None
    device: int | None = None
    note: str = ""

    @property
    def is_cpu(self) -> bool:
        """Whether this is the CPU rather than a GPU."""
        return self.architecture is None

    def need_gpu_profile(self) -> GpuProfile:
        """The GPU's profile, for predictions; raises InputError naming the profiles that exist."""
        if self.gpu is None:
            known = ", ".join(f"{p.architecture} ({p.name})" for p in gpu_profiles()) or "none"
            raise InputError(
                f"target '{self.name}' has no profile to predict times with; profiles exist for: {known}. "
                "Choose one of them, or add a profile in the folder profiles"
            )
        return self.gpu


def load_target(name: str, folder: Path | None = None) -> Target:
    """The target of a name: ``cpu``, an architecture (``sm_89``), a GPU's name in any case, or ``auto``.

    ``auto`` is the GPU of this machine where there is one, else ``cpu``. ``folder`` holds the profiles; by
    default those that come with the package. Raises InputError for any other name, or a damaged profile.
    """
    wanted = plain_name(name)
    if wanted == "auto":
        return _found(folder)
    if wanted == "cpu":
        return _cpu(folder)
    architecture = wanted.replace(" ", "_")
    if architecture in ARCHITECTURES:
        return _gpu(architecture, folder)
    profiles = gpu_profiles(folder)
    for profile in profiles:
        if wanted in map(plain_name, (profile.name, *profile.aliases)):
            return Target(profile.architecture, architecture=profile.architecture, gpu=profile)
    for architecture, stand_in in ARCHITECTURES.items():
        if wanted == plain_name(stand_in):
            return _gpu(architecture, folder)
    described = {p.architecture for p in profiles}
    names = sorted([p.name for p in profiles] + [s for a, s in ARCHITECTURES.items() if a not in described])
    raise InputError(
        f"unknown target {name[:80]!r}; allowed: cpu, auto, {', '.join(ARCHITECTURES)}, "
        f"or a GPU's name: {', '.join(names)}"
    )


def gpu_profiles(folder: Path | None = None) -> list[GpuProfile]:
    """All GPU profiles of the folder, by file name; raises InputError for a damaged one."""
    folder = folder or _profile_folder()
    return [read_profile(path) for path in sorted(folder.glob("*.json")) if path.name != "cpu.json"]


def _cpu(folder: Path | None, note: str = "") -> Target:
    return Target("cpu", cpu=read_cpu_profile((folder or _profile_folder()) / "cpu.json"), note=note)


def _gpu(architecture: str, folder: Path | None) -> Target:
    stand_in = plain_name(ARCHITECTURES[architecture])
    same = [p for p in gpu_profiles(folder) if p.architecture == architecture]
    named = [p for p in same if stand_in in map(plain_name, (p.name, *p.aliases))]
    return Target(architecture, architecture=architecture, gpu=next(iter(named + same), None))


def _found(folder: Path | None) -> Target:
    search = find_device()
    device = search.device
    if device is None:
        return _cpu(folder, note=f"no GPU found: {search.reason}")
    if device.architecture not in ARCHITECTURES:
        return _cpu(folder, note=f"the GPU found ({device.name}, {device.architecture}) is not supported")
    for profile in gpu_profiles(folder):
        # Every Jetson of a generation has the same name, and a part of a GPU can have the name of the whole.
        whole = (profile.architecture, profile.multiprocessors) == (device.architecture, device.multiprocessors)
        if whole and plain_name(device.name) in map(plain_name, (profile.name, *profile.aliases)):
            return Target(profile.architecture, architecture=profile.architecture, gpu=profile, device=device.ordinal)
    stand_in = _gpu(device.architecture, folder)
    described = stand_in.gpu.name if stand_in.gpu else "no profile"
    note = f"{device.name} has no profile of its own; {described} stands for {device.architecture}"
    return Target(stand_in.name, architecture=stand_in.architecture, gpu=stand_in.gpu, device=device.ordinal, note=note)


def _profile_folder() -> Path:
    from onnxopt.resources import resource_dir

    return resource_dir("profiles")
