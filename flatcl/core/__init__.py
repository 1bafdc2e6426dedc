"""The framework-free heart of flatcl: from gradient fluctuations to a constraint and its pull.

The way of one weight matrix through the files: ``layers`` (its matrix view), ``gradients``
(what is watched), ``moments``, ``choice`` and ``eigenbasis`` (with ``frame`` and ``sketch`` for
truncated sides), ``stiffness``, ``constraint``, ``merge``, then in the next task ``metric`` and
``pull``, and at its end ``centre``; ``task`` runs what happens within a task, ``engine`` them all.
"""
