"""Receives webhooks of Runcast and prints what has happened. Needs: pip install standardwebhooks

WEBHOOK_SECRET=whsec_… python webhook_receiver.py [PORT]
"""
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

webhook = Webhook(os.environ["WEBHOOK_SECRET"])
seen = set()


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            news = webhook.verify(body, {name.lower(): value for name, value in self.headers.items()})
        except WebhookVerificationError:
            return self.answer(400)
        # The same id may come twice: what was done once need not be done again.
        if self.headers["webhook-id"] not in seen:
            seen.add(self.headers["webhook-id"])
            print(news["type"], news["data"].get("id"), flush=True)
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.end_headers()

    def log_message(self, *args):
        pass


server = HTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Receiver)
print("listening on", server.server_port, flush=True)
server.serve_forever()
