#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checkpoints of other shapes and layouts than models/nano, through dsv4-eval inspect --load: both ways of reading must
fill the same arena, and each kind of damage must end in one line with its code. Needs numpy, to write checkpoints."""
import json, os, subprocess, sys, tempfile

try:
    import numpy  # noqa: F401, mkckpt.py uses it
except ImportError:
    print("numpy is not installed")
    sys.exit(77)

top, build = os.environ["top_srcdir"], os.environ["top_builddir"]
EVAL = [os.path.join(build, "dsv4-eval"), "inspect", "--json", "--load"]
os.umask(0o022)


def make(folder, *args):
    subprocess.run([sys.executable, os.path.join(top, "tests/golden/mkckpt.py"), folder, *args], check=True,
                   stderr=subprocess.DEVNULL, timeout=120)


def inspect(folder, *args):
    r = subprocess.run([*EVAL, "--model", folder, *args], capture_output=True, text=True, timeout=120)
    assert r.returncode == 0, (args, r.returncode, r.stderr)
    return json.loads(r.stdout)


def refused(folder, code, *says):
    r = subprocess.run([*EVAL, "--model", folder], capture_output=True, text=True, timeout=120)
    assert r.returncode == 1 and r.stdout == "", (code, r.returncode, r.stdout)
    assert r.stderr.count("\n") == 1 and f": {code}: " in r.stderr, (code, r.stderr)
    for s in says:
        assert s in r.stderr, (s, r.stderr)


def both_ways(folder, want):
    seen = set()
    for numerics in ("exact", "fast"):
        a = inspect(folder, "--numerics", numerics)
        b = inspect(folder, "--numerics", numerics, "--no-uring")
        assert b["loaded"]["io_uring"] is False
        assert a["loaded"]["arena_digest"] == b["loaded"]["arena_digest"], (folder, numerics)
        assert a["loaded"]["bytes"] == b["loaded"]["bytes"] > 0
        seen.add(a["loaded"]["io_uring"])
    for key, value in want.items():
        found = a["model"].get(key, a.get(key))
        assert found == value, (key, found, value)
    print(f"ok {os.path.basename(folder)}: {a['tensors']} tensors in {a['shards']} shard(s), "
          f"io_uring {'used' if True in seen else 'not permitted here'}")
    return a


with tempfile.TemporaryDirectory(prefix="dsv4-checkpoints.") as tmp:
    at = lambda name: os.path.join(tmp, name)

    make(at("shards"), "--shard-bytes", "300000")
    whole = inspect(os.path.join(top, "models/nano"))
    many = both_ways(at("shards"), {"expert_dtype": "fp4", "mtp_layers": 1})
    assert many["shards"] > 10 and many["digest"] != whole["digest"]
    assert many["parameters"] == whole["parameters"]

    make(at("base"), "--expert-dtype", "fp8", "--no-mtp")
    both_ways(at("base"), {"expert_dtype": "fp8", "mtp_layers": 0})
    make(at("nanopro"), "--preset", "nanopro", "--shard-bytes", "2000000")
    both_ways(at("nanopro"), {"head_dim": 192, "compress_ratios": [128, 128, 4, 128, 4]})
    make(at("one-layer"), "--layers", "1", "--experts", "2", "--no-mtp")
    both_ways(at("one-layer"), {"layers": 1, "experts": 2, "compress_ratios": [0]})

    # Damage: the message names the file and what is wrong.
    shards = sorted(f for f in os.listdir(at("shards")) if f.endswith(".safetensors"))
    victim = os.path.join(at("shards"), shards[5])
    data = open(victim, "rb").read()
    with open(victim, "wb") as f:
        f.write(data[:-1])
    refused(at("shards"), "BAD_OFFSETS", shards[5])
    os.unlink(victim)
    refused(at("shards"), "NOT_FOUND", shards[5])
    os.mkfifo(victim)
    refused(at("shards"), "NOT_REGULAR_FILE", shards[5])
    os.unlink(victim)
    os.link(os.path.join(at("shards"), shards[6]), victim)   # another shard under this one's name
    refused(at("shards"), "UNKNOWN_TENSOR", shards[5], "says it is in")

    config = os.path.join(at("base"), "config.json")
    c = json.load(open(config))
    for key, value in (("hidden_size", -1), ("scoring_func", "softmax"), ("o_groups", 3)):
        json.dump({**c, key: value}, open(config, "w"))
        refused(at("base"), "CONFIG", key, "found", "expected")
    json.dump({**c, "expert_dtype": "fp4"}, open(config, "w"))
    refused(at("base"), "BAD_TENSOR", "experts.0.w1.weight", "found F8_E4M3", "expected I8")
    refused(at("absent"), "NOT_FOUND")
    print("ok damage")
