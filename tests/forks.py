"""A process that imports JAX once, and forks another for every line that it reads: ``run`` of a script with its job."""

import json
import os
import runpy
import sys
import traceback


def child(run, job):
    """Runs a job in a process that was forked, and ends it; the exit code tells whether it failed."""
    code = 1
    try:
        run(**job)
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def say(word):
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main():
    run = runpy.run_path(sys.argv[1])["run"]
    say("ready")
    for line in sys.stdin:
        # JAX has started no backend yet, so the fork loses no threads.
        pid = os.fork()
        if not pid:
            child(run, json.loads(line))
        say(pid)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
