"""Run a step in several processes, as torchrun does, but forked from a process that has imported everything already.

In: a line of JSON on stdin for each run: module; args of each rank; directory for what they print; maybe the current
directory of each; maybe the rank that is killed once a state of at least `step` is in `work`. Out: a line of JSON with
the exit code of each rank; what rank 1 printed is in <directory>/1.out and 1.err. What still runs a minute after a
kill, or ten minutes after the start, is killed too; its exit code is then -9.
"""

import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

from torch.distributed import TCPStore

SECONDS_OF_A_RUN, SECONDS_AFTER_A_KILL = 600, 60


def become(rank: int, size: int, port: int, run: dict) -> None:
    """Turn this forked process into a rank, and end it."""
    place = Path(run["directory"])
    for descriptor, name in ((0, os.devnull), (1, place / f"{rank}.out"), (2, place / f"{rank}.err")):
        opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    if run["directories"]:
        os.chdir(run["directories"][rank])
    sys.argv = [run["module"], *run["args"][rank]]
    sys.modules.pop(run["module"], None)  # or runpy warns that it is imported already
    code: object = 1
    try:
        runpy.run_module(run["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def has_state(work: str, step: int) -> bool:
    names = [path.name for path in Path(work).glob("training_state/step-*") if "." not in path.name]
    return any(int(name.removeprefix("step-")) >= step for name in names)


def exit_codes(run: dict) -> list[int]:
    size = len(run["args"])
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # in torchrun's own process, as here
    ranks: dict[int, int] = {}
    for rank in range(size):
        if (pid := os.fork()) == 0:
            become(rank, size, store.port, run)
        ranks[pid] = rank
    codes: dict[int, int] = {}
    kill, until = run.get("kill"), time.monotonic() + SECONDS_OF_A_RUN
    while len(codes) < size:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[ranks.pop(pid)] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > until:
            for pid in ranks:
                os.kill(pid, signal.SIGKILL)
        elif kill and has_state(kill["work"], kill["step"]):
            os.kill(next(pid for pid, rank in ranks.items() if rank == kill["rank"]), signal.SIGKILL)
            kill, until = None, time.monotonic() + SECONDS_AFTER_A_KILL
        else:
            time.sleep(0.01)
    return [codes[rank] for rank in range(size)]


if __name__ == "__main__":
    import torch.distributed.fsdp  # noqa: F401

    import nemotron.recipes.nano2.stage0_pretrain.training
    import nemotron.recipes.nano2.stage1_sft.training  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(exit_codes(json.loads(line))), flush=True)
