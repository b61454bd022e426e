"""Starts runs by adding to a Redis stream that a node takes in:

    [ingest.runs]
    kind = "redis_stream"
    url = "redis://127.0.0.1:6379"
    queue = "runs:queue"
    agent = "scripted"

Usage: ingest_redis_stream.py [URL [STREAM [TEXT ...]]]      (pip install redis)
"""
import sys
import uuid

import redis

DEFAULTS = ["redis://127.0.0.1:6379", "runs:queue"]
url, key, *texts = sys.argv[1:] + DEFAULTS[len(sys.argv) - 1 :]
producer = redis.Redis.from_url(url)
for text in texts or ["Hello from Python"]:
    # The message's own key: added twice, it starts one run, which GET /v1/runs?metadata.ingest_key=KEY finds.
    run_id = str(uuid.uuid4())
    # The node acknowledges entries and leaves them in the stream: to trim what was read is the producer's business.
    producer.xadd(key, {"run_id": run_id, "priority": 0, "input": text})
    print(run_id)
