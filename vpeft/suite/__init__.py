"""Many runs from one command: methods x tasks x seeds, with a choice of settings on val200 where it is asked for.

tools/suite.py -> settings.py   the command line -> one checked Request
                  plan.py       Request -> members (one run each) and work items
                  folder.py     what a suite keeps on disk; locks
                  states.py     what is done, stale, failed or waiting
                  local.py      processes of this machine that work through the items
                  worker.py     one item, in the process of whoever launches it
"""
