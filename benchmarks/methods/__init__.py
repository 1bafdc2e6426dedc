"""Further rivals of LDC, one file each; each ends with its entry for the comparison."""
