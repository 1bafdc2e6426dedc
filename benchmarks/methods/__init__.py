"""Methods of the benchmark lab, one file each, beside those of ``flatcl.rivals``."""
