"""Starts runs by pushing to a Redis list that a node takes in:

    [ingest.jobs]
    kind = "redis_list"
    url = "redis://127.0.0.1:6379"
    queue = "jobs:pending"
    agent = "scripted"

Usage: ingest_redis_list.py [URL [LIST [TEXT ...]]]      (pip install redis)
"""
import json
import sys
import uuid

import redis

DEFAULTS = ["redis://127.0.0.1:6379", "jobs:pending"]
url, key, *texts = sys.argv[1:] + DEFAULTS[len(sys.argv) - 1 :]
producer = redis.Redis.from_url(url)
for text in texts or ["Hello from Python"]:
    # The message's own key: pushed twice, it starts one run, which GET /v1/runs?metadata.ingest_key=KEY finds.
    run_id = str(uuid.uuid4())
    message = {"run_id": run_id, "priority": 0, "retry_count": 0, "input": text}
    producer.lpush(key, json.dumps(message))
    print(run_id)
