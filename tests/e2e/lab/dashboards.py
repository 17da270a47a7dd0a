"""Checks Grafana's dashboards without Grafana.

    dashboards.py schema FILE...            every member is one that Grafana's own schema knows, with the type it wants
    dashboards.py queries PROMETHEUS FILE...  every panel's query answers without an error and not empty

Both end with 1 and say what is wrong.
"""
import json, re, sys, time, urllib.parse, urllib.request


def schema(paths):
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    def differences(given, known, path):
        """What the schema's model did not keep of the file."""
        if isinstance(given, dict):
            for key, value in given.items():
                if not isinstance(known, dict) or key not in known:
                    yield f"{path}.{key} is unknown to the schema"
                else:
                    yield from differences(value, known[key], f"{path}.{key}")
        elif isinstance(given, list):
            if not isinstance(known, list) or len(given) != len(known):
                yield f"{path} is not kept whole"
            else:
                for i, (a, b) in enumerate(zip(given, known)):
                    yield from differences(a, b, f"{path}[{i}]")
        elif given != known:
            yield f"{path}: {given!r} is read as {known!r}"

    for path in paths:
        with open(path) as file:
            given = json.load(file)
        known = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(given)))
        for line in differences(given, known, path):
            yield line


def queries(prometheus, paths):
    checked = 0
    for path in paths:
        with open(path) as file:
            dashboard = json.load(file)
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", "1m")
                query = re.sub(r"\$\w+", ".*", query)
                url = f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query})
                # The newest samples may be one scrape away.
                for attempt in range(30):
                    try:
                        with urllib.request.urlopen(url, timeout=10) as answer:
                            found = json.load(answer)["data"]["result"]
                        problem = None if any(r["value"][1] != "NaN" for r in found) else "has no data"
                    except urllib.error.HTTPError as error:
                        problem = error.read().decode()
                    if problem is None or not problem.startswith("has no"):
                        break
                    time.sleep(1)
                checked += 1
                if problem:
                    yield f"{dashboard['title']}, {panel['title']}: {query} {problem}"
    print(f"{checked} queries answered with data" if checked else "no query was found", file=sys.stderr)


problems = list(schema(sys.argv[2:]) if sys.argv[1] == "schema" else queries(sys.argv[2], sys.argv[3:]))
print("\n".join(problems))
sys.exit(1 if problems else 0)
