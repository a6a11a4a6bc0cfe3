"""mountinfo is parsed as the kernel writes it, on examples and on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnapshot.mounts import Mount, parse_mountinfo, partition_count, read_mounts, visible

UBUNTU = b"""\
22 27 0:21 / /proc rw,nosuid - proc proc rw
24 27 0:6 / /dev rw,nosuid - devtmpfs udev rw,size=4k
27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw,discard
31 27 0:25 / /run rw,nosuid shared:5 - tmpfs tmpfs rw,size=4k
90 27 8:15 / /boot/efi rw,relatime shared:30 - vfat /dev/sda15 rw,fmask=0077
92 27 8:17 / /mnt rw,relatime shared:32 master:1 - ext4 /dev/sdb1 rw
93 27 8:1 /home /srv/home rw,relatime shared:1 - ext4 /dev/root rw,discard
95 27 0:50 / /share rw,relatime - nfs4 server:/export rw,vers=4.2
"""


def points(mounts: tuple[Mount, ...]) -> list[str]:
    return [mount.mount_point for mount in mounts]


def test_every_field_is_parsed() -> None:
    line = b"36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\n"
    assert parse_mountinfo(line) == (Mount(36, 35, "98:0", "/mnt2", "rw,noatime", "ext3", "/dev/root"),)


def test_escaped_mount_points_are_decoded() -> None:
    mounts = parse_mountinfo(rb"5 1 8:1 / /a\040b\011c\012d\134040 rw - ext4 /dev/disk\040one rw")
    assert (mounts[0].mount_point, mounts[0].source) == ("/a b\tc\nd\\040", "/dev/disk one")


def test_a_mount_with_an_empty_source_is_parsed() -> None:
    assert parse_mountinfo(b"5 1 0:5 / /t rw - tmpfs  rw,size=1k")[0].source == ""


@pytest.mark.parametrize(
    "line",
    [b"5 1 8:1 / /x rw ext4 /dev/sda rw", b"x 1 8:1 / /x rw - ext4 /dev/sda rw", b"5 1 8 / /x rw - a b c"],
)
def test_the_error_for_a_malformed_line_gives_its_number(line: bytes) -> None:
    with pytest.raises(ValueError, match="line 2 "):
        parse_mountinfo(b"5 1 8:1 / / rw - ext4 /dev/sda rw\n" + line)


def test_partition_count_is_three_for_root_efi_and_resource_disk() -> None:
    # The contract's worked example, with a bind mount, pseudo filesystems and a network share added.
    assert partition_count(parse_mountinfo(UBUNTU)) == 3


def test_partition_count_counts_the_subvolumes_of_a_btrfs_once() -> None:
    line = b"%d 1 0:40 /%s /%s rw - btrfs /dev/sdc rw,subvol=/%s\n"
    assert partition_count(parse_mountinfo(line % (7, b"a", b"a", b"a") + line % (8, b"b", b"b", b"b"))) == 1


def test_a_covered_mount_is_not_visible() -> None:
    mounts = parse_mountinfo(
        b"1 1 0:2 / / rw - rootfs rootfs rw\n"
        b"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        b"21 20 8:2 / /data rw - xfs /dev/sda2 rw\n"
        b"22 21 8:3 / /data/inner rw - xfs /dev/sda3 rw\n"
        b"23 20 8:4 / /other rw - xfs /dev/sda4 rw\n"
        b"24 21 8:5 / /data rw - ext4 /dev/sda5 rw\n"
    )
    assert [mount.device for mount in visible(mounts)] == ["8:1", "8:4", "8:5"]


def test_visible_ends_when_parents_go_in_a_circle() -> None:
    # No kernel writes this: two mounts with one id, one of which lies on a mount on the other.
    line = b"%d %d 8:1 / /a rw - ext4 /dev/sda rw\n"
    mounts = parse_mountinfo(line % (2, 1) + line % (3, 2) + line % (2, 3))
    assert set(visible(mounts)) <= set(mounts)


def test_the_mounts_of_this_machine_have_the_device_numbers_of_stat() -> None:
    mounts = read_mounts()
    roots = [mount for mount in visible(mounts) if mount.mount_point == "/"]
    assert len(roots) == 1
    assert len(mounts) == len(Path("/proc/self/mountinfo").read_bytes().rstrip(b"\n").split(b"\n"))
    proc = next(mount for mount in visible(mounts) if mount.mount_point == "/proc")
    device = os.stat("/proc").st_dev  # noqa: PTH116  (the number that the kernel gives)
    assert proc.device == f"{os.major(device)}:{os.minor(device)}"


@given(st.binary())
def test_any_bytes_are_mounts_or_a_value_error(content: bytes) -> None:
    try:
        mounts = parse_mountinfo(content)
    except ValueError:
        return
    assert all(mount.mount_point.startswith("/") for mount in mounts)
    assert set(visible(mounts)) <= set(mounts)


NUMBERS = st.integers(min_value=0, max_value=2**20)
NAMES = st.binary().map(lambda name: name.replace(b"\0", b""))


def escaped(name: bytes) -> bytes:
    # What the kernel escapes (fs/proc_namespace.c, mangle).
    return re.sub(rb"[ \t\n\\#]", lambda match: b"\\%03o" % match[0][0], name)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NAMES, NAMES.filter(bool), NAMES, st.booleans())))
def test_mounts_written_as_the_kernel_does_are_read_back(
    mounts: list[tuple[int, int, int, bytes, bytes, bytes, bool]],
) -> None:
    lines = [
        b"%d %d %d:7 / /%s rw%s - %s %s rw\n"
        % (number, parent, major, escaped(name), b" shared:1" * shared, escaped(kind), escaped(source))
        for number, parent, major, name, kind, source, shared in mounts
    ]
    assert parse_mountinfo(b"".join(lines)) == tuple(
        Mount(
            number,
            parent,
            f"{major}:7",
            os.fsdecode(b"/" + name),
            "rw",
            os.fsdecode(kind),
            os.fsdecode(source),
        )
        for number, parent, major, name, kind, source, _ in mounts
    )
