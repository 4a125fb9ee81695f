// The chat page: one room, live. Messages stand in the order of the room's own numbers; what is not
// acknowledged yet stands below them, marked.

import { Cluster, el, newKey, showCluster } from "./perennial.js";

const PAGE = 100; // messages read at a time
const RENEW_MS = 45000; // the room forgets who is silent for two minutes

const $ = (id) => document.getElementById(id);
const cluster = new Cluster();
showCluster(cluster, $("state"), $("nodes"));

let room = null; // the room we are in
let me = null;
let stream = null;
let renewal = 0;
let earliest = null;         // place of the first message read
let lastSeq = 0;             // newest event seen, to notice a gap
const members = new Set();
const bySeq = new Map();     // number -> element
const pending = [];          // own messages without a number yet, oldest first
let outbox = Promise.resolve(); // sends them one at a time, so that they keep their order

const remembered = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
const remember = (name, value) => { try { localStorage.setItem(name, value); } catch { /* private mode */ } };

$("room").value = decodeURIComponent(location.hash.slice(1)) || "lobby";
$("name").value = remembered("perennial-chat-name") ?? "";
($("name").value ? $("join").querySelector("button") : $("name")).focus();

$("join").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = $("join").querySelector("button");
  const [wantedRoom, wantedName] = [$("room").value.trim(), $("name").value.trim()];
  button.disabled = true;
  $("join-problem").hidden = true;
  try {
    const { value } = await cluster.write("Room", wantedRoom, "join", { who: wantedName });
    enter(wantedRoom, wantedName, value);
  } catch (error) {
    $("join-problem").textContent = explain(error);
    $("join-problem").hidden = false;
  } finally {
    button.disabled = false;
  }
});

function enter(wantedRoom, wantedName, present) {
  [room, me] = [wantedRoom, wantedName];
  remember("perennial-chat-name", me);
  history.replaceState(null, "", `#${encodeURIComponent(room)}`);
  document.title = `${room} · Perennial`;
  $("room-name").textContent = `· ${room}`;
  $("door").hidden = true;
  $("inside").hidden = false;
  for (const who of present) members.add(who);
  drawMembers();
  stream = cluster.follow("Room", room, { onOpen: catchUp, onEvent: happened });
  renewal = setInterval(() => rejoin().catch(() => {}), RENEW_MS);
  $("text").focus();
}

const rejoin = () => cluster.write("Room", room, "join", { who: me });

$("leave").addEventListener("click", async () => {
  const [left, who] = [room, me];
  reset();
  await cluster.write("Room", left, "leave", { who }).catch(() => {});
});
addEventListener("pagehide", () => room && cluster.farewell("Room", room, "leave", { who: me }));
addEventListener("pageshow", (event) => event.persisted && room && rejoin().catch(() => {}));

function reset() {
  stream?.close();
  clearInterval(renewal);
  room = me = stream = null;
  lastSeq = 0;
  earliest = null;
  $("earlier").hidden = true;
  members.clear();
  bySeq.clear();
  pending.length = 0;
  $("log").replaceChildren();
  $("room-name").textContent = "";
  $("inside").hidden = true;
  $("door").hidden = false;
}

// --- what the room tells -------------------------------------------------------------------------

/** The stream stands (again): read what it does not tell. Safe to run at any time, twice as well. */
async function catchUp() {
  const here = room;
  try {
    const [said, present] = await Promise.all([
      cluster.read("Room", here, "page", { before: Number.MAX_SAFE_INTEGER, count: PAGE }),
      cluster.read("Room", here, "members"),
    ]);
    if (room !== here) return;
    // What was read before reaches further back, unless this is the first time.
    if (earliest === null) showEarlier(said.value.first);
    for (const message of said.value.messages) {
      show(message);
      lastSeq = Math.max(lastSeq, message.seq);
    }
    members.clear();
    for (const who of present.value) members.add(who);
    drawMembers();
  } catch (error) {
    console.warn("catching up failed", error);
  }
}

function showEarlier(first) {
  earliest = first;
  $("earlier").hidden = first === 0;
}

$("earlier").addEventListener("click", async () => {
  const here = room;
  $("earlier").disabled = true;
  try {
    const { value } = await cluster.read("Room", here, "page", { before: earliest, count: PAGE });
    if (room !== here) return;
    for (const message of value.messages) show(message);
    showEarlier(value.first);
  } catch (error) {
    console.warn("reading earlier messages failed", error);
  } finally {
    $("earlier").disabled = false;
  }
});

function happened(event) {
  const [[name, body]] = Object.entries(event);
  const gap = lastSeq > 0 && body.seq > lastSeq + 1;
  lastSeq = Math.max(lastSeq, body.seq);
  if (name === "Said") {
    show(body);
  } else if (!bySeq.has(body.seq)) {
    const came = name === "Joined";
    came ? members.add(body.who) : members.delete(body.who);
    drawMembers();
    place(el("li", { className: "note" }, `${body.who} ${came ? "joined" : "left"} · ${clock(body.at)}`), body.seq);
  }
  if (gap) catchUp();
}

/** Shows a message of the room once, taking over the mark of our own that was waiting for it. */
function show({ seq, who, text, at }) {
  if (bySeq.has(seq)) return;
  const own = who === me ? pending.findIndex((waiting) => waiting.text === text) : -1;
  const item = own >= 0 ? pending.splice(own, 1)[0] : bubble(who, text);
  if (own >= 0) settle(item, "sent");
  item.time.textContent = clock(at);
  place(item.element, seq);
}

/** Puts an element where its number belongs: after smaller ones, before what is still waiting. */
function place(element, seq) {
  const log = $("log");
  const follow = element.classList.contains("mine") || log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  element.dataset.seq = seq;
  bySeq.set(seq, element);
  let next = log.firstElementChild;
  for (let at = log.lastElementChild; at; at = at.previousElementSibling) {
    if (at !== element && at.dataset.seq && Number(at.dataset.seq) < seq) {
      next = at.nextElementSibling;
      break;
    }
  }
  if (next !== element) log.insertBefore(element, next);
  if (follow) log.scrollTop = log.scrollHeight;
}

// --- what we say ---------------------------------------------------------------------------------

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  const item = { ...bubble(me, text), text, node: null };
  pending.push(item);
  $("log").append(item.element);
  $("log").scrollTop = $("log").scrollHeight;
  settle(item, "sending…", "pending");
  outbox = outbox.then(() => send(item));
});

async function send(item) {
  if (!item.element.isConnected) return; // we left the room meanwhile
  settle(item, "sending…", "pending");
  try {
    const answer = await say(item);
    item.node = answer.node;
    const waiting = pending.indexOf(item);
    if (waiting >= 0) {
      pending.splice(waiting, 1);
      const shown = bySeq.get(answer.value);
      shown ? item.element.remove() : place(item.element, answer.value);
      item.time.textContent ||= clock(Date.now());
    }
    settle(item, "sent");
  } catch (error) {
    if (!pending.includes(item)) return; // it came back through the room
    settle(item, `not sent: ${explain(error)}`, "failed");
    const again = el("button", { type: "button", className: "again" }, "Try again");
    again.addEventListener("click", () => (outbox = outbox.then(() => send(item))));
    item.mark.append(" ", again);
  }
}

async function say(item) {
  const args = { who: me, text: item.text };
  // One key for all attempts at this message, also for "Try again": it stands in the room once.
  item.key ??= newKey();
  const onRetry = () => settle(item, "sending again…", "pending");
  try {
    return await cluster.write("Room", room, "say", args, { key: item.key, onRetry });
  } catch (error) {
    if (error.app !== "NotMember") throw error;
    // Asleep for too long, the room has let us go. The refusal changed nothing: a new key is safe.
    await rejoin();
    item.key = newKey();
    return cluster.write("Room", room, "say", args, { key: item.key, onRetry });
  }
}

/** The room's own errors in words; anything else speaks for itself. */
function explain(error) {
  if (error.app === "NotMember") return "join the room first";
  const [[name, body]] = Object.entries(error.app ?? { other: null });
  switch (name) {
    case "BadName": return `a name has 1 to ${body.max} characters`;
    case "BadText": return `a message has 1 to ${body.max} characters`;
    case "Full": return `the room is full: ${body.max} members`;
    default: return error.message;
  }
}

function settle(item, words, state = "") {
  item.element.classList.toggle("pending", state === "pending");
  item.element.classList.toggle("failed", state === "failed");
  item.mark.textContent = words === "sent" ? `✓ ${item.node ? `answered by ${item.node}` : ""}` : words;
}

// --- drawing -------------------------------------------------------------------------------------

function bubble(who, text) {
  const time = el("span");
  const mark = el("span", { className: "mark" });
  const meta = el("p", { className: "meta" }, el("span", { className: "who" }, who), time, mark);
  const element = el("li", { className: who === me ? "message mine" : "message" });
  element.style.setProperty("--hue", hue(who));
  element.append(meta, el("div", { className: "bubble" }, text));
  return { element, time, mark };
}

function drawMembers() {
  $("members").replaceChildren(
    ...[...members].sort((a, b) => a.localeCompare(b)).map((who) => {
      const face = el("span", { className: "face", ariaHidden: "true" }, [...who][0]?.toUpperCase() ?? "?");
      face.style.setProperty("--hue", hue(who));
      return el("li", {}, face, el("span", {}, who === me ? `${who} (you)` : who));
    }),
  );
}

const hue = (who) => [...who].reduce((sum, char) => (sum * 31 + char.codePointAt(0)) % 360, 7);
const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
