"""64 and 512 GPUs without one: a discrete-event simulation (simpy) of the job on its measured costs.

    python tests/scale/simulate_cluster.py [--gpus 8 64 512] [--shards 166775] [--forward 0.2 1 5]

What it has: one driver, serial, that hands each shard over and takes its result; tokenisers, two a
GPU; an encoder a GPU with some shards in hand, whose device computes one of them at a time while
others are written. What it has not: networks, disks that are shared, machines that fail, start-up.
Costs are this project's, measured on two cores (see the notebook); a forward pass varies by 10%.
"""

import argparse
import json
import random

import simpy

DRIVER_S = 0.0085  # of the driver's processor time a shard: `benchmark shards`
TOKENISE_S = 22e-6  # a text
WRITE_S = {128: 0.10, 1024: 0.55}  # a shard of 4,096 rows, by ColBERT width: `benchmark device`
ROWS = 4096
TOKENISERS = 2  # a GPU
CALLS = 8  # shards that an encoder has in hand, of 16 cores a GPU
SPREAD = 0.1


def simulate(gpus, shards, forward_s, *, width=128, rows=ROWS, driver_s=DRIVER_S, seed=0):
    """Seconds from the first shard handed over to the last result taken, and the GPUs' busy
    share.
    """
    chance, env = random.Random(seed), simpy.Environment()
    driver = simpy.Resource(env, 1)
    tokenisers = simpy.Resource(env, TOKENISERS * gpus)
    devices = [simpy.Resource(env, 1) for _ in range(gpus)]
    waiting = simpy.Store(env)  # a place in hand, of some encoder; the driver gives them in turn
    waiting.items = [gpu for _ in range(CALLS) for gpu in range(gpus)]
    busy = [0.0] * gpus

    def at_driver():
        with driver.request() as turn:
            yield turn
            yield env.timeout(driver_s / 2)

    def shard(gpu):
        with tokenisers.request() as turn:
            yield turn
            yield env.timeout(TOKENISE_S * rows)
        with devices[gpu].request() as turn:
            yield turn
            seconds = forward_s * rows / ROWS * max(0.5, chance.gauss(1.0, SPREAD))
            yield env.timeout(seconds)
            busy[gpu] += seconds
        yield env.timeout(WRITE_S[width] * rows / ROWS)
        waiting.put(gpu)
        yield from at_driver()

    def job():
        begun = []
        for _ in range(shards):
            gpu = yield waiting.get()
            yield from at_driver()
            begun.append(env.process(shard(gpu)))
        yield simpy.AllOf(env, begun)

    env.run(env.process(job()))
    return env.now, sum(busy) / gpus / env.now


def main():
    parser = argparse.ArgumentParser(description="The job on many GPUs, simulated.")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--shards", type=int, default=166_775)
    parser.add_argument("--forward", type=float, nargs="+", default=[0.2, 1.0, 5.0])
    parser.add_argument("--width", type=int, choices=WRITE_S, default=128)
    given = parser.parse_args()
    for forward in given.forward:
        for gpus in given.gpus:
            seconds, busy = simulate(gpus, given.shards, forward, width=given.width)
            ideal = given.shards * forward / gpus
            print(
                json.dumps(
                    {
                        "gpus": gpus,
                        "forward_s": forward,
                        "seconds": round(seconds),
                        "ideal": round(ideal),
                        "busy": round(busy, 3),
                        "shards_per_second": round(given.shards / seconds, 1),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
