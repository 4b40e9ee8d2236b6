// Where an address leads, the bar at the top, and the keys.

const KEYS = [
  ["j  \u2193", "next sample"],
  ["k  \u2191", "previous sample"],
  ["/", "search"],
  ["t", "theme: as the system, light, dark"],
  ["o", "overview"],
  ["u", "up: from samples to their task, from a task to the overview"],
  ["?", "this list"],
  ["Esc", "close, leave the search field"],
];

let view = null;
let showing = 0;

async function route() {
  if (keptAddress !== null && location.hash === keptAddress) return; // the page wrote this address itself
  keptAddress = null;
  clearTimeout(keepTimer);
  const mine = ++showing;
  const { path, query } = parseAddress(location.hash);
  const main = document.getElementById("main");
  const board = path[0] === "task" ? SITE.boards.find(item => item.id === path[1]) : null;
  view = null;
  document.title = board ? `${board.title} \u2013 ${SITE.title}` : SITE.title;
  document.body.className = board && path[2] === "samples" ? "browsing" : "";
  try {
    if (board && path[2] === "samples") {
      const browser = await showSamples(main, board, query);
      if (mine === showing) view = browser;
    } else if (board) {
      await showTask(main, board, query);
    } else if (path.length === 0) {
      showOverview(main, query);
    } else {
      replace(
        main,
        h("h1", { tabindex: "-1" }, "Not here"),
        h("p", null, "This leaderboard has no such page. ", h("a", { href: "#/" }, "All tasks"), "."),
      );
    }
  } catch (error) {
    if (mine === showing)
      replace(main, h("p", { class: "failure", role: "alert" }, error.message), h("p", null, h("a", { href: "#/" }, "All tasks")));
    if (!(error instanceof Error) || !/could not be read|holds nothing/.test(error.message)) throw error;
  }
}

function focusHeading() {
  window.scrollTo(0, 0);
  document.querySelector("main h1")?.focus({ preventScroll: true });
}

function themeButton() {
  const button = h("button", { type: "button", class: "button", onclick: next });
  function next() {
    applyTheme(THEMES[(THEMES.indexOf(readTheme()) + 1) % THEMES.length]);
    label();
  }
  function label() {
    const theme = document.documentElement.getAttribute("data-theme") || "auto";
    button.textContent = `theme: ${theme}`;
    button.setAttribute("aria-label", `Theme: ${theme === "auto" ? `as the system, ${isDark() ? "dark" : "light"}` : theme}. Change it`);
  }
  label();
  button.next = next;
  return button;
}

function helpDialog() {
  const dialog = h(
    "dialog",
    {
      "aria-labelledby": "keys-title",
      onclick: event => {
        if (event.target === dialog) dialog.close();
      },
    },
    h("h2", { id: "keys-title" }, "Keys"),
    h(
      "dl",
      { class: "keys" },
      KEYS.map(([key, text]) => [h("dt", null, h("kbd", null, key)), h("dd", null, text)]),
    ),
    h("button", { type: "button", class: "button", autofocus: true, onclick: () => dialog.close() }, "Close"),
  );
  return dialog;
}

function isTyping(target) {
  return (
    target instanceof HTMLTextAreaElement ||
    target instanceof HTMLSelectElement ||
    (target instanceof HTMLInputElement && target.type !== "radio" && target.type !== "checkbox")
  );
}

function start() {
  applyTheme(readTheme());
  const theme = themeButton();
  const dialog = helpDialog();
  document.body.prepend(
    h(
      "a",
      {
        class: "skip",
        href: "#main",
        onclick: event => {
          event.preventDefault();
          focusHeading();
        },
      },
      "Skip to the content",
    ),
    h(
      "header",
      { class: "bar-top" },
      h("a", { class: "brand", href: "#/" }, SITE.title),
      h("span", { class: "grow" }),
      theme,
      h("button", { type: "button", class: "button", "aria-label": "Keys", onclick: () => dialog.showModal() }, "?"),
    ),
  );
  document.body.append(dialog);
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    if (event.key === "Escape" && isTyping(event.target)) event.target.blur();
    if (isTyping(event.target)) return;
    const { path } = parseAddress(location.hash);
    const inList = view && view.list === document.activeElement;
    const actions = {
      j: () => view?.step(1),
      k: () => view?.step(-1),
      ArrowDown: () => !inList && view && document.activeElement === document.body && view.step(1),
      ArrowUp: () => !inList && view && document.activeElement === document.body && view.step(-1),
      "/": () => document.getElementById("search")?.focus(),
      "?": () => dialog.showModal(),
      t: () => theme.next(),
      o: () => {
        location.hash = "#/";
      },
      u: () => {
        location.hash = path[2] === "samples" ? makeAddress(["task", path[1]]) : "#/";
      },
    };
    if (!(event.key in actions)) return;
    const result = actions[event.key]();
    if (result !== false || event.key.length === 1) event.preventDefault();
  });
  window.addEventListener("hashchange", () => {
    const isOwn = location.hash === keptAddress;
    route();
    if (!isOwn) focusHeading();
  });
  route();
  document.documentElement.setAttribute("data-ready", "");
}

start();
