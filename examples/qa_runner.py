"""A QA runner: opens the page whose URL is the input in Chromium, and checks that it shows what the params expect.

    [agents.qa]
    kind = "process"
    command = ["python3", "examples/qa_runner.py"]

POST /v1/runs {"agent": "qa", "input": "https://example.com", "params": {"expect": ["Example Domain"]}}
"""
import json
import subprocess
import sys
import tempfile


def say(**message):
    print(json.dumps(message), flush=True)


start = json.loads(sys.stdin.readline())
made = {step["name"]: step["result"] for step in start["steps"]}
if "open" not in made:
    say(type="step_started", name="open")
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={profile}", "--dump-dom", str(start["input"])]
        page = subprocess.run(command, stdout=subprocess.PIPE, text=True)  # its errors go to the run's log
    if page.returncode != 0:
        say(type="fail", code="browser_failed", message=f"chromium ended with {page.returncode}", transient=True)
        sys.exit(1)
    made["open"] = page.stdout[:500_000]
    say(type="step", name="open", result=made["open"])
for text in start["params"].get("expect", []):
    if text in made:
        continue
    if text not in made["open"]:
        say(type="fail", code="assertion_failed", message=f"the page does not show {text!r}")
        sys.exit(1)
    say(type="token", text=f"shows {text!r}\n")
    say(type="step", name=text, result="shown")
say(type="complete", output="passed", outcome="passed")
