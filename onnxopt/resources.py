"""Finds the folders that travel with the package (GPU profiles, kernel sources, plugins) wherever it is installed."""

from __future__ import annotations

from pathlib import Path

from onnxopt.errors import MissingError

_PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """The folder `name`, such as "profiles": inside an installed wheel, or at the top of a checkout.

    The wheel's copy is looked up first: beside an installed package stand other people's folders. Raises MissingError
    where neither place has it.
    """
    places = (_PACKAGE / "_data" / name, _PACKAGE.parent / name)
    for place in places:
        if place.is_dir():
            return place
    looked = " and ".join(str(place) for place in places)
    raise MissingError(
        f"the folder {name!r} that belongs to onnxopt is missing (looked at {looked}); "
        "reinstall it with `pip install --force-reinstall onnxopt`"
    )
