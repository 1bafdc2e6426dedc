"""The command ``flatcl``."""
