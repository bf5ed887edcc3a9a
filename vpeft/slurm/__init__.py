"""Runs on a cluster with Slurm: job arrays, requeueing, staging of data, several nodes, states.

Plain `sbatch` arrays through subprocess, and not submitit: submitit pickles functions, so a job that waits breaks when
the code changes, and where the cluster keeps no accounting it never says that a cancelled job has ended. Here a
member is a command line, which anyone can repeat by hand, and the states come from squeue and from what the members
write down themselves.

Nothing in here reads Slurm's variables but `vpeft.slurm.job`, which is the batch process, and
`vpeft.slurm.cluster`, which first finds out whether srun started the process.
"""

from vpeft.slurm.arrays import submit
from vpeft.slurm.options import SlurmOptions, options
from vpeft.slurm.status import Member, active, members

__all__ = ["Member", "SlurmOptions", "active", "members", "options", "submit"]
