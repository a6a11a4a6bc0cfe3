"""Tests of the extension handler, module by module: without root or a freeze, on real files and sockets."""
