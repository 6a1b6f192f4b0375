// Parse what a person types, pastes or uploads into the numbers of a window.
"use strict";

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;
const THOUSANDS = /^[+-]?[1-9]\d{0,2}(,\d{3}){1,2}(\.\d+)?$/;

class ValuesError extends Error {}

const plainName = (name) => name.toLowerCase().replace(/[\s_"']/g, "");

function toNumber(text) {
  const number = Number(text);
  if (!NUMBER.test(text) || !Number.isFinite(number)) throw new ValuesError(`“${text.slice(0, 40)}” is not a number`);
  return number;
}

// Parse a text into numbers for a model of one column, or rows of numbers for a model of several.
//
// Accepts numbers with any common separator, JSON (a list, or an object with "values"), and CSV with a header that
// names the model's columns; rows with dates are sorted, oldest first. Ambiguous input is refused.
function parseValues(text, columns) {
  const trimmed = text.trim();
  if (!trimmed) return [];
  if (/^[[{]/.test(trimmed)) return fromJson(trimmed, columns);
  const lines = trimmed.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  const first = lines[0].split(/[,;\t]/).map(plainName);
  if (first.some((cell) => /^[a-z]/.test(cell) && !/^(nan|inf|infinity)$/.test(cell))) {
    return fromTable(lines, columns);
  }
  if (columns.length > 1) return lines.map((line) => line.split(/[\s,;]+/).filter(Boolean).map(toNumber));
  const words = trimmed.split(/[\s;]+/).map((word) => word.replace(/^,+|,+$/g, "")).filter(Boolean);
  const thousands = words.some(provesThousands);
  return words.flatMap((word) => fromWord(word, words.length > 1, thousands));
}

// A number with commas before a point proves that commas separate thousands.
const provesThousands = (word) => word.includes(".") && THOUSANDS.test(word);

function ambiguous(word) {
  return new ValuesError(
    `“${word}” is ambiguous; write decimals with a point, thousands without commas, and separate numbers with spaces`,
  );
}

// Parse a word: one number, or several separated only by commas.
function fromWord(word, amongOthers, thousands) {
  if (!word.includes(",")) return [toNumber(word)];
  const parts = word.split(",");
  if (amongOthers && THOUSANDS.test(word)) {
    if (thousands) return [toNumber(word.replaceAll(",", ""))];
    throw ambiguous(word);
  }
  if (parts.length === 2 && !word.includes(".")) throw ambiguous(word);
  return parts.map(toNumber);
}

function fromJson(text, columns) {
  let content;
  try {
    content = JSON.parse(text);
  } catch (error) {
    throw new ValuesError(`This is not JSON: ${error.message}`);
  }
  const values = Array.isArray(content) ? content : content.values;
  if (!Array.isArray(values)) throw new ValuesError('There is no list of numbers; enter […] or {"values": […]}');
  const check = (value) => {
    if (typeof value !== "number") throw new ValuesError(`${JSON.stringify(value)} is not a number`);
    return value;
  };
  return values.map((value) => (columns.length > 1 && Array.isArray(value) ? value.map(check) : check(value)));
}

// Split a line into cells; quoted cells may contain the separator.
function cells(line, mark) {
  const found = [];
  let cell = "";
  let quoted = false;
  for (const letter of line) {
    if (letter === '"') quoted = !quoted;
    else if (letter === mark && !quoted) {
      found.push(cell.trim());
      cell = "";
    } else cell += letter;
  }
  return [...found, cell.trim()];
}

function fromTable(lines, columns) {
  const mark = ["\t", ";", ","].find((candidate) => lines[0].includes(candidate)) ?? ",";
  const [header, ...rows] = lines.map((line) => cells(line, mark));
  const names = header.map(plainName);
  const places = columns.map((name) => {
    const place = names.indexOf(plainName(name));
    if (place < 0 && !(columns.length === 1 && names.length === 1)) {
      throw new ValuesError(`There is no column ${name}; the columns are ${header.join(", ")}`);
    }
    return Math.max(place, 0);
  });
  rows.forEach((row, i) => {
    if (row.length !== header.length) {
      throw new ValuesError(`Line ${i + 2} has ${row.length} cells, the header has ${header.length}`);
    }
  });
  const dates = names.findIndex((name) => /^(date|datetime|time|timestamp)$/.test(name));
  if (dates >= 0) sortByDate(rows, dates);
  // Where commas separate cells, a comma inside a number was quoted; elsewhere it may be a decimal comma.
  const thousands = mark === "," || rows.some((row) => row.some(provesThousands));
  const number = (text) => {
    if (!THOUSANDS.test(text)) return toNumber(text);
    if (!thousands) throw ambiguous(text);
    return toNumber(text.replaceAll(",", ""));
  };
  const values = rows.map((row) => places.map((place) => number(row[place])));
  return columns.length > 1 ? values : values.map((row) => row[0]);
}

function sortByDate(rows, place) {
  const strange = rows.find((row) => !/^\d{4}-\d\d-\d\d/.test(row[place]) && !NUMBER.test(row[place]));
  if (strange) throw new ValuesError(`“${strange[place]}” is not a date in the form YYYY-MM-DD, which is needed to sort the rows`);
  const compare = (one, other) => (one < other ? -1 : one > other ? 1 : 0);
  const key = rows.every((row) => NUMBER.test(row[place])) ? Number : String;
  rows.sort((one, other) => compare(key(one[place]), key(other[place])));
}

// Format values for editing: one per line, the columns of a row separated by commas.
function showValues(values) {
  return values.map((value) => (Array.isArray(value) ? value.join(", ") : String(value))).join("\n");
}
