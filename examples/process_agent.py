"""An agent that is a program: three steps, none of which is made again after a kill. docs/programs.md has the messages.

    [agents.longest]
    kind = "process"
    command = ["python3", "examples/process_agent.py"]
"""
import json
import sys


def say(**message):
    print(json.dumps(message), flush=True)


def hear():
    return json.loads(sys.stdin.readline())


start = hear()
made = {step["name"]: step["result"] for step in start["steps"]}


def step(name, work):
    if name not in made:  # else an earlier attempt has made it
        say(type="step_started", name=name)
        made[name] = work()
        say(type="step", name=name, result=made[name])
        assert hear()["type"] == "step_kept"  # from here on it is in the store
    return made[name]


words = step("split", lambda: str(start["input"]).split())
lengths = step("measure", lambda: [len(word) for word in words])
longest = step("choose", lambda: words[lengths.index(max(lengths))])
answer = f"The longest of {len(words)} words is {longest}."
for word in answer.split(" "):
    say(type="token", text=word if word == "The" else " " + word)
say(type="complete", output=answer)
