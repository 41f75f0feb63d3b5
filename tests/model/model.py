"""One run of the model against the product: everybody speaks at once, everything is killed at random points, and in the
end everything is compared once more. `run` is what the test and `make soak` call.
"""
import os
import shutil
import sys
import time
import traceback

from feed import Feed
from fleet import Fleet
from played import Played
from racer import Race
from world import Cut, Over, World, Wrong

GAP_STEPS, GAP_S = 2500, 4.5  # between two kills, about


class Run:
    def __init__(self, seed, steps, seconds, arches, played, say):
        self.say, self.world = say, World(seed, steps, seconds)
        self.rng = self.world.random("killer")
        self.feed = Feed(self.world)
        self.fleet = Fleet(self.world, self.feed, arches)
        self.played = [Played(self.world, self.feed, n) for n in range(played)]
        self.race = Race(self.world, self.feed)

    def go(self):
        threads = [self.feed, self.fleet, *self.played, *self.race.racers]
        try:
            began = time.monotonic()
            for part in (self.fleet, self.race, *self.played):
                part.begin()
            for thread in threads:
                thread.start()
            self.kill_until_over()
            for thread in threads[1:]:
                thread.join(120)
            self.seconds = time.monotonic() - began
            self.end()
        finally:
            self.feed.done = True
            for agent in self.fleet.agents:
                agent.kill()
            self.world.close()

    # Killing.

    def kill_until_over(self):
        while not self.world.over():
            steps, at = self.world.steps + GAP_STEPS * self.rng.uniform(0.4, 1.6), \
                time.monotonic() + GAP_S * self.rng.uniform(0.4, 1.6)
            while self.world.steps < steps and time.monotonic() < at and not self.world.over():
                time.sleep(0.01)
            if not self.world.over():
                try:
                    self.kill()
                except Exception as error:
                    self.world.fail("killer", error)

    def kill(self):
        """Some of the agents, or the server, or all of them, without a word of warning."""
        agents = self.rng.choice([[], [], self.fleet.agents, self.rng.sample(self.fleet.agents, 1),
                                  self.rng.sample(self.fleet.agents, 1), self.rng.sample(self.fleet.agents, 2)])
        with self.fleet.lock:
            if not agents and self.rng.random() < 0.15:
                self.world.stop_server()
            elif not agents and self.rng.random() < 0.7:
                self.world.refuse_syncs(self.rng.choice((1, 1, 1, 2, 3)), self.rng.uniform(0.01, 0.15))
                if self.rng.random() < 0.85:  # the power goes at once
                    self.world.kill_server(lambda: os.unlink(self.world.sync_fails))
                else:
                    os.unlink(self.world.sync_fails)
            elif not agents or len(agents) == len(self.fleet.agents):
                self.world.kill_server(lambda: [agent.kill() for agent in agents])
            for agent in agents:
                agent.kill()
                self.world.kills[agent.arch] = self.world.kills.get(agent.arch, 0) + 1
            for agent in agents:
                try:
                    self.fleet.covered(agent, agent.hardware(), "killer")
                except Cut:
                    pass
                if self.rng.random() < 0.1:
                    agent.power_off()
                agent.start()

    # The end.

    def end(self):
        world = self.world
        self.raise_failures()
        self.fleet.end()
        for part in (*self.played, *self.race.racers):
            part.end()
        self.feed.done = True
        self.feed.join(30)
        self.feed.catch_up(world.admin())
        self.raise_failures()
        self.histories()
        world.stop_cleanly()
        why = world.verify()
        if why:
            raise Wrong(f"--verify: {why}")
        self.go_back()
        self.report()

    def go_back(self):
        """The ledger is restored from a backup, and does not show what was launched since."""
        world, backup = self.world, os.path.join(self.world.tools, "backup")
        shutil.copytree(world.server.data, backup)
        world.server.start()
        world.generation += 1
        self.fleet.launch_more()
        world.stop_cleanly()
        shutil.rmtree(world.server.data)
        shutil.copytree(backup, world.server.data)
        world.server.start()
        world.generation += 1
        self.fleet.kept(20)
        told = [e["type"] for e in world.admin().call("GET", f"/v1/events?after={self.feed.at}&limit=1000").json["items"]]
        if "ledger.restored" not in told:
            raise Wrong(f"nobody says that the ledger went back in time: {told}")

    def raise_failures(self):
        for who, error, steps in self.world.failures:
            if not isinstance(error, Wrong):
                traceback.print_exception(error, file=sys.stderr)
            raise Wrong(f"{who}, at step {steps}: {error}") from error

    def histories(self):
        """What the feed told leads to what the server shows; history of a page names the steps that the feed told."""
        history = self.feed.history
        if self.feed.waiting:
            raise Wrong(f"answers named revisions that the feed never told: {self.feed.waiting[:2]}")
        for played in self.played:
            for vm in played.model.vms.values():
                told = history.vms.get(vm.id)
                if told is None or (told.state, told.slots, told.pages) != (vm.state, vm.slots, vm.pages):
                    raise Wrong(f"VM {vm.id}: the feed leads to {told and told.__dict__}, not to {vm.__dict__}")
                self.history_of(played, vm)

    def history_of(self, played, vm):
        for gfn in sorted(vm.pages)[::7]:
            got = played.must(f"/v1/vms/{vm.id}/history?gfn={gfn}&limit=1000")
            shown = [e["revision"] for e in got["items"] if e["type"].startswith("gfn.")]
            told = [revision for revision, kind, runs in self.feed.lines.get(vm.id, [])
                    if kind.startswith("gfn.") and any(g <= gfn < g + n for g, n in runs)]
            if shown != told[::-1]:
                raise Wrong(f"history of GFN {gfn} of VM {vm.id} shows {shown}, the feed told {told[::-1]}")

    def report(self):
        feed, fleet = self.feed, self.fleet
        answers = {}
        for played in self.played:
            for what, n in played.tally.items():
                answers[str(what)] = answers.get(str(what), 0) + n
        resolved = {how: sum(p.resolved[how] for p in self.played) for how in ("done", "not done")}
        real = sum(n for host, n in feed.by_host.items() if host in {a.host for a in fleet.agents})
        races = [sum(r.won for r in self.race.racers), sum(r.lost for r in self.race.racers)]
        self.say(f"{self.world.steps} steps in {self.seconds:.0f} s, {feed.at} revisions ({real} of real agents' hosts), "
                 f"{feed.looked_at} owners of frames in answers; kills {self.world.kills}; cut off and resolved {resolved}; "
                 f"changes that the disk refused {sum(p.stored_not for p in self.played)}, outcomes unknown {self.world.unknown}; "
                 f"hardware compared {fleet.checks} times ({fleet.frames_seen} frames); operations {fleet.asked}; "
                 f"races for frames won and lost {races}; lies {sum(fleet.lies.values())}; answers {dict(sorted(answers.items()))}")
        if feed.unknown:
            self.say(f"events that the model does not know: {feed.unknown}")


def run(seed, steps, seconds, arches=("snp", "tdx", "cca"), played=3, say=print):
    """Raises Wrong (with the seed) at the first answer that the model does not allow."""
    say(f"SEED={seed}")
    try:
        Run(seed, steps, seconds, arches, played, say).go()
    except (Wrong, AssertionError) as error:
        raise Wrong(f"SEED={seed}: {error}") from error
