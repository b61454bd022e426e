"""An agent that is an HTTP service: streams its messages as events. docs/programs.md has them.

    [agents.shout]
    kind = "remote"
    url = "http://127.0.0.1:8000/"

Usage: remote_agent.py [PORT]
"""
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Agent(BaseHTTPRequestHandler):
    def do_POST(self):
        start = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        words = str(start["input"]).split()
        made = [step["result"] for step in start["steps"]]  # an earlier attempt came so far
        for word in words[len(made) :]:
            made.append(word.upper())
            self.say(type="token", text=made[-1] if len(made) == 1 else " " + made[-1])
            self.say(type="step", name="shout", result=made[-1])
        self.say(type="complete", output=" ".join(made))

    def say(self, **message):
        # Fails when the run was cancelled: Runcast hangs up then.
        self.wfile.write(f"data: {json.dumps(message)}\n\n".encode())

    def log_message(self, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8000), Agent)
print("listening on", server.server_port, flush=True)
server.serve_forever()
