"""Every command and snippet of the README and of `docs/` runs as written, and every link leads somewhere.

A section (from one `##` heading to the next) is one test, in a folder of its own with the bundled model, `texts/`,
`book.txt` and `examples/`. Its blocks run from top to bottom:

    ```sh       each line is a command. Lines that only call `gpt2-tf` run in this process, which has TensorFlow loaded.
    ```python   the blocks of a section share their names.
    ```text     is checked where `<!-- output -->` stands above it: it is what the block before has printed.

`<!-- slow -->` above a block marks its section as slow; `<!-- not run: REASON -->` above a block leaves it out.
"""

import collections
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from gpt2_tf.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
TOPICS = {
    *("architecture", "evaluation", "faithfulness", "migrating", "performance", "sampling", "scaling", "serving"),
    *("training", "troubleshooting", "weights"),
}
# The reason for each block that isn't run, and how many blocks have it.
NOT_RUN = {
    "needs the network": 8,
    "needs Docker": 2,
    "needs a run that was stopped": 1,
    "runs all tests": 2,
    "needs PyTorch and a checkpoint": 1,
    "takes minutes": 4,
    "takes half an hour": 1,
    "takes hours": 1,
}
TEXT = """\
ROMEO:
But, soft! what light through yonder window breaks?
It is the east, and Juliet is the sun.

JULIET:
Good night, good night! parting is such sweet sorrow,
That I shall say good night till it be morrow.

"""


class Block(NamedTuple):
    language: str
    text: str
    comments: tuple[str, ...]

    @property
    def reason(self) -> str | None:
        """Why the block isn't run; None if it is."""
        return next((comment[9:] for comment in self.comments if comment.startswith("not run: ")), None)


class Section(NamedTuple):
    name: str
    slow: bool
    blocks: list[Block]


def sections(page: Path) -> list[Section]:
    """The page's sections that have a block of code. What comes before the first `##` heading is a section too."""
    found = [Section(page.stem, False, [])]
    comments, lines = [], iter(page.read_text("utf-8").split("\n"))
    for line in lines:
        if line.startswith("## "):
            found.append(Section(f"{page.stem}: {line[3:]}", False, []))
            comments = []
        elif comment := re.fullmatch(r"<!-- (.+) -->", line):
            comments.append(comment[1])
            if comment[1] == "slow":
                found[-1] = found[-1]._replace(slow=True)
        elif line.startswith("```"):
            text = "\n".join(iter(lambda: next(lines), "```"))
            found[-1].blocks.append(Block(line[3:], text, tuple(comments)))
            comments = []
        elif line:
            comments = []
    return [section for section in found if section.blocks]


ALL = [section for page in PAGES for section in sections(page)]
BLOCKS = [block for section in ALL for block in section.blocks]


def cases():
    for section in ALL:
        if any(block.language in ("sh", "python") and not block.reason for block in section.blocks):
            yield pytest.param(section, id=section.name, marks=[pytest.mark.slow] * section.slow)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder that a reader is in: with texts, the repository's examples, and `gpt2-tf` and `python` in the PATH."""
    work, scripts = tmp_path / "work", tmp_path / "bin"
    (work / "texts").mkdir(parents=True)
    scripts.mkdir()
    for name in ("texts/one.txt", "texts/two.txt", "book.txt", "tinyshakespeare.txt"):
        (work / name).write_text(TEXT * 20)
    (work / "examples").symlink_to(ROOT / "examples")
    for name, command in (("python", ""), ("gpt2-tf", "-m gpt2_tf")):
        (scripts / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {command} "$@"\n')
        (scripts / name).chmod(0o755)
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    return work


def run_command(command: str) -> None:
    """Runs one command of a shell; AssertionError unless it succeeds."""
    words = shlex.split(command, comments=True)
    bare = re.sub(r"'[^']*'|\"[^\"$`]*\"", "", command)  # a quoted character is no operator of the shell
    if words[:2] == ["pip", "install"]:
        # Installing is tests/test_install.py's. Here, the extras must exist.
        extras = re.search(r"\[([\w,-]+)\]", command)
        known = set(re.findall(r'^        "([\w-]+)": ', (ROOT / "setup.py").read_text("utf-8"), re.MULTILINE))
        assert not extras or set(extras[1].split(",")) <= known, f"an unknown extra: {command}"
        if "&&" in command:
            run_command(command.partition("&&")[2].strip())
    elif words[0] == "gpt2-tf" and not re.search(r"[|<>&;$`*]", bare.partition(" #")[0]):
        assert main(words[1:]) == 0, f"it failed: {command}"
    else:
        ran = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", command], stdin=subprocess.DEVNULL, timeout=300)
        assert ran.returncode == 0, f"it failed: {command}"


@pytest.mark.parametrize("section", list(cases()))
def test_its_commands_and_snippets_run(section, folder, capfd):
    names, printed = {"__name__": "__main__"}, ""
    for block in section.blocks:
        if block.reason:
            continue
        if block.language == "text" and "output" in block.comments:
            assert printed.rstrip("\n") == block.text
        if block.language == "sh":
            capfd.readouterr()
            for command in re.sub(r"\\\n", "", block.text).splitlines():
                if command and not command.startswith("#"):
                    run_command(command)
            printed = capfd.readouterr().out
        elif block.language == "python":
            capfd.readouterr()
            exec(compile(block.text, section.name, "exec"), names)
            printed = capfd.readouterr().out


def test_blocks_are_left_out_for_these_reasons_only():
    assert collections.Counter(block.reason for block in BLOCKS if block.reason) == NOT_RUN


def test_languages_are_known():
    assert {block.language for block in BLOCKS} <= {"sh", "python", "text", "json", "mermaid"}


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"(?ms)^```.*?^```$", "", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text("utf-8"))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    # A file of the repository that is named in the text.
    named = re.findall(r"`((?:gpt2_tf|encoder|tests|examples|docs)/[\w/.-]*)`", text)
    assert not broken + [path for path in named if not (ROOT / path).exists()]


def test_every_topic_has_a_page_and_the_readme_links_to_it():
    assert {page.stem for page in PAGES[2:]} == TOPICS
    readme = PAGES[0].read_text("utf-8")
    assert not [topic for topic in TOPICS if f"](docs/{topic}.md" not in readme]


def test_the_readme_is_short():
    assert len(PAGES[0].read_text("utf-8").splitlines()) <= 150
