"""The two lists of requirements agree, and every range has a reason."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parent.parent


def requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def name_of(requirement):
    return re.split(r"[\[>]", requirement)[0]


def test_library_requirements_are_listed_alike():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {line.split("#")[0].strip() for line in requirements()}
    assert set(project["dependencies"]) <= listed
    extras = project["optional-dependencies"]
    peers = extras.pop("bench")  # only measured against, hence in no requirement list
    for extra in extras.values():
        assert set(extra) <= listed
    assert not {name_of(peer) for peer in peers} & {name_of(line) for line in listed}


def test_every_requirement_has_a_range_and_a_reason():
    for line in requirements():
        requirement, _, reason = line.partition("#")
        assert re.match(r"[a-zA-Z0-9_\[\]-]+>=", requirement), line
        assert reason.strip(), line


def test_version_is_stated_once_more_only():
    import mtl_jax

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == mtl_jax.__version__
