// From what a person types, pastes or uploads to the numbers of a window.
"use strict";

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;
const THOUSANDS = /^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$/;

class ValuesError extends Error {}

const plainName = (name) => name.toLowerCase().replace(/[\s_"']/g, "");

function toNumber(text) {
  const number = Number(text);
  if (!NUMBER.test(text) || !Number.isFinite(number)) throw new ValuesError(`“${text.slice(0, 40)}” is not a number`);
  return number;
}

// The values of a text: numbers for a model of one column, rows of numbers for one of several.
//
// Takes numbers divided by anything usual, JSON (a list, or an object with "values"), and CSV with a header that names
// the model's columns; rows with ISO dates are put oldest first.
function parseValues(text, columns) {
  const trimmed = text.trim();
  if (!trimmed) return [];
  if (/^[[{]/.test(trimmed)) return fromJson(trimmed, columns);
  const lines = trimmed.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  const first = lines[0].split(/[,;\t]/).map(plainName);
  if (first.some((cell) => /^[a-z]/.test(cell) && !/^(nan|inf|infinity)$/.test(cell))) {
    return fromTable(lines, first, columns);
  }
  if (columns.length > 1) return lines.map((line) => line.split(/[\s,;]+/).filter(Boolean).map(toNumber));
  const plain = (line) => NUMBER.test(line) || THOUSANDS.test(line);
  // 8,710 on a line of its own is one number, among lines that are numbers too; 8,710 alone could be two.
  if (lines.length > 1 && lines.every(plain)) return lines.map((line) => toNumber(line.replaceAll(",", "")));
  return lines.join(" ").split(/[\s,;]+/).filter(Boolean).map(toNumber);
}

function fromJson(text, columns) {
  let content;
  try {
    content = JSON.parse(text);
  } catch (error) {
    throw new ValuesError(`This is not JSON: ${error.message}`);
  }
  const values = Array.isArray(content) ? content : content.values;
  if (!Array.isArray(values)) throw new ValuesError('There is no list of numbers; give […] or {"values": […]}');
  const check = (value) => {
    if (typeof value !== "number") throw new ValuesError(`${JSON.stringify(value)} is not a number`);
    return value;
  };
  return values.map((value) => (columns.length > 1 && Array.isArray(value) ? value.map(check) : check(value)));
}

function fromTable(lines, header, columns) {
  const mark = ["\t", ";", ","].find((candidate) => lines[0].includes(candidate)) ?? ",";
  const places = columns.map((name) => {
    const place = header.indexOf(plainName(name));
    if (place < 0 && !(columns.length === 1 && header.length === 1)) {
      throw new ValuesError(`There is no column ${name}; there are ${lines[0].split(mark).join(", ")}`);
    }
    return Math.max(place, 0);
  });
  const dates = header.findIndex((name) => /^(date|datetime|time|timestamp)$/.test(name));
  const rows = lines.slice(1).map((line) => line.split(mark).map((cell) => cell.trim().replace(/^"|"$/g, "")));
  const iso = dates >= 0 && rows.every((row) => /^\d{4}-\d\d-\d\d/.test(row[dates] ?? ""));
  if (iso) rows.sort((one, other) => (one[dates] < other[dates] ? -1 : one[dates] > other[dates] ? 1 : 0));
  const values = rows.map((row) => places.map((place) => toNumber(row[place] ?? "")));
  return columns.length > 1 ? values : values.map((row) => row[0]);
}

// Values as they are edited: one a line, the columns of a row divided by commas.
function showValues(values) {
  return values.map((value) => (Array.isArray(value) ? value.join(", ") : String(value))).join("\n");
}
