// What every part of the page uses: elements, numbers as text, data files, addresses, theme.
// All outside text becomes text nodes or attribute values; nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Attributes: "class", "on<event>" for listeners, booleans, strings; children: nodes, texts, lists of them, null. */
function h(tag, attributes, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function s(tag, attributes, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) append(element, child);
    else element.append(child instanceof Node ? child : String(child));
  }
}

function replace(element, ...children) {
  element.textContent = "";
  append(element, children);
}

// Numbers as text

const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function count(value) {
  return value === null || value === undefined ? "\u2013" : GROUPED.format(value);
}

function percent(share, digits = 1) {
  return share === null || share === undefined ? "\u2013" : fixed(100 * share, digits);
}

/**
 * A number with so many decimals, halves to the even digit, as reports and the terminal have it: 31.25 is 31.2. Halves are odd multiples
 * of a power of two; of everything else toFixed gives the nearest, exactly.
 */
function fixed(value, digits) {
  const isHalf = Math.abs(value * 2 ** (digits + 1)) % 2 === 1;
  if (!isHalf) return value.toFixed(digits);
  const below = Math.floor(value * 10 ** digits);
  return ((below % 2 === 0 ? below : below + 1) / 10 ** digits).toFixed(digits);
}

/** A length: 87, 3.2k, 114k. */
function length(value) {
  if (value === null || value === undefined) return "\u2013";
  if (value < 100) return String(Number(value.toFixed(1)));
  if (value < 1000) return value.toFixed(0);
  return (value / 1000).toFixed(value < 99950 ? 1 : 0) + "k";
}

function signed(points) {
  const text = fixed(Math.abs(points), 1);
  return (points < 0 && text !== "0.0" ? "\u2212" : "+") + text;
}

function plural(number, one, many) {
  return `${count(number)} ${number === 1 ? one : many || one + "s"}`;
}

// Data files: scripts that call ms4Data(name, value)

const waiting = new Map();
const loaded = new Map();
const KEPT_TEXTS = 40; // files of texts that stay in memory; a file has at most 200 kB

Object.defineProperty(window, "ms4Data", {
  value: (name, value) => {
    const entry = waiting.get(name);
    if (entry) entry.resolve(value);
  },
});

/** The value of a data file; each is loaded once. */
function load(name) {
  if (loaded.has(name)) return loaded.get(name);
  const promise = new Promise((resolve, reject) => {
    waiting.set(name, { resolve });
    const script = document.createElement("script");
    script.src = `${SITE.data}/${name}.js`;
    script.onload = () => {
      script.remove();
      waiting.delete(name);
      reject(new Error(`The file ${name}.js holds nothing.`)); // without effect once the file has called ms4Data
    };
    script.onerror = () => {
      script.remove();
      waiting.delete(name);
      loaded.delete(name);
      reject(new Error(`The file ${SITE.data}/${name}.js could not be read. If the leaderboard was built anew, reload this page.`));
    };
    document.head.append(script);
  });
  loaded.set(name, promise);
  return promise;
}

/** The fields of one item of files of texts. */
async function loadTexts(stem, first, last, item) {
  const names = [];
  for (let number = first; number <= last; number++) names.push(`${stem}-${number}`);
  const files = await Promise.all(names.map(load));
  forgetTexts(names);
  const fields = {};
  for (const pieces of files) {
    for (const [owner, name, text] of pieces) if (owner === item) (fields[name] ??= []).push(text);
  }
  return Object.fromEntries(Object.entries(fields).map(([name, parts]) => [name, parts.join("")]));
}

const textFiles = [];

function forgetTexts(names) {
  for (const name of names) {
    const index = textFiles.indexOf(name);
    if (index >= 0) textFiles.splice(index, 1);
    textFiles.push(name);
  }
  while (textFiles.length > Math.max(KEPT_TEXTS, names.length)) loaded.delete(textFiles.shift());
}

// Addresses: #/task/BOARD/samples?mode=high

/** {path: ["task", "ab12"], query: Map} of an address after the number sign. */
function parseAddress(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split("?", 2);
  const decoded = text => {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  };
  const pairs = (query || "")
    .split("&")
    .filter(Boolean)
    .map(pair => pair.split("=", 2).map(part => decoded(part || "")));
  return { path: path.split("/").filter(Boolean).map(decoded), query: new Map(pairs.map(([key, value]) => [key, value || ""])) };
}

function makeAddress(path, query) {
  const pairs = [...(query || new Map())].filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const text = pairs.map(([key, value]) => `${encodeURIComponent(key)}=${encodeURIComponent(value)}`).join("&");
  return "#/" + path.map(encodeURIComponent).join("/") + (text ? "?" + text : "");
}

/**
 * Put an address in the bar without a step in the history and without showing the page anew. A moment later, because browsers refuse pages
 * that do so at every keystroke; another page that is opened meanwhile has its own address.
 */
function keepAddress(path, query) {
  clearTimeout(keepTimer);
  keepTimer = setTimeout(() => {
    const address = makeAddress(path, query);
    if (location.hash === address || (location.hash === "" && address === "#/")) return;
    keptAddress = address;
    location.replace(address);
  }, 120);
}

let keptAddress = null;
let keepTimer = 0;

// Theme: as the system has it, until somebody chooses; the choice is remembered where the browser lets us

const THEMES = ["auto", "light", "dark"];

function readTheme() {
  try {
    const theme = localStorage.getItem("ms4-theme");
    return THEMES.includes(theme) ? theme : "auto";
  } catch {
    return "auto";
  }
}

function applyTheme(theme) {
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", theme);
  try {
    localStorage.setItem("ms4-theme", theme);
  } catch {
    // a browser that remembers nothing shows the system's theme next time
  }
}

function isDark() {
  const theme = document.documentElement.getAttribute("data-theme");
  return theme === "dark" || (theme === null && matchMedia("(prefers-color-scheme: dark)").matches);
}
