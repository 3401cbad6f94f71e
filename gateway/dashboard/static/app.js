// What pages need a script for beyond htmx: live refresh, the theme, the menu on a phone, sliders, keys while labelling.
"use strict";

const EVERY_MS = 3000;
const PATIENCE_MS = 8000;
const AGES_MS = 30000;
const root = document.documentElement;
const find = (selector, from = document) => from.querySelector(selector);
const findAll = (selector, from = document) => [...from.querySelectorAll(selector)];

// -- theme: as the system, light, dark

const THEMES = ["", "light", "dark"];

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-theme-button]");
  if (!button) return;
  const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "") + 1) % THEMES.length];
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  document.cookie = `headgate_theme=${next}; path=/; max-age=${next ? 31536000 : 0}; samesite=strict`;
  find("span", button).textContent = next || "as the system";
});

// -- menu on a phone

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-menu]");
  if (!button) return;
  const open = find("#side").classList.toggle("open");
  button.setAttribute("aria-expanded", String(open));
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !find("#side.open")) return;
  find("#side").classList.remove("open");
  const button = find("[data-menu]");
  button.setAttribute("aria-expanded", "false");
  button.focus();
});

// -- live: a cheap question every few seconds; regions are asked for again only when the answer has changed, or always
// where they say that they are restless: a job under way

let seen = null;
let paused = false;
let lastAsked = 0;

function light(state, word) {
  for (const one of findAll("[data-live-light]")) {
    one.classList.toggle("paused", state === "paused");
    one.classList.toggle("offline", state === "offline");
    const told = find("[data-live-word]", one);
    if (told.textContent !== word) told.textContent = word;
  }
}

// false: somebody is filling in a form of a region, which waits until he is done
function refresh() {
  const used = document.activeElement?.closest("form, [data-hold]");
  let all = true;
  for (const region of findAll("[data-live]")) {
    if (used && region.contains(used)) all = false;
    else htmx.trigger(region, "moved");
  }
  return all;
}

async function look() {
  if (paused || document.hidden || !find("[data-live]")) return;
  let answer;
  try {
    const asked = { headers: { "hx-request": "true" }, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) };
    answer = await fetch("/admin/revision", asked);
  } catch {
    return light("offline", "No answer; these figures are from before");
  }
  if (answer.status === 401) return signedOut();
  if (!answer.ok) return light("offline", "Not refreshed: the gateway refuses");
  const told = await answer.json();
  const mark = JSON.stringify([told.decisions, told.settings, told.alarms, told.database]);
  const moved = mark !== seen || Date.now() - lastAsked > AGES_MS || find("[data-restless]");
  if (seen !== null && moved) {
    if (!refresh()) return light("paused", "Waits while you fill in");
    lastAsked = Date.now();
  }
  seen = mark;
  light("live", told.database === "away" ? "Live, without the database" : "Live");
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-pause]");
  if (!button) return;
  paused = !paused;
  button.textContent = paused ? "Resume" : "Pause";
  button.setAttribute("aria-pressed", String(paused));
  light(paused ? "paused" : "live", paused ? "Paused" : "Live");
});

setInterval(look, EVERY_MS);
document.addEventListener("visibilitychange", look);
look();

// -- what failed without saying how replaces nothing: the page stays as it was

document.addEventListener("htmx:before:swap", (event) => {
  const { response, hx, sourceElement } = event.detail.ctx ?? {};
  if (!(response?.status >= 400) || hx?.retarget) return;
  event.preventDefault();
  light("offline", "Not refreshed: something failed");
  tell(sourceElement, `The gateway failed (status ${response.status}). Its log says why.`);
});

function tell(element, words) {
  const form = element?.closest?.("form");
  const problem = form && find(".problem", form);
  if (!problem) return;
  notice(problem, "error", words);
}

function notice(place, kind, ...words) {
  const note = document.createElement("div");
  note.className = `notice ${kind}`;
  note.append(...words);
  place.replaceChildren(note);
}

// -- after a part was replaced: the reader is taken to what was said, or to the new page; after a refusal back to where
// he was, since a button that is disabled while it works loses the focus

document.addEventListener("htmx:after:swap", (event) => {
  const note = find("#said .notice, [data-said]");
  if (note && !note.dataset.told) {
    note.dataset.told = "1";
    note.focus();
    note.scrollIntoView({ block: "nearest" });
  } else if (event.detail.ctx?.select === "#main" && document.activeElement === document.body) {
    find("#main").focus();
  }
});

document.addEventListener("htmx:finally:request", (event) => {
  const button = event.detail.ctx?.request?.submitter;
  setTimeout(() => {
    if (button?.isConnected && document.activeElement === document.body) button.focus();
  });
});

document.addEventListener("htmx:before:request", (event) => {
  const form = event.target.closest?.("form");
  if (!form) return;
  for (const problem of findAll(".problem", form)) problem.replaceChildren();
  for (const field of findAll("[aria-invalid]", form)) field.removeAttribute("aria-invalid");
});

document.addEventListener("refused", (event) => {
  const { param, slot } = event.detail;
  const form = find(slot)?.closest("form");
  const field = param && form?.elements[param];
  if (field instanceof HTMLElement) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
});

document.addEventListener("htmx:error", (event) => {
  const source = event.detail?.ctx?.sourceElement;
  tell(source, "The gateway did not answer. Nothing was changed that it has not confirmed; try again.");
});

// -- knobs: the slider and the number beside it are one value; a box says whether it is set at all

document.addEventListener("input", (event) => {
  const knob = event.target.closest("[data-knob]");
  if (!knob) return;
  const [range, number, box] = ["range", "number", "checkbox"].map((type) => find(`input[type=${type}]`, knob));
  if (event.target === range) number.value = fromSlider(range);
  if (event.target === number && number.value !== "") range.value = toSlider(range, Number(number.value));
  if (box && event.target !== box) box.checked = number.value !== "";
  if (event.target === box) number.value = box.checked ? fromSlider(range) : "";
  range.setAttribute("aria-valuetext", `${number.value || "not set"} ${knob.dataset.unit ?? ""}`.trim());
}, true);

document.addEventListener("reset", (event) => {
  const form = event.target;
  setTimeout(() => {
    for (const range of findAll("input[type=range]", form)) range.removeAttribute("aria-valuetext");
    form.dispatchEvent(new Event("input", { bubbles: true }));
  });
});

const isLog = (range) => range.dataset.scale === "log";
const round = (value) => Number(value.toPrecision(3));

function fromSlider(range) {
  return isLog(range) ? round(10 ** Number(range.value)) : Number(range.value);
}

function toSlider(range, value) {
  return isLog(range) ? Math.log10(Math.max(value, 1e-9)) : value;
}

// -- Enter in a form of several buttons presses the one of its own part, or none: never simply the first

document.addEventListener("keydown", (event) => {
  const form = event.target.form;
  if (event.key !== "Enter" || !form || !find("[data-choices]", form) || event.target.type === "submit") return;
  if (!(event.target instanceof HTMLInputElement)) return;
  event.preventDefault();
  event.target.closest("fieldset")?.querySelector("[data-enter]")?.click();
});

// -- keys: "/" goes to the search; while a label is being given, 1 2 3 are its three answers

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (event.key === "/" && !typing) {
    const search = find("[data-search]");
    if (search) {
      event.preventDefault();
      search.focus();
    }
  }
  const card = event.target.closest?.("[data-label-card]");
  if (card && !typing) find(`[data-key="${CSS.escape(event.key)}"]`, card)?.click();
});

// -- a secret that is shown once can be taken to the clipboard

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(find(button.dataset.copy).textContent);
  button.textContent = "Copied";
});

// -- the session ends while something is being filled in: this tab keeps it, secrets and files excepted, and puts it back
// for the same user after signing in

const DRAFT = "headgate-draft";
const UNKEPT = ["hidden", "password", "file", "submit"];
const here = () => location.pathname + location.search;

function typed() {
  const found = [];
  for (const form of findAll("form[method=post]")) {
    for (const field of form.elements) {
      if (!field.name || UNKEPT.includes(field.type) || field.tagName === "BUTTON" || isAsServed(field)) continue;
      found.push([placeOf(form), field.name, field.type === "checkbox" ? field.checked : field.value]);
    }
  }
  return found;
}

function isAsServed(field) {
  if (field.type === "checkbox") return field.checked === field.defaultChecked;
  if (field.tagName !== "SELECT") return field.value === field.defaultValue;
  return field.value === ([...field.options].find((one) => one.defaultSelected) ?? field.options[0])?.value;
}

// rows come and go: a form of a row is known by what it is about
function placeOf(form) {
  const about = form.elements.namedItem("name");
  return `${form.getAttribute("action")} ${about?.type === "hidden" ? about.value : ""}`;
}

function keepDraft() {
  const fields = typed();
  if (fields.length) {
    sessionStorage.setItem(DRAFT, JSON.stringify({ at: here(), user: document.body.dataset.user, fields }));
  }
}

function putBack() {
  const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
  if (!draft || !document.body.dataset.user) return;
  sessionStorage.removeItem(DRAFT);
  if (draft.at !== here() || draft.user !== document.body.dataset.user) return;
  let back = 0;
  for (const [place, name, value] of draft.fields) {
    const field = findAll("form[method=post]").find((form) => placeOf(form) === place)?.elements.namedItem(name);
    if (!field) continue;
    back += 1;
    if (field.type === "checkbox") field.checked = value;
    else field.value = value;
    field.closest("details")?.setAttribute("open", "");
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }
  if (back) notice(find("#said"), "info", "What you had filled in is back, without secrets and files. Nothing of it was sent.");
}

function signedOut() {
  light("offline", "Not refreshed: you are signed out");
  if (!typed().length) return location.reload();
  if (find("#problem .notice")) return;
  const link = document.createElement("a");
  link.href = `/login?next=${encodeURIComponent(here())}`;
  link.dataset.keep = "";
  link.textContent = "Sign in again";
  notice(find("#problem"), "error", "Your session has ended. ", link, "; what you have filled in stays.");
}

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-keep]")) keepDraft();
});

document.addEventListener("htmx:after:request", (event) => {
  if (event.detail.ctx?.hx?.redirect?.startsWith("/login")) keepDraft();
});

setTimeout(putBack); // once htmx follows the forms
