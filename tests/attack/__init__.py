"""Attacks on what the tracker and the kernel store write: kills, failing calls, full disks and damaged files."""
