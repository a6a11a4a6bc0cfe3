"""Tests of the extension handler, a part at a time: no root, no freeze, real files, sockets and programs."""
