"use strict";
// Numbers, times and positions as people read them. Nothing here touches the page.
const Words = (() => {
  const formats = new Map();
  const number = (value, digits = 2, sign = false) => {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const key = `${digits}${sign}`;
    if (!formats.has(key)) {
      formats.set(key, new Intl.NumberFormat("en", {
        minimumFractionDigits: digits, maximumFractionDigits: digits, signDisplay: sign ? "exceptZero" : "negative",
      }));
    }
    return formats.get(key).format(value).replace("-", "−");
  };
  const percent = (fraction, digits = 2, sign = false) =>
    fraction === null || fraction === undefined || !Number.isFinite(fraction) ? "–" : `${number(100 * fraction, digits, sign)}%`;

  // Money with cents; prices with as many digits as tell them apart.
  const money = (value, sign = false) => number(value, 2, sign);
  const price = (value) => number(value, value === null || !value ? 2 : Math.min(8, Math.max(2, 5 - Math.ceil(Math.log10(Math.abs(value))))));
  const quantity = (value) => {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    return number(value, value === 0 ? 0 : Math.min(8, Math.max(0, 5 - Math.ceil(Math.log10(Math.abs(value))))));
  };

  const two = (value) => String(value).padStart(2, "0");
  const time = (ms) => {
    if (ms === null || ms === undefined) return "–";
    const at = new Date(ms);
    return `${at.getUTCFullYear()}-${two(at.getUTCMonth() + 1)}-${two(at.getUTCDate())} ${two(at.getUTCHours())}:${two(at.getUTCMinutes())}`;
  };
  const clock = (ms) => {
    if (ms === null || ms === undefined) return "–";
    const at = new Date(ms);
    return `${two(at.getUTCMonth() + 1)}-${two(at.getUTCDate())} ${two(at.getUTCHours())}:${two(at.getUTCMinutes())}:${two(at.getUTCSeconds())}`;
  };
  const duration = (seconds) => {
    if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
    const s = Math.max(0, Math.round(seconds));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
  };

  const target = (exposure) => {
    if (exposure === null || exposure === undefined) return "no order";
    if (exposure === 0) return "Flat";
    return `${exposure > 0 ? "Long" : "Short"} ${number(100 * Math.abs(exposure), 0)}%`;
  };
  const milliseconds = (value) => (value === null || value === undefined ? "–" : number(value, value < 10 ? 1 : 0));

  return { number, percent, money, price, quantity, time, clock, duration, target, milliseconds };
})();
