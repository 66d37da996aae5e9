"""What a package index shows: the metadata of the wheel, whose links lead there from anywhere."""

import re
import tomllib
import zipfile
from email import message_from_string

import pytest
from hatchling.builders.wheel import WheelBuilder

import finecal
from pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINK = re.compile(r'\]\(([^)\s]+)\)|(?:src|srcset|href)="([^"]+)"')


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


def links(text):
    return ["".join(found) for found in LINK.findall(text)]


def test_no_link_is_relative(metadata):
    """Each link of the README is there: with the tag of this version before a file, as it was elsewhere."""
    tag = f"v{finecal.__version__}"
    here, there = (links(text) for text in ((ROOT / "README.md").read_text(encoding="utf-8"), metadata.get_payload()))
    assert len(here) == len(there) > 15
    for link, target in zip(here, there, strict=True):
        if link.startswith("https://"):
            assert target == link
        else:
            assert (ROOT / link.partition("#")[0]).is_file()
            assert target in (f"{PROJECT['urls']['Source']}/{kind}/{tag}/{link}" for kind in ("blob", "raw"))


def test_pictures_are_files_themselves(metadata):
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', metadata.get_payload())
    assert len(pictures) >= 4
    assert all("/raw/" in picture for picture in pictures)


def test_one_address(metadata):
    """Whoever publishes under another address replaces it everywhere with one command, of pyproject.toml."""
    urls = dict(entry.split(", ", 1) for entry in metadata.get_all("Project-URL"))
    assert set(urls) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    source = urls.pop("Source")
    assert urls.pop("Documentation").startswith("https://")
    assert all(url.startswith(source) for url in urls.values())
    hidden = [path for path in (ROOT / ".github").rglob("*") if path.suffix in (".md", ".yml", ".yaml")]
    for path in (ROOT / "pyproject.toml", *hidden):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"https://github\.com/\w+/finecal\b", text)) <= {source}, path


def test_classifiers_have_the_oldest_python(metadata):
    versions = [entry.rsplit(" ", 1)[1] for entry in metadata.get_all("Classifier") if ":: 3." in entry]
    assert f">={versions[0]}" == metadata["Requires-Python"]
