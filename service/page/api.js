// Requests to the REST API; with a token, where the service wants one.

import { isEnded } from "./states.js";

const TOKEN = "laminar-token";

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? body.title ?? `the service answered ${status}`);
    this.status = status;
    this.rule = body.rule ?? null;
  }
}

/** The token lives as long as the tab does, and no other site or tab sees it. */
export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value) => sessionStorage.setItem(TOKEN, value),
  clear: () => sessionStorage.removeItem(TOKEN),
};

async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const all = { ...headers };
  if (token.get()) all.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method, signal, headers: all, body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The service does not answer." });
  }
  if (response.ok) return response;
  const content = await response.json().catch(() => ({}));
  if (response.status === 401) window.dispatchEvent(new Event("laminar:token-needed"));
  throw new Problem(response.status, content);
}

const json = async (path, options) => (await send(path, options)).json();
const jobPath = (id) => `v1/jobs/${encodeURIComponent(id)}`;

/** The path of a file in a run directory; slashes in it stay slashes. */
export function artifactPath(id, path) {
  return `${jobPath(id)}/artifacts/${path.split("/").map(encodeURIComponent).join("/")}`;
}

export const api = {
  me: (options) => json("v1/me", options),
  cluster: (options) => json("v1/cluster", options),
  openapi: (options) => json("openapi.json", options),
  schema: (options) => json("v1/schema", options),
  readConfig: (text, options) => json("v1/config", { ...options, method: "POST", body: { text } }),
  readSearchFile: (text, options) => json("v1/search-file", { ...options, method: "POST", body: { text } }),
  estimate: (request, options) => json("v1/estimate", { ...options, method: "POST", body: request }),
  submit: (request, key) =>
    json("v1/jobs", { method: "POST", body: request, headers: { "Idempotency-Key": key } }),
  jobs(states, cursor, options) {
    const query = new URLSearchParams({ limit: "50" });
    for (const state of states) query.append("state", state);
    if (cursor) query.set("cursor", cursor);
    return json(`v1/jobs?${query}`, options);
  },
  job: (id, options) => json(jobPath(id), options),
  stop: (id) => json(`${jobPath(id)}/stop`, { method: "POST" }),
  resume: (id) => json(`${jobPath(id)}/resume`, { method: "POST" }),
  delete: (id) => send(jobPath(id), { method: "DELETE" }),
  trials: (id, options) => json(`${jobPath(id)}/trials`, options),
  timeline: (id, start, options) => json(`${jobPath(id)}/timeline?start=${start}`, options),
  timelineOfEpoch: (id, epoch, options) => json(`${jobPath(id)}/timeline/${epoch}`, options),
  artifacts: (id, options) => json(`${jobPath(id)}/artifacts`, options),
  checkpoints: (id, options) => json(`${jobPath(id)}/checkpoints`, options),
  artifact: async (id, path) => (await send(artifactPath(id, path))).blob(),
};

/** Yield {event, data, id} of one stream of server-sent events until it ends. */
async function* eventsOf(path, options) {
  const response = await send(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { event: "message", data: [], id: null };
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data.length) yield { ...event, data: event.data.join("\n") };
        event = { event: "message", data: [], id: null };
        continue;
      }
      const [, field, text] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (field === "data") event.data.push(text);
      else if (field === "event") event.event = text;
      else if (field === "id") event.id = text;
    }
  }
}

const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });

/** Return when the tab is looked at; streams of hidden tabs would use up the browser's few. */
export async function visible(signal) {
  while (document.hidden && !signal.aborted) {
    await new Promise((resolve) => {
      document.addEventListener("visibilitychange", resolve, { once: true });
      signal.addEventListener("abort", resolve, { once: true });
    });
  }
}

/** Whether a stream's end is the job's; the service ends streams too when it goes down. */
function hasEnded({ data }) {
  const { state } = JSON.parse(data);
  return state === null || isEnded(state);
}

/**
 * Follow a stream, again after each break, until the job has ended.
 *
 * EventSource would do so, but cannot send a token.
 *
 * @param {string} path Under the job, `logs/events` or `metrics/events`.
 * @param {function({event: string, data: string, id: ?string})} onEvent
 * @param {function(?string)} onBreak Told why it broke, and null when it goes on.
 */
export async function follow(id, path, { signal, onEvent, onBreak }) {
  let last = null;
  let failures = 0;
  while (!signal.aborted) {
    await visible(signal);
    const inner = new AbortController();
    const abort = () => inner.abort();
    const hide = () => { if (document.hidden) inner.abort(); };
    signal.addEventListener("abort", abort, { once: true });
    document.addEventListener("visibilitychange", hide);
    try {
      const headers = last === null ? {} : { "Last-Event-ID": last };
      for await (const event of eventsOf(`${jobPath(id)}/${path}`, { headers, signal: inner.signal })) {
        if (failures) onBreak(null);
        failures = 0;
        if (event.id !== null) last = event.id;
        onEvent(event);
        if (event.event === "end" && hasEnded(event)) return;
      }
      failures += 1; // the service ended, and may be there again in a moment
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && [401, 403, 404].includes(error.status)) {
        onBreak(error.message);
        return;
      }
      if (!inner.signal.aborted) failures += 1;
    } finally {
      signal.removeEventListener("abort", abort);
      document.removeEventListener("visibilitychange", hide);
    }
    if (failures) {
      onBreak("Connection lost; trying again.");
      await pause(Math.min(10000, 500 * 2 ** failures), signal);
    }
  }
}

/** Call a function every so often while the tab is looked at, one call at a time. */
export async function poll(call, ms, signal) {
  while (!signal.aborted) {
    await visible(signal);
    if (signal.aborted) return;
    await call();
    await pause(ms, signal);
  }
}
