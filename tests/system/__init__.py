"""Tests on real filesystems, real servers and real killed processes; they need root."""
