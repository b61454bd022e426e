// A real, small language model (SmolLM2-135M-Instruct, 4 bit) behind OpenAI's
// protocol: GET /v1/models and POST /v1/chat/completions, streamed or not. It is for
// tests that want real tokens, not for load: it answers
// SEQUENCES requests at once and queues the rest. A client that hangs up stops
// its generation, and GET /debug/state says how many are generating right now,
// so that a test can see whether a cancelled run really stopped its model call.
import http from "node:http";
import { randomUUID } from "node:crypto";
import { getLlama, LlamaChatSession } from "node-llama-cpp";

const PORT = Number(process.env.PORT ?? 11435);
const MODEL_FILE = process.env.MODEL_FILE;
const SEQUENCES = Number(process.env.SEQUENCES ?? 2);
const API_KEY = process.env.API_KEY; // where set, requests need "Authorization: Bearer …"
if (!MODEL_FILE) {
  console.error("MODEL_FILE is not set: ./install gets the model");
  process.exit(2);
}

const llama = await getLlama({ gpu: false, build: "never", maxThreads: 2, logLevel: "error" });
const model = await llama.loadModel({ modelPath: MODEL_FILE });
const context = await model.createContext({ contextSize: 2048, sequences: SEQUENCES });
const MODEL_ID = "smollm2-135m-instruct";

const state = { generating: 0, finished: 0, aborted: 0 };
const free = Array.from({ length: SEQUENCES }, () => context.getSequence());
const waiting = [];
const acquire = () => (free.length ? Promise.resolve(free.pop()) : new Promise((r) => waiting.push(r)));
const release = (sequence) => (waiting.length ? waiting.shift()(sequence) : free.push(sequence));

const textOf = (content) =>
  typeof content === "string" ? content : (content ?? []).map((part) => part.text ?? "").join("");

function historyOf(messages) {
  const history = [];
  for (const message of messages.slice(0, -1)) {
    const text = textOf(message.content);
    if (message.role === "assistant") history.push({ type: "model", response: [text] });
    else if (message.role === "system" || message.role === "developer") history.push({ type: "system", text });
    else history.push({ type: "user", text });
  }
  return history;
}

const fail = (res, status, message, type = "invalid_request_error") => {
  res.writeHead(status, { "content-type": "application/json" });
  res.end(JSON.stringify({ error: { message, type } }));
};

async function complete(req, res, body) {
  const { messages, stream = false, max_tokens, max_completion_tokens, temperature = 0, stream_options } = body;
  if (!Array.isArray(messages) || messages.length === 0) return fail(res, 400, "messages must be a non-empty array");
  const id = `chatcmpl-${randomUUID()}`;
  const created = Math.floor(Date.now() / 1000);
  const base = { id, created, model: MODEL_ID };
  const abort = new AbortController();
  res.on("close", () => abort.abort());
  const sequence = await acquire();
  state.generating += 1;
  const started = { promptTokens: sequence.tokenMeter.usedInputTokens, outputTokens: sequence.tokenMeter.usedOutputTokens };
  const chunk = (delta, finish_reason = null, extra = {}) =>
    res.write(`data: ${JSON.stringify({ ...base, object: "chat.completion.chunk", choices: [{ index: 0, delta, finish_reason }], ...extra })}\n\n`);
  try {
    const session = new LlamaChatSession({ contextSequence: sequence });
    session.setChatHistory(historyOf(messages));
    if (stream) {
      res.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
      chunk({ role: "assistant", content: "" });
    }
    const { responseText, stopReason } = await session.promptWithMeta(textOf(messages.at(-1).content), {
      maxTokens: max_completion_tokens ?? max_tokens ?? 128,
      temperature,
      signal: abort.signal,
      onTextChunk: (text) => stream && chunk({ content: text }),
    });
    const prompt_tokens = sequence.tokenMeter.usedInputTokens - started.promptTokens;
    const completion_tokens = sequence.tokenMeter.usedOutputTokens - started.outputTokens;
    const usage = { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens };
    const finish_reason = stopReason === "maxTokens" ? "length" : "stop";
    if (stream) {
      chunk({}, finish_reason);
      if (stream_options?.include_usage)
        res.write(`data: ${JSON.stringify({ ...base, object: "chat.completion.chunk", choices: [], usage })}\n\n`);
      res.end("data: [DONE]\n\n");
    } else {
      res.writeHead(200, { "content-type": "application/json" });
      res.end(JSON.stringify({
        ...base, object: "chat.completion", usage,
        choices: [{ index: 0, message: { role: "assistant", content: responseText }, finish_reason }],
      }));
    }
    state.finished += 1;
  } catch (error) {
    if (abort.signal.aborted) state.aborted += 1;
    else if (!res.headersSent) fail(res, 500, String(error), "server_error");
    else res.destroy(error);
  } finally {
    state.generating -= 1;
    await sequence.clearHistory();
    release(sequence);
  }
}

http
  .createServer((req, res) => {
    const path = req.url.split("?")[0];
    if (req.method === "GET" && path === "/debug/state") {
      res.writeHead(200, { "content-type": "application/json" });
      return res.end(JSON.stringify({ ...state, waiting: waiting.length }));
    }
    if (API_KEY && req.headers.authorization !== `Bearer ${API_KEY}`)
      return fail(res, 401, "Incorrect API key provided", "invalid_api_key");
    if (req.method === "GET" && path === "/v1/models") {
      res.writeHead(200, { "content-type": "application/json" });
      return res.end(JSON.stringify({ object: "list", data: [{ id: MODEL_ID, object: "model", owned_by: "local" }] }));
    }
    if (req.method !== "POST" || path !== "/v1/chat/completions") return fail(res, 404, `no route ${req.method} ${path}`);
    let raw = "";
    req.on("data", (part) => (raw += part));
    req.on("end", () => {
      let body;
      try {
        body = JSON.parse(raw);
      } catch {
        return fail(res, 400, "the body is not JSON");
      }
      complete(req, res, body);
    });
  })
  .listen(PORT, "127.0.0.1", () => console.log(`${MODEL_ID} listening on http://127.0.0.1:${PORT}/v1`));
