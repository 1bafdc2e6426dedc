"""The framework-free heart of flatcl: from gradient fluctuations to a constraint and its pull.

The way of one weight matrix through the files: ``layers`` (its matrix view), ``gradients``
(what is watched), ``moments``, ``choice`` and ``eigenbasis`` (with ``frame`` and ``sketch`` for
truncated sides), ``stiffness``, ``constraint``, ``merge``, then in the next task ``metric`` and
``pull``, and at its end ``centre``. Beside it goes the way of the inputs: ``gaussians``, and in the
next task ``rehearsal`` (with ``riders``). ``task`` runs what happens within a task, ``engine`` them
all; ``state`` and ``saved`` keep it, ``forecast``, ``growth`` and ``budget`` look at what it costs.
"""
