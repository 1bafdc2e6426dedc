"""Rivals of the benchmark lab, one small file each."""
