"""Starts runs by publishing to an AMQP queue that a node takes in:

    [ingest.orders]
    kind = "amqp_queue"
    url = "amqp://guest:guest@127.0.0.1:5672"
    queue = "orders"
    agent = "scripted"

Usage: ingest_amqp_queue.py [URL [QUEUE [TEXT ...]]]      (pip install pika)
"""
import json
import sys
import uuid

import pika

DEFAULTS = ["amqp://guest:guest@127.0.0.1:5672", "orders"]
url, queue, *texts = sys.argv[1:] + DEFAULTS[len(sys.argv) - 1 :]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()  # without it, a message that the server could not keep is lost in silence
channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})  # as the node would
for text in texts or ["Hello from Python"]:
    # The message's own key: published twice, it starts one run, which GET /v1/runs?metadata.ingest_key=KEY finds.
    run_id = str(uuid.uuid4())
    message = {"run_id": run_id, "priority": 0, "input": text}
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=2, message_id=run_id)
    channel.basic_publish("", queue, json.dumps(message), properties, mandatory=True)
    print(run_id)
connection.close()
