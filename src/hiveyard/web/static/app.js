// The page's own script: the stream of changes, keys, drafts, dialogs. Everything else is htmx in the templates.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const HIDDEN_SECONDS = 20;

// --- requests ------------------------------------------------------------------------------------------------------

document.addEventListener("htmx:config:request", (event) => {
  event.detail.ctx.request.headers["Hiveyard-Page"] = "1"; // no form of another site can send a header
});
document.addEventListener("htmx:error", (event) => {
  if (!event.detail.ctx?.response) toast("The daemon does not answer.", "bad");
});
document.addEventListener("htmx:after:swap", (event) => {
  const target = event.detail.ctx?.target;
  if (target?.id === "dialog" && !target.open) {
    closeMenus();
    target.showModal();
  }
  prepare(document);
});
document.addEventListener("hv:done", (event) => {
  const form = event.target.closest?.("form");
  if (form?.closest("#dialog")) $("#dialog").close();
  const draft = form && $("[data-draft]", form);
  if (draft) {
    draft.value = "";
    store(draft.dataset.draft, "");
    grow(draft);
  }
  closeMenus();
});
document.addEventListener("hv:removed", (event) => {
  $(`#row-${event.detail.id}`)?.remove();
  if ($(`[data-session="${event.detail.id}"]`)) location.assign("/overview");
});
document.addEventListener("hv:desk", () => refresh());
document.addEventListener("hv:did-collect", () => setTimeout(() => location.reload(), 300));
for (const verb of ["snapshot", "snapshot-rm"]) {
  document.addEventListener(`hv:did-${verb}`, () => location.pathname.endsWith("/snapshots") && location.reload());
}

function toast(words, tone = "good") {
  const made = document.createElement("div");
  made.className = `toast ${tone}`;
  made.textContent = words;
  $("#toasts").append(made);
  prepare(document);
}

async function swap(text, target, style = "outerMorph") {
  await htmx.swap({ text, target, swap: style, sourceElement: document.body });
}

// --- what changes --------------------------------------------------------------------------------------------------

class Live {
  // Follows the stream of the page. Each message has the number of its event, so nothing is missed or shown twice.
  constructor(address) {
    const url = new URL(address, location.href);
    this.path = url.pathname;
    this.last = url.searchParams.get("after");
    this.open();
    document.addEventListener("visibilitychange", () => this.visible());
  }

  open() {
    const query = this.last === null ? "" : `?after=${this.last}`;
    this.source = new EventSource(this.path + query);
    this.source.onopen = () => connection("live");
    this.source.onerror = () => this.broken();
    this.source.onmessage = (event) => {
      this.last = event.lastEventId || this.last;
      apply(JSON.parse(event.data));
    };
    this.source.addEventListener("reload", () => {
      this.close();
      reload().then((address) => {
        this.last = new URL(address ?? this.path, location.href).searchParams.get("after");
        this.open();
      });
    });
    this.source.addEventListener("gone", () => {
      this.close();
      connection("gone");
      toast("It was removed.", "bad");
    });
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  async broken() {
    connection("away");
    if (this.source?.readyState !== EventSource.CLOSED) return; // it tries again by itself
    this.close();
    const status = await fetch("/live/ping").then((answer) => answer.status, () => 0);
    if (status === 401) connection("out");
    else setTimeout(() => this.source ?? this.open(), 2000);
  }

  visible() {
    // A browser has few connections for one host: tabs that nobody sees give theirs back.
    clearTimeout(this.leaving);
    if (document.hidden) this.leaving = setTimeout(() => this.close(), HIDDEN_SECONDS * 1000);
    else if (!this.source) this.open();
  }
}

function connection(state) {
  const words = {
    live: ["live", "Connected: changes appear by themselves"],
    away: ["connecting", "The daemon does not answer. The page finds it again by itself."],
    out: ["signed out", "This browser is signed out: type hv web"],
    gone: ["removed", "This task or session was removed"],
  }[state];
  const link = $("#link");
  link.dataset.state = state;
  link.title = words[1];
  $("span", link).textContent = words[0];
}

function apply(change) {
  if (change.waiting !== undefined) waiting(change.waiting);
  if (page() === "desk" && change.desk) refresh();
  if (page() === "overview") overview().apply(change);
  if (change.items) transcript.apply(change);
}

const page = () => $("[data-page]")?.dataset.page;
const overview = () => $("hv-table");

function waiting(count) {
  const badge = $("#waiting");
  badge.hidden = !count;
  badge.textContent = count;
  badge.title = `${count} wait for you`;
  document.title = (count ? `(${count}) ` : "") + document.title.replace(/^\(\d+\) /, "");
}

let refreshing = null;
function refresh() {
  if (page() !== "desk") return;
  clearTimeout(refreshing);
  refreshing = setTimeout(reload, 120);
}

async function reload() {
  // Reads this page again and morphs what differs: focus, open folds and typed words stay.
  const answer = await fetch(location.href).catch(() => null);
  if (!answer?.ok) return null;
  const read = new DOMParser().parseFromString(await answer.text(), "text/html");
  const address = $("[data-live]", read)?.dataset.live ?? null;
  const selected = $(".selected")?.id;
  await swap($("#main", read).outerHTML, $("#main"));
  if (selected) document.getElementById(selected)?.classList.add("selected");
  prepare(document);
  overview()?.arrange();
  if (page() === "desk") waiting(Number($("#desk").dataset.waiting));
  return address;
}

// --- the overview --------------------------------------------------------------------------------------------------

class Table extends HTMLElement {
  connectedCallback() {
    this.addEventListener("input", () => this.arrange(true));
    this.addEventListener("click", (event) => event.target.closest("[data-clear]") && this.clear());
    const query = new URLSearchParams(location.hash.slice(1));
    this.field.value = query.get("q") ?? "";
    this.group.value = query.get("group") ?? "";
    for (const box of this.tones) box.checked = query.getAll("tone").includes(box.value);
    this.arrange();
  }

  get field() { return $("#search", this); }
  get group() { return $("[name=group]", this); }
  get tones() { return $$("[name=tone]", this); }
  get body() { return $("tbody", this); }
  get rows() { return $$("tr[data-item]", this.body); }

  clear() {
    this.field.value = "";
    for (const box of this.tones) box.checked = false;
    this.arrange(true);
  }

  apply(change) {
    for (const id of change.gone ?? []) $(`#row-${id}`)?.remove();
    for (const { id, html } of change.rows ?? []) {
      const row = document.getElementById(`row-${id}`);
      if (row) swap(html, row).then(() => this.arrange());
      else this.insert(html);
    }
    this.arrange();
  }

  insert(html) {
    const made = document.createElement("template");
    made.innerHTML = html;
    const row = made.content.firstElementChild;
    this.body.prepend(row);
    row.classList.add("fresh");
    htmx.process(row);
  }

  arrange(remember = false) {
    const words = this.field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const tones = this.tones.filter((box) => box.checked).map((box) => box.value);
    const rows = this.rows;
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase() + row.dataset.repo.toLowerCase();
      row.hidden = !(words.every((word) => text.includes(word)) && (!tones.length || tones.includes(row.dataset.tone)));
      shown += !row.hidden;
    }
    this.regroup(rows);
    $("[data-when=none]", this).hidden = rows.length > 0;
    $("[data-when=hidden]", this).hidden = !rows.length || shown > 0;
    $(".scroll", this).hidden = !shown;
    if (remember) this.remember(words, tones);
    prepare(this);
  }

  regroup(rows) {
    for (const heading of $$("tr.group", this.body)) heading.remove();
    const by = this.group.value;
    const order = [...rows].sort((a, b) => b.dataset.at - a.dataset.at);
    if (by) order.sort((a, b) => a.dataset[by].localeCompare(b.dataset[by]));
    if (order.some((row, at) => rows[at] !== row)) this.body.append(...order);
    if (!by) return;
    let last = null;
    for (const row of order.filter((row) => !row.hidden)) {
      if (row.dataset[by] === last) continue;
      last = row.dataset[by];
      const heading = document.createElement("tr");
      heading.className = "group";
      const cell = heading.insertCell();
      cell.colSpan = 10;
      cell.textContent = last;
      row.before(heading);
    }
  }

  remember(words, tones) {
    const query = new URLSearchParams();
    if (words.length) query.set("q", this.field.value);
    if (this.group.value) query.set("group", this.group.value);
    for (const tone of tones) query.append("tone", tone);
    history.replaceState(null, "", query.size ? `#${query}` : location.pathname);
  }
}

// --- the transcript ------------------------------------------------------------------------------------------------

const transcript = {
  unread: 0,
  heads: {}, // of turns, some of which wait and have no section yet

  apply(change) {
    const follows = atEnd();
    for (const [turn, html] of Object.entries(change.turns ?? {})) {
      this.heads[turn] = html;
      const head = $(`[data-head="${turn}"]`);
      if (head) head.innerHTML = html;
    }
    for (const item of change.items) this.add(item, follows);
    if (change.head) swap(change.head, $("#head"));
    if (change.foot) swap(change.foot, $("#foot"));
    if (change.ended && !document.hidden) this.seen();
    prepare(document);
    if (follows) toEnd();
    this.tell();
  },

  add(item, follows) {
    const call = item.call && $$(`[data-call="${CSS.escape(item.call)}"]`).at(-1);
    if (call) {
      $(".results", call).insertAdjacentHTML("beforeend", item.html);
      call.classList.toggle("failed", item.failed);
      return;
    }
    const html = item.call ? `<div class="item loose">${item.html}</div>` : item.html;
    $(".items", this.section(item.turn)).insertAdjacentHTML("beforeend", html);
    if (!follows) this.unread += 1;
  },

  section(turn) {
    const last = $$(".turn", $("#transcript")).at(-1);
    if (last && (turn === null || last.dataset.turn === String(turn))) return last;
    const made = document.createElement("section");
    made.className = "turn";
    made.dataset.turn = turn ?? "";
    if (turn !== null) {
      const head = made.appendChild(document.createElement("header"));
      head.dataset.head = turn;
      head.innerHTML = this.heads[turn] ?? `<h2>Turn ${Number(turn)}</h2>`;
    }
    made.appendChild(document.createElement("div")).className = "items";
    $("#transcript").append(made);
    return made;
  },

  tell() {
    const pill = $("#new-items");
    if (atEnd()) this.unread = 0;
    pill.hidden = !this.unread;
    pill.textContent = `${this.unread} new ↓`;
  },

  seen() {
    const id = $("[data-session]").dataset.session;
    if (document.body.hasAttribute("data-read-only")) return;
    fetch(`/s/${id}/seen`, { method: "POST", headers: { "Hiveyard-Page": "1" } }).catch(() => null);
  },
};

const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 120;
const toEnd = () => scrollTo({ top: document.documentElement.scrollHeight });

// --- keys ----------------------------------------------------------------------------------------------------------

const visibleItems = () => $$("[data-item]").filter((item) => item.offsetParent !== null);

function select(item) {
  for (const other of $$(".selected")) other.classList.remove("selected");
  if (!item) return;
  item.classList.add("selected");
  item.focus({ preventScroll: true });
  item.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const found = visibleItems();
  const at = found.indexOf($(".selected"));
  select(found[Math.min(Math.max(at + by, 0), found.length - 1)] ?? null);
}

let before = "";
const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  a: () => press("a"),
  d: () => (before === "g" ? location.assign("/") : press("d")),
  o: () => (before === "g" ? location.assign("/overview") : open_()),
  Enter: () => open_(),
  n: () => next(),
  c: () => location.assign("/new"),
  i: () => $("#prompt")?.focus(),
  "/": () => ($("#search") ? $("#search").focus() : location.assign("/overview")),
  "?": () => $("#keys").showModal(),
};

function press(key) {
  const item = $(".selected") ?? (page() === "session" ? $(".ask") : null);
  $(`[data-key="${key}"]`, item ?? document.createElement("div"))?.click();
}

function open_() {
  const item = $(".selected");
  if (item && document.activeElement === item) location.assign(item.dataset.href);
}

function next() {
  if (page() !== "desk") return location.assign("/#n");
  const found = visibleItems();
  select(found[(found.indexOf($(".selected")) + 1) % (found.length || 1)]);
}

document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input, textarea, select");
  if (field && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    field.form?.requestSubmit($("#send, #start, .primary", field.form));
    return;
  }
  if (event.key === "Escape" && field) field.blur();
  if (event.key === "Escape") closeMenus();
  if (field || event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
  if (event.key === "Enter" && event.target.closest("a, button, summary")) return;
  const act = KEYS[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
  before = event.key;
});

// --- small things --------------------------------------------------------------------------------------------------

function closeMenus(except = null) {
  for (const menu of $$("details.menu[open]")) if (menu !== except) menu.open = false;
}

document.addEventListener("click", (event) => {
  closeMenus(event.target.closest("details.menu"));
  if (event.target.closest("[data-close]")) event.target.closest(".toast").remove();
  if (event.target.closest("[data-close-dialog]")) $("#dialog").close();
  if (event.target.closest("#help")) $("#keys").showModal();
  if (event.target.closest("#new-items")) toEnd();
  const row = event.target.closest("tr[data-item]");
  if (row && !event.target.closest("a, button, summary, details") && !String(getSelection())) {
    location.assign(row.dataset.href);
  }
});
document.addEventListener("input", (event) => {
  const typed = event.target.closest("form[data-typed]");
  if (typed) $("button.solid", typed).disabled = event.target.value.trim() !== typed.dataset.typed;
  if (event.target.matches("[data-draft]")) {
    store(event.target.dataset.draft, event.target.value);
    grow(event.target);
  }
  if (event.target.name === "kind") event.target.form.dataset.kind = event.target.value;
});
document.addEventListener("scroll", () => page() === "session" && transcript.tell(), { passive: true });
addEventListener("storage", (event) => {
  const field = event.key?.startsWith("draft-") && $(`[data-draft="${CSS.escape(event.key.slice(6))}"]`);
  if (field && document.activeElement !== field) field.value = event.newValue ?? "";
});

function store(key, value) {
  if (value) localStorage.setItem(`draft-${key}`, value);
  else localStorage.removeItem(`draft-${key}`);
}

function grow(field) {
  field.rows = Math.min(14, Math.max(Number(field.dataset.rows ??= field.rows), field.value.split("\n").length));
}

function age(seconds) {
  if (seconds < 5) return "now";
  if (seconds < 120) return `${Math.floor(seconds)}s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)}m`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)}h` : `${Math.round(seconds / 86400)}d`;
}

function tick() {
  for (const time of $$("time")) {
    const at = new Date(time.dateTime);
    const words = age(Math.max(0, (Date.now() - at) / 1000));
    if (time.textContent !== words) time.textContent = words;
    if (!time.title) time.title = at.toLocaleString();
  }
}

function prepare(root) {
  // What was added since: fields of a browser that may only look are closed, messages go away by themselves.
  if (document.body.hasAttribute("data-read-only")) {
    for (const one of $$("form[hx-post] button, form[hx-post] textarea, [hx-post]:not(form)", root)) one.disabled = true;
  }
  for (const one of $$("#toasts .toast:not([data-timed])")) {
    one.dataset.timed = "";
    setTimeout(() => one.remove(), one.classList.contains("bad") ? 15000 : 3000);
  }
  tick();
}

customElements.define("hv-table", Table);
connection("away");
prepare(document);
for (const field of $$("[data-draft]")) {
  field.value = localStorage.getItem(`draft-${field.dataset.draft}`) ?? field.value;
  grow(field);
}
waiting(Number(document.body.dataset.waiting));
if (page() === "session") toEnd();
if (location.hash === "#n") step(1);
setInterval(tick, 5000);
new Live($("[data-live]")?.dataset.live ?? "/live");
