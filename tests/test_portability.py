"""Other machines: the tools and the bash of macOS, a busy machine."""

import io
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
from unittest.mock import Mock

import pytest
from conftest import ROOT

from utils import load
from utils.log import log_to_terminal, logger

SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("scripts/*.sbatch"), ROOT / ".ci/run"])
# POSIX tools that the scripts may use; those of BSD know no long options, and a Mac has no nproc, timeout or realpath.
TOOLS = ("cat", "dirname", "id", "mkdir", "uname")
BASH_4 = r"mapfile|readarray|declare -A|local -n|wait -n|coproc|\$\{\w+(,|\^)|&>>|\|&|\[\[ -v|%\(.*\)T"
OLD = f"""exec {sys.executable} -c 'import sys; sys.version_info = 3, 9; sys.path[0] = "{ROOT}"; import utils'"""
PYTHON = """#!/bin/sh
echo "$* OMP_NUM_THREADS=${OMP_NUM_THREADS:-}" >>"$CALLS"
case "$*" in "-m utils.load") echo 1;; esac
"""


@pytest.fixture
def mac(tmp_path):
    """``mac(SCRIPT, ARGS...)`` starts a script as on a Mac and returns the calls of Python."""
    for name in TOOLS:
        text = f'#!/bin/sh\nfor a; do case $a in --*) exit 64;; esac; done\nexec {shutil.which(name)} "$@"\n'
        (tmp_path / name).write_text(text)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "bash").symlink_to(shutil.which("bash"))
    for path in tmp_path.iterdir():
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {"PATH": str(tmp_path), "PYTHON": "./python", "CALLS": str(tmp_path / "calls.txt")}
    environment["CDPATH"] = f"{tmp_path}:{ROOT}"  # with it cd prints the folder

    def start(script, *args):
        command = [str(tmp_path / "bash"), str(ROOT / "scripts" / script), *args]
        settings = {"cwd": tmp_path, "env": environment | {"BASH_COMPAT": "3.2"}, "capture_output": True, "text": True}
        ended = subprocess.run(command, **settings)
        assert ended.returncode == 0, ended.stderr
        return (tmp_path / "calls.txt").read_text() + ended.stdout

    return start


def test_the_scripts_run_with_the_tools_of_a_mac(mac, tmp_path):
    calls = mac("quickstart.sh", "my results")
    assert len(re.findall(r"main\.py --method .* OMP_NUM_THREADS=1\n", calls)) == 3, "one core is busy"
    assert f"--root_path {tmp_path}/my results --resume" in calls and calls.count("main_eval.py") == 3
    assert "-m pytest -n auto -k name OMP_NUM_THREADS=1" in mac("test.sh", "--all", "-k", "name")
    assert "scripts/sweep.py --list" in mac("sweep.sh", "--list")
    assert mac("setup.sh").splitlines()[-1] == f"{tmp_path}/./python"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_do_not_need_bash_4(script):
    assert not re.findall(BASH_4, script.read_text())
    subprocess.run(["bash", "--posix", "-n", script], check=True)


@pytest.mark.parametrize(("busy", "free"), [(0, 2), (9, 1), (100, 1)])
def test_cores_that_other_processes_use_are_not_free(monkeypatch, busy, free):
    monkeypatch.setattr(load, "CORES", {"cpu0", "cpu1"})
    monkeypatch.setattr(load, "_START", (0, 0))
    monkeypatch.setattr(load, "_times", lambda: (10, busy))
    assert load.free_cores() == free


def test_where_the_system_does_not_know_its_load_all_cores_are_free(monkeypatch):
    monkeypatch.setattr("builtins.open", Mock(side_effect=FileNotFoundError))
    monkeypatch.setattr(load, "_START", load._times())
    assert load.free_cores() == len(load.CORES)


@pytest.mark.parametrize(("python", "message"), [(None, "set PYTHON"), (OLD, "3.10 or later is req"), ("", "no venv")])
def test_setup_names_what_is_missing_and_leaves_no_half_environment(tmp_path, python, message):
    script = tmp_path / "scripts" / "setup.sh"
    script.parent.mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", script)
    if python is not None:  # without python3-venv the interpreter is there before it fails
        made = "mkdir -p .venv/bin; cp $0 .venv/bin/python; echo no venv >&2; exit 1"
        (tmp_path / "python3").write_text(f'#!/bin/sh\ncase "$*" in "-m venv"*) {made};; *utils*) {python};; esac\n')
        (tmp_path / "python3").chmod(0o755)
    for name in ("bash", "dirname", "mkdir", "cp", "rm"):
        (tmp_path / name).symlink_to(shutil.which(name))
    ended = subprocess.run(["bash", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert ended.returncode and message in ended.stderr and not (tmp_path / ".venv/bin/python").exists()


def test_setup_replaces_an_interpreter_that_is_gone(tmp_path):
    made = "[ -L .venv/bin/python ] || ln -s ../../python3 .venv/bin/python"  # a link is kept, as by the module venv
    files = {"scripts/setup.sh": (ROOT / "scripts/setup.sh").read_text(), ".venv/bin/activate": ""}
    files["python3"] = f'#!/bin/sh\ncase "$*" in "-m venv"*) {made};; esac\n'
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / ".venv/bin/python").symlink_to("/nowhere/python3.9")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = subprocess.run(["bash", tmp_path / "scripts/setup.sh"], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, f"{tmp_path}/.venv/bin/python\n"), ended.stderr


def test_figures_do_not_depend_on_the_settings_of_matplotlib(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    code = "from utils.plots import matplotlib as m; print(m.rcParams['text.usetex'], m.get_backend())"
    environment = os.environ | {"MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "nonsense"}
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True)
    assert printed.split() == ["False", "agg"]


def test_a_closed_standard_error_is_the_null_device_and_characters_that_a_terminal_cannot_show_are_escaped(monkeypatch):
    terminal, root = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), logging.getLogger()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", None)  # 2>&-
    monkeypatch.setattr(root, "handlers", root.handlers[:])
    log_to_terminal()
    logger.info("ünï")
    terminal.seek(0)
    assert terminal.read() == "\\xfcn\\xef\n" and not sys.stderr.isatty()


def test_the_quickstart_has_a_folder_and_no_options(tmp_path):
    command = ["bash", str(ROOT / "scripts" / "quickstart.sh"), "--help"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, [*tmp_path.iterdir()]) == (2, "", []) and "usage:" in ended.stderr
