"""What the measurements share: processes pinned to a core, their CPU time and memory, interleaved rounds. Standard library only."""
import os, pathlib, random, re, signal, socket, statistics, subprocess, sys, time

REPO = pathlib.Path(__file__).resolve().parents[2]
NEARCAST = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release/nearcast"
SERVER_CORE, LOAD_CORE = "0", "1"
TICK = os.sysconf("SC_CLK_TCK")
STARTED = []


def start(name, argv, work, core=SERVER_CORE, **kw):
    log = open(work / f"{name}.log", "ab")
    pinned = ["taskset", "-c", core] if core else []
    process = subprocess.Popen(pinned + [str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=work, **kw)
    process.log = work / f"{name}.log"
    STARTED.append(process)
    return process


def end(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def descendants(pid):
    """A process and everything below it: daemons may fork workers."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = open(f"/proc/{entry}/stat").read().rsplit(")", 1)[1].split()
                parents.setdefault(int(fields[1]), []).append(int(entry))
            except OSError:
                pass
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        queue += parents.get(found[-1], [])
    return found


def cpu_seconds(pid):
    """CPU time of a process tree: nanoseconds from schedstat of every thread."""
    total = 0
    for p in descendants(pid):
        try:
            for task in os.listdir(f"/proc/{p}/task"):
                total += int(open(f"/proc/{p}/task/{task}/schedstat").read().split()[0])
        except OSError:
            pass
    return total / 1e9


def memory_bytes(pid):
    """Resident and proportional set sizes of a process tree; the first counts the program's pages once for every process."""
    total = {"Rss": 0, "Pss": 0}
    for p in descendants(pid):
        try:
            text = open(f"/proc/{p}/smaps_rollup").read()
            for kind in total:
                total[kind] += int(re.search(rf"^{kind}:\s+(\d+) kB", text, re.M).group(1)) * 1024
        except (OSError, AttributeError):
            pass
    return total["Rss"], total["Pss"]


def free_port():
    for _ in range(100):
        port = random.randint(12000, 30000)  # below the range that outgoing connections take
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as s:
                    s.bind(("127.0.0.1", port))
            return port
        except OSError:
            continue
    sys.exit("bench: no free port")


def wait_for(what, condition, process=None, limit=20):
    until = time.monotonic() + limit
    while time.monotonic() < until:
        if process is not None and process.poll() is not None:
            sys.exit(f"bench: {what}: the process ended with {process.returncode}:\n{process.log.read_text()[-2000:]}")
        if condition():
            return
        time.sleep(0.02)
    sys.exit(f"bench: waited {limit} s for {what}" + (f":\n{process.log.read_text()[-2000:]}" if process else ""))


def load(argv, seconds):
    return subprocess.run(["taskset", "-c", LOAD_CORE] + [str(a) for a in argv], capture_output=True, text=True, timeout=seconds + 30).stdout


def compare(title, contenders, measure, rounds, bar):
    """Interleaved rounds; `contenders` is [(name, process, argument)], the last one ours. Prints a table and the ratio's spread."""
    samples = {name: [] for name, _, _ in contenders}
    for number in range(rounds):
        order = contenders if number % 2 == 0 else contenders[::-1]
        for name, process, argument in order:
            samples[name].append(measure(process, argument))
    print(f"\n== {title} ({rounds} interleaved rounds)")
    print(f"{'':10} {'us of CPU':>10} {'least':>7} {'most':>7}")
    for name, values in samples.items():
        print(f"{name:10} {statistics.median(values):10.2f} {min(values):7.2f} {max(values):7.2f}")
    (peer, _, _), (ours, _, _) = contenders
    ratios = sorted(o / p for o, p in zip(samples[ours], samples[peer]))
    print(f"{ours} / {peer}: {statistics.median(ratios):.2f} (rounds: {ratios[0]:.2f} to {ratios[-1]:.2f}); the bar is {bar:.2f}: "
          + ("met" if statistics.median(ratios) <= bar else "MISSED"))
