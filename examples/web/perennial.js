// A Perennial cluster as a page sees it.
//
// Owns: which gateway to talk to, calls that are safe to repeat, event streams that resume.
// Never touches the document. Every gateway of the cluster can serve every call, so when the one
// in use is gone, another one from the last member list takes over; calls are repeated under the
// same Idempotency-Key, streams go on after the last event id.

const ATTEMPT_MS = 4000;       // one HTTP attempt
const PROBE_MS = 1500;         // one look at a gateway's status
const STATUS_EVERY_MS = 2500;  // how often the member list is refreshed
const CALL_MS = 45000;         // how long a call is repeated
const REFUSALS_MAX = 3;        // answers like "unavailable" in a row before another gateway is asked
const BACKOFF_MIN_MS = 150;
const BACKOFF_MAX_MS = 2000;

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const jitter = (ms) => ms * (0.5 + Math.random() / 2);
const backoff = (n) => jitter(Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** n));

/** A random id; works without a secure context, where crypto.randomUUID is missing. */
export const newKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

/** A call that was answered, but not with a value. `app` is the actor's own error, if it is one. */
export class CallFailed extends Error {
  constructor(status, body) {
    super(body?.message ?? `the gateway answered ${status}`);
    this.status = status;
    this.code = body?.code ?? "unknown";
    this.app = body?.code === "app" ? body.error : null;
    this.applied = body?.applied ?? "unknown";
    this.retryable = body ? body.retryable === true : status >= 500;
  }
}

const isLoopback = (host) => /^(localhost|127\.|0\.0\.0\.0|\[?::1?\]?$)/.test(host);

/** A member's gateway as an origin this page can reach. */
function originOf(http) {
  const url = new URL(http.includes("://") ? http : `${location.protocol}//${http}`);
  // A node that listens on loopback says 127.0.0.1; a page opened from elsewhere came through a name.
  if (isLoopback(url.hostname) && !isLoopback(location.hostname)) url.hostname = location.hostname;
  return url.origin;
}

export class Cluster extends EventTarget {
  /** The gateway in use. */
  gateway = location.origin;
  /** The node behind it, once known. */
  node = null;
  /** Members by the last status. */
  members = [];
  /** "connecting" | "live" | "reconnecting" | "offline" */
  state = "connecting";
  #origins = new Set([location.origin]);
  #choosing = null;
  #streams = new Set();

  constructor() {
    super();
    this.#watch();
    addEventListener("online", () => this.suspect(this.gateway));
  }

  /** Repeats a write until it is answered. The same `key` never runs it twice. */
  write(kind, actor, method, args = {}, { key = newKey(), onRetry } = {}) {
    const init = {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": key },
      body: JSON.stringify(args),
    };
    return this.#call(`/v1/${kind}/${encodeURIComponent(actor)}/${method}`, init, onRetry);
  }

  /** Repeats a read until it is answered. */
  read(kind, actor, method, args = {}) {
    const query = new URLSearchParams(args).toString();
    return this.#call(`/v1/${kind}/${encodeURIComponent(actor)}/${method}${query && "?" + query}`, {});
  }

  /** A write that is sent as the page goes away; nobody waits for it. */
  farewell(kind, actor, method, args = {}) {
    fetch(`${this.gateway}/v1/${kind}/${encodeURIComponent(actor)}/${method}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(args),
      keepalive: true,
    }).catch(() => {});
  }

  /**
   * Follows an actor's events. `onOpen` runs each time the stream stands, before its first event:
   * the place to read what the events change. `onEvent` gets each event once, in order.
   */
  follow(kind, actor, { onOpen, onEvent }) {
    const stream = { live: false, failures: 0, last: null, source: null, timer: 0, closed: false };
    const open = () => {
      clearTimeout(stream.timer);
      stream.source?.close();
      if (stream.closed) return;
      const gateway = this.gateway;
      const from = stream.last ?? "now";
      const path = `/v1/${kind}/${encodeURIComponent(actor)}/events?from=${encodeURIComponent(from)}`;
      const source = (stream.source = new EventSource(gateway + path));
      const broken = (suspect) => {
        if (stream.source !== source) return;
        source.close();
        stream.live = false;
        this.#show();
        stream.timer = setTimeout(async () => {
          if (suspect) await this.suspect(gateway);
          if (stream.source === source) open();
        }, backoff(stream.failures++));
      };
      source.onopen = () => {
        stream.live = true;
        stream.failures = 0;
        this.#show();
        onOpen?.();
      };
      source.onmessage = (message) => {
        if (stream.source !== source) return;
        if (message.lastEventId) stream.last = message.lastEventId;
        onEvent(JSON.parse(message.data));
      };
      source.addEventListener("fault", (message) => {
        // Events this old are no longer kept: go on from now, onOpen reads the rest.
        if (parsed(message.data)?.retryable === false) stream.last = null;
        broken(false);
      });
      source.onerror = () => broken(true);
    };
    stream.open = open;
    this.#streams.add(stream);
    open();
    return {
      close: () => {
        stream.closed = true;
        clearTimeout(stream.timer);
        stream.source?.close();
        this.#streams.delete(stream);
      },
    };
  }

  /**
   * Something failed at this gateway: look again, and move to another one if it does not answer.
   * With `avoid`, move even if it does: it answers but cannot serve, such as one that is cut off.
   */
  suspect(gateway, avoid = false) {
    if (gateway !== this.gateway) return Promise.resolve();
    this.#choosing ??= this.#choose(avoid).finally(() => (this.#choosing = null));
    return this.#choosing;
  }

  async #call(path, init, onRetry) {
    const deadline = performance.now() + CALL_MS;
    for (let attempt = 0; ; attempt++) {
      const gateway = this.gateway;
      let failed;
      try {
        const response = await fetch(gateway + path, { ...init, signal: AbortSignal.timeout(ATTEMPT_MS) });
        const body = parsed(await response.text());
        if (response.ok) return { value: body, node: response.headers.get("perennial-node") };
        failed = new CallFailed(response.status, body);
        if (!failed.retryable) throw failed;
      } catch (error) {
        if (error instanceof CallFailed && !error.retryable) throw error;
        failed = error;
        const refused = error instanceof CallFailed;
        if (!refused || attempt % REFUSALS_MAX === REFUSALS_MAX - 1) await this.suspect(gateway, refused);
      }
      if (performance.now() >= deadline) throw failed;
      onRetry?.(failed);
      await sleep(backoff(attempt));
    }
  }

  async #choose(avoid) {
    const before = this.gateway;
    const same = () => this.#probe(before).catch(() => null);
    const others = [...this.#origins].filter((origin) => origin !== before);
    // Of the others, whoever answers first.
    const other = () => Promise.any(others.map((origin) => this.#probe(origin))).catch(() => null);
    const found = avoid ? ((await other()) ?? (await same())) : ((await same()) ?? (await other()));
    if (!found) {
      if (this.state !== "offline") this.#set("offline");
      return;
    }
    this.#adopt(found);
    if (found.origin !== before) {
      this.gateway = found.origin;
      for (const stream of this.#streams) {
        stream.live = false;
        stream.open();
      }
    }
    this.#show(true);
  }

  async #probe(origin) {
    const response = await fetch(`${origin}/v1/status`, { signal: AbortSignal.timeout(PROBE_MS) });
    const status = response.ok && (await response.json());
    if (!status || status.waiting_for) throw new Error("not ready");
    return { origin, status };
  }

  #adopt({ status }) {
    this.node = status.node;
    this.members = status.members;
    for (const member of status.members) if (member.http) this.#origins.add(originOf(member.http));
    this.dispatchEvent(new Event("members"));
  }

  /** Refreshes the member list for ever; a gateway that does not answer is left. */
  async #watch() {
    for (;;) {
      if (!document.hidden || this.state !== "live") await this.suspect(this.gateway);
      await sleep(jitter(STATUS_EVERY_MS));
    }
  }

  #show(reachable = false) {
    const streams = [...this.#streams];
    if (streams.length ? streams.every((stream) => stream.live) : reachable) this.#set("live");
    else if (reachable || this.state === "live") this.#set(this.state === "connecting" ? "connecting" : "reconnecting");
  }

  #set(state) {
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Keeps a badge such as "live on n2" and a list of the nodes up to date. */
export function showCluster(cluster, badge, nodes) {
  const words = { connecting: "connecting…", reconnecting: "reconnecting…", offline: "no node answers, trying again…" };
  const draw = () => {
    badge.dataset.state = cluster.state;
    badge.textContent = words[cluster.state] ?? `live on ${cluster.node ?? "…"}`;
    nodes.replaceChildren(
      ...cluster.members.map((member) => {
        const item = document.createElement("li");
        item.textContent = member.node;
        item.dataset.up = member.up;
        if (member.node === cluster.node) item.setAttribute("aria-current", "true");
        item.title = member.up ? `${member.node} leads ${member.leads} partitions` : `${member.node} is down`;
        const state = document.createElement("span");
        state.className = "quiet";
        state.textContent = member.up ? "" : "(down)";
        item.append(state);
        return item;
      }),
    );
  };
  cluster.addEventListener("state", draw);
  cluster.addEventListener("members", draw);
  draw();
}

/** Makes an element: `el("p", { className: "x" }, "text", child)`. Text is never read as HTML. */
export function el(name, props = {}, ...children) {
  const element = Object.assign(document.createElement(name), props);
  element.append(...children);
  return element;
}
