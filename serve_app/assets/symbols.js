// Find a symbol by typing: a combobox whose list the server fills (https://www.w3.org/WAI/ARIA/apg/patterns/combobox/).
"use strict";

const SHOWN_SYMBOLS = 20;
const TYPING_PAUSE_MS = 150; // from the last keystroke to the request

// Make `input` find symbols and show them in `list`, with a remark in `status`.
//
// `find(text, limit)` asks the server for the models whose symbols contain a text; `choose(symbol)` is called with the
// choice. Returns a function that shows the symbol that is chosen now.
function findSymbols(input, list, status, find, choose) {
  let current = "";
  let asked = 0; // counts questions, so that answers to earlier questions can be ignored
  let timer = 0;
  let active = -1; // number of the option that the arrow keys point at

  const options = () => [...list.children];

  function close() {
    clearTimeout(timer);
    asked += 1;
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    status.textContent = "";
    active = -1;
  }

  function show(symbol) {
    current = symbol;
    input.value = symbol;
    close();
  }

  function pointAt(number) {
    active = number;
    options().forEach((option, i) => option.setAttribute("aria-selected", String(i === active)));
    const option = options()[active];
    if (!option) return input.removeAttribute("aria-activedescendant");
    input.setAttribute("aria-activedescendant", option.id);
    option.scrollIntoView({ block: "nearest" });
  }

  function optionOf(symbol, i) {
    const option = document.createElement("li");
    option.id = `symbol-${i}`;
    option.role = "option";
    option.textContent = symbol;
    option.addEventListener("mousedown", (event) => event.preventDefault()); // the input keeps the focus
    option.addEventListener("click", () => take(symbol));
    return option;
  }

  // Ask for the symbols that contain a text and list them; return them, or null if there is a later question.
  async function open(text) {
    clearTimeout(timer);
    asked += 1;
    const mine = asked;
    let answer;
    try {
      answer = await find(text, SHOWN_SYMBOLS);
    } catch (error) {
      if (mine === asked) status.textContent = error.message;
      return null;
    }
    if (mine !== asked) return null;
    const symbols = answer.models.map((one) => one.symbol);
    list.replaceChildren(...symbols.map(optionOf));
    list.hidden = !symbols.length;
    input.setAttribute("aria-expanded", String(!list.hidden));
    pointAt(-1);
    status.textContent = remark(text, symbols.length, answer);
    return symbols;
  }

  function remark(text, count, { total, unusable }) {
    if (count < total) return `${count} of ${total.toLocaleString("en")}; type to find others`;
    if (count) return `${count} ${count === 1 ? "symbol" : "symbols"}`;
    if (unusable.length) return `${unusable[0].symbol} cannot be used: ${unusable[0].reason}`;
    return `No symbol contains “${text}”`;
  }

  function take(symbol) {
    show(symbol);
    choose(symbol);
  }

  // Take the option that the arrow keys point at, or the symbol that was typed, or the only one that contains the text.
  async function enter() {
    const pointed = options()[active];
    if (pointed) return take(pointed.textContent);
    const text = input.value.trim();
    const symbols = await open(text);
    if (!symbols) return;
    const typed = symbols.find((symbol) => symbol.toLowerCase() === text.toLowerCase());
    if (typed ?? symbols.length === 1) take(typed ?? symbols[0]);
  }

  input.addEventListener("focus", () => {
    input.select();
    open("");
  });
  input.addEventListener("input", () => {
    clearTimeout(timer);
    pointAt(-1); // the list is that of an earlier text
    timer = setTimeout(() => open(input.value.trim()), TYPING_PAUSE_MS);
  });
  input.addEventListener("blur", () => show(current));
  input.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const count = options().length;
    if (step && list.hidden) open("");
    else if (step && count) pointAt(active < 0 && step < 0 ? count - 1 : (active + step + count) % count);
    else if (event.key === "Enter") enter();
    else if (event.key === "Escape") show(current);
    else return;
    event.preventDefault();
  });
  return show;
}
