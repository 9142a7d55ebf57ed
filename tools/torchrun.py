"""torchrun, which reports a process that has failed in one sentence; torchrun.sh calls it."""

import signal
import sys

from torch.distributed.elastic.agent.server.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def report(error: ChildFailedError) -> str:
    rank, failure = error.get_first_failure()
    code = failure.exitcode
    end = f'was killed by {signal.Signals(-code).name}' if code < 0 else f'ended with status {code}'
    return f'torchrun: process {rank} {end} first, which stopped the others'


if __name__ == '__main__':
    try:
        main()
    except ChildFailedError as error:
        print(report(error), file=sys.stderr)
        sys.exit(1)
    except SignalException as error:
        sys.exit(128 + int(error.sigval))
