"""README.md says what was measured, by commands and files that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_its_figures_are_those_of_the_stored_results() -> None:
    command = [sys.executable, str(ROOT / "tools/readme_figures.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert len(local) >= 4
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_its_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^ {4}|`)make ([a-z]+)\b", README, re.MULTILINE))
    assert {"demo", "test", "figures"} <= targets
    assert {t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)} == set()


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README and "TODO" not in README
