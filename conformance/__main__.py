import argparse, json, sys, collections
from conformance import suites, driver, loops
p = argparse.ArgumentParser(); p.add_argument("suite"); p.add_argument("--netpoller", default="auto"); p.add_argument("--loop", default="netpoll"); p.add_argument("-k"); p.add_argument("--json"); p.add_argument("--ids")
a = p.parse_args()
suite = suites.SUITES[a.suite]
suites.sources.CACHE.mkdir(exist_ok=True)
ids = suite.discover() if not a.ids else [t for t,o in json.load(open(a.ids)).items() if o["outcome"]=="pass"]
if a.k: ids = [i for i in ids if a.k in i]
print(len(ids), "tests", flush=True)
import time
allr = {}
t0=time.time()
for chunk in suite.chunks(ids):
    t=time.time()
    def rep(i, o):
        if o.outcome not in ("pass",): print("  ", i, o.outcome, o.detail.strip().split("\n")[-1][:200], flush=True)
    allr.update(driver.run(suite.job(a.loop, a.netpoller), chunk, rep))
    print(suite.module(chunk[0]), len(chunk), "%.1f s"%(time.time()-t), flush=True)
print(collections.Counter(o.outcome for o in allr.values()), "%.0f s"%(time.time()-t0), "stock loops in", sum(o.stock>0 for o in allr.values()))
if a.json: json.dump({k: vars(v) for k,v in allr.items()}, open(a.json,"w"), indent=0)
