"""What it gains that `fleetnet train` has the C library keep freed memory: steps with and without it.

    python benchmarks/kept_memory.py [--models fasternet_t0,repvit_m0_9] [--sizes 96,224] [--rounds 20]

Each way is a process of its own, since such a setting holds for a whole process. They take turns, a
step of SGD each, in channels_last, and what counts is the time of the CPU in one thread. Shown are
images a second and the median of the ratios within a round, and the most memory of each process.
The last line is JSON.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

WAYS = ("given back", "kept")


def contend(name: str, size: int, batch: int, kept: bool) -> None:
    """Take a step for each line that comes in; answer with its seconds and the most MB so far."""
    from fleetnet.cli._process import keep_freed_memory

    if kept and not keep_freed_memory():
        raise SystemExit("this C library cannot keep freed memory, or its settings are given")
    import torch
    from torch.nn import functional as F

    import fleetnet
    from fleetnet.merged import set_merging

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = fleetnet.create_model(name, 1000).train().to(memory_format=torch.channels_last)
    set_merging(model, "auto")
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,))
    for _ in sys.stdin:
        start = time.process_time()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.process_time() - start
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(seconds, largest, flush=True)


def race(name: str, size: int, batch: int, rounds: int) -> dict[str, object]:
    """Both ways in turn; the first two rounds, in which memory is taken, are left out."""
    words = [sys.executable, __file__, "--contend", name, str(size), str(batch)]
    pipe = subprocess.PIPE
    processes = {
        way: subprocess.Popen([*words, way], stdin=pipe, stdout=pipe, text=True) for way in WAYS
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    memory: dict[str, float] = {}
    for number in range(rounds + 2):
        for way in WAYS if number % 2 else WAYS[::-1]:
            process = processes[way]
            process.stdin.write("\n")
            process.stdin.flush()
            answer = process.stdout.readline().split()
            if not answer:
                raise SystemExit(f"{name}: the process with memory {way} ended")
            memory[way] = float(answer[1])
            if number > 1:
                seconds[way].append(float(answer[0]))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    row: dict[str, object] = {"model": name, "size": size}
    for way in WAYS:
        row[f"{way}, images/s"] = round(batch / statistics.median(seconds[way]), 1)
        row[f"{way}, MB"] = round(memory[way])
    ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
    return row | {"times as fast": round(statistics.median(ratios), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="fasternet_t0,repvit_m0_9,mobileone_s0,parcnet_xs")
    parser.add_argument("--sizes", default="96,224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--contend", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        name, size, batch, way = options.contend
        contend(name, int(size), int(batch), kept=way == "kept")
        return
    rows = []
    for name in options.models.split(","):
        for size in map(int, options.sizes.split(",")):
            rows.append(race(name, size, options.batch_size, options.rounds))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
