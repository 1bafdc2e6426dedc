"""Measurements behind the figures that flatcl quotes; each file is a command."""
