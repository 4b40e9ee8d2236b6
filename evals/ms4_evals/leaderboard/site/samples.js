// Every sample of a task: a filtered list of which only the visible rows exist, and the open sample beside it.

const ROW_HEIGHT = 44;
const FINISHES = ["", "stop", "length"];
const ORDERS = [
  ["", "by problem"],
  ["thinking-down", "longest thinking"],
  ["answer-down", "longest answer"],
  ["total-down", "longest in all"],
  ["total-up", "shortest in all"],
];
const VERDICT_CHOICES = [
  ["", "all verdicts"],
  ...VERDICTS.map(verdict => [verdict, verdict === "no-answer" ? "no answer" : verdict === "truncated" ? "cut off" : verdict]),
  ["not-correct", "not correct"],
  ["disputed", "disputed by the second grader"],
];

async function showSamples(main, board, query) {
  const browser = new SampleBrowser(board, query);
  replace(main, browser.element);
  await browser.start();
  return browser;
}

/** Rows of the list: one object per sample, over all cells of the board. */
async function loadRows(board, details) {
  const cells = cellEntries(board, details);
  const chunks = await Promise.all(cells.map(entry => Promise.all(entry.details.samples.chunks.map(load))));
  const rows = [];
  cells.forEach((entry, cellIndex) => {
    let item = 0;
    for (const chunk of chunks[cellIndex]) {
      for (let index = 0; index < chunk.p.length; index++, item++) {
        rows.push({
          entry,
          item,
          problem: chunk.p[index],
          sample: chunk.i[index],
          verdict: chunk.v[index],
          opinion: chunk.o[index],
          thinking: chunk.tc[index],
          answer: chunk.ac[index],
          thinkingTokens: chunk.tt[index],
          answerTokens: chunk.at[index],
          finish: chunk.f[index],
          first: chunk.a[index],
          last: chunk.b[index],
          extracted: chunk.e[index],
          read: (chunk.e[index] || "").toLowerCase(),
        });
      }
    }
  });
  return rows;
}

class SampleBrowser {
  constructor(board, query) {
    this.board = board;
    this.rows = [];
    this.shown = [];
    this.active = -1;
    const modes = new Set(board.columns.map(column => column.mode));
    this.state = {
      q: query.get("q") || "",
      verdict: query.get("verdict") || "",
      model: query.get("model") || "",
      mode: modes.has(query.get("mode")) ? query.get("mode") : "",
      order: query.get("order") || "",
    };
    this.wanted = query.get("s") || "";
    this.list = h(
      "div",
      {
        class: "list",
        role: "listbox",
        tabindex: "0",
        "aria-label": "Samples",
        "aria-activedescendant": "",
        onscroll: () => this.drawRows(),
        onkeydown: event => this.listKey(event),
      },
      (this.spacer = h("div", { class: "spacer", role: "presentation" })),
    );
    this.pane = h("article", { class: "pane", "aria-label": "Sample", tabindex: "-1" }, h("p", { class: "status" }, "Loading \u2026"));
    this.status = h("p", { class: "status", role: "status", "aria-live": "polite" }, "Loading \u2026");
    const change = name => value => {
      this.state[name] = value;
      this.filter();
    };
    const models = [["", "all models"], ...board.rows.map(row => [SITE.models[row.model].key, SITE.models[row.model].label])];
    this.search = h("input", {
      type: "search",
      id: "search",
      value: this.state.q,
      placeholder: "problem or answer",
      autocomplete: "off",
      spellcheck: "false",
      oninput: event => change("q")(event.target.value),
    });
    this.element = h(
      "div",
      { class: "browser" },
      h(
        "nav",
        { class: "crumbs", "aria-label": "Breadcrumbs" },
        h("a", { href: "#/" }, SITE.title),
        " / ",
        h("a", { href: makeAddress(["task", board.id]) }, board.title),
        " / ",
        h("span", { "aria-current": "page" }, "samples"),
      ),
      h("h1", { tabindex: "-1", class: "small" }, `${board.title}: samples`),
      h(
        "form",
        { class: "filters", onsubmit: event => event.preventDefault() },
        field("Search", this.search),
        field("Verdict", select(VERDICT_CHOICES, this.state.verdict, change("verdict"))),
        field("Model", select(models, this.state.model, change("model"))),
        segmented(
          "Mode",
          MODE_CHOICES.filter(([name]) => !name || modes.has(name)),
          this.state.mode,
          change("mode"),
        ),
        field("Order", select(ORDERS, this.state.order, change("order"))),
      ),
      this.status,
      h("div", { class: "split" }, this.list, this.pane),
    );
  }

  async start() {
    this.details = await load(this.board.file);
    this.rows = await loadRows(this.board, this.details);
    new ResizeObserver(() => this.drawRows()).observe(this.list);
    this.filter();
  }

  key(row) {
    return [row.entry.model.key, this.board.columns[row.entry.index].id, this.details.problems.ids[row.problem], row.sample].join(" ");
  }

  filter() {
    const { verdict, model, mode } = this.state;
    const problems = this.details.problems.ids.map(id => id.toLowerCase());
    const wanted = words(this.state.q);
    const code = VERDICTS.indexOf(verdict),
      correct = VERDICTS.indexOf("correct");
    this.shown = this.rows.filter(row => {
      if (model && row.entry.model.key !== model) return false;
      if (mode && row.entry.column.mode !== mode) return false;
      if (
        verdict === "disputed" ? !isDisputed(row) : verdict === "not-correct" ? row.verdict === correct : verdict && row.verdict !== code
      )
        return false;
      return wanted.every(word => problems[row.problem].includes(word) || row.read.includes(word));
    });
    this.sort();
    this.spacer.style.height = `${this.shown.length * ROW_HEIGHT}px`;
    const ofAll = this.shown.length === this.rows.length ? "" : ` of ${count(this.rows.length)}`;
    this.status.textContent = this.rows.length
      ? this.shown.length
        ? `${plural(this.shown.length, "sample")}${ofAll}`
        : `No sample is like this, of ${count(this.rows.length)}.`
      : "There are no samples yet.";
    const open = this.wanted || (this.current ? this.key(this.current) : "");
    const index = open ? this.shown.findIndex(row => this.key(row) === open) : -1;
    if (open && index < 0 && this.wanted) this.status.textContent += " The sample of this address is not among them.";
    this.wanted = "";
    this.go(index >= 0 ? index : 0, { keep: true });
  }

  sort() {
    const [name, direction] = this.state.order.split("-");
    const measure = { thinking: row => row.thinking, answer: row => row.answer, total: row => row.thinking + row.answer }[name];
    if (measure) {
      const sign = direction === "down" ? -1 : 1;
      this.shown.sort((a, b) => sign * (measure(a) - measure(b)));
    } else {
      this.shown.sort(
        (a, b) => a.problem - b.problem || a.entry.rowIndex - b.entry.rowIndex || a.entry.index - b.entry.index || a.sample - b.sample,
      );
    }
  }

  /** Open the sample at a place of the list and bring it into view. */
  go(index, { keep = false } = {}) {
    if (!this.shown.length) {
      this.active = -1;
      this.current = null;
      this.drawRows();
      replace(this.pane, h("p", { class: "status" }, "No sample is open."));
      this.keep();
      return;
    }
    this.active = Math.max(0, Math.min(index, this.shown.length - 1));
    const top = this.active * ROW_HEIGHT,
      height = this.list.clientHeight;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    else if (top + ROW_HEIGHT > this.list.scrollTop + height)
      this.list.scrollTop = keep ? Math.max(0, top - height / 2) : top + ROW_HEIGHT - height;
    this.drawRows();
    const row = this.shown[this.active];
    if (row !== this.current) {
      this.current = row;
      showSample(this.pane, this, row);
    }
    this.keep();
  }

  keep() {
    keepAddress(
      ["task", this.board.id, "samples"],
      new Map([...Object.entries(this.state), ["s", this.current ? this.key(this.current) : ""]]),
    );
  }

  drawRows() {
    const from = Math.max(0, Math.floor(this.list.scrollTop / ROW_HEIGHT) - 4);
    const to = Math.min(this.shown.length, Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW_HEIGHT) + 4);
    const options = [];
    for (let index = from; index < to; index++) options.push(this.option(index));
    replace(this.spacer, options);
    this.list.setAttribute("aria-activedescendant", this.active >= from && this.active < to ? `sample-${this.active}` : "");
  }

  option(index) {
    const row = this.shown[index];
    const option = h(
      "div",
      {
        class: "option",
        id: `sample-${index}`,
        role: "option",
        "aria-selected": index === this.active ? "true" : "false",
        "aria-setsize": this.shown.length,
        "aria-posinset": index + 1,
        onclick: () => this.go(index),
      },
      verdictBadge(VERDICTS[row.verdict]),
      h(
        "span",
        { class: "option-main" },
        h(
          "span",
          { class: "option-problem" },
          this.details.problems.ids[row.problem],
          h("span", { class: "option-number" }, ` #${row.sample + 1}`),
        ),
        h(
          "span",
          { class: "option-model" },
          h("span", { class: `chip c${row.entry.model.color}`, "aria-hidden": "true" }),
          row.entry.model.label,
        ),
      ),
      h(
        "span",
        { class: "option-facts" },
        h("span", null, row.entry.column.heading),
        h("span", null, `${length(row.thinking)} + ${length(row.answer)}`),
      ),
    );
    option.style.top = `${index * ROW_HEIGHT}px`;
    return option;
  }

  listKey(event) {
    const page = Math.max(1, Math.floor(this.list.clientHeight / ROW_HEIGHT) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter") {
      this.pane.focus();
    } else if (event.key in steps && !event.altKey && !event.ctrlKey && !event.metaKey) {
      this.go(Math.max(0, Math.min(this.active + steps[event.key], this.shown.length - 1)));
    } else {
      return;
    }
    event.preventDefault();
  }

  step(change) {
    if (this.active >= 0) this.go(this.active + change);
  }
}

function isDisputed(row) {
  const correct = VERDICTS.indexOf("correct");
  return row.opinion >= 0 && OPINIONS[row.opinion] !== "failed" && (OPINIONS[row.opinion] === "correct") !== (row.verdict === correct);
}
