// The shop page: shelves on the left, one cart on the right, live in every browser that shows it.
// A change shows at once, marked, and stands when the cart has acknowledged it.

import { Cluster, el, showCluster } from "./perennial.js";

const GOODS = [
  { sku: "tea", name: "Mint tea", cents: 250 },
  { sku: "bulbs", name: "Tulip bulbs", cents: 490 },
  { sku: "lavender", name: "Lavender", cents: 620 },
  { sku: "sunflower", name: "Sunflower seeds", cents: 180 },
  { sku: "cactus", name: "Small cactus", cents: 890 },
  { sku: "pot", name: "Clay pot", cents: 350 },
];
const SHELF_EVERY_MS = 5000;
const READ_AGAIN_MS = 1000;
const ORDERS_SHOWN = 5;
const nameOf = (sku) => GOODS.find((good) => good.sku === sku)?.name ?? sku;
const money = (cents) => (cents / 100).toLocaleString(undefined, { style: "currency", currency: "EUR" });

const $ = (id) => document.getElementById(id);
const cluster = new Cluster();
showCluster(cluster, $("state"), $("nodes"));

let customer = decodeURIComponent(location.hash.slice(1)) || "alice";
let stream = null;
let lines = {};             // by the cart's last answer
const wanted = new Map();   // sku -> pieces asked for and not acknowledged yet
const prices = new Map(GOODS.map((good) => [good.sku, good.cents]));
let queue = Promise.resolve(); // one change at a time, in the order of the clicks
let stale = false;          // the cart changed while a change of ours was under way
let asked = 0;              // reads of the cart so far, and the newest of them that is shown
let shown = 0;

// --- the shelf -----------------------------------------------------------------------------------

const shelf = new Map();
for (const good of GOODS) {
  const left = el("span", { className: "left quiet" }, "…");
  const add = el("button", { type: "button" }, "Add to cart");
  add.setAttribute("aria-label", `Add ${good.name} to the cart`);
  add.addEventListener("click", () => change(good.sku, +1));
  shelf.set(good.sku, { left, add });
  const picture = $(`picture-${good.sku}`).content.cloneNode(true);
  const row = el("span", { className: "row" }, el("span", {}, money(good.cents)), left);
  $("shelf").append(el("li", {}, picture, el("span", { className: "name" }, good.name), row, add));
}

async function readShelf() {
  await Promise.all(
    GOODS.map(async ({ sku }) => {
      const { value } = await cluster.read("Stock", sku, "available");
      const { left, add } = shelf.get(sku);
      left.textContent = value > 0 ? `${value} left` : "sold out";
      left.dataset.low = value <= 5;
      add.disabled = value <= 0;
    }),
  ).catch(() => {});
}
let shelfTimer = 0;
function shelfSoon(ms = 150) {
  clearTimeout(shelfTimer);
  shelfTimer = setTimeout(async () => {
    if (!document.hidden) await readShelf();
    shelfSoon(SHELF_EVERY_MS);
  }, ms);
}
shelfSoon(0);

// --- the cart ------------------------------------------------------------------------------------

$("customer").value = customer;
$("customer").addEventListener("change", () => {
  const name = $("customer").value.trim();
  if (name && name !== customer) open(name);
});
$("who").addEventListener("submit", (event) => {
  event.preventDefault();
  $("customer").blur();
});

function open(name) {
  stream?.close();
  customer = name;
  lines = {};
  wanted.clear();
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  $("orders").replaceChildren();
  $("orders-box").hidden = true;
  say("");
  draw();
  stream = cluster.follow("Cart", name, { onOpen: refresh, onEvent: happened });
}

function happened(event) {
  if (event.Ordered) showOrder(event.Ordered.order, event.Ordered.cents);
  refresh();
  shelfSoon();
}

/** Reads the cart, or has it read at the end of our changes under way: drawn earlier they would count twice. */
function refresh() {
  stale = wanted.size > 0;
  if (!stale) readCart();
}

/** Reads the cart's lines and draws them; `first` runs right before that. */
async function readCart(first = () => {}) {
  const mine = customer;
  const number = ++asked;
  try {
    const { value } = await cluster.read("Cart", mine, "lines");
    if (mine !== customer) return;
    first();
    if (number < shown) return draw(); // a later read was faster
    shown = number;
    lines = value;
    for (const [sku, line] of Object.entries(lines)) prices.set(sku, line.cents);
    draw();
  } catch (error) {
    first();
    console.warn("reading the cart failed", error);
    if (mine === customer) setTimeout(refresh, READ_AGAIN_MS);
  }
}

/** Asks for `by` pieces more or fewer; shows it at once and sends it in turn. */
function change(sku, by) {
  const mine = customer;
  wanted.set(sku, (wanted.get(sku) ?? 0) + by);
  draw();
  queue = queue.then(async () => {
    try {
      const now = lines[sku]?.qty ?? 0;
      const answer =
        by > 0
          ? await cluster.write("Cart", mine, "add", { sku, qty: by, cents: prices.get(sku) ?? 0 }, { onRetry })
          : await cluster.write("Cart", mine, "set_qty", { sku, qty: Math.max(0, now + by) }, { onRetry });
      say(`saved, answered by ${answer.node ?? "the cluster"}`);
    } catch (error) {
      if (mine === customer) say(explain(error), true);
    }
    if (mine !== customer) return;
    await readCart(() => {
      const rest = (wanted.get(sku) ?? 0) - by;
      rest ? wanted.set(sku, rest) : wanted.delete(sku);
    });
    draw();
    // That read may have been on its way when somebody else changed the cart.
    if (stale) refresh();
    shelfSoon();
  });
}

const onRetry = () => say("the node is gone, trying the next one with the same key…");

/** The cart's own errors in words; anything else speaks for itself. */
function explain(error) {
  if (error.app === "Empty") return "the cart is empty";
  const [[name, body]] = Object.entries(error.app ?? { other: null });
  switch (name) {
    case "OutOfStock": return `${nameOf(body.sku)}: only ${body.left} left`;
    case "BadQuantity": return `a line has 1 to ${body.max} pieces`;
    case "TooManyLines": return `a cart holds at most ${body.max} different articles`;
    case "NotInCart": return `${nameOf(body.sku)} is not in the cart any more`;
    default: return error.message;
  }
}

$("checkout").addEventListener("click", () => {
  const mine = customer;
  $("checkout").disabled = true;
  queue = queue.then(async () => {
    try {
      const { value, node } = await cluster.write("Cart", mine, "checkout", {}, { onRetry });
      say(`order ${value} placed, answered by ${node ?? "the cluster"}`);
    } catch (error) {
      say(explain(error), true);
    }
    await readCart();
    draw();
  });
});

// --- drawing -------------------------------------------------------------------------------------

function say(words, bad = false) {
  $("word").textContent = words;
  $("word").dataset.bad = bad;
}

function showOrder(order, cents) {
  if ([...$("orders").children].some((item) => item.dataset.order === order)) return;
  const item = el("li", {}, el("span", {}, order), el("span", {}, money(cents)));
  item.dataset.order = order;
  showStage(item, order);
  $("orders").prepend(item);
  while ($("orders").children.length > ORDERS_SHOWN) $("orders").lastElementChild.remove();
  $("orders-box").hidden = false;
}

/** Shows how far an order has come, until it is shipped or cancelled. */
async function showStage(item, order) {
  const words = { Paying: "paying…", Shipping: "shipping…", Shipped: "shipped" };
  const reasons = { NoCredit: "cancelled: not enough money", TooLarge: "cancelled: too large for a parcel" };
  for (let wait = 50; item.parentNode || wait === 50; wait = Math.min(2 * wait, SHELF_EVERY_MS)) {
    const { value } = await cluster.read("Order", order, "receipt").catch(() => ({ value: null }));
    const stage = value?.stage;
    item.dataset.stage = reasons[stage?.Cancelled] ?? words[stage] ?? "";
    if (stage === "Shipped" || stage?.Cancelled) return shelfSoon();
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

/** Draws the lines anew, keeping the focus on the button that was pressed. */
function draw() {
  const focus = document.activeElement?.dataset?.focus;
  const skus = [...new Set([...Object.keys(lines), ...wanted.keys()])].sort();
  let total = 0;
  const rows = [];
  for (const sku of skus) {
    const qty = Math.max(0, (lines[sku]?.qty ?? 0) + (wanted.get(sku) ?? 0));
    const cents = lines[sku]?.cents ?? prices.get(sku) ?? 0;
    total += qty * cents;
    if (qty === 0 && !wanted.has(sku)) continue;
    const name = el("span", { className: "name" }, nameOf(sku), el("span", { className: "note" }));
    const less = step(sku, -1, "−", `One ${nameOf(sku)} less`);
    less.disabled = qty === 0;
    const more = step(sku, +1, "+", `One ${nameOf(sku)} more`);
    const count = el("span", { className: "qty" }, less, el("b", {}, String(qty)), more);
    const row = el("li", {}, name, count, el("span", { className: "sum" }, money(qty * cents)));
    row.dataset.pending = wanted.has(sku);
    row.dataset.sku = sku;
    rows.push(row);
  }
  $("lines").replaceChildren(...rows);
  $("empty").hidden = rows.length > 0;
  $("total").textContent = money(total);
  $("total").dataset.pending = wanted.size > 0;
  $("checkout").disabled = rows.length === 0 || wanted.size > 0;
  if (focus) document.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
}

function step(sku, by, sign, label) {
  const button = el("button", { type: "button" }, sign);
  button.setAttribute("aria-label", label);
  button.dataset.focus = `${sku}${by}`;
  button.addEventListener("click", () => change(sku, by));
  return button;
}

open(customer);
