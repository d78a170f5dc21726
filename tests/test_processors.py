"""Processors by affinity and by the quotas of control groups of both versions."""

import os

import pytest

from diptych import processors


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Eight processors; a callable that says which groups hold this process and their files."""
    monkeypatch.setattr(processors, "_affinity", lambda: 8)
    monkeypatch.setattr(processors, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(processors, "MOUNTED", tmp_path / "mounted")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def write(groups, **files):
        (tmp_path / "groups").write_text(groups)
        for name, text in files.items():
            file = tmp_path / "mounted" / name.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    return write


def v1(folder, quota, period=100_000):
    return {
        f"{folder}__cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}__cpu.cfs_period_us": f"{period}\n",
    }


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # rounded up
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),  # more than there are
        ("0::/\n", {}, 8),  # the root of a machine has no such file
        ("0::/pod/a\n", {"pod__cpu.max": "300000 100000\n", "pod__a__cpu.max": "max 100000\n"}, 3),
        ("0::/../other\n", {"cpu.max": "what"}, 8),
        ("3:cpuset:/\n1:cpu:/\n", v1("cpu", 400_000), 4),
        ("1:cpu:/\n", v1("cpu", -1), 8),
        ("4:cpu,cpuacct:/docker/1f\n", v1("cpu,cpuacct", 250_000), 3),  # the host's path
        ("1:cpu:/a\n0::/\n", v1("cpu__a", 100_000) | {"cpu.max": "300000 100000\n"}, 1),
    ],
)
def test_the_least_quota_counts(machine, groups, files, expected):
    machine(groups, **files)
    assert processors.num_processors() == expected


def test_without_control_groups(machine):
    assert processors.num_processors() == 8


def test_torch_is_told_of_a_quota_alone(machine, monkeypatch):
    processors.obey_quota()
    assert "OMP_NUM_THREADS" not in os.environ
    machine("0::/\n", **{"cpu.max": "300000 100000\n"})
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    processors.obey_quota()
    assert os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
    processors.obey_quota()
    assert os.environ.pop("OMP_NUM_THREADS") == "3"
